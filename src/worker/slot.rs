//! Slot: one sequence of the generating context, the tokens in its KV cache, and the job that uses it.

use std::time::Instant;

use super::{
    answer::AnswerReader,
    prepare::PreparedJob,
    protocol::{Job, STREAM_CREDIT},
    sampling::TokenSampler,
    scheduler::SlotDemand,
};
use crate::{
    inference::{AnswerSummary, AnswerUsage, Delta, Event, FinishReason, TokenLogprob, TopLogprob},
    llama::{Model, TokenId, log_softmax_of},
};

/// Sequence of the context. Its index is the sequence's id in llama.cpp.
#[derive(Debug, Default)]
pub(super) struct SequenceSlot {
    /// Tokens in the KV cache, from position 0 on.
    pub(super) cached: Vec<TokenId>,
    /// Time of the last use, in jobs.
    pub(super) last_used: u64,
    pub(super) active: Option<ActiveJob>,
}

/// Job that has a slot.
#[derive(Debug)]
pub(super) struct ActiveJob {
    pub(super) job: Job,
    /// Prompt tokens that still have to be decoded, the last one first so that the next can be popped.
    pub(super) prompt_left: Vec<TokenId>,
    pub(super) prompt_tokens: u32,
    pub(super) cached_tokens: u32,
    /// Token that was sampled and is not decoded yet.
    pub(super) next: Option<TokenId>,
    pub(super) output: Vec<TokenId>,
    /// Tokens of the prompt, kept only if the answer returns its context.
    pub(super) prompt: Vec<TokenId>,
    pub(super) sampler: TokenSampler,
    pub(super) answer: AnswerReader,
    /// Control tokens whose text is part of the answer.
    pub(super) preserved: Vec<TokenId>,
    /// Log-probabilities of tokens whose text was not sent yet.
    pub(super) logprobs: Vec<TokenLogprob>,
    /// Number of events that may be sent before the reader takes some.
    pub(super) credit: u32,
    pub(super) arrival: u64,
    pub(super) started: Instant,
    pub(super) first_token: Option<Instant>,
}

impl SequenceSlot {
    /// Returns the tokens that this slot could use in the next step: none for a job whose reader is behind, which is
    /// parked.
    pub(super) fn demand(&self) -> SlotDemand {
        match &self.active {
            Some(active) if active.credit > 0 => SlotDemand {
                prefill: active.prompt_left.len(),
                decode: active.next.is_some(),
                arrival: active.arrival,
            },
            _ => SlotDemand::default(),
        }
    }
}

/// State of an answer after a token.
#[derive(Debug, PartialEq)]
pub(super) enum AnswerProgress {
    Continues,
    Ended(FinishReason),
}

impl ActiveJob {
    /// Starts a job in a slot whose cache has the first `cached` tokens of the prompt.
    pub(super) fn new(prepared: PreparedJob, cached: usize, model: &Model, arrival: u64) -> Self {
        let PreparedJob {
            job,
            prompt,
            sampler,
            answer,
        } = prepared;
        let preserved = job.chat.as_ref().map_or_else(Vec::new, |chat| {
            let single = |text: &String| match model.tokenize(text, false, true).ok()?.as_slice() {
                &[token] => Some(token),
                _ => None,
            };
            chat.rendered.preserved_tokens.iter().filter_map(single).collect()
        });
        let mut prompt_left = prompt[cached..].to_vec();
        prompt_left.reverse();
        Self {
            prompt_left,
            prompt_tokens: prompt.len() as u32,
            cached_tokens: cached as u32,
            next: None,
            output: Vec::new(),
            prompt: if job.return_context { prompt } else { Vec::new() },
            sampler,
            answer,
            preserved,
            logprobs: Vec::new(),
            credit: STREAM_CREDIT,
            arrival,
            started: Instant::now(),
            first_token: None,
            job,
        }
    }

    /// Adds a sampled token to the answer. Returns the text that can be sent now, and whether the answer goes on.
    /// `continues` is false when a constraint says that the answer is complete.
    pub(super) fn add_token(
        &mut self,
        token: TokenId,
        logits: &[f32],
        continues: bool,
        model: &Model,
    ) -> (Option<Delta>, AnswerProgress) {
        self.first_token.get_or_insert_with(Instant::now);
        if model.is_end_of_generation(token) {
            self.output.push(token);
            return (None, AnswerProgress::Ended(FinishReason::Stop));
        }
        self.output.push(token);
        let mut bytes = Vec::new();
        model.append_piece(token, self.preserved.contains(&token), &mut bytes);
        if let Some(top) = self.job.logprobs {
            let (logprob, best) = log_softmax_of(logits, token, usize::from(top));
            let top = best
                .into_iter()
                .map(|(id, logprob)| TopLogprob {
                    bytes: model.detokenize(&[id], true),
                    logprob,
                })
                .collect();
            self.logprobs.push(TokenLogprob {
                bytes: model.detokenize(&[token], true),
                logprob,
                top,
            });
        }
        let delta = self.answer.push(&bytes);
        let progress = if self.answer.stopped() || !continues {
            AnswerProgress::Ended(FinishReason::Stop)
        } else if self.output.len() as u64 >= u64::from(self.job.max_tokens) {
            AnswerProgress::Ended(FinishReason::Length)
        } else {
            self.next = Some(token);
            AnswerProgress::Continues
        };
        (self.with_logprobs(delta), progress)
    }

    /// Ends the answer and returns its last events.
    pub(super) fn finish(mut self, reason: FinishReason) -> Vec<Event> {
        let now = Instant::now();
        let delta = self.answer.finish(reason == FinishReason::Length);
        let mut events: Vec<Event> = self.with_logprobs(delta).map(Event::Delta).into_iter().collect();
        let first = self.first_token.unwrap_or(now);
        let mut context = std::mem::take(&mut self.prompt);
        if self.job.return_context {
            context.extend_from_slice(&self.output);
        }
        let usage = AnswerUsage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            prompt_duration: first.duration_since(self.started),
            output_tokens: self.output.len() as u32,
            reasoning_tokens: self.sampler.reasoning_tokens(),
            output_duration: now.duration_since(first),
            ..AnswerUsage::default()
        };
        events.push(Event::Finished(AnswerSummary {
            reason,
            stop_string: self.answer.stopped_by().map(str::to_owned),
            usage,
            context,
        }));
        events
    }

    /// Attaches the log-probabilities that wait for a piece of text; `None` if there is nothing to send.
    fn with_logprobs(&mut self, mut delta: Delta) -> Option<Delta> {
        delta.logprobs = std::mem::take(&mut self.logprobs);
        (delta != Delta::default()).then_some(delta)
    }
}
