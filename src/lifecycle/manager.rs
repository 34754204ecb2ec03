//! The task that owns the state: residents, and the requests that wait for one.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    policy::{self, Candidate},
    process::{DIED, JobStream, LoadReport, Worker, WorkerCommand},
    suspects::{Death, Fingerprint, Suspects},
};
use crate::{
    inference::{Failure, KeepAlive, ModelCard, ResidentModel},
    worker::protocol::{Job, LoadSpec, LoadedModel, WorkerQuestion, WorkerReply},
};

/// Requests on their way to the task.
const COMMAND_QUEUE: usize = 256;

/// What is said of a request that a worker died under.
const REFUSED: &str = "the model's process ended while it worked on this request, so that it is refused for a minute; \
                       change it, or see the hubllama log for the reason";

/// A model that a request needs.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What the listing says of it.
    pub card: ModelCard,
    /// Load settings. The files in it are the model's identity: two names for the same files share one resident.
    /// A resident with a smaller context length is reloaded.
    pub spec: LoadSpec,
    /// Change of the time that the model stays.
    pub keep_alive: Option<KeepAlive>,
    /// That time, where nobody said.
    pub default_keep_alive: KeepAlive,
    /// Limits in force for this request.
    pub limits: Limits,
}

/// Limits that a request is admitted under.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Models in memory at once.
    pub max_loaded: usize,
    /// Requests that may wait: for a model to be loaded, and for their turn on each model.
    pub max_queue: usize,
    /// Time without progress after which a load is given up.
    pub load_timeout: Duration,
    /// Compute threads over all models.
    pub threads: u32,
}

/// A resident model, for as long as this value lives.
#[derive(Debug)]
pub struct Lease {
    worker: Worker,
    loaded: LoadedModel,
    count: Arc<AtomicUsize>,
    changed: Arc<Notify>,
    suspects: Arc<Suspects>,
}

impl Lease {
    /// What was loaded.
    #[must_use]
    pub fn loaded(&self) -> &LoadedModel {
        &self.loaded
    }

    /// Starts a job on the model. Keep the lease until the stream has ended.
    ///
    /// # Errors
    /// When the worker has died, or did so a moment ago under this very job.
    pub async fn generate(&self, job: Job) -> Result<JobStream, Failure> {
        let what = self.admit(&(&job.prompt, &job.chat, &job.schema))?;
        self.worker.generate(job, what).await
    }

    /// Refuses what a worker died under.
    fn admit(&self, asked: &impl Serialize) -> Result<Fingerprint, Failure> {
        let what = self.suspects.fingerprint(asked);
        match self.suspects.is_refused(what, Instant::now()) {
            true => Err(Failure::Invalid(REFUSED.into())),
            false => Ok(what),
        }
    }

    /// Asks the model something that is not answered by a stream.
    ///
    /// # Errors
    /// What the worker says; [`Failure::Worker`] when it has died, or has given no sign of life for `stall_timeout`;
    /// [`Failure::Invalid`] if it did so a moment ago under this very question.
    pub async fn ask(&self, question: WorkerQuestion, stall_timeout: Duration) -> Result<WorkerReply, Failure> {
        let what = self.admit(&question)?;
        let reply = self.worker.ask_suspect(question, what);
        tokio::pin!(reply);
        loop {
            match tokio::time::timeout(stall_timeout, &mut reply).await {
                Ok(Some(reply)) => return reply,
                Ok(None) => return Err(Failure::Worker(DIED.into())),
                Err(_) if self.worker.silence() < stall_timeout => {}
                Err(_) => return Err(Failure::no_sign_of_life(stall_timeout)),
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_one();
    }
}

/// A resident model as others see it.
#[derive(Clone, Debug)]
pub struct Resident {
    /// What `/api/ps` shows.
    pub model: ResidentModel,
    /// Requests that use it.
    pub leases: usize,
}

/// A model whose loads died in a row.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// The file.
    pub path: PathBuf,
    /// Deaths in a row.
    pub deaths: u32,
    /// The last one's reason.
    pub reason: String,
}

enum Command {
    Acquire(Box<Wanted>, oneshot::Sender<Result<Lease, Failure>>),
    Unload(PathBuf),
    Snapshot(oneshot::Sender<Vec<Resident>>),
    Stop(oneshot::Sender<()>),
}

/// The task's fill levels, for `/health`.
#[derive(Clone, Debug, Default)]
pub struct LifecycleHealth {
    /// Models that are ready.
    pub resident: usize,
    /// Models that are loading or stopping.
    pub in_transition: usize,
    /// Requests that wait for a model.
    pub waiting: usize,
    /// Requests that have one: answers being written, and requests that wait for their turn on it.
    pub answering: usize,
    /// Models that are refused for a while.
    pub quarantined: Vec<Quarantined>,
}

/// Handle of the task.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    commands: mpsc::Sender<Command>,
    health: watch::Receiver<LifecycleHealth>,
    changed: Arc<Notify>,
}

/// Wakes the task when a request is over, however it ended: its place in the queue may have become free, or its load
/// needless.
struct WakeOnDrop(Arc<Notify>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

impl Lifecycle {
    /// Starts the task on the current runtime.
    #[must_use]
    pub fn start(command: WorkerCommand) -> Self {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let (publish, health) = watch::channel(LifecycleHealth::default());
        let changed = Arc::new(Notify::new());
        tokio::spawn(Manager::new(command, publish, Arc::clone(&changed)).run(receiver));
        Self {
            commands,
            health,
            changed,
        }
    }

    /// The fill levels as they were when something last changed.
    #[must_use]
    pub fn health(&self) -> LifecycleHealth {
        self.health.borrow().clone()
    }

    /// Waits until the model is resident. Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    /// [`Failure::Busy`] at once if too many wait; [`Failure::Load`] with the reason.
    pub async fn acquire(&self, wanted: Wanted) -> Result<Lease, Failure> {
        // Declared before the receiver, so dropped after it: the task then sees the request gone.
        let _wake = WakeOnDrop(Arc::clone(&self.changed));
        let (sender, receiver) = oneshot::channel();
        let stopped = || Failure::Unavailable("hubllama is stopping".into());
        self.commands
            .send(Command::Acquire(Box::new(wanted), sender))
            .await
            .map_err(|_| stopped())?;
        receiver.await.map_err(|_| stopped())?
    }

    /// Unloads a model as soon as nobody uses it.
    pub async fn unload(&self, path: PathBuf) {
        let _ = self.commands.send(Command::Unload(path)).await;
    }

    /// What is resident.
    pub async fn residents(&self) -> Vec<Resident> {
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(Command::Snapshot(sender)).await.is_err() {
            return Vec::new();
        }
        receiver.await.unwrap_or_default()
    }

    /// Ends every worker and the task.
    pub async fn stop(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(Command::Stop(sender)).await.is_ok() {
            let _ = receiver.await;
        }
    }
}

struct Entry {
    /// Tells this load of the file from earlier and later ones.
    id: u64,
    wanted: Wanted,
    state: State,
    /// Asked for while it was loading.
    unload_when_ready: bool,
}

enum State {
    Loading {
        cancel: CancellationToken,
    },
    Ready(Ready),
    /// Its process is ending; the place is free when that is done.
    Stopping,
}

struct Ready {
    worker: Worker,
    loaded: LoadedModel,
    leases: Arc<AtomicUsize>,
    keep_alive: KeepAlive,
    idle_since: Option<Instant>,
    threads: u32,
    /// Takes no new requests: it is to go when those that run have ended.
    draining: bool,
}

struct Waiting {
    wanted: Box<Wanted>,
    reply: oneshot::Sender<Result<Lease, Failure>>,
}

enum Outcome {
    Loaded(PathBuf, u64, Result<(Worker, LoadedModel), LoadError>),
    Stopped(PathBuf, u64),
    /// A worker's process has ended, asked or not.
    Ended(PathBuf, u64, Option<Death>),
}

enum LoadError {
    /// llama.cpp refused the file.
    Refused(String),
    /// The process died, hung, or could not be started.
    Died(String),
    /// Nobody waited for it any more.
    Cancelled,
}

struct Manager {
    command: WorkerCommand,
    entries: HashMap<PathBuf, Entry>,
    waiting: VecDeque<Waiting>,
    deaths: HashMap<PathBuf, (u32, Instant, String)>,
    tasks: JoinSet<Outcome>,
    /// Loads so far.
    loads: u64,
    /// A lease was given back.
    changed: Arc<Notify>,
    publish: watch::Sender<LifecycleHealth>,
    suspects: Arc<Suspects>,
}

impl Manager {
    fn new(command: WorkerCommand, publish: watch::Sender<LifecycleHealth>, changed: Arc<Notify>) -> Self {
        Self {
            command,
            publish,
            entries: HashMap::new(),
            waiting: VecDeque::new(),
            deaths: HashMap::new(),
            tasks: JoinSet::new(),
            changed,
            loads: 0,
            suspects: Arc::default(),
        }
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let wake = self.next_expiry();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Acquire(wanted, reply)) => self.enqueue(wanted, reply),
                    Some(Command::Unload(path)) => {
                        if let Some(entry) = self.entries.get_mut(&path) {
                            match &mut entry.state {
                                State::Ready(ready) => ready.keep_alive = KeepAlive::ZERO,
                                State::Loading { .. } => entry.unload_when_ready = true,
                                State::Stopping => {}
                            }
                        }
                    }
                    Some(Command::Snapshot(reply)) => { let _ = reply.send(self.residents()); }
                    Some(Command::Stop(reply)) => {
                        self.stop().await;
                        let _ = reply.send(());
                        return;
                    }
                    None => return self.stop().await,
                },
                Some(outcome) = self.tasks.join_next() => match outcome {
                    Ok(outcome) => self.settle(outcome),
                    // Aborted loads end here; their process is killed with the future.
                    Err(error) => if error.is_panic() { tracing::error!(%error, "a lifecycle task panicked") },
                },
                () = self.changed.notified() => {}
                () = sleep_until(wake) => {}
            }
            self.evaluate();
        }
    }

    fn enqueue(&mut self, wanted: Box<Wanted>, reply: oneshot::Sender<Result<Lease, Failure>>) {
        if self.waiting.len() >= wanted.limits.max_queue {
            self.waiting.retain(|waiting| !waiting.reply.is_closed());
        }
        if self.waiting.len() >= wanted.limits.max_queue {
            let _ = reply.send(Err(Failure::Busy));
        } else {
            self.waiting.push_back(Waiting { wanted, reply });
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        if let Outcome::Ended(_, _, Some(death)) = &outcome {
            self.suspects.record(death, Instant::now());
        }
        match outcome {
            Outcome::Loaded(path, id, result) => self.loaded(path, id, result),
            // The number tells an old process's end from that of the one in place.
            Outcome::Stopped(path, id) | Outcome::Ended(path, id, _) => {
                if self.entries.get(&path).is_some_and(|entry| entry.id == id) {
                    self.entries.remove(&path);
                }
            }
        }
    }

    fn loaded(&mut self, path: PathBuf, id: u64, result: Result<(Worker, LoadedModel), LoadError>) {
        let Some(entry) = self.entries.get_mut(&path).filter(|entry| entry.id == id) else {
            return;
        };
        match result {
            // Given up in the moment in which it became ready.
            Ok((worker, _)) if matches!(entry.state, State::Stopping) => {
                self.tasks.spawn(async move {
                    worker.kill().await;
                    Outcome::Stopped(path, id)
                });
            }
            Ok((worker, loaded)) => {
                self.deaths.remove(&path);
                tracing::info!(
                    model.name = entry.wanted.card.name,
                    context_length = loaded.context_length,
                    parallel = loaded.parallel,
                    size_bytes = loaded.size_bytes,
                    "model loaded"
                );
                let death = worker.death();
                entry.state = State::Ready(Ready {
                    worker,
                    loaded,
                    leases: Arc::default(),
                    keep_alive: match entry.unload_when_ready {
                        true => KeepAlive::ZERO,
                        false => entry.wanted.default_keep_alive,
                    },
                    idle_since: None,
                    threads: entry.wanted.spec.threads,
                    draining: false,
                });
                self.tasks.spawn(async move { Outcome::Ended(path, id, death.await) });
            }
            Err(error) => {
                self.entries.remove(&path);
                let reason = match error {
                    LoadError::Cancelled => return,
                    LoadError::Refused(reason) => reason,
                    LoadError::Died(reason) => {
                        let deaths = self
                            .deaths
                            .entry(path.clone())
                            .or_insert((0, Instant::now(), String::new()));
                        *deaths = (deaths.0 + 1, Instant::now(), reason.clone());
                        reason
                    }
                };
                tracing::error!(path = %path.display(), reason, "model not loaded");
                self.fail_waiting(
                    &path,
                    &Failure::Load(format!("the model could not be loaded: {reason}")),
                );
            }
        }
    }

    fn fail_waiting(&mut self, path: &PathBuf, failure: &Failure) {
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.wanted.spec.identity() == *path {
                let _ = waiting.reply.send(Err(failure.clone()));
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    /// Brings the state up to date with what has changed: everything that happens ends here.
    fn evaluate(&mut self) {
        let now = Instant::now();
        self.waiting.retain(|waiting| !waiting.reply.is_closed());
        // A worker that has just died gets no more requests, also if the news of it is still on its way.
        self.entries
            .retain(|_, entry| !matches!(&entry.state, State::Ready(ready) if ready.worker.ended().is_cancelled()));
        self.note_idle(now);
        self.admit();
        self.note_idle(now);
        self.abandon_loads();
        self.deaths.retain(|_, (_, at, _)| at.elapsed() < policy::QUARANTINE);
        let expired: Vec<PathBuf> = self
            .entries
            .iter()
            .filter(|(_, entry)| match &entry.state {
                State::Ready(ready) => ready.idle_since.is_some_and(|since| {
                    ready.draining || policy::expires(since, ready.keep_alive).is_some_and(|expires| expires <= now)
                }),
                _ => false,
            })
            .map(|(path, _)| path.clone())
            .collect();
        for path in expired {
            self.unload(&path);
        }
        self.grant_threads();
        self.publish.send_replace(self.health());
    }

    fn note_idle(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            if let State::Ready(ready) = &mut entry.state {
                ready.idle_since = match ready.leases.load(Ordering::Acquire) {
                    0 => Some(ready.idle_since.unwrap_or(now)),
                    _ => None,
                };
            }
        }
    }

    /// Gives leases to those who wait, in order of arrival; starts what has to be started for the others.
    fn admit(&mut self) {
        // Who waited for one to become idle may have gone; who still waits comes before those that it holds off.
        for entry in self.entries.values_mut() {
            if let State::Ready(ready) = &mut entry.state {
                ready.draining = false;
            }
        }
        for waiting in std::mem::take(&mut self.waiting) {
            let Waiting { wanted, reply } = waiting;
            let path = wanted.spec.identity();
            match self
                .entries
                .get_mut(&path)
                .map(|entry| (entry.wanted.spec.context_length, &mut entry.state))
            {
                Some((asked, State::Ready(ready))) if !ready.draining => {
                    // What was asked for counts too: a model may have been given less than that, and will be again.
                    if wanted.spec.context_length <= ready.loaded.context_length.max(asked) {
                        let room = wanted.limits.max_queue.saturating_add(ready.loaded.parallel as usize);
                        if ready.leases.load(Ordering::Acquire) >= room {
                            let _ = reply.send(Err(Failure::Busy));
                            continue;
                        }
                        if let Some(keep_alive) = wanted.keep_alive {
                            ready.keep_alive = keep_alive;
                        }
                        ready.leases.fetch_add(1, Ordering::AcqRel);
                        let lease = Lease {
                            worker: ready.worker.clone(),
                            loaded: ready.loaded.clone(),
                            count: Arc::clone(&ready.leases),
                            changed: Arc::clone(&self.changed),
                            suspects: Arc::clone(&self.suspects),
                        };
                        // If nobody takes it, dropping it gives it back.
                        let _ = reply.send(Ok(lease));
                        continue;
                    }
                    // Too small a context: loaded anew once those that use it are done; who comes later waits too.
                    ready.draining = true;
                    self.waiting.push_back(Waiting { wanted, reply });
                }
                Some(_) => self.waiting.push_back(Waiting { wanted, reply }),
                None => match self.make_room(&wanted) {
                    Ok(true) => {
                        self.load(&wanted);
                        self.waiting.push_back(Waiting { wanted, reply });
                    }
                    Ok(false) => self.waiting.push_back(Waiting { wanted, reply }),
                    Err(failure) => {
                        let _ = reply.send(Err(failure));
                    }
                },
            }
        }
    }

    /// Whether a load may start now; evicts an idle resident if that is what it takes.
    fn make_room(&mut self, wanted: &Wanted) -> Result<bool, Failure> {
        if let Some((deaths, at, reason)) = self.deaths.get(&wanted.spec.identity())
            && *deaths >= policy::DEATHS_TO_QUARANTINE
            && at.elapsed() < policy::QUARANTINE
        {
            return Err(Failure::Load(format!(
                "the model is refused for a minute, since its last {deaths} loads died: {reason}"
            )));
        }
        // One load at a time: two would share the cores and the disk and both be late.
        if self
            .entries
            .values()
            .any(|entry| !matches!(entry.state, State::Ready(_)))
        {
            return Ok(false);
        }
        if self.entries.len() < wanted.limits.max_loaded.max(1) {
            return Ok(true);
        }
        let (paths, candidates): (Vec<PathBuf>, Vec<Candidate>) = self
            .entries
            .iter()
            .filter_map(|(path, entry)| match &entry.state {
                State::Ready(ready) => Some((
                    path.clone(),
                    Candidate {
                        leases: ready.leases.load(Ordering::Acquire),
                        keep_alive: ready.keep_alive,
                        idle_since: ready.idle_since,
                    },
                )),
                _ => None,
            })
            .unzip();
        match policy::victim(&candidates) {
            Some(victim) => self.unload(&paths[victim]),
            // All are in use. One of them takes no new requests, or a busy one would never become idle.
            None => {
                if let Some(busy) = policy::next_to_drain(&candidates)
                    && let Some(Entry {
                        state: State::Ready(ready),
                        ..
                    }) = self.entries.get_mut(&paths[busy])
                {
                    ready.draining = true;
                }
            }
        }
        Ok(false)
    }

    fn load(&mut self, wanted: &Wanted) {
        self.loads += 1;
        let (id, path, cancel) = (self.loads, wanted.spec.identity(), CancellationToken::new());
        let entry = Entry {
            id,
            wanted: wanted.clone(),
            state: State::Loading { cancel: cancel.clone() },
            unload_when_ready: false,
        };
        self.entries.insert(path.clone(), entry);
        let (command, spec, timeout) = (self.command.clone(), wanted.spec.clone(), wanted.limits.load_timeout);
        self.tasks
            .spawn(async move { Outcome::Loaded(path, id, load(&command, spec, timeout, &cancel).await) });
    }

    /// Ends loads that nobody waits for any more. Their place is free when their process is gone.
    fn abandon_loads(&mut self) {
        let awaited: Vec<PathBuf> = self.waiting.iter().map(|it| it.wanted.spec.identity()).collect();
        for (path, entry) in &mut self.entries {
            if let State::Loading { cancel } = &entry.state
                && !awaited.contains(path)
            {
                cancel.cancel();
                entry.state = State::Stopping;
            }
        }
    }

    fn unload(&mut self, path: &PathBuf) {
        let Some(entry) = self.entries.get_mut(path) else {
            return;
        };
        if let State::Ready(ready) = std::mem::replace(&mut entry.state, State::Stopping) {
            tracing::info!(model.name = entry.wanted.card.name, "model unloaded");
            let (path, id) = (path.clone(), entry.id);
            self.tasks.spawn(async move {
                ready.worker.kill().await;
                Outcome::Stopped(path, id)
            });
        }
    }

    fn grant_threads(&mut self) {
        let decoding = |ready: &Ready| ready.leases.load(Ordering::Acquire) > 0;
        let count = self
            .entries
            .values()
            .filter(|entry| matches!(&entry.state, State::Ready(ready) if decoding(ready)))
            .count();
        for entry in self.entries.values_mut() {
            let cores = entry.wanted.limits.threads;
            if let State::Ready(ready) = &mut entry.state
                && decoding(ready)
            {
                let grant = policy::thread_grant(cores, count).min(entry.wanted.spec.threads.max(1));
                if grant != ready.threads && ready.worker.set_threads(grant) {
                    ready.threads = grant;
                }
            }
        }
    }

    /// When something changes by itself: a model's time is over, or a quarantine.
    fn next_expiry(&self) -> Option<Instant> {
        let residents = self.entries.values().filter_map(|entry| match &entry.state {
            State::Ready(ready) => ready
                .idle_since
                .and_then(|since| policy::expires(since, ready.keep_alive)),
            _ => None,
        });
        let quarantines = self.deaths.values().map(|(_, last, _)| *last + policy::QUARANTINE);
        residents.chain(quarantines).min()
    }

    fn health(&self) -> LifecycleHealth {
        let resident = self
            .entries
            .values()
            .filter(|entry| matches!(entry.state, State::Ready(_)))
            .count();
        let leases = |entry: &Entry| match &entry.state {
            State::Ready(ready) => ready.leases.load(Ordering::Acquire),
            _ => 0,
        };
        let quarantined = self
            .deaths
            .iter()
            .filter(|(_, (deaths, ..))| *deaths >= policy::DEATHS_TO_QUARANTINE)
            .map(|(path, (deaths, _, reason))| Quarantined {
                path: path.clone(),
                deaths: *deaths,
                reason: reason.clone(),
            });
        LifecycleHealth {
            resident,
            in_transition: self.entries.len() - resident,
            waiting: self.waiting.len(),
            answering: self.entries.values().map(leases).sum(),
            quarantined: quarantined.collect(),
        }
    }

    fn residents(&self) -> Vec<Resident> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let resident = |entry: &Entry| match &entry.state {
            State::Ready(ready) => {
                let expires = policy::expires(ready.idle_since.unwrap_or(now), ready.keep_alive);
                Some(Resident {
                    model: ResidentModel {
                        card: entry.wanted.card.clone(),
                        size_bytes: ready.loaded.size_bytes,
                        device_bytes: ready.loaded.device_bytes,
                        expires_at: expires.and_then(|at| wall.checked_add(at.saturating_duration_since(now))),
                        context_length: ready.loaded.context_length,
                    },
                    leases: ready.leases.load(Ordering::Acquire),
                })
            }
            _ => None,
        };
        self.entries.values().filter_map(resident).collect()
    }

    async fn stop(mut self) {
        self.waiting.clear();
        for (_, entry) in self.entries.drain() {
            match entry.state {
                State::Loading { cancel } => cancel.cancel(),
                State::Ready(ready) => ready.worker.kill().await,
                State::Stopping => {}
            }
        }
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Starts a worker and waits for its model; given up after `timeout` without progress, or when nobody wants it any
/// more. Returns when the process of a load that failed is gone, with its memory.
async fn load(
    command: &WorkerCommand,
    spec: LoadSpec,
    timeout: Duration,
    cancel: &CancellationToken,
) -> Result<(Worker, LoadedModel), LoadError> {
    let (worker, reports) = Worker::spawn(command, "model")
        .map_err(|error| LoadError::Died(format!("the worker cannot be started: {error}")))?;
    let result = tokio::select! {
        result = wait_loaded(&worker, spec, reports, timeout) => result,
        () = cancel.cancelled() => Err(LoadError::Cancelled),
    };
    match result {
        Ok(loaded) => Ok((worker, loaded)),
        Err(error) => {
            worker.kill().await;
            Err(error)
        }
    }
}

async fn wait_loaded(
    worker: &Worker,
    spec: LoadSpec,
    mut reports: mpsc::Receiver<LoadReport>,
    timeout: Duration,
) -> Result<LoadedModel, LoadError> {
    let died = LoadError::Died;
    worker.load(spec).await.map_err(|failure| died(failure.to_string()))?;
    loop {
        match tokio::time::timeout(timeout, reports.recv()).await {
            Ok(Some(LoadReport::Progress(fraction))) => tracing::debug!(fraction, "loading"),
            Ok(Some(LoadReport::Loaded(loaded))) => return Ok(loaded),
            Ok(Some(LoadReport::Failed(reason))) => return Err(LoadError::Refused(reason)),
            Ok(None) => return Err(died("the worker process died while loading".into())),
            Err(_) => return Err(died(format!("no progress for {} s", timeout.as_secs()))),
        }
    }
}
