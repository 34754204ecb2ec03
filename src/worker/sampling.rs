//! From logits to a token, as the request wants it.

use std::{collections::VecDeque, sync::Arc};

use super::{
    constraint::AnswerConstraint,
    picking::pick_from_all,
    protocol::{ReasoningSyntax, SamplerSettings},
    reasoning::{ReasoningStep, ReasoningTracker},
};
use crate::llama::{Model, SamplerChain, TokenCandidates, TokenId};

/// The sampler of one answer.
#[derive(Debug)]
pub(super) struct TokenSampler {
    model: Arc<Model>,
    /// `None` is plain greedy: the best logit, no chain needed.
    chain: Option<SamplerChain>,
    reasoning: Option<ReasoningTracker>,
    constraint: Option<AnswerConstraint>,
    /// Tokens that are written for the model.
    forced: VecDeque<TokenId>,
}

/// The seed that makes llama.cpp choose one at random.
const RANDOM_SEED: u32 = u32::MAX;

impl TokenSampler {
    /// A sampler that has seen the prompt's last tokens.
    pub(super) fn new(
        model: &Arc<Model>,
        settings: &SamplerSettings,
        reasoning: Option<ReasoningSyntax>,
        constraint: Option<AnswerConstraint>,
        context: u32,
        prompt: &[TokenId],
    ) -> Result<Self, String> {
        Ok(Self {
            model: Arc::clone(model),
            chain: chain(model, settings, context, prompt)?,
            reasoning: reasoning.map(ReasoningTracker::new),
            constraint,
            forced: VecDeque::new(),
        })
    }

    /// Chooses the next token. The second value is `false` when a constraint says that the answer is complete with it.
    pub(super) fn sample(
        &mut self,
        logits: &[f32],
        candidates: &mut TokenCandidates,
    ) -> Result<(TokenId, bool), String> {
        if self.forced.is_empty() && self.reasoning.as_ref().is_some_and(ReasoningTracker::must_end) {
            self.end_reasoning();
        }
        let token = match self.forced.pop_front() {
            Some(token) => Some(token),
            None if self.constraint.is_some() && !self.rests() => match &mut self.constraint {
                Some(constraint) => constraint.choose(logits, self.chain.as_mut(), candidates)?,
                None => None,
            },
            None => pick_from_all(logits, self.chain.as_mut(), candidates),
        };
        let mut token = token.ok_or("no token is left to choose from")?;
        if self.model.is_end_of_generation(token) && self.rests() && self.owes() {
            // A model that would end its answer in the middle of its reasoning has not given what it has to.
            self.end_reasoning();
            token = self.forced.pop_front().unwrap_or(token);
        }
        let goes_on = self.accept(token)?;
        Ok((token, goes_on))
    }

    /// Tokens of the answer so far that were reasoning.
    pub(super) fn reasoning_tokens(&self) -> u32 {
        self.reasoning.as_ref().map_or(0, ReasoningTracker::tokens)
    }

    /// Whether the constraint is not in force just now.
    fn rests(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningTracker::inside)
            && self
                .constraint
                .as_ref()
                .is_some_and(AnswerConstraint::rests_while_reasoning)
    }

    /// Whether the answer has to hold something that has not come.
    fn owes(&self) -> bool {
        self.constraint.as_ref().is_some_and(AnswerConstraint::is_led)
    }

    fn accept(&mut self, token: TokenId) -> Result<bool, String> {
        if let Some(chain) = &mut self.chain {
            chain.accept(token);
        }
        let rested = self.rests();
        let step = match &mut self.reasoning {
            Some(reasoning) => {
                let mut piece = Vec::new();
                self.model.append_piece(token, true, &mut piece);
                reasoning.feed(&piece)
            }
            None => ReasoningStep::Nothing,
        };
        let Some(constraint) = &mut self.constraint else {
            return Ok(true);
        };
        let goes_on = if rested { true } else { constraint.accept(token)? };
        if let (ReasoningStep::Ended { tag }, true, Some(reasoning)) = (step, rested, &self.reasoning) {
            let end = self.model.tokenize(&reasoning.syntax().ends[tag], false, true)?;
            constraint.after_reasoning(&end);
        }
        Ok(goes_on)
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

/// The samplers that a request's settings need; `None` if the best logit is all.
fn chain(
    model: &Model,
    settings: &SamplerSettings,
    context: u32,
    prompt: &[TokenId],
) -> Result<Option<SamplerChain>, String> {
    let penalised = settings.repeat_last_n != 0
        && (settings.repeat_penalty != 1.0 || settings.frequency_penalty != 0.0 || settings.presence_penalty != 0.0);
    let greedy = settings.temperature <= 0.0;
    let mut biases = settings.logit_bias.clone();
    biases.extend(
        model
            .suppressed_tokens()
            .into_iter()
            .map(|token| (token, f32::NEG_INFINITY)),
    );
    if greedy && !penalised && biases.is_empty() {
        return Ok(None);
    }
    let vocab_size = model.vocab_size() as i32;
    let mut chain = SamplerChain::new().ok_or("no memory for a sampler")?;
    if !biases.is_empty() {
        chain.logit_bias(vocab_size, &biases);
    }
    // A window beyond the context would only be memory that a client makes us allocate.
    let last_n = u32::try_from(settings.repeat_last_n).map_or(context, |n| n.min(context)) as i32;
    if penalised {
        chain.penalties(
            vocab_size,
            last_n,
            settings.repeat_penalty,
            settings.frequency_penalty,
            settings.presence_penalty,
        );
    }
    if greedy {
        chain.greedy();
    } else {
        chain.top_k(settings.top_k);
        if settings.typical_p < 1.0 {
            chain.typical(settings.typical_p);
        }
        if settings.top_p < 1.0 {
            chain.top_p(settings.top_p);
        }
        if settings.min_p > 0.0 {
            chain.min_p(settings.min_p);
        }
        chain.temperature(settings.temperature);
        chain.distribution(settings.seed.unwrap_or(RANDOM_SEED));
    }
    if penalised {
        let tail = prompt.len().saturating_sub(usize::try_from(last_n).unwrap_or(0));
        for &token in &prompt[tail..] {
            chain.accept(token);
        }
    }
    Ok(Some(chain))
}
