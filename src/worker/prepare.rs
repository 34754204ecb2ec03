//! Preparation of jobs on a separate thread: tokenizing the prompt, compiling schema and grammar, building sampler and
//! reader.
//!
//! A prompt of megabytes takes a second to tokenize, and a large schema as long to compile; on the engine thread that
//! would delay the next token of every other answer. Questions about texts are answered here too.

use std::sync::{
    Arc,
    mpsc::{Receiver, SyncSender},
};

use super::{
    EngineInput,
    answer::AnswerReader,
    constraint::{AnswerConstraint, SchemaCompiler},
    embed::EmbedTask,
    protocol::{EmbedJob, Job, JobPrompt, JsonSchema, WorkerQuestion, WorkerReply, WorkerReport},
    sampling::TokenSampler,
};
use crate::{
    inference::{Failure, TextToken},
    llama::{LlamaError, Model, TokenId},
};

/// Largest number of texts in one embedding request.
const MAX_INPUTS: usize = 65_536;

/// Task of the thread that prepares.
#[derive(Debug)]
pub(super) enum PrepareTask {
    Job(Box<Job>),
    Question(u64, Box<WorkerQuestion>),
}

/// Job that can be started.
#[derive(Debug)]
pub(super) struct PreparedJob {
    pub(super) job: Job,
    pub(super) prompt: Vec<TokenId>,
    pub(super) sampler: TokenSampler,
    pub(super) answer: AnswerReader,
}

/// Context lengths of the loaded model, in tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct ContextWindows {
    /// Context length of a generating sequence.
    pub(super) generate: u32,
    /// Largest length of a text that becomes a vector.
    pub(super) embed: u32,
    /// True for a model that makes vectors only.
    pub(super) embeds_only: bool,
}

/// Works until the engine is gone.
pub(super) fn run(
    model: &Arc<Model>,
    windows: ContextWindows,
    tasks: &Receiver<PrepareTask>,
    engine: &SyncSender<EngineInput>,
) {
    let mut preprocessor = Preprocessor {
        model: Arc::clone(model),
        windows,
        schemas: None,
    };
    while let Ok(task) = tasks.recv() {
        let done = match task {
            PrepareTask::Job(job) => {
                let id = job.id;
                EngineInput::Prepared(id, preprocessor.prepare(*job).map(Box::new))
            }
            PrepareTask::Question(id, question) => match preprocessor.answer_question(*question) {
                Ok(QuestionOutcome::Reply(reply)) => {
                    EngineInput::Report(WorkerReport::Answered { id, result: Ok(reply) })
                }
                Ok(QuestionOutcome::Embed(inputs)) => EngineInput::Embed(EmbedTask::new(id, inputs)),
                Err(failure) => EngineInput::Report(WorkerReport::Answered {
                    id,
                    result: Err(failure),
                }),
            },
        };
        if engine.send(done).is_err() {
            return;
        }
    }
}

enum QuestionOutcome {
    Reply(WorkerReply),
    Embed(Vec<Vec<TokenId>>),
}

struct Preprocessor {
    model: Arc<Model>,
    windows: ContextWindows,
    schemas: Option<SchemaCompiler>,
}

impl Preprocessor {
    /// Prepares a job. A prompt that is too long is refused before schema and tools are compiled, because the caller
    /// may shorten it and ask again.
    fn prepare(&mut self, job: Job) -> Result<PreparedJob, Failure> {
        if self.windows.embeds_only {
            return Err(Failure::Invalid("the model makes vectors, no text".into()));
        }
        let limit = job.context_length.min(self.windows.generate).max(1);
        let prompt = self.tokenize(&job.prompt)?;
        if prompt.is_empty() {
            return Err(Failure::Invalid("the prompt has no tokens".into()));
        }
        // Not `>`: the first token of the answer needs a position, too.
        if prompt.len() >= limit as usize {
            return Err(Failure::ContextExceeded {
                prompt_tokens: prompt.len() as u32,
                context_length: limit,
            });
        }
        let schema = match &job.schema {
            None => None,
            Some(JsonSchema { text, strict }) => {
                let schemas = match &mut self.schemas {
                    Some(schemas) => schemas,
                    empty => empty.insert(SchemaCompiler::new(&self.model).map_err(worker_failure)?),
                };
                let invalid = |error| Failure::Invalid(format!("invalid JSON schema in format: {error}"));
                Some(schemas.compile(text, *strict).map_err(invalid)?)
            }
        };
        let constraint = AnswerConstraint::new(&self.model, schema, job.chat.as_ref(), job.reasoning.as_ref())
            .map_err(|error| Failure::Invalid(format!("the tools cannot be made into a grammar: {error}")))?;
        let sampler = TokenSampler::new(
            &self.model,
            &job.sampling,
            job.reasoning.clone(),
            constraint,
            limit,
            &prompt,
        );
        let answer = AnswerReader::new(&job.stop, job.chat.as_ref()).map_err(worker_failure)?;
        Ok(PreparedJob {
            job,
            prompt,
            sampler,
            answer,
        })
    }

    fn tokenize(&self, prompt: &JobPrompt) -> Result<Vec<TokenId>, Failure> {
        let tokens = |text: &str, add_special| self.model.tokenize(text, add_special, true).map_err(invalid);
        match prompt {
            JobPrompt::Text { text, context } => {
                self.check_ids(context)?;
                let mut all = context.clone();
                all.extend(tokens(text, context.is_empty())?);
                // A template that writes the BOS token itself must not get a second one.
                if let (Some(bos), true) = (self.model.bos(), self.model.adds_bos())
                    && all.starts_with(&[bos, bos])
                {
                    all.remove(0);
                }
                Ok(all)
            }
            JobPrompt::Infill { prefix, suffix } => {
                let Some((pre, suf, mid)) = self.model.infill_tokens() else {
                    return Err(Failure::Invalid(
                        "the model's vocabulary has no fill-in-the-middle tokens".into(),
                    ));
                };
                let mut all = Vec::new();
                if let (Some(bos), true) = (self.model.bos(), self.model.adds_bos()) {
                    all.push(bos);
                }
                all.push(pre);
                all.extend(self.model.tokenize(prefix, false, false).map_err(invalid)?);
                all.push(suf);
                all.extend(self.model.tokenize(suffix, false, false).map_err(invalid)?);
                all.push(mid);
                Ok(all)
            }
        }
    }

    /// Refuses token ids that the vocabulary does not have. Clients send ids, and `llama_decode` would fail the whole
    /// batch.
    fn check_ids(&self, tokens: &[TokenId]) -> Result<(), Failure> {
        let vocabulary = self.model.vocab_size();
        match tokens
            .iter()
            .find(|&&token| usize::try_from(token).map_or(true, |id| id >= vocabulary))
        {
            None => Ok(()),
            Some(token) => Err(Failure::Invalid(format!(
                "{token} is no token of the model: it has {vocabulary}"
            ))),
        }
    }

    fn answer_question(&self, question: WorkerQuestion) -> Result<QuestionOutcome, Failure> {
        let reply = match question {
            WorkerQuestion::Render(_) | WorkerQuestion::Convert(_) => {
                return Err(Failure::Worker("that is not for a model's worker".into()));
            }
            WorkerQuestion::Embed(job) => return self.tokenize_texts(&job).map(QuestionOutcome::Embed),
            WorkerQuestion::Tokenize {
                text,
                add_special,
                parse_special,
            } => {
                let tokens = self
                    .model
                    .tokenize(&text, add_special, parse_special)
                    .map_err(invalid)?;
                let token = |id| TextToken {
                    id,
                    bytes: self.model.detokenize(&[id], true),
                };
                WorkerReply::Tokens(tokens.into_iter().map(token).collect())
            }
            WorkerQuestion::Detokenize { tokens } => {
                self.check_ids(&tokens)?;
                let bytes = self.model.detokenize(&tokens, true);
                WorkerReply::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
        };
        Ok(QuestionOutcome::Reply(reply))
    }

    /// Tokenizes texts that become vectors, and truncates them to the window.
    fn tokenize_texts(&self, job: &EmbedJob) -> Result<Vec<Vec<TokenId>>, Failure> {
        if job.inputs.len() > MAX_INPUTS {
            return Err(Failure::Invalid(format!(
                "the request has more than {MAX_INPUTS} inputs; send them in several"
            )));
        }
        let limit = job.context_length.min(self.windows.embed) as usize;
        job.inputs
            .iter()
            .map(|text| {
                let mut tokens = self.model.tokenize(text, true, false).map_err(invalid)?;
                if tokens.len() > limit {
                    if !job.truncate {
                        return Err(Failure::Invalid("the input length exceeds the context length".into()));
                    }
                    self.truncate(&mut tokens, limit);
                    if tokens.is_empty() {
                        return Err(Failure::Invalid(
                            "input after truncation exceeds maximum context length".into(),
                        ));
                    }
                }
                if tokens.is_empty() {
                    // An empty text has no tokens in a model that puts none around a text, and without any there is no
                    // vector.
                    tokens.extend(self.model.bos().or(self.model.eos()));
                }
                Ok(tokens)
            })
            .collect()
    }

    /// Truncates a text's tokens but keeps the token that the model wants at its end, such as SEP or EOS.
    fn truncate(&self, tokens: &mut Vec<TokenId>, limit: usize) {
        let wants_end = self.model.tokenize("", true, false).unwrap_or_default();
        let end = tokens.last().copied().filter(|last| wants_end.last() == Some(last));
        if limit < wants_end.len() {
            return tokens.clear();
        }
        tokens.truncate(limit);
        if let (Some(end), Some(last)) = (end, tokens.last_mut()) {
            *last = end;
        }
    }
}

fn invalid(error: LlamaError) -> Failure {
    Failure::Invalid(error.to_string())
}

fn worker_failure(error: impl std::fmt::Display) -> Failure {
    Failure::Worker(error.to_string())
}
