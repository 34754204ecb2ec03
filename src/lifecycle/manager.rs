//! The lifecycle task: it owns the table of models and the queue of requests that wait for one.
//!
//! An event (a command, the end of a load, the end of a process, a returned lease, a timer) is recorded in the state,
//! and then [`Manager::reconcile`] runs, which takes all decisions. Nothing here blocks: loads and kills run in tasks
//! of `tasks` and report a [`TaskOutcome`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime},
};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    command::{AcquireRequest, LifecycleCommand, LifecycleHealth, QuarantinedModel},
    lease::Lease,
    model_key::ModelKey,
    policy::{self, EvictionCandidate},
    process::{WorkerCommand, WorkerProcess},
    quarantine::{RequestQuarantine, WorkerDeath},
    resident::{LoadError, ReadyModel, ResidentEntry, ResidentState, load},
};
use crate::{
    inference::{Failure, KeepAlive, ResidentModel},
    worker::protocol::LoadedModel,
};

/// A request that waits for its model.
struct QueuedRequest {
    key: ModelKey,
    request: Box<AcquireRequest>,
    reply: oneshot::Sender<Result<Lease, Failure>>,
}

/// Consecutive loads of one model that ended with a dead process.
struct LoadDeaths {
    count: u32,
    last: Instant,
    reason: String,
}

/// Report of a background task about the load with the given number.
enum TaskOutcome {
    LoadEnded(ModelKey, u64, Result<(WorkerProcess, LoadedModel), LoadError>),
    /// The manager has killed a process, and it is gone.
    Stopped(ModelKey, u64),
    /// The process of a ready model has ended; with the details if the manager did not kill it.
    ProcessEnded(ModelKey, u64, Option<WorkerDeath>),
}

pub(super) struct Manager {
    command: WorkerCommand,
    models: HashMap<ModelKey, ResidentEntry>,
    queue: VecDeque<QueuedRequest>,
    load_deaths: HashMap<ModelKey, LoadDeaths>,
    tasks: JoinSet<TaskOutcome>,
    /// Number of loads started so far.
    loads: u64,
    /// Notified when a lease is returned or a waiting request is given up.
    changed: Arc<Notify>,
    publish: watch::Sender<LifecycleHealth>,
    quarantine: Arc<RequestQuarantine>,
}

impl Manager {
    pub(super) fn new(command: WorkerCommand, publish: watch::Sender<LifecycleHealth>, changed: Arc<Notify>) -> Self {
        Self {
            command,
            publish,
            models: HashMap::new(),
            queue: VecDeque::new(),
            load_deaths: HashMap::new(),
            tasks: JoinSet::new(),
            changed,
            loads: 0,
            quarantine: Arc::default(),
        }
    }

    /// Runs until it is told to stop or every handle is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<LifecycleCommand>) {
        loop {
            let wake = self.next_expiry();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(LifecycleCommand::Acquire(request, reply)) => self.enqueue(request, reply),
                    Some(LifecycleCommand::Unload(key)) => self.unload_when_idle(&key),
                    Some(LifecycleCommand::ListResidents(reply)) => { let _ = reply.send(self.residents()); }
                    Some(LifecycleCommand::Stop(reply)) => {
                        self.stop().await;
                        let _ = reply.send(());
                        return;
                    }
                    None => return self.stop().await,
                },
                Some(outcome) = self.tasks.join_next() => match outcome {
                    Ok(outcome) => self.handle_outcome(outcome),
                    // An aborted task ends here as well, as a cancellation; its process is killed when its future is
                    // dropped.
                    Err(error) => if error.is_panic() { tracing::error!(%error, "a lifecycle task panicked") },
                },
                () = self.changed.notified() => {}
                () = sleep_until(wake) => {}
            }
            self.reconcile();
        }
    }

    fn enqueue(&mut self, request: Box<AcquireRequest>, reply: oneshot::Sender<Result<Lease, Failure>>) {
        // Requests whose client has left are swept out only when the queue is full, which is when it matters here.
        if self.queue.len() >= request.limits.max_queue {
            self.queue.retain(|queued| !queued.reply.is_closed());
        }
        if self.queue.len() >= request.limits.max_queue {
            let _ = reply.send(Err(Failure::Busy));
        } else {
            let key = ModelKey::from(&request.spec);
            self.queue.push_back(QueuedRequest { key, request, reply });
        }
    }

    fn unload_when_idle(&mut self, key: &ModelKey) {
        if let Some(entry) = self.models.get_mut(key) {
            match &mut entry.state {
                ResidentState::Ready(ready) => ready.keep_alive = KeepAlive::ZERO,
                ResidentState::Loading { .. } => entry.unload_when_ready = true,
                ResidentState::Stopping => {}
            }
        }
    }

    fn handle_outcome(&mut self, outcome: TaskOutcome) {
        if let TaskOutcome::ProcessEnded(_, _, Some(death)) = &outcome {
            self.quarantine.record(death, Instant::now());
        }
        match outcome {
            TaskOutcome::LoadEnded(key, load_id, result) => self.finish_load(key, load_id, result),
            TaskOutcome::Stopped(key, load_id) | TaskOutcome::ProcessEnded(key, load_id, _) => {
                // The model may have been loaded again since, with another number.
                if self.models.get(&key).is_some_and(|entry| entry.load_id == load_id) {
                    self.models.remove(&key);
                }
            }
        }
    }

    fn finish_load(&mut self, key: ModelKey, load_id: u64, result: Result<(WorkerProcess, LoadedModel), LoadError>) {
        let Some(entry) = self.models.get_mut(&key).filter(|entry| entry.load_id == load_id) else {
            return;
        };
        match result {
            // The load was abandoned at the moment in which it succeeded.
            Ok((worker, _)) if matches!(entry.state, ResidentState::Stopping) => {
                self.tasks.spawn(async move {
                    worker.kill().await;
                    TaskOutcome::Stopped(key, load_id)
                });
            }
            Ok((worker, loaded)) => {
                self.load_deaths.remove(&key);
                tracing::info!(
                    model.name = entry.request.card.name,
                    context_length = loaded.context_length,
                    parallel = loaded.parallel,
                    size_bytes = loaded.size_bytes,
                    "model loaded"
                );
                let death = worker.death();
                entry.state = ResidentState::Ready(ReadyModel {
                    worker,
                    loaded,
                    leases: Arc::default(),
                    keep_alive: match entry.unload_when_ready {
                        true => KeepAlive::ZERO,
                        false => entry.request.default_keep_alive,
                    },
                    idle_since: None,
                    threads: entry.request.spec.context.threads,
                    draining: false,
                });
                self.tasks
                    .spawn(async move { TaskOutcome::ProcessEnded(key, load_id, death.await) });
            }
            Err(error) => {
                self.models.remove(&key);
                self.fail_load(&key, error);
            }
        }
    }

    /// Reports a failed load to the requests that wait for it, and counts it if the process died.
    fn fail_load(&mut self, key: &ModelKey, error: LoadError) {
        let reason = match error {
            LoadError::Cancelled => return,
            LoadError::Refused(reason) => reason,
            LoadError::Died(reason) => {
                let count = self.load_deaths.get(key).map_or(0, |deaths| deaths.count);
                let deaths = LoadDeaths {
                    count: count + 1,
                    last: Instant::now(),
                    reason: reason.clone(),
                };
                self.load_deaths.insert(key.clone(), deaths);
                reason
            }
        };
        tracing::error!(path = %key, reason, "model not loaded");
        let failure = Failure::Load(format!("the model could not be loaded: {reason}"));
        for queued in std::mem::take(&mut self.queue) {
            if queued.key == *key {
                let _ = queued.reply.send(Err(failure.clone()));
            } else {
                self.queue.push_back(queued);
            }
        }
    }

    /// Brings models and queue in line with everything that has changed.
    fn reconcile(&mut self) {
        let now = Instant::now();
        self.queue.retain(|queued| !queued.reply.is_closed());
        // A process that has just died must get no more requests, even though its `ProcessEnded` has not arrived yet.
        self.models
            .retain(|_, entry| !entry.ready().is_some_and(|ready| ready.worker.ended().is_cancelled()));
        self.update_idle_times(now);
        self.admit();
        // Leases given and refused above have changed what is idle.
        self.update_idle_times(now);
        self.abandon_loads();
        self.load_deaths
            .retain(|_, deaths| deaths.last.elapsed() < policy::QUARANTINE);
        let expired: Vec<ModelKey> = self
            .models
            .iter()
            .filter(|(_, entry)| entry.ready().is_some_and(|ready| ready.is_expired(now)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in expired {
            self.unload(&key);
        }
        self.grant_threads();
        self.publish.send_replace(self.health());
    }

    fn update_idle_times(&mut self, now: Instant) {
        for ready in self.models.values_mut().filter_map(ResidentEntry::ready_mut) {
            ready.update_idle_since(now);
        }
    }

    /// Gives leases to queued requests in order of arrival, and starts or prepares loads for the others.
    fn admit(&mut self) {
        // Draining is decided again each time: the request that a model was drained for may have been given up. If it
        // is still queued, it stands before every request that it keeps waiting.
        for ready in self.models.values_mut().filter_map(ResidentEntry::ready_mut) {
            ready.draining = false;
        }
        for queued in std::mem::take(&mut self.queue) {
            match self.models.get_mut(&queued.key) {
                Some(entry) => match try_lease(entry, &queued.request, &self.changed, &self.quarantine) {
                    // If the client has left meanwhile, dropping the lease returns it.
                    Some(result) => drop(queued.reply.send(result)),
                    None => self.queue.push_back(queued),
                },
                None => match self.make_room(&queued) {
                    Ok(true) => {
                        self.start_load(&queued);
                        self.queue.push_back(queued);
                    }
                    Ok(false) => self.queue.push_back(queued),
                    Err(failure) => drop(queued.reply.send(Err(failure))),
                },
            }
        }
    }

    /// Returns true if a load may start now. Otherwise evicts or drains a resident, if the load needs its room.
    fn make_room(&mut self, queued: &QueuedRequest) -> Result<bool, Failure> {
        if let Some(LoadDeaths { count, last, reason }) = self.load_deaths.get(&queued.key)
            && *count >= policy::DEATHS_TO_QUARANTINE
            && last.elapsed() < policy::QUARANTINE
        {
            return Err(Failure::Load(format!(
                "the model is refused for a minute, since its last {count} loads died: {reason}"
            )));
        }
        // One load at a time: two would share cores and disk, and both would be late.
        if self.models.values().any(|entry| entry.ready().is_none()) {
            return Ok(false);
        }
        if self.models.len() < queued.request.limits.max_loaded.max(1) {
            return Ok(true);
        }
        let (keys, candidates): (Vec<ModelKey>, Vec<EvictionCandidate>) = self
            .models
            .iter()
            .filter_map(|(key, entry)| Some((key.clone(), entry.ready()?.candidate())))
            .unzip();
        match policy::victim(&candidates) {
            Some(victim) => self.unload(&keys[victim]),
            // All models are in use. Under constant load none of them would ever become idle, so one has to stop taking
            // requests.
            None => {
                let busy = policy::next_to_drain(&candidates).and_then(|busy| self.models.get_mut(&keys[busy]));
                if let Some(ready) = busy.and_then(ResidentEntry::ready_mut) {
                    ready.draining = true;
                }
            }
        }
        Ok(false)
    }

    fn start_load(&mut self, queued: &QueuedRequest) {
        self.loads += 1;
        let (load_id, key, cancel) = (self.loads, queued.key.clone(), CancellationToken::new());
        let request = &queued.request;
        let entry = ResidentEntry {
            load_id,
            // A copy for `/api/ps`; the request itself stays in the queue until the load has ended.
            request: AcquireRequest::clone(request),
            state: ResidentState::Loading { cancel: cancel.clone() },
            unload_when_ready: false,
        };
        self.models.insert(key.clone(), entry);
        let (command, spec, timeout) = (self.command.clone(), request.spec.clone(), request.limits.load_timeout);
        self.tasks.spawn(async move {
            let result = load(&command, spec, timeout, &cancel).await;
            TaskOutcome::LoadEnded(key, load_id, result)
        });
    }

    /// Cancels loads for which no request waits any more.
    fn abandon_loads(&mut self) {
        for (key, entry) in &mut self.models {
            if let ResidentState::Loading { cancel } = &entry.state
                && !self.queue.iter().any(|queued| queued.key == *key)
            {
                cancel.cancel();
                entry.state = ResidentState::Stopping;
            }
        }
    }

    fn unload(&mut self, key: &ModelKey) {
        let Some(entry) = self.models.get_mut(key) else {
            return;
        };
        if let ResidentState::Ready(ready) = std::mem::replace(&mut entry.state, ResidentState::Stopping) {
            tracing::info!(model.name = entry.request.card.name, "model unloaded");
            let (key, load_id) = (key.clone(), entry.load_id);
            self.tasks.spawn(async move {
                ready.worker.kill().await;
                TaskOutcome::Stopped(key, load_id)
            });
        }
    }

    /// Shares the cores between the models in use. A worker applies its grant between two decode steps.
    fn grant_threads(&mut self) {
        let in_use = |entry: &&ResidentEntry| entry.ready().is_some_and(ReadyModel::is_in_use);
        let count = self.models.values().filter(in_use).count();
        for entry in self.models.values_mut() {
            let (cores, requested) = (entry.request.limits.threads, entry.request.spec.context.threads);
            // An idle model keeps its last grant: its threads sleep, so they take no core from the others.
            if let Some(ready) = entry.ready_mut().filter(|ready| ready.is_in_use()) {
                let grant = policy::thread_grant(cores, count).min(requested.max(1));
                // A grant that the worker's queue has no room for is tried again at the next change.
                if grant != ready.threads && ready.worker.set_threads(grant) {
                    ready.threads = grant;
                }
            }
        }
    }

    /// Returns the next time at which the state changes without an event: the end of a keep-alive or of a quarantine.
    fn next_expiry(&self) -> Option<Instant> {
        let residents = self.models.values().filter_map(|entry| {
            let ready = entry.ready()?;
            policy::expires(ready.idle_since?, ready.keep_alive)
        });
        let quarantines = self.load_deaths.values().map(|deaths| deaths.last + policy::QUARANTINE);
        residents.chain(quarantines).min()
    }

    fn health(&self) -> LifecycleHealth {
        let ready = || self.models.values().filter_map(ResidentEntry::ready);
        let quarantined = self
            .load_deaths
            .iter()
            .filter(|(_, deaths)| deaths.count >= policy::DEATHS_TO_QUARANTINE)
            .map(|(key, deaths)| QuarantinedModel {
                key: key.clone(),
                deaths: deaths.count,
                reason: deaths.reason.clone(),
            });
        LifecycleHealth {
            resident: ready().count(),
            in_transition: self.models.len() - ready().count(),
            waiting: self.queue.len(),
            answering: ready().map(ReadyModel::lease_count).sum(),
            quarantined: quarantined.collect(),
        }
    }

    fn residents(&self) -> Vec<ResidentModel> {
        let (now, wall_clock) = (Instant::now(), SystemTime::now());
        self.models
            .values()
            .filter_map(|entry| entry.describe(now, wall_clock))
            .collect()
    }

    async fn stop(mut self) {
        // Dropping the reply channels tells the waiting requests that hubllama is stopping.
        self.queue.clear();
        for (_, entry) in self.models.drain() {
            match entry.state {
                ResidentState::Loading { cancel } => cancel.cancel(),
                ResidentState::Ready(ready) => ready.worker.kill().await,
                ResidentState::Stopping => {}
            }
        }
        // Loads and kills in progress end here, too: dropping their future kills the process.
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Gives a lease on a model, or refuses it if too many requests wait for the model. Returns `None` if the request has
/// to stay in the queue.
fn try_lease(
    entry: &mut ResidentEntry,
    request: &AcquireRequest,
    returned: &Arc<Notify>,
    quarantine: &Arc<RequestQuarantine>,
) -> Option<Result<Lease, Failure>> {
    // The context length that the load asked for counts too: a model may be given less than that, and a reload would
    // give it no more.
    let requested_length = entry.request.spec.context.context_length;
    let ready = entry.ready_mut().filter(|ready| !ready.draining)?;
    if request.spec.context.context_length > ready.loaded.context_length.max(requested_length) {
        // The model has to be loaded again with a larger context once it is idle. Later requests wait for that, too.
        ready.draining = true;
        return None;
    }
    let room = request.limits.max_queue.saturating_add(ready.loaded.parallel as usize);
    if ready.lease_count() >= room {
        return Some(Err(Failure::Busy));
    }
    if let Some(keep_alive) = request.keep_alive {
        ready.keep_alive = keep_alive;
    }
    ready.leases.fetch_add(1, Ordering::AcqRel);
    Some(Ok(Lease {
        worker: ready.worker.clone(),
        loaded: ready.loaded.clone(),
        count: Arc::clone(&ready.leases),
        returned: Arc::clone(returned),
        quarantine: Arc::clone(quarantine),
    }))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
