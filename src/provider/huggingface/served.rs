//! An hf: model as one request has found it: the checks that need no weights, and the calls to the worker.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    HuggingFace,
    answer_after_pull::AnswerAfterPull,
    located::{LocatedModel, not_downloaded_card},
    prepare, vectors,
};
use crate::{
    config::Config,
    hub::HfName,
    inference::{
        EmbedRequest, EmbeddingResult, Failure, InferencePrompt, InferenceRequest, KeepAlive, LoadOptions, ModelCard,
        TextToken,
    },
    lifecycle::Lease,
    provider::{CallContext, EventStream, RunnableModel, TokenizeRequest},
    worker::protocol::{EmbedJob, WorkerQuestion, WorkerReply},
};

/// An hf: model, found for one request.
#[derive(Debug)]
pub(super) struct HubModel {
    provider: Arc<HuggingFace>,
    call: CallContext,
    card: ModelCard,
    files: ModelFiles,
}

#[derive(Debug)]
enum ModelFiles {
    OnDisk(Arc<LocatedModel>),
    /// The request downloads the model when it uses it. Only if the progress of the download is shown in the answer.
    NotDownloaded(HfName),
}

impl HubModel {
    pub(super) fn on_disk(provider: Arc<HuggingFace>, call: &CallContext, located: LocatedModel) -> Self {
        Self {
            provider,
            call: call.clone(),
            card: located.card(),
            files: ModelFiles::OnDisk(Arc::new(located)),
        }
    }

    pub(super) fn not_downloaded(provider: Arc<HuggingFace>, call: &CallContext, name: &str, parsed: HfName) -> Self {
        Self {
            provider,
            call: call.clone(),
            card: not_downloaded_card(name),
            files: ModelFiles::NotDownloaded(parsed),
        }
    }

    /// Returns the model's files, downloaded if need be.
    async fn located(&self) -> Result<Arc<LocatedModel>, Failure> {
        match &self.files {
            ModelFiles::OnDisk(located) => Ok(Arc::clone(located)),
            ModelFiles::NotDownloaded(_) => Ok(Arc::new(self.provider.locate(&self.call, &self.card.name).await?)),
        }
    }

    /// Asks the worker a question that does not depend on any setting.
    async fn ask(&self, question: WorkerQuestion) -> Result<WorkerReply, Failure> {
        let located = self.located().await?;
        let settings = self
            .provider
            .settings(&self.call, &located, &LoadOptions::default())
            .await;
        let lease = self.provider.acquire(&self.call, &located, &settings, None).await?;
        self.ask_worker(&lease, question).await
    }

    async fn ask_worker(&self, lease: &Lease, question: WorkerQuestion) -> Result<WorkerReply, Failure> {
        lease.ask(question, self.call.config.engine.stream_timeout).await
    }
}

#[async_trait]
impl RunnableModel for HubModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    async fn load(&self, options: LoadOptions, keep_alive: Option<KeepAlive>) -> Result<(), Failure> {
        let located = self.located().await?;
        let settings = self.provider.settings(&self.call, &located, &options).await;
        let lease = self.provider.acquire(&self.call, &located, &settings, keep_alive);
        lease.await.map(drop)
    }

    async fn unload(&self) -> Result<(), Failure> {
        match &self.files {
            ModelFiles::OnDisk(located) => {
                self.provider.unload(&located.local).await;
                Ok(())
            }
            ModelFiles::NotDownloaded(_) => Err(Failure::NotFound(self.card.name.clone())),
        }
    }

    async fn infer(&self, request: InferenceRequest) -> Result<EventStream, Failure> {
        if let ModelFiles::NotDownloaded(name) = &self.files
            && AnswerAfterPull::is_wanted(&request)
            // Another answer to the same request may have downloaded it meanwhile.
            && self.provider.shows_progress_of_pull(&self.call, name).await
        {
            return Ok(AnswerAfterPull::start(
                Arc::clone(&self.provider),
                self.call.clone(),
                name,
                self.card.name.clone(),
                request,
            ));
        }
        let located = self.located().await?;
        self.provider.answer(&self.call, &located, request).await
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbeddingResult, Failure> {
        check_length(&self.call.config, request.inputs.iter().map(String::len))?;
        let located = self.located().await?;
        let settings = self.provider.settings(&self.call, &located, &request.load).await;
        let lease = self
            .provider
            .acquire(&self.call, &located, &settings, request.keep_alive)
            .await?;
        let load_duration = self.call.arrived.elapsed();
        let question = WorkerQuestion::Embed(EmbedJob {
            inputs: request.inputs,
            truncate: request.truncate,
            context_length: settings.window(&located.header.facts, lease.loaded().context_length),
        });
        let WorkerReply::Embedded { mut vectors, tokens } = self.ask_worker(&lease, question).await? else {
            return Err(unexpected_reply());
        };
        let unit = vectors::is_unit(request.normalization, located.header.vector_kind);
        for vector in &mut vectors {
            vectors::finish(vector, request.dimensions, unit)?;
        }
        // Ollama leaves out durations of zero, and clients expect the fields.
        let at_least = |duration: Duration| duration.max(Duration::from_nanos(1));
        Ok(EmbeddingResult {
            vectors,
            prompt_tokens: tokens,
            load_duration: at_least(load_duration),
            total_duration: at_least(self.call.arrived.elapsed()),
        })
    }

    async fn render(&self, request: InferenceRequest) -> Result<String, Failure> {
        let located = self.located().await?;
        check_prompt(&self.call.config, &located, &request.prompt)?;
        match &request.prompt {
            InferencePrompt::Chat { .. } => {
                let settings = self.provider.settings(&self.call, &located, &request.load).await;
                let messages = settings.conversation(&request.prompt);
                let (config, helper) = (&self.call.config, &self.provider.helper);
                let chat = prepare::render_conversation(helper, config, &located.header, &request, &messages).await?;
                Ok(chat.text)
            }
            InferencePrompt::Raw { text } => Ok(text.clone()),
            InferencePrompt::Infill { .. } => Err(Failure::Invalid(
                "a prompt with a suffix is made of tokens and has no text to show".into(),
            )),
        }
    }

    async fn tokenize(&self, request: TokenizeRequest) -> Result<Vec<TextToken>, Failure> {
        check_length(&self.call.config, [request.text.len()])?;
        let question = WorkerQuestion::Tokenize {
            text: request.text,
            add_special: request.add_special,
            parse_special: request.parse_special,
        };
        match self.ask(question).await? {
            WorkerReply::Tokens(tokens) => Ok(tokens),
            _ => Err(unexpected_reply()),
        }
    }

    async fn detokenize(&self, tokens: Vec<i32>) -> Result<String, Failure> {
        match self.ask(WorkerQuestion::Detokenize { tokens }).await? {
            WorkerReply::Text(text) => Ok(text),
            _ => Err(unexpected_reply()),
        }
    }
}

fn unexpected_reply() -> Failure {
    Failure::Worker("the worker answered something else than it was asked".into())
}

/// Refuses a prompt that is too long or has media, before a model is loaded for it.
pub(super) fn check_prompt(config: &Config, model: &LocatedModel, prompt: &InferencePrompt) -> Result<(), Failure> {
    check_length(config, prompt_lengths(prompt))?;
    check_media(prompt, model.local.base.mmproj.is_some())
}

/// Refuses texts with more than `engine.max_prompt_bytes` in all.
fn check_length(config: &Config, texts: impl IntoIterator<Item = usize>) -> Result<(), Failure> {
    let limit = config.engine.max_prompt_bytes;
    let bytes: usize = texts.into_iter().sum();
    if bytes > limit {
        return Err(Failure::Invalid(format!("the prompt has more than {limit} bytes")));
    }
    Ok(())
}

fn prompt_lengths(prompt: &InferencePrompt) -> Vec<usize> {
    match prompt {
        InferencePrompt::Chat { messages, tools, .. } => {
            let texts = messages.iter().map(|message| message.content.len());
            texts.chain(tools.iter().map(|tool| tool.raw.get().len())).collect()
        }
        InferencePrompt::Raw { text } => vec![text.len()],
        InferencePrompt::Infill { prefix, suffix } => vec![prefix.len(), suffix.len()],
    }
}

/// Refuses images and audio.
fn check_media(prompt: &InferencePrompt, has_projector: bool) -> Result<(), Failure> {
    let InferencePrompt::Chat { messages, .. } = prompt else {
        return Ok(());
    };
    if messages.iter().all(|message| message.media.is_empty()) {
        return Ok(());
    }
    Err(Failure::Invalid(if has_projector {
        "the model has a projector for images, but images of requests are not read yet; send text only".into()
    } else {
        // llama-server's text, which clients of Ollama see.
        "Multimodal data provided, but model does not support multimodal requests.".into()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{Message, ToolChoice};

    #[test]
    fn pictures_are_refused_and_never_dropped() {
        let chat = |media: &[&[u8]]| {
            let mut messages = [("user", "1"), ("assistant", "2"), ("user", "3")]
                .map(|(role, content)| Message::text(role, content))
                .to_vec();
            messages[0].media = media.iter().map(|bytes| bytes.to_vec()).collect();
            InferencePrompt::Chat {
                messages,
                tools: Vec::new(),
                tool_choice: ToolChoice::default(),
                parallel_tool_calls: true,
                context: Vec::new(),
            }
        };
        assert_eq!(check_media(&chat(&[]), true), Ok(()));
        let refusal = |has_projector| check_media(&chat(&[b"x"]), has_projector).unwrap_err().to_string();
        assert!(refusal(true).contains("not read yet; send text only"));
        assert!(refusal(false).contains("does not support multimodal requests"));
        assert_eq!(check_media(&InferencePrompt::Raw { text: "x".into() }, true), Ok(()));
    }
}
