//! Sequences of a model that generates: each step fills a batch, decodes it, and samples a token for each sequence that
//! is ready.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{
    LIFE_INTERVAL, ReportSender, WorkerError,
    prefix::{SlotChoice, SlotOffer, choose_slot, common_prefix},
    prepare::PreparedJob,
    protocol::{LoadedModel, WorkerReport},
    scheduler::{BatchLimits, PrefillPace, plan_batch},
    slot::{ActiveJob, AnswerProgress, SequenceSlot},
};
use crate::{
    inference::{Delta, Event, Failure, FinishReason},
    llama::{Batch, Context, LlamaError, Model, TokenCandidates, TokenId},
};

/// Owner of the generating context, its slots and the jobs that wait for one.
pub(super) struct AnswerGenerator {
    model: Arc<Model>,
    context: Context,
    slots: Vec<SequenceSlot>,
    /// Jobs that have no slot yet.
    waiting: VecDeque<PreparedJob>,
    batch: Batch,
    batch_tokens: usize,
    context_length: u32,
    can_shift: bool,
    pace: PrefillPace,
    candidates: TokenCandidates,
    /// Number of jobs that were started, which serves as a clock for slots.
    jobs: u64,
    /// Events of the current step, which are sent in one frame.
    events: Vec<(u64, Event)>,
    /// Time of the last sign of life.
    last_sign_of_life: Instant,
}

impl AnswerGenerator {
    pub(super) fn new(context: Context, loaded: &LoadedModel) -> Self {
        let batch_tokens = context.batch_size();
        Self {
            model: Arc::clone(context.model()),
            slots: (0..loaded.parallel).map(|_| SequenceSlot::default()).collect(),
            waiting: VecDeque::new(),
            batch: Batch::new(batch_tokens),
            batch_tokens,
            context_length: loaded.context_length,
            can_shift: loaded.can_shift,
            pace: PrefillPace::new(),
            candidates: TokenCandidates::default(),
            jobs: 0,
            events: Vec::new(),
            last_sign_of_life: Instant::now(),
            context,
        }
    }

    /// True when there is something to decode, or a job that can be started.
    pub(super) fn is_busy(&self) -> bool {
        let decodes = self.slots.iter().any(|slot| {
            let demand = slot.demand();
            demand.decode || demand.prefill > 0
        });
        decodes || (!self.waiting.is_empty() && self.slots.iter().any(|slot| slot.active.is_none()))
    }

    pub(super) fn set_threads(&mut self, threads: u32) {
        self.context.set_threads(threads);
    }

    /// Queues a job for the next idle slot.
    pub(super) fn push(&mut self, prepared: PreparedJob) {
        self.waiting.push_back(prepared);
    }

    /// Allows a job to send more events.
    pub(super) fn credit(&mut self, id: u64, events: u32) {
        let active = self.slots.iter_mut().filter_map(|slot| slot.active.as_mut());
        if let Some(active) = active.into_iter().find(|active| active.job.id == id) {
            active.credit = active.credit.saturating_add(events);
        }
    }

    pub(super) fn cancel(&mut self, id: u64) {
        self.waiting.retain(|prepared| prepared.job.id != id);
        for slot in &mut self.slots {
            if slot.active.as_ref().is_some_and(|active| active.job.id == id) {
                slot.active = None;
            }
        }
    }

    /// Starts jobs that wait, decodes once, and sends the events of the step.
    pub(super) fn advance(&mut self, reports: &mut ReportSender) {
        self.admit(reports);
        self.step(reports);
        self.send_signs_of_life();
        if !self.events.is_empty() {
            let events = std::mem::take(&mut self.events);
            reports.send(&WorkerReport::Events(events));
        }
    }

    /// Gives waiting jobs to idle slots.
    fn admit(&mut self, reports: &mut ReportSender) {
        while self.slots.iter().any(|slot| slot.active.is_none()) {
            let Some(prepared) = self.waiting.pop_front() else {
                return;
            };
            let id = prepared.job.id;
            if let Err(failure) = self.start(prepared) {
                reports.send(&WorkerReport::Failed { id, failure });
            }
        }
    }

    fn start(&mut self, prepared: PreparedJob) -> Result<(), Failure> {
        let offers: Vec<SlotOffer<'_>> = self
            .slots
            .iter()
            .map(|slot| SlotOffer {
                idle: slot.active.is_none(),
                cached: &slot.cached,
                last_used: slot.last_used,
            })
            .collect();
        // A sliding-window cache does not hold all of a sequence, and recurrent state cannot be cut to the common part.
        let can_copy = self.model.sliding_window() == 0 && !self.model.is_recurrent();
        let Some(SlotChoice { slot: index, copy_from }) = choose_slot(&offers, &prepared.prompt, can_copy) else {
            return Err(Failure::Worker("no sequence is idle".into()));
        };
        self.jobs += 1;
        if let Some(busy) = copy_from {
            self.context.copy_sequence(busy as i32, index as i32);
            self.slots[index].cached = self.slots[busy].cached.clone();
        }
        let reused = self.reuse(index, &prepared.prompt);
        let slot = &mut self.slots[index];
        slot.last_used = self.jobs;
        slot.active = Some(ActiveJob::new(prepared, reused, &self.model, self.jobs));
        Ok(())
    }

    /// Cuts a slot's cache back to the part that the prompt can use, and returns the number of its tokens.
    fn reuse(&mut self, index: usize, prompt: &[TokenId]) -> usize {
        let sequence = index as i32;
        // At least one token is decoded again: the first token is sampled from its logits, which the cache does not
        // hold.
        let mut shared = common_prefix(&self.slots[index].cached, prompt).min(prompt.len() - 1);
        if shared > 0 {
            // A sliding-window cache has dropped the positions before its window, and to continue at `shared` the model
            // must see a whole window before that.
            let window = self.model.sliding_window() as usize;
            let oldest = usize::try_from(self.context.min_position(sequence)).unwrap_or(usize::MAX);
            if window > 0 && oldest > shared.saturating_sub(window) {
                shared = 0;
            }
        }
        if shared < self.slots[index].cached.len() && !self.context.remove(sequence, shared as i32, -1) {
            // Recurrent state cannot be cut at any place: `llama_memory_recurrent::seq_rm` only removes a whole
            // sequence.
            self.context.remove(sequence, -1, -1);
            shared = 0;
        }
        self.slots[index].cached.truncate(shared);
        shared
    }

    /// Decodes one batch of all sequences that have something to decode.
    fn step(&mut self, reports: &mut ReportSender) {
        self.make_room();
        let demands: Vec<_> = self.slots.iter().map(SequenceSlot::demand).collect();
        let limits = BatchLimits {
            batch: self.batch_tokens,
            prefill_beside_decode: self.pace.beside_decode(self.batch_tokens),
        };
        let grants = plan_batch(&demands, limits);
        self.batch.clear();
        let mut sampled_at: Vec<Option<i32>> = vec![None; self.slots.len()];
        let mut prefilled = 0;
        for (index, &grant) in grants.iter().enumerate() {
            let slot = &mut self.slots[index];
            let Some(active) = &mut slot.active else { continue };
            for _ in 0..grant {
                let (token, last) = match active.next.take() {
                    Some(token) => (token, true),
                    None => {
                        let Some(token) = active.prompt_left.pop() else { break };
                        prefilled += 1;
                        (token, active.prompt_left.is_empty())
                    }
                };
                // The position is the length of the cache, which is cut and shifted along with llama.cpp's. The token
                // is noted before it is decoded; when the decode fails, the whole cache of the slot is dropped.
                let added = self.batch.add(token, slot.cached.len() as i32, index as i32, last);
                slot.cached.push(token);
                if last {
                    sampled_at[index] = added;
                }
            }
        }
        if self.batch.is_empty() {
            return;
        }
        let started = Instant::now();
        if let Err(error) = self.context.decode(&mut self.batch) {
            return self.fail_batch(&grants, &error, reports);
        }
        // On a GPU the decode goes on in the background, and its time is measured only for prompts. Sampling waits for
        // it anyway.
        if prefilled > 0 {
            self.context.synchronize();
        }
        self.pace.observe(prefilled, started.elapsed());
        for (index, batch_index) in sampled_at.into_iter().enumerate() {
            if let Some(batch_index) = batch_index {
                self.sample(index, batch_index, reports);
            }
        }
    }

    /// Sends an empty delta to every job as a sign of life: a long prompt, a long tool call and a wait for a slot give
    /// no text for a while, which must not look like a hang. It costs no credit.
    fn send_signs_of_life(&mut self) {
        if self.batch.is_empty() || self.last_sign_of_life.elapsed() < LIFE_INTERVAL {
            return;
        }
        self.last_sign_of_life = Instant::now();
        // A parked job is left out: its reader is behind, and would only get more to read.
        let active = self
            .slots
            .iter()
            .filter_map(|slot| slot.active.as_ref())
            .filter(|active| active.credit > 0);
        let ids = active
            .map(|active| active.job.id)
            .chain(self.waiting.iter().map(|prepared| prepared.job.id));
        self.events.extend(ids.map(|id| (id, Event::Delta(Delta::default()))));
    }

    /// Shifts the sequences whose context is full, or ends their answers.
    fn make_room(&mut self) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let Some(active) = &slot.active else { continue };
            let limit = active.job.context_length.min(self.context_length) as usize;
            if active.next.is_none() || slot.cached.len() < limit {
                continue;
            }
            // As in llama-server, BOS and the first `num_keep` tokens stay, and half of the rest is dropped.
            let keep = (active.job.keep as usize + usize::from(self.model.adds_bos())).min(limit / 2);
            let discard = (slot.cached.len() - keep) / 2;
            let sequence = index as i32;
            let shifted = active.job.shift
                && self.can_shift
                && discard > 0
                && self.context.remove(sequence, keep as i32, (keep + discard) as i32);
            if shifted {
                self.context.shift(
                    sequence,
                    (keep + discard) as i32,
                    slot.cached.len() as i32,
                    -(discard as i32),
                );
                slot.cached.drain(keep..keep + discard);
            } else {
                self.finish(index, FinishReason::Length);
            }
        }
    }

    fn sample(&mut self, index: usize, batch_index: i32, reports: &mut ReportSender) {
        let Some(active) = &mut self.slots[index].active else {
            return;
        };
        let id = active.job.id;
        // Nothing is sampled for a job that only wants its prompt computed.
        if active.job.max_tokens == 0 {
            return self.finish(index, FinishReason::Length);
        }
        let sampled = match self.context.logits(batch_index) {
            Some(logits) => active
                .sampler
                .sample(logits, &mut self.candidates)
                .map(|(token, continues)| (token, continues, logits)),
            None => Err(WorkerError::NoLogits),
        };
        match sampled {
            Ok((token, continues, logits)) => {
                let (delta, progress) = active.add_token(token, logits, continues, &self.model);
                if let Some(delta) = delta {
                    active.credit = active.credit.saturating_sub(1);
                    self.events.push((id, Event::Delta(delta)));
                }
                if let AnswerProgress::Ended(reason) = progress {
                    self.finish(index, reason);
                }
            }
            Err(error) => {
                self.slots[index].active = None;
                reports.send(&WorkerReport::Failed {
                    id,
                    failure: Failure::Worker(error.to_string()),
                });
            }
        }
    }

    fn finish(&mut self, index: usize, reason: FinishReason) {
        if let Some(active) = self.slots[index].active.take() {
            let id = active.job.id;
            self.events
                .extend(active.finish(reason).into_iter().map(|event| (id, event)));
        }
    }

    /// Ends the jobs whose tokens were in a batch that failed. Their caches are emptied, because some of the tokens may
    /// be in them; other jobs go on.
    fn fail_batch(&mut self, grants: &[usize], error: &LlamaError, reports: &mut ReportSender) {
        tracing::error!(%error, "decode failed");
        for (index, _) in grants.iter().enumerate().filter(|&(_, &grant)| grant > 0) {
            self.context.remove(index as i32, -1, -1);
            self.slots[index].cached.clear();
            if let Some(active) = self.slots[index].active.take() {
                reports.send(&WorkerReport::Failed {
                    id: active.job.id,
                    failure: Failure::Worker(error.to_string()),
                });
            }
        }
    }
}
