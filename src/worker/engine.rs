//! The loop of a model worker.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc::TryRecvError},
    time::{Duration, Instant},
};

use super::{
    Commands, Reports,
    constraint::Constraints,
    prefix::{Offer, choose, common_prefix},
    protocol::{Command, Job, JobPrompt, LoadSpec, LoadedModel, Report},
    sampling::Sampler,
    scheduler::{Limits, PrefillPace, plan},
    slot::{Active, Progress, Slot},
};
use crate::{
    inference::{Delta, Event, Failure, FinishReason},
    llama::{self, Batch, Candidates, Context, ContextParams, DecodeError, DeviceKind, Model, ModelParams, Token},
};

/// Time between two signs of life of jobs that give no text.
const LIFE_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two reports of a load's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Loads the model that the first command names and serves it until the socket closes.
pub(super) fn run(commands: &Commands, reports: &mut Reports) {
    let Ok(Command::Load(spec)) = commands.recv() else {
        return reports.send(&Report::LoadFailed {
            reason: "the first command was not a load".into(),
        });
    };
    match load(&spec, reports) {
        Ok((context, loaded)) => {
            reports.send(&Report::Loaded(loaded.clone()));
            Engine::new(context, &loaded).run(commands, reports);
        }
        Err(reason) => reports.send(&Report::LoadFailed { reason }),
    }
}

fn load(spec: &LoadSpec, reports: &mut Reports) -> Result<(Context, LoadedModel), String> {
    let device_before = device_memory_used();
    let params = ModelParams {
        gpu_layers: spec.gpu_layers,
        main_gpu: spec.main_gpu,
        split_mode: spec.split_mode,
        tensor_split: spec.tensor_split.clone(),
        mmap: spec.mmap,
        check_tensors: spec.check_tensors,
    };
    let mut reported = Instant::now();
    let model = Model::load(&spec.path, &params, |fraction| {
        if reported.elapsed() >= PROGRESS_INTERVAL {
            reported = Instant::now();
            reports.send(&Report::Progress { fraction });
        }
        true
    })?;
    if model.has_encoder() {
        return Err("encoder-decoder models are not supported".into());
    }
    let model = Arc::new(model);
    let weights = model.size_bytes();
    let context_length = match (spec.context_length, model.train_context()) {
        (0, trained) => trained,
        (wanted, 0) => wanted,
        (wanted, trained) => wanted.min(trained),
    };
    let host_before = anonymous_memory();
    let params = ContextParams {
        context_per_sequence: context_length,
        sequences: spec.parallel.max(1),
        batch: spec.batch,
        threads: spec.threads.max(1),
        flash_attention: spec.flash_attention,
        kv_type_k: spec.kv_type_k,
        kv_type_v: spec.kv_type_v,
    };
    let context = Context::new(Arc::clone(&model), &params)?;
    let device_bytes = device_memory_used().saturating_sub(device_before);
    let host_bytes = anonymous_memory().saturating_sub(host_before);
    let size_bytes = (weights + host_bytes).max(device_bytes);
    let loaded = LoadedModel {
        context_length: context.context_per_sequence(),
        parallel: params.sequences,
        can_shift: context.can_shift() && !model.is_recurrent(),
        infill: model.infill_tokens().is_some(),
        size_bytes,
        device_bytes,
    };
    Ok((context, loaded))
}

/// Bytes in use on all devices with memory of their own.
fn device_memory_used() -> u64 {
    llama::devices()
        .iter()
        .filter(|device| matches!(device.kind, DeviceKind::Gpu | DeviceKind::IntegratedGpu))
        .map(|device| device.total_bytes.saturating_sub(device.free_bytes))
        .sum()
}

/// Bytes of this process that no file backs.
fn anonymous_memory() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/self/statm") else {
        return 0;
    };
    let mut fields = text
        .split_ascii_whitespace()
        .skip(1)
        .map_while(|field| field.parse::<u64>().ok());
    let (resident, shared) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}

struct Engine {
    model: Arc<Model>,
    context: Context,
    constraints: Option<Constraints>,
    slots: Vec<Slot>,
    /// Jobs for whom no slot is idle, with their prompts as tokens.
    waiting: VecDeque<(Job, Vec<Token>)>,
    batch: Batch,
    batch_tokens: usize,
    context_length: u32,
    can_shift: bool,
    pace: PrefillPace,
    candidates: Candidates,
    jobs: u64,
    /// What this step produced; one frame carries all of it.
    events: Vec<(u64, Event)>,
    alive: Instant,
}

impl Engine {
    fn new(context: Context, loaded: &LoadedModel) -> Self {
        let batch_tokens = context.batch_size();
        Self {
            model: Arc::clone(context.model()),
            slots: (0..loaded.parallel).map(|_| Slot::default()).collect(),
            waiting: VecDeque::new(),
            batch: Batch::new(batch_tokens),
            batch_tokens,
            context_length: loaded.context_length,
            can_shift: loaded.can_shift,
            pace: PrefillPace::new(),
            candidates: Candidates::default(),
            constraints: None,
            jobs: 0,
            events: Vec::new(),
            alive: Instant::now(),
            context,
        }
    }

    fn run(mut self, commands: &Commands, reports: &mut Reports) {
        while self.take_commands(commands, reports) {
            self.admit(reports);
            self.step(reports);
            self.show_life();
            if !self.events.is_empty() {
                let events = std::mem::take(&mut self.events);
                reports.send(&Report::Events(events));
            }
        }
    }

    /// Takes what has arrived; waits if there is nothing to decode. `false` when the socket is closed.
    fn take_commands(&mut self, commands: &Commands, reports: &mut Reports) -> bool {
        loop {
            let busy = self.slots.iter().any(|slot| {
                let demand = slot.demand();
                demand.decode || demand.prefill > 0
            });
            let can_admit = !self.waiting.is_empty() && self.slots.iter().any(|slot| slot.active.is_none());
            let command = if busy || can_admit {
                match commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            } else {
                match commands.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                }
            };
            match command {
                Command::Generate(job) => self.accept(*job, reports),
                Command::Cancel { id } => self.cancel(id),
                Command::Credit { id, events } => {
                    if let Some(active) = self.active(id) {
                        active.credit = active.credit.saturating_add(events);
                    }
                }
                Command::SetThreads { threads } => self.context.set_threads(threads),
                Command::Load(_) | Command::Render(_) => {
                    reports.send(&Report::LoadFailed {
                        reason: "this worker holds a model already".into(),
                    });
                }
            }
        }
    }

    fn active(&mut self, id: u64) -> Option<&mut Active> {
        self.slots
            .iter_mut()
            .filter_map(|slot| slot.active.as_mut())
            .find(|active| active.job.id == id)
    }

    fn cancel(&mut self, id: u64) {
        self.waiting.retain(|(job, _)| job.id != id);
        for slot in &mut self.slots {
            if slot.active.as_ref().is_some_and(|active| active.job.id == id) {
                slot.active = None;
            }
        }
    }

    /// Gives waiting jobs to idle slots.
    fn admit(&mut self, reports: &mut Reports) {
        while !self.waiting.is_empty() && self.slots.iter().any(|slot| slot.active.is_none()) {
            let Some((job, prompt)) = self.waiting.pop_front() else {
                return;
            };
            let id = job.id;
            if let Err(failure) = self.start(job, prompt) {
                reports.send(&Report::Failed { id, failure });
            }
        }
    }

    /// Takes a job in, or refuses it at once if its prompt is too long: who asked may want to shorten it.
    fn accept(&mut self, job: Job, reports: &mut Reports) {
        let limit = job.context_limit.min(self.context_length).max(1);
        let prompt = self.tokenize(&job.prompt).and_then(|prompt| match prompt.len() {
            0 => Err(Failure::Invalid("the prompt has no tokens".into())),
            length if length >= limit as usize => Err(Failure::ContextExceeded {
                prompt_tokens: length as u32,
                context_tokens: limit,
            }),
            _ => Ok(prompt),
        });
        match prompt {
            Ok(prompt) => self.waiting.push_back((job, prompt)),
            Err(failure) => reports.send(&Report::Failed { id: job.id, failure }),
        }
    }

    fn start(&mut self, job: Job, prompt: Vec<Token>) -> Result<(), Failure> {
        let limit = job.context_limit.min(self.context_length).max(1);
        let constraint = match &job.schema {
            None => None,
            Some(schema) => {
                let constraints = match &mut self.constraints {
                    Some(constraints) => constraints,
                    empty => empty.insert(Constraints::new(&self.model).map_err(Failure::Worker)?),
                };
                let invalid = |reason| Failure::Invalid(format!("invalid JSON schema in format: {reason}"));
                Some(constraints.compile(schema).map_err(invalid)?)
            }
        };
        let sampler = Sampler::new(&self.model, &job.sampling, constraint, limit, &prompt).map_err(Failure::Worker)?;
        let offers: Vec<Offer<'_>> = self
            .slots
            .iter()
            .map(|slot| Offer {
                idle: slot.active.is_none(),
                cached: &slot.cached,
                last_used: slot.last_used,
            })
            .collect();
        let Some(index) = choose(&offers, &prompt) else {
            return Err(Failure::Worker("no sequence is idle".into()));
        };
        self.jobs += 1;
        let reused = self.reuse(index, &prompt);
        let slot = &mut self.slots[index];
        slot.last_used = self.jobs;
        let active = Active::new(job, prompt, reused, sampler, &self.model, self.jobs).map_err(Failure::Worker)?;
        slot.active = Some(active);
        Ok(())
    }

    fn tokenize(&self, prompt: &JobPrompt) -> Result<Vec<Token>, Failure> {
        let tokens = |text: &str, add_special| self.model.tokenize(text, add_special, true).map_err(Failure::Invalid);
        match prompt {
            JobPrompt::Text { text, context } => {
                let vocabulary = self.model.vocab_size();
                if context
                    .iter()
                    .any(|&token| usize::try_from(token).map_or(true, |id| id >= vocabulary))
                {
                    return Err(Failure::Invalid(
                        "context holds a token id that the model does not have".into(),
                    ));
                }
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
                all.extend(self.model.tokenize(prefix, false, false).map_err(Failure::Invalid)?);
                all.push(suf);
                all.extend(self.model.tokenize(suffix, false, false).map_err(Failure::Invalid)?);
                all.push(mid);
                Ok(all)
            }
        }
    }

    /// Cuts a slot's cache back to what the prompt can use, and returns how many tokens that is.
    fn reuse(&mut self, index: usize, prompt: &[Token]) -> usize {
        let sequence = index as i32;
        // At least one token is decoded again: its logits are what the first sampled token comes from.
        let mut shared = common_prefix(&self.slots[index].cached, prompt).min(prompt.len() - 1);
        if shared > 0 {
            // A sliding-window cache has forgotten what lies before its window: continuing there needs all of the window.
            let window = self.model.sliding_window() as usize;
            let oldest = usize::try_from(self.context.min_position(sequence)).unwrap_or(usize::MAX);
            if window > 0 && oldest > shared.saturating_sub(window) {
                shared = 0;
            }
        }
        if shared < self.slots[index].cached.len() && !self.context.remove(sequence, shared as i32, -1) {
            // Recurrent state cannot be cut at any place.
            self.context.remove(sequence, -1, -1);
            shared = 0;
        }
        self.slots[index].cached.truncate(shared);
        shared
    }

    /// One decode over all sequences that have something to decode.
    fn step(&mut self, reports: &mut Reports) {
        self.make_room();
        let demands: Vec<_> = self.slots.iter().map(Slot::demand).collect();
        let limits = Limits {
            batch: self.batch_tokens,
            prefill_beside_decode: self.pace.beside_decode(self.batch_tokens),
        };
        let grants = plan(&demands, limits);
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

    /// Tells everybody who waits that the engine works: a long prompt, a long tool call and a full house give no text
    /// for a while, and that must not look like a hang. An empty delta is that sign; it costs no credit.
    fn show_life(&mut self) {
        if self.batch.is_empty() || self.alive.elapsed() < LIFE_INTERVAL {
            return;
        }
        self.alive = Instant::now();
        let active = self
            .slots
            .iter()
            .filter_map(|slot| slot.active.as_ref())
            .filter(|active| active.credit > 0);
        let ids = active
            .map(|active| active.job.id)
            .chain(self.waiting.iter().map(|(job, _)| job.id));
        self.events.extend(ids.map(|id| (id, Event::Delta(Delta::default()))));
    }

    /// Shifts the sequences whose window is full, or ends their answers.
    fn make_room(&mut self) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let Some(active) = &slot.active else { continue };
            let limit = active.job.context_limit.min(self.context_length) as usize;
            if active.next.is_none() || slot.cached.len() < limit {
                continue;
            }
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

    fn sample(&mut self, index: usize, batch_index: i32, reports: &mut Reports) {
        let Some(active) = &mut self.slots[index].active else {
            return;
        };
        let id = active.job.id;
        if active.job.max_tokens == 0 {
            return self.finish(index, FinishReason::Length);
        }
        let sampled = match self.context.logits(batch_index) {
            Some(logits) => active
                .sampler
                .sample(logits, &mut self.candidates)
                .map(|(token, goes_on)| (token, goes_on, logits)),
            None => Err("llama.cpp returned no logits".to_owned()),
        };
        match sampled {
            Ok((token, goes_on, logits)) => {
                let (delta, progress) = active.take(token, logits, goes_on, &self.model);
                if let Some(delta) = delta {
                    active.credit = active.credit.saturating_sub(1);
                    self.events.push((id, Event::Delta(delta)));
                }
                if let Progress::Ended(reason) = progress {
                    self.finish(index, reason);
                }
            }
            Err(reason) => {
                self.slots[index].active = None;
                reports.send(&Report::Failed {
                    id,
                    failure: Failure::Worker(reason),
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

    /// A decode failed: its sequences lose job and cache, the others go on.
    fn fail_batch(&mut self, grants: &[usize], error: &DecodeError, reports: &mut Reports) {
        tracing::error!(%error, "decode failed");
        for (index, _) in grants.iter().enumerate().filter(|&(_, &grant)| grant > 0) {
            self.context.remove(index as i32, -1, -1);
            self.slots[index].cached.clear();
            if let Some(active) = self.slots[index].active.take() {
                reports.send(&Report::Failed {
                    id: active.job.id,
                    failure: Failure::Worker(error.to_string()),
                });
            }
        }
    }
}
