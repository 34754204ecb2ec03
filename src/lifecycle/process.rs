//! One worker process, seen from the daemon: started, spoken to, ended.

use std::{
    collections::HashMap,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    pin::Pin,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::Stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command as Process},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use super::suspects::{Death, Fingerprint};
use crate::{
    convert::Advance,
    inference::{Delta, Event, Failure},
    worker::protocol::{
        self, DaemonCommand, Job, LoadSpec, LoadedModel, MAX_FRAME_BYTES, PROTOCOL_VERSION, STREAM_CREDIT,
        WorkerQuestion, WorkerReply, WorkerReport,
    },
};

/// Ollama's own words, which its clients know.
pub(super) const DIED: &str = "model runner has unexpectedly stopped, this may be due to resource limitations or an \
                               internal error, check the hubllama log for details";
/// Frames that wait for the socket. Each job has a handful under way at most.
const OUTGOING_FRAMES: usize = 1024;
/// Events after the last credit: what was held back, and the end.
const CREDIT_SLACK: usize = 8;

/// How long a compute thread spins at the end of an operation before it sleeps, in libgomp's own count; its default is
/// 300,000. Measured with two threads on two cores, tokens a second: with the cores to itself 114 to 122 with this count
/// and 80 to 111 with the default, with another busy process 28 and 4.
const SPIN_COUNT: &str = "1000";

/// The variable that sets it, unless the user has chosen for themselves.
fn spin_count() -> Option<(&'static str, &'static str)> {
    let chosen = |name| std::env::var_os(name).is_some();
    (!chosen("GOMP_SPINCOUNT") && !chosen("OMP_WAIT_POLICY")).then_some(("GOMP_SPINCOUNT", SPIN_COUNT))
}

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The binary.
    pub program: PathBuf,
    /// Filter of its log, as in `[log] level`.
    pub log: String,
}

impl Default for WorkerCommand {
    /// This very binary: an upgraded file on disk does not change the protocol that runs.
    fn default() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            log: "info".into(),
        }
    }
}

/// A running worker. Cloning is cheap; the process is killed when the last clone and every stream of it are gone,
/// or by [`Worker::kill`].
#[derive(Clone, Debug)]
pub(super) struct Worker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    outgoing: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

/// What the reader task fills in.
#[derive(Debug)]
struct Shared {
    jobs: Mutex<Owed<mpsc::Sender<Result<Event, Failure>>>>,
    questions: Mutex<Owed<Waiting>>,
    /// When the process last said anything.
    heard: Mutex<Instant>,
    /// How the process ended, if nobody asked it to; there before `ended` is cancelled.
    death: Mutex<Option<Death>>,
    /// Cancelled when the process has ended.
    ended: CancellationToken,
    /// Cancelled to end it.
    kill: CancellationToken,
}

/// Who waits for an answer.
#[derive(Debug)]
struct Waiting {
    reply: oneshot::Sender<Result<WorkerReply, Failure>>,
    /// Who wants to know how far it is.
    advance: Option<watch::Sender<Advance>>,
}

/// What the process owes, by the number of the job or the question.
type Owed<S> = HashMap<u64, Asked<S>>;

/// Where an answer goes.
#[derive(Debug)]
struct Asked<S> {
    to: S,
    /// Of what was asked; `None` if nobody wants to know.
    what: Option<Fingerprint>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The maps are never left half changed, so a panic elsewhere does not matter.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the load phase hears.
#[derive(Debug)]
pub(super) enum LoadReport {
    Progress(f32),
    Loaded(LoadedModel),
    Failed(String),
}

impl Worker {
    /// Starts a process. The second value hears of the load; the third ends when the process has ended.
    pub(super) fn spawn(command: &WorkerCommand, role: &str) -> std::io::Result<(Self, mpsc::Receiver<LoadReport>)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Process::new(&command.program)
            .arg("worker")
            .arg("--role")
            .arg(role)
            .env("HUBLLAMA_LOG", &command.log)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .envs(spin_count())
            // Ctrl-C in the daemon's terminal is the daemon's to handle: it lets answers end.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (read, write) = UnixStream::from_std(ours)?.into_split();
        let (outgoing, frames) = mpsc::channel(OUTGOING_FRAMES);
        let (load_sender, load) = mpsc::channel(16);
        let shared = Arc::new(Shared {
            jobs: Mutex::default(),
            questions: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            death: Mutex::default(),
            ended: CancellationToken::new(),
            kill: CancellationToken::new(),
        });
        tokio::spawn(write_frames(write, frames));
        tokio::spawn(supervise(child, read, Arc::clone(&shared), load_sender));
        Ok((
            Self {
                inner: Arc::new(Inner {
                    outgoing,
                    shared,
                    next_id: AtomicU64::new(1),
                }),
            },
            load,
        ))
    }

    async fn send(&self, command: &DaemonCommand) -> Result<(), Failure> {
        let mut frame = Vec::new();
        protocol::encode(command, &mut frame).map_err(|error| Failure::Invalid(error.to_string()))?;
        self.inner
            .outgoing
            .send(frame)
            .await
            .map_err(|_| Failure::Worker(DIED.into()))
    }

    pub(super) async fn load(&self, spec: LoadSpec) -> Result<(), Failure> {
        self.send(&DaemonCommand::Load(Box::new(spec))).await
    }

    /// Changes the number of compute threads; `false` if the worker does not keep up just now.
    pub(super) fn set_threads(&self, threads: u32) -> bool {
        let mut frame = Vec::new();
        protocol::encode(&DaemonCommand::SetThreads { threads }, &mut frame).is_ok()
            && self.inner.outgoing.try_send(frame).is_ok()
    }

    /// Starts a job; its id is filled in here.
    pub(super) async fn generate(&self, mut job: Job, what: Fingerprint) -> Result<JobStream, Failure> {
        job.id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let id = job.id;
        let (sender, events) = mpsc::channel(STREAM_CREDIT as usize + CREDIT_SLACK);
        let asked = Asked {
            to: sender,
            what: Some(what),
        };
        lock(&self.inner.shared.jobs).insert(id, asked);
        // From here on dropping the stream cancels the job, also while the command is on its way.
        let stream = JobStream {
            worker: self.clone(),
            id,
            events,
            taken: 0,
            finished: false,
            progress: Instant::now(),
        };
        if self.inner.shared.ended.is_cancelled() {
            return Err(Failure::Worker(DIED.into()));
        }
        self.send(&DaemonCommand::Generate(Box::new(job))).await?;
        Ok(stream)
    }

    /// Asks something. `None` if the process died over it. Dropping the future takes the question back.
    pub(super) async fn ask(&self, question: WorkerQuestion) -> Option<Result<WorkerReply, Failure>> {
        self.ask_about(question, None, None).await
    }

    /// As [`Worker::ask`], and tells how far the answer is.
    pub(super) async fn ask_watched(
        &self,
        question: WorkerQuestion,
        advance: watch::Sender<Advance>,
    ) -> Option<Result<WorkerReply, Failure>> {
        self.ask_about(question, None, Some(advance)).await
    }

    /// As [`Worker::ask`], and if the process dies, it is known under what.
    pub(super) async fn ask_suspect(
        &self,
        question: WorkerQuestion,
        what: Fingerprint,
    ) -> Option<Result<WorkerReply, Failure>> {
        self.ask_about(question, Some(what), None).await
    }

    async fn ask_about(
        &self,
        question: WorkerQuestion,
        what: Option<Fingerprint>,
        advance: Option<watch::Sender<Advance>>,
    ) -> Option<Result<WorkerReply, Failure>> {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        let to = Waiting { reply: sender, advance };
        lock(&self.inner.shared.questions).insert(id, Asked { to, what });
        let guard = TakeBack { worker: self, id };
        if self.inner.shared.ended.is_cancelled() {
            return None;
        }
        let question = Box::new(question);
        self.send(&DaemonCommand::Ask { id, question }).await.ok()?;
        let reply = reply.await.ok();
        drop(guard);
        reply
    }

    /// Time since the process last said anything.
    pub(super) fn silence(&self) -> Duration {
        lock(&self.inner.shared.heard).elapsed()
    }

    /// Tells the process something, now if its queue has room, else as soon as it has.
    fn tell(&self, command: &DaemonCommand) {
        let mut frame = Vec::new();
        if protocol::encode(command, &mut frame).is_err() {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(frame)) = self.inner.outgoing.try_send(frame) {
            let outgoing = self.inner.outgoing.clone();
            tokio::spawn(async move { outgoing.send(frame).await });
        }
    }

    /// Ends the process, whatever it is doing, and waits until it is gone.
    pub(super) async fn kill(&self) {
        self.inner.shared.kill.cancel();
        self.inner.shared.ended.cancelled().await;
    }

    /// Resolves when the process has ended, with how it did if nobody asked it to.
    pub(super) fn death(&self) -> impl Future<Output = Option<Death>> + Send + use<> {
        let shared = Arc::clone(&self.inner.shared);
        async move {
            shared.ended.cancelled().await;
            lock(&shared.death).take()
        }
    }

    /// Resolves when the process has ended.
    pub(super) fn ended(&self) -> CancellationToken {
        self.inner.shared.ended.clone()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.kill.cancel();
    }
}

/// A question under way; dropping it before the reply has come takes it back.
struct TakeBack<'a> {
    worker: &'a Worker,
    id: u64,
}

impl Drop for TakeBack<'_> {
    fn drop(&mut self) {
        if lock(&self.worker.inner.shared.questions).remove(&self.id).is_some() {
            self.worker.tell(&DaemonCommand::Cancel { id: self.id });
        }
    }
}

async fn write_frames(mut socket: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if socket.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Reads reports until the process ends or is to be killed; then tells everybody who still waits.
async fn supervise(mut child: Child, socket: OwnedReadHalf, shared: Arc<Shared>, load: mpsc::Sender<LoadReport>) {
    let pid = child.id().unwrap_or(0);
    let mut asked = false;
    tokio::select! {
        result = read_reports(socket, &shared, &load) => {
            if let Err(error) = result {
                tracing::error!(worker.pid = pid, %error, "a worker broke the protocol");
                let _ = child.start_kill();
            }
        }
        () = shared.kill.cancelled() => {
            asked = true;
            let _ = child.start_kill();
        }
    }
    // After an end of file the process is dying or broken; either way nothing more can come of it.
    let status = match tokio::time::timeout(std::time::Duration::from_secs(5), child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    match &status {
        _ if asked => tracing::debug!(worker.pid = pid, "worker ended"),
        Ok(status) => tracing::error!(worker.pid = pid, %status, "a worker died"),
        Err(error) => tracing::error!(worker.pid = pid, %error, "a worker died"),
    }
    if !asked {
        let jobs = lock(&shared.jobs)
            .values()
            .filter_map(|job| job.what)
            .collect::<Vec<_>>();
        let questions = lock(&shared.questions)
            .values()
            .filter_map(|question| question.what)
            .collect();
        *lock(&shared.death) = Some(Death {
            crashed: status.is_ok_and(crashed),
            under: [jobs, questions].concat(),
        });
    }
    shared.ended.cancel();
    // Dropping the senders ends the streams; a stream without its last event reports the death.
    lock(&shared.jobs).clear();
    lock(&shared.questions).clear();
}

/// Whether a process ended by its own fault; whoever is killed by the system or by a person gets other signals.
fn crashed(status: ExitStatus) -> bool {
    use rustix::process::Signal;
    let faults = [Signal::ILL, Signal::ABORT, Signal::BUS, Signal::FPE, Signal::SEGV];
    let fault = |signal: i32| faults.iter().any(|fault| fault.as_raw() == signal);
    status.signal().is_some_and(fault)
}

async fn read_reports(socket: OwnedReadHalf, shared: &Shared, load: &mpsc::Sender<LoadReport>) -> std::io::Result<()> {
    let mut socket = BufReader::with_capacity(64 << 10, socket);
    let mut buffer = Vec::new();
    loop {
        let mut length = [0u8; 4];
        if socket.read_exact(&mut length).await.is_err() {
            return Ok(());
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(std::io::Error::other(format!("a frame of {length} bytes")));
        }
        buffer.clear();
        if (&mut socket).take(length as u64).read_to_end(&mut buffer).await? != length {
            return Ok(());
        }
        let report = match serde_json::from_slice(&buffer) {
            Ok(report) => report,
            // One job's step is lost; the other jobs of this worker are not to suffer.
            Err(error) => {
                tracing::error!(%error, "a worker's report does not decode");
                continue;
            }
        };
        *lock(&shared.heard) = Instant::now();
        match report {
            WorkerReport::Hello {
                version: PROTOCOL_VERSION,
            } => {}
            WorkerReport::Hello { version } => {
                return Err(std::io::Error::other(format!("the worker speaks version {version}")));
            }
            WorkerReport::Progress { fraction } => {
                // Only a hint: the newest is as good as all of them.
                let _ = load.try_send(LoadReport::Progress(fraction));
            }
            WorkerReport::Loaded(loaded) => {
                let _ = load.send(LoadReport::Loaded(loaded)).await;
            }
            WorkerReport::LoadFailed { reason } => {
                let _ = load.send(LoadReport::Failed(reason)).await;
            }
            WorkerReport::Events(events) => {
                let mut jobs = lock(&shared.jobs);
                for (id, event) in events {
                    let last = matches!(event, Event::Finished(_));
                    let sign_of_life = is_sign_of_life(&event);
                    let sent = jobs.get(&id).is_none_or(|job| job.to.try_send(Ok(event)).is_ok());
                    // Credits keep the channel from filling up; a worker that ignores them loses the stream.
                    let lost = !sent && !sign_of_life;
                    if last || lost {
                        jobs.remove(&id);
                    }
                }
            }
            WorkerReport::Failed { id, failure } => {
                if let Some(job) = lock(&shared.jobs).remove(&id) {
                    let _ = job.to.try_send(Err(failure));
                }
            }
            WorkerReport::Answered { id, result } => {
                if let Some(question) = lock(&shared.questions).remove(&id) {
                    let _ = question.to.reply.send(result);
                }
            }
            WorkerReport::Advanced { id, advance } => {
                let questions = lock(&shared.questions);
                if let Some(watcher) = questions.get(&id).and_then(|question| question.to.advance.as_ref()) {
                    watcher.send_replace(advance);
                }
            }
            WorkerReport::Alive => {}
        }
    }
}

/// Whether an event only says that the worker is at work.
fn is_sign_of_life(event: &Event) -> bool {
    matches!(event, Event::Delta(delta) if *delta == Delta::default())
}

/// Events of one job. Dropping it cancels the job.
#[derive(Debug)]
pub struct JobStream {
    worker: Worker,
    id: u64,
    events: mpsc::Receiver<Result<Event, Failure>>,
    /// Events taken since the last credit was sent.
    taken: u32,
    finished: bool,
    progress: Instant,
}

impl JobStream {
    /// When the worker last gave a sign of life for this job.
    #[must_use]
    pub fn last_progress(&self) -> Instant {
        self.progress
    }
}

impl Stream for JobStream {
    type Item = Result<Event, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let item = loop {
            let item = ready!(self.events.poll_recv(context)).unwrap_or_else(|| Err(Failure::Worker(DIED.into())));
            self.progress = Instant::now();
            if !item.as_ref().is_ok_and(is_sign_of_life) {
                break item;
            }
        };
        match &item {
            Ok(Event::Delta(_)) => {
                self.taken += 1;
                if self.taken >= STREAM_CREDIT / 2 {
                    let events = std::mem::take(&mut self.taken);
                    self.worker.tell(&DaemonCommand::Credit { id: self.id, events });
                }
            }
            Ok(Event::Finished(_)) | Err(_) => self.finished = true,
        }
        Poll::Ready(Some(item))
    }
}

impl Drop for JobStream {
    fn drop(&mut self) {
        if !self.finished {
            lock(&self.worker.inner.shared.jobs).remove(&self.id);
            self.worker.tell(&DaemonCommand::Cancel { id: self.id });
        }
    }
}
