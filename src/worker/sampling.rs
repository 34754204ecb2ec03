//! Choice of an answer's next token: samplers, constraint and reasoning budget together.
//!
//! While the model reasons, a schema or a lazy grammar rests. When the budget of the reasoning is spent, or the model
//! would end its answer inside the reasoning without having given what it must, the end tag is written for it.

use std::{collections::VecDeque, sync::Arc};

use super::{
    WorkerError,
    constraint::AnswerConstraint,
    picking::pick_from_all,
    protocol::{ReasoningSyntax, SamplerSettings},
    reasoning::{ReasoningStep, ReasoningTracker},
};
use crate::llama::{LlamaSampler, Model, SamplerChain, TokenCandidates, TokenId, logit_bias};

/// Sampler of one answer.
#[derive(Debug)]
pub(super) struct TokenSampler {
    model: Arc<Model>,
    /// Samplers that the settings need; `None` is plain greedy.
    chain: Option<SamplerChain>,
    reasoning: Option<ReasoningTracker>,
    constraint: Option<AnswerConstraint>,
    /// Tokens that are written for the model, before it chooses again.
    forced: VecDeque<TokenId>,
}

/// Seed that makes llama.cpp choose one at random (`LLAMA_DEFAULT_SEED`).
const RANDOM_SEED: u32 = u32::MAX;
/// Number of candidates that each stage of a chain leaves at least.
const MIN_KEEP: usize = 1;

impl TokenSampler {
    /// Makes a sampler whose penalties know the prompt's last tokens.
    pub(super) fn new(
        model: &Arc<Model>,
        settings: &SamplerSettings,
        reasoning: Option<ReasoningSyntax>,
        constraint: Option<AnswerConstraint>,
        context_length: u32,
        prompt: &[TokenId],
    ) -> Self {
        Self {
            model: Arc::clone(model),
            chain: chain(model, settings, context_length, prompt),
            reasoning: reasoning.map(ReasoningTracker::new),
            constraint,
            forced: VecDeque::new(),
        }
    }

    /// Chooses the next token. The second value is false when a constraint says that the answer is complete with it.
    pub(super) fn sample(
        &mut self,
        logits: &[f32],
        candidates: &mut TokenCandidates,
    ) -> Result<(TokenId, bool), WorkerError> {
        if self.forced.is_empty() && self.reasoning.as_ref().is_some_and(ReasoningTracker::must_end) {
            self.end_reasoning();
        }
        let token = match self.forced.pop_front() {
            Some(token) => Some(token),
            None if self.constraint.is_some() && !self.is_paused() => match &mut self.constraint {
                Some(constraint) => constraint.choose(logits, self.chain.as_mut(), candidates)?,
                None => None,
            },
            None => pick_from_all(logits, self.chain.as_mut(), candidates),
        };
        let mut token = token.ok_or(WorkerError::NoTokenLeft)?;
        if self.model.is_end_of_generation(token) && self.is_paused() && self.is_enforced() {
            // A model that would end its answer inside its reasoning has not given what it must.
            self.end_reasoning();
            token = self.forced.pop_front().unwrap_or(token);
        }
        let continues = self.accept(token)?;
        Ok((token, continues))
    }

    /// Returns the number of tokens of the answer so far that were reasoning.
    pub(super) fn reasoning_tokens(&self) -> u32 {
        self.reasoning.as_ref().map_or(0, ReasoningTracker::tokens)
    }

    /// True when there is a constraint that is not in force now.
    fn is_paused(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningTracker::inside)
            && self
                .constraint
                .as_ref()
                .is_some_and(AnswerConstraint::pauses_while_reasoning)
    }

    /// True when the answer has to hold something that has not come.
    fn is_enforced(&self) -> bool {
        self.constraint.as_ref().is_some_and(AnswerConstraint::is_enforced)
    }

    fn accept(&mut self, token: TokenId) -> Result<bool, WorkerError> {
        // Also the tokens that were written for the model: penalties count what stands in the answer.
        if let Some(chain) = &mut self.chain {
            chain.accept(token);
        }
        // As it was before the token, which may end the reasoning.
        let was_paused = self.is_paused();
        let step = match &mut self.reasoning {
            Some(reasoning) => {
                let mut piece = Vec::new();
                // With control tokens, since tags such as `</think>` are control tokens in some vocabularies.
                self.model.append_piece(token, true, &mut piece);
                reasoning.feed(&piece)
            }
            None => ReasoningStep::Nothing,
        };
        let Some(constraint) = &mut self.constraint else {
            return Ok(true);
        };
        let continues = if was_paused { true } else { constraint.accept(token)? };
        if let (ReasoningStep::Ended { tag }, true, Some(reasoning)) = (step, was_paused, &self.reasoning) {
            let end = self.model.tokenize(&reasoning.syntax().ends[tag], false, true)?;
            constraint.after_reasoning(&end);
        }
        Ok(continues)
    }

    /// Writes the end of the reasoning for the model.
    fn end_reasoning(&mut self) {
        let end = self
            .reasoning
            .as_ref()
            .and_then(|reasoning| reasoning.syntax().ends.first());
        if let Some(tokens) = end.and_then(|end| self.model.tokenize(end, false, true).ok()) {
            self.forced.extend(tokens);
        }
    }
}

/// Returns the samplers that a request's settings need; `None` if picking the best logit is all.
fn chain(model: &Model, settings: &SamplerSettings, context_length: u32, prompt: &[TokenId]) -> Option<SamplerChain> {
    let penalized = settings.repeat_last_n != 0
        && (settings.repeat_penalty != 1.0 || settings.frequency_penalty != 0.0 || settings.presence_penalty != 0.0);
    // llama.cpp's temperature sampler would do this too, by ruling out all tokens but one for the random choice after
    // it.
    let greedy = settings.temperature <= 0.0;
    let mut biases = settings.logit_bias.clone();
    biases.extend(
        model
            .suppressed_tokens()
            .into_iter()
            .map(|token| (token, f32::NEG_INFINITY)),
    );
    if greedy && !penalized && biases.is_empty() {
        return None;
    }
    let mut stages = Vec::new();
    if !biases.is_empty() {
        stages.push(logit_bias(model.vocab_size(), &biases));
    }
    // A negative number is the whole context. A window beyond the context would only be memory that a client makes us
    // allocate.
    let last_n = u32::try_from(settings.repeat_last_n).map_or(context_length, |n| n.min(context_length)) as i32;
    if penalized {
        stages.push(LlamaSampler::penalties(
            model.vocab_size() as i32,
            last_n,
            settings.repeat_penalty,
            settings.frequency_penalty,
            settings.presence_penalty,
        ));
    }
    if greedy {
        stages.push(LlamaSampler::greedy());
    } else {
        // The order is Ollama's: top-k first, since it leaves the others little to sort; the temperature last.
        stages.push(LlamaSampler::top_k(settings.top_k));
        if settings.typical_p < 1.0 {
            stages.push(LlamaSampler::typical(settings.typical_p, MIN_KEEP));
        }
        if settings.top_p < 1.0 {
            stages.push(LlamaSampler::top_p(settings.top_p, MIN_KEEP));
        }
        if settings.min_p > 0.0 {
            stages.push(LlamaSampler::min_p(settings.min_p, MIN_KEEP));
        }
        stages.push(LlamaSampler::temp(settings.temperature));
        stages.push(LlamaSampler::dist(settings.seed.unwrap_or(RANDOM_SEED)));
    }
    let mut chain = SamplerChain::new(stages);
    if penalized {
        // As in llama-server, the window of the penalties begins in the prompt.
        let tail = prompt.len().saturating_sub(usize::try_from(last_n).unwrap_or(0));
        for &token in &prompt[tail..] {
            chain.accept(token);
        }
    }
    Some(chain)
}
