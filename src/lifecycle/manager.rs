//! The task that owns the state: residents, and the requests that wait for one.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
};

use super::{
    policy::{self, Candidate},
    process::{JobStream, LoadReport, Worker, WorkerCommand},
};
use crate::{
    inference::{Failure, KeepAlive, ModelCard, ResidentModel},
    worker::protocol::{Job, LoadSpec, LoadedModel},
};

/// Requests on their way to the task.
const COMMAND_QUEUE: usize = 256;

/// A model that a request needs.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What the listing says of it.
    pub card: ModelCard,
    /// How to load it. Its path is the identity: two names for one file share one resident.
    pub spec: LoadSpec,
    /// Tokens of context that the request insists on; a resident with less is loaded anew.
    pub needs_context: Option<u32>,
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
    /// When the worker has died.
    pub async fn generate(&self, job: Job) -> Result<JobStream, Failure> {
        self.worker.generate(job).await
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

/// Lets the task look again once a request has its answer or has given up.
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
        let manager = Manager::new(command, publish);
        let changed = Arc::clone(&manager.changed);
        tokio::spawn(manager.run(receiver));
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
        // Before the channel, so that it is dropped after it: the task is to find the channel closed.
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
    wanted: Wanted,
    state: State,
}

enum State {
    Loading { task: AbortHandle },
    Ready(Ready),
    Stopping,
}

struct Ready {
    worker: Worker,
    loaded: LoadedModel,
    leases: Arc<AtomicUsize>,
    keep_alive: KeepAlive,
    idle_since: Option<Instant>,
    threads: u32,
}

impl Ready {
    fn lease(&mut self, keep_alive: Option<KeepAlive>, changed: &Arc<Notify>) -> Lease {
        self.keep_alive = keep_alive.unwrap_or(self.keep_alive);
        self.leases.fetch_add(1, Ordering::AcqRel);
        Lease {
            worker: self.worker.clone(),
            loaded: self.loaded.clone(),
            count: Arc::clone(&self.leases),
            changed: Arc::clone(changed),
        }
    }
}

/// What a load has to wait for.
enum Room {
    /// Nothing.
    Free,
    /// Another load, or a worker that is ending.
    Later,
    /// The answers of this resident.
    AfterUse(PathBuf),
}

/// Deaths in a row, when the last was, and its reason.
type Deaths = (u32, Instant, String);

fn is_quarantined((deaths, last, _): &Deaths) -> bool {
    *deaths >= policy::DEATHS_TO_QUARANTINE && last.elapsed() < policy::QUARANTINE
}

struct Waiting {
    wanted: Box<Wanted>,
    reply: oneshot::Sender<Result<Lease, Failure>>,
}

enum Outcome {
    Loaded(PathBuf, Result<(Worker, LoadedModel), LoadError>),
    Stopped(PathBuf),
    /// A worker that nobody asked to end has ended.
    Died(PathBuf, Worker),
}

enum LoadError {
    /// llama.cpp refused the file.
    Refused(String),
    /// The process died, hung, or could not be started.
    Died(String),
}

struct Manager {
    command: WorkerCommand,
    entries: HashMap<PathBuf, Entry>,
    waiting: VecDeque<Waiting>,
    deaths: HashMap<PathBuf, Deaths>,
    tasks: JoinSet<Outcome>,
    /// A lease was given back, or a request gave up.
    changed: Arc<Notify>,
    publish: watch::Sender<LifecycleHealth>,
}

impl Manager {
    fn new(command: WorkerCommand, publish: watch::Sender<LifecycleHealth>) -> Self {
        Self {
            command,
            publish,
            entries: HashMap::new(),
            waiting: VecDeque::new(),
            deaths: HashMap::new(),
            tasks: JoinSet::new(),
            changed: Arc::new(Notify::new()),
        }
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let wake = self.next_expiry();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Acquire(wanted, reply)) => self.enqueue(wanted, reply),
                    Some(Command::Unload(path)) => {
                        if let Some(Entry { state: State::Ready(ready), .. }) = self.entries.get_mut(&path) {
                            ready.keep_alive = KeepAlive::ZERO;
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
        match outcome {
            Outcome::Loaded(path, Ok((worker, loaded))) => {
                self.deaths.remove(&path);
                let Some(entry) = self.entries.get_mut(&path) else {
                    return;
                };
                tracing::info!(
                    model.name = entry.wanted.card.name,
                    context_length = loaded.context_length,
                    parallel = loaded.parallel,
                    size_bytes = loaded.size_bytes,
                    "model loaded"
                );
                entry.state = State::Ready(Ready {
                    worker: worker.clone(),
                    loaded,
                    leases: Arc::default(),
                    keep_alive: entry.wanted.default_keep_alive,
                    idle_since: None,
                    threads: entry.wanted.spec.threads,
                });
                self.tasks.spawn(async move {
                    worker.ended().cancelled().await;
                    Outcome::Died(path, worker)
                });
            }
            Outcome::Loaded(path, Err(error)) => {
                self.entries.remove(&path);
                let reason = match error {
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
            Outcome::Stopped(path) => {
                self.entries.remove(&path);
            }
            Outcome::Died(path, worker) => {
                // Only if it is still the one in place: a stopped worker ends too.
                let current = matches!(&self.entries.get(&path), Some(Entry { state: State::Ready(ready), .. })
                    if ready.worker.ended() == worker.ended());
                if current {
                    self.entries.remove(&path);
                }
            }
        }
    }

    fn fail_waiting(&mut self, path: &PathBuf, failure: &Failure) {
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.wanted.spec.path == *path {
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
        // A worker that has just died gets no more requests, also if its last message is still to come.
        self.entries
            .retain(|_, entry| !matches!(&entry.state, State::Ready(ready) if ready.worker.ended().is_cancelled()));
        self.note_idle(now);
        self.admit();
        self.note_idle(now);
        self.abandon_loads();
        let expired: Vec<PathBuf> = self
            .entries
            .iter()
            .filter(|(_, entry)| match &entry.state {
                State::Ready(ready) => ready
                    .idle_since
                    .and_then(|since| policy::expires(since, ready.keep_alive))
                    .is_some_and(|expires| expires <= now),
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
        // Residents that an earlier request waits to see idle: a later one must not keep them busy.
        let mut held = HashSet::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let Waiting { wanted, reply } = waiting;
            let path = wanted.spec.path.clone();
            match self.entries.get_mut(&path) {
                Some(_) if held.contains(&path) => self.waiting.push_back(Waiting { wanted, reply }),
                Some(Entry {
                    state: State::Ready(ready),
                    wanted: loaded_for,
                }) => {
                    let leases = ready.leases.load(Ordering::Acquire);
                    // What was asked for counts too: a model that came out smaller would be loaded anew for ever.
                    let context = ready.loaded.context_length.max(loaded_for.spec.context_length);
                    if wanted.needs_context.is_some_and(|needed| needed > context) {
                        // Loaded anew once nobody uses it.
                        if leases == 0 {
                            self.unload(&path);
                        } else {
                            held.insert(path);
                        }
                        self.waiting.push_back(Waiting { wanted, reply });
                    } else if leases >= wanted.limits.max_queue.saturating_add(ready.loaded.parallel as usize) {
                        let _ = reply.send(Err(Failure::Busy));
                    } else {
                        // If nobody takes it, dropping it gives it back.
                        let _ = reply.send(Ok(ready.lease(wanted.keep_alive, &self.changed)));
                    }
                }
                Some(_) => self.waiting.push_back(Waiting { wanted, reply }),
                None => match self.make_room(&wanted) {
                    Ok(Room::Free) => {
                        self.load(&wanted);
                        self.waiting.push_back(Waiting { wanted, reply });
                    }
                    Ok(Room::Later) => self.waiting.push_back(Waiting { wanted, reply }),
                    Ok(Room::AfterUse(victim)) => {
                        held.insert(victim);
                        self.waiting.push_back(Waiting { wanted, reply });
                    }
                    Err(failure) => {
                        let _ = reply.send(Err(failure));
                    }
                },
            }
        }
    }

    /// Whether a load may start now; evicts an idle resident if that is what it takes.
    fn make_room(&mut self, wanted: &Wanted) -> Result<Room, Failure> {
        if let Some(death) = self.deaths.get(&wanted.spec.path)
            && let (deaths, _, reason) = death
            && is_quarantined(death)
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
            return Ok(Room::Later);
        }
        if self.entries.len() < wanted.limits.max_loaded.max(1) {
            return Ok(Room::Free);
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
            Some(victim) if candidates[victim].leases == 0 => {
                self.unload(&paths[victim]);
                Ok(Room::Later)
            }
            Some(victim) => Ok(Room::AfterUse(paths[victim].clone())),
            None => Ok(Room::Later),
        }
    }

    fn load(&mut self, wanted: &Wanted) {
        let (command, path) = (self.command.clone(), wanted.spec.path.clone());
        let (spec, timeout) = (wanted.spec.clone(), wanted.limits.load_timeout);
        let task = self
            .tasks
            .spawn(async move { Outcome::Loaded(path, load(&command, spec, timeout).await) });
        self.entries.insert(
            wanted.spec.path.clone(),
            Entry {
                wanted: wanted.clone(),
                state: State::Loading { task },
            },
        );
    }

    /// Ends loads that nobody waits for any more.
    fn abandon_loads(&mut self) {
        let waiting = &self.waiting;
        self.entries.retain(|path, entry| match &entry.state {
            State::Loading { task } => {
                let wanted = waiting.iter().any(|waiting| waiting.wanted.spec.path == *path);
                if !wanted {
                    task.abort();
                }
                wanted
            }
            _ => true,
        });
    }

    fn unload(&mut self, path: &PathBuf) {
        let Some(entry) = self.entries.get_mut(path) else {
            return;
        };
        if let State::Ready(ready) = std::mem::replace(&mut entry.state, State::Stopping) {
            tracing::info!(model.name = entry.wanted.card.name, "model unloaded");
            let path = path.clone();
            self.tasks.spawn(async move {
                ready.worker.kill().await;
                Outcome::Stopped(path)
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
                if grant != ready.threads {
                    ready.threads = grant;
                    ready.worker.set_threads(grant);
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
        let quarantined = self.deaths.values().filter(|deaths| is_quarantined(deaths));
        residents
            .chain(quarantined.map(|(_, last, _)| *last + policy::QUARANTINE))
            .min()
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
        let answering = self.entries.values().map(leases).sum();
        let quarantined =
            self.deaths
                .iter()
                .filter(|(_, deaths)| is_quarantined(deaths))
                .map(|(path, (deaths, _, reason))| Quarantined {
                    path: path.clone(),
                    deaths: *deaths,
                    reason: reason.clone(),
                });
        LifecycleHealth {
            resident,
            in_transition: self.entries.len() - resident,
            waiting: self.waiting.len(),
            answering,
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
                State::Loading { task } => task.abort(),
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

/// Starts a worker and waits for its model; given up after `timeout` without progress.
async fn load(command: &WorkerCommand, spec: LoadSpec, timeout: Duration) -> Result<(Worker, LoadedModel), LoadError> {
    let died = |reason: String| LoadError::Died(reason);
    let (worker, mut reports) =
        Worker::spawn(command, "model").map_err(|error| died(format!("the worker cannot be started: {error}")))?;
    worker.load(spec).await.map_err(|failure| died(failure.to_string()))?;
    loop {
        match tokio::time::timeout(timeout, reports.recv()).await {
            Ok(Some(LoadReport::Progress(fraction))) => tracing::debug!(fraction, "loading"),
            Ok(Some(LoadReport::Loaded(loaded))) => return Ok((worker, loaded)),
            Ok(Some(LoadReport::Failed(reason))) => return Err(LoadError::Refused(reason)),
            Ok(None) => return Err(died("the worker process died while loading".into())),
            Err(_) => return Err(died(format!("no progress for {} s", timeout.as_secs()))),
        }
    }
}
