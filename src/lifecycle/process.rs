//! Handle of a worker process: starts it, exchanges frames with it, and notices its end.
//!
//! A writer task sends the frames of a queue. A supervisor task reads reports and passes each to the receiver of its
//! job or question ([`PendingEntry`]). When the process ends, it ends all receivers that are left.

use std::{
    collections::HashMap,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

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

use super::quarantine::{RequestFingerprint, WorkerDeath};
use crate::{
    convert::ConversionProgress,
    inference::{Delta, Event, Failure},
    stdx::sync::lock,
    worker::protocol::{
        self, DaemonCommand, Job, LoadSpec, LoadedModel, MAX_FRAME_BYTES, PROTOCOL_VERSION, STREAM_CREDIT,
        WorkerQuestion, WorkerReply, WorkerReport,
    },
};

/// Error text for a process that has ended, in Ollama's words with our log named: clients match on the beginning.
pub(super) const PROCESS_ENDED: &str = "model runner has unexpectedly stopped, this may be due to resource limitations or an \
                               internal error, check the hubllama log for details";
/// Frames that may wait for the socket; each job has at most a handful at a time.
const OUTGOING_FRAMES: usize = 1024;
/// Events that a worker may send beyond its credit: the held-back rest of a text, and the end.
const CREDIT_SLACK: usize = 8;

/// Iterations that a compute thread of libgomp spins at the end of an operation before it sleeps (`GOMP_SPINCOUNT`, by
/// default 300,000). Measured with two threads on two cores, in tokens per second: without other load 114 to 122 with
/// this value and 80 to 111 with the default; with another busy process 28 and 4.
const SPIN_COUNT: &str = "1000";

/// Returns the environment variable that sets [`SPIN_COUNT`]; `None` if the user has configured libgomp.
fn spin_count() -> Option<(&'static str, &'static str)> {
    let is_set = |name| std::env::var_os(name).is_some();
    (!is_set("GOMP_SPINCOUNT") && !is_set("OMP_WAIT_POLICY")).then_some(("GOMP_SPINCOUNT", SPIN_COUNT))
}

/// Program and environment of worker processes.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    pub program: PathBuf,
    /// Log filter, with the syntax of `log.level`.
    pub log: String,
}

impl Default for WorkerCommand {
    /// Returns a command for the running binary. After an upgrade of the file on disk, `/proc/self/exe` still starts
    /// the old one, which speaks the same protocol.
    fn default() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            log: "info".into(),
        }
    }
}

/// A running worker process. All clones control the same one; it is killed when the last clone and the last stream are
/// dropped, or by [`WorkerProcess::kill`].
#[derive(Clone, Debug)]
pub(super) struct WorkerProcess {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    outgoing: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

/// State shared by the handles and the supervisor task.
#[derive(Debug)]
struct Shared {
    jobs: Mutex<PendingEntries<mpsc::Sender<JobEvent>>>,
    questions: Mutex<PendingEntries<PendingReply>>,
    /// Time of the last report.
    last_report: Mutex<Instant>,
    /// Details of an unexpected end; set before `ended` is cancelled.
    death: Mutex<Option<WorkerDeath>>,
    /// Cancelled when the process is gone.
    ended: CancellationToken,
    /// Cancelled to kill the process.
    kill: CancellationToken,
}

/// Event of a job, or the failure that ends it.
pub(super) type JobEvent = Result<Event, Failure>;

/// Returns true if an event carries nothing: a worker sends an empty delta to say that it is computing.
pub(super) fn is_sign_of_life(event: &Event) -> bool {
    matches!(event, Event::Delta(delta) if *delta == Delta::default())
}

/// Receiver of the reply to a question.
#[derive(Debug)]
struct PendingReply {
    reply: oneshot::Sender<Result<WorkerReply, Failure>>,
    /// Receiver of progress reports; `None` if none are wanted.
    progress: Option<watch::Sender<ConversionProgress>>,
}

/// Jobs or questions in progress, by id.
type PendingEntries<R> = HashMap<u64, PendingEntry<R>>;

/// A job or question in progress.
#[derive(Debug)]
struct PendingEntry<R> {
    receiver: R,
    /// Fingerprint of the request, for the quarantine; `None` for requests that do not come from a client.
    fingerprint: Option<RequestFingerprint>,
}

/// A report about the load of a model.
#[derive(Debug)]
pub(super) enum LoadReport {
    Progress(f32),
    Loaded(LoadedModel),
    Failed(String),
}

impl WorkerProcess {
    /// Starts a process in the given role. The receiver yields the reports about the load, and ends with the process.
    pub(super) fn spawn(command: &WorkerCommand, role: &str) -> std::io::Result<(Self, mpsc::Receiver<LoadReport>)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Process::new(&command.program)
            .arg("worker")
            .arg("--role")
            .arg(role)
            .env("HUBLLAMA_LOG", &command.log)
            // The socket is standard input, which the worker finds without being told a descriptor. Standard output
            // belongs to the command that started the worker; the log goes to standard error, which is inherited.
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .envs(spin_count())
            // In a group of its own, so that Ctrl-C in the daemon's terminal reaches only the daemon, which lets
            // answers end.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (read, write) = UnixStream::from_std(ours)?.into_split();
        let (outgoing, frames) = mpsc::channel(OUTGOING_FRAMES);
        // Few are needed: progress that does not fit is dropped, and there is one result.
        let (load_sender, load) = mpsc::channel(16);
        let shared = Arc::new(Shared {
            jobs: Mutex::default(),
            questions: Mutex::default(),
            last_report: Mutex::new(Instant::now()),
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
            .map_err(|_| Failure::Worker(PROCESS_ENDED.into()))
    }

    pub(super) async fn load(&self, spec: LoadSpec) -> Result<(), Failure> {
        self.send(&DaemonCommand::Load(Box::new(spec))).await
    }

    /// Sets the number of compute threads. Returns false if the queue to the worker is full or the process has ended.
    pub(super) fn set_threads(&self, threads: u32) -> bool {
        let mut frame = Vec::new();
        protocol::encode(&DaemonCommand::SetThreads { threads }, &mut frame).is_ok()
            && self.inner.outgoing.try_send(frame).is_ok()
    }

    /// Makes the entry of a job; returns its id and its events.
    pub(super) fn register_job(&self, fingerprint: RequestFingerprint) -> (u64, mpsc::Receiver<JobEvent>) {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = mpsc::channel(STREAM_CREDIT as usize + CREDIT_SLACK);
        let entry = PendingEntry {
            receiver: sender,
            fingerprint: Some(fingerprint),
        };
        lock(&self.inner.shared.jobs).insert(id, entry);
        (id, events)
    }

    /// Sends a job whose id is registered.
    ///
    /// # Errors
    ///
    /// If the process has ended.
    pub(super) async fn send_job(&self, job: Job) -> Result<(), Failure> {
        // Checked after the registration: the supervisor sets `ended` before it clears the entries, so that an entry
        // inserted too late is noticed here.
        if self.inner.shared.ended.is_cancelled() {
            return Err(Failure::Worker(PROCESS_ENDED.into()));
        }
        self.send(&DaemonCommand::Generate(Box::new(job))).await
    }

    /// Asks a question. Returns `None` if the process ends before the reply. Dropping the future cancels the question.
    pub(super) async fn ask(&self, question: WorkerQuestion) -> Option<Result<WorkerReply, Failure>> {
        self.ask_inner(question, None, None).await
    }

    /// Asks a question like [`WorkerProcess::ask`], with progress reports.
    pub(super) async fn ask_with_progress(
        &self,
        question: WorkerQuestion,
        progress: watch::Sender<ConversionProgress>,
    ) -> Option<Result<WorkerReply, Failure>> {
        self.ask_inner(question, None, Some(progress)).await
    }

    /// Asks a question like [`WorkerProcess::ask`]. If the process dies over it, the fingerprint is part of the
    /// reported death.
    pub(super) async fn ask_with_fingerprint(
        &self,
        question: WorkerQuestion,
        fingerprint: RequestFingerprint,
    ) -> Option<Result<WorkerReply, Failure>> {
        self.ask_inner(question, Some(fingerprint), None).await
    }

    async fn ask_inner(
        &self,
        question: WorkerQuestion,
        fingerprint: Option<RequestFingerprint>,
        progress: Option<watch::Sender<ConversionProgress>>,
    ) -> Option<Result<WorkerReply, Failure>> {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        let entry = PendingEntry {
            receiver: PendingReply {
                reply: sender,
                progress,
            },
            fingerprint,
        };
        lock(&self.inner.shared.questions).insert(id, entry);
        // The guard is made before the first await, so that a future dropped at any of them removes its entry.
        let guard = CancelOnDrop { worker: self, id };
        // Checked after the entry is made, for the same reason as in `send_job`.
        if self.inner.shared.ended.is_cancelled() {
            return None;
        }
        let question = Box::new(question);
        self.send(&DaemonCommand::Ask { id, question }).await.ok()?;
        let reply = reply.await.ok();
        drop(guard);
        reply
    }

    /// Returns the time since the last report.
    pub(super) fn silence(&self) -> Duration {
        lock(&self.inner.shared.last_report).elapsed()
    }

    /// Sends a command without waiting: in a task if the queue is full. For `Drop` implementations, which cannot wait.
    pub(super) fn send_detached(&self, command: &DaemonCommand) {
        let mut frame = Vec::new();
        if protocol::encode(command, &mut frame).is_err() {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(frame)) = self.inner.outgoing.try_send(frame) {
            let outgoing = self.inner.outgoing.clone();
            tokio::spawn(async move { outgoing.send(frame).await });
        }
    }

    /// Removes the entry of a job and cancels the job in the process.
    pub(super) fn cancel_job(&self, id: u64) {
        lock(&self.inner.shared.jobs).remove(&id);
        self.send_detached(&DaemonCommand::Cancel { id });
    }

    /// Kills the process and waits until it is gone.
    pub(super) async fn kill(&self) {
        self.inner.shared.kill.cancel();
        self.inner.shared.ended.cancelled().await;
    }

    /// Waits for the end of the process. The future resolves to the details unless [`WorkerProcess::kill`] ended it.
    pub(super) fn death(&self) -> impl Future<Output = Option<WorkerDeath>> + Send + use<> {
        let shared = Arc::clone(&self.inner.shared);
        async move {
            shared.ended.cancelled().await;
            lock(&shared.death).take()
        }
    }

    /// Returns a token that is cancelled when the process has ended.
    pub(super) fn ended(&self) -> CancellationToken {
        self.inner.shared.ended.clone()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.kill.cancel();
    }
}

/// Guard that cancels a question when it is dropped before the reply.
struct CancelOnDrop<'a> {
    worker: &'a WorkerProcess,
    id: u64,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        // An entry that is gone has been answered, so there is nothing to cancel.
        if lock(&self.worker.inner.shared.questions).remove(&self.id).is_some() {
            self.worker.send_detached(&DaemonCommand::Cancel { id: self.id });
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

/// Reads reports until the process ends or is killed, then ends everything that is pending.
async fn supervise(mut child: Child, socket: OwnedReadHalf, shared: Arc<Shared>, load: mpsc::Sender<LoadReport>) {
    let pid = child.id().unwrap_or(0);
    let mut killed = false;
    tokio::select! {
        result = read_reports(socket, &shared, &load) => {
            if let Err(error) = result {
                tracing::error!(worker.pid = pid, %error, "a worker broke the protocol");
                let _ = child.start_kill();
            }
        }
        () = shared.kill.cancelled() => {
            killed = true;
            let _ = child.start_kill();
        }
    }
    // The socket is closed, so the process is about to exit. One that does not within five seconds is killed.
    let status = match tokio::time::timeout(std::time::Duration::from_secs(5), child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    match &status {
        _ if killed => tracing::debug!(worker.pid = pid, "worker ended"),
        Ok(status) => tracing::error!(worker.pid = pid, %status, "a worker died"),
        Err(error) => tracing::error!(worker.pid = pid, %error, "a worker died"),
    }
    if !killed {
        let jobs = lock(&shared.jobs)
            .values()
            .filter_map(|job| job.fingerprint)
            .collect::<Vec<_>>();
        let questions = lock(&shared.questions)
            .values()
            .filter_map(|question| question.fingerprint)
            .collect();
        *lock(&shared.death) = Some(WorkerDeath {
            crashed: status.is_ok_and(crashed),
            requests: [jobs, questions].concat(),
        });
    }
    // Before the entries are cleared, as `send_job` and `ask_inner` rely on.
    shared.ended.cancel();
    // Dropping the senders ends the streams. A stream that ends without its last event reports the death.
    lock(&shared.jobs).clear();
    lock(&shared.questions).clear();
}

/// Returns true if the process ended by a signal that its own fault raises. The out-of-memory killer and people send
/// other signals.
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
        // Not `read_exact` into a buffer of that length: a false length then allocates only as much as arrives.
        if (&mut socket).take(length as u64).read_to_end(&mut buffer).await? != length {
            return Ok(());
        }
        let report = match serde_json::from_slice(&buffer) {
            Ok(report) => report,
            // The frame was read to its end, so that the next one can be read: only the jobs in this report suffer.
            Err(error) => {
                tracing::error!(%error, "a worker's report does not decode");
                continue;
            }
        };
        *lock(&shared.last_report) = Instant::now();
        match report {
            WorkerReport::Hello {
                version: PROTOCOL_VERSION,
            } => {}
            WorkerReport::Hello { version } => {
                return Err(std::io::Error::other(format!("the worker speaks version {version}")));
            }
            WorkerReport::Progress { fraction } => {
                // A full channel drops the report: progress only restarts the load timeout, and the reports before it
                // do that.
                let _ = load.try_send(LoadReport::Progress(fraction));
            }
            WorkerReport::Loaded(loaded) => {
                // An error means that the load was given up, and nobody receives its result.
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
                    // A canceled job has no entry any more, but its last events may still arrive.
                    let sent = jobs.get(&id).is_none_or(|job| job.receiver.try_send(Ok(event)).is_ok());
                    // The credit keeps the channel from filling up. If an event does not fit, the worker has exceeded
                    // it, and the stream would have a gap: end it. Only a sign of life may be lost.
                    let lost = !sent && !sign_of_life;
                    if last || lost {
                        jobs.remove(&id);
                    }
                }
            }
            WorkerReport::Failed { id, failure } => {
                if let Some(job) = lock(&shared.jobs).remove(&id) {
                    let _ = job.receiver.try_send(Err(failure));
                }
            }
            WorkerReport::Answered { id, result } => {
                if let Some(question) = lock(&shared.questions).remove(&id) {
                    let _ = question.receiver.reply.send(result);
                }
            }
            WorkerReport::Advanced { id, advance } => {
                let questions = lock(&shared.questions);
                if let Some(progress) = questions
                    .get(&id)
                    .and_then(|question| question.receiver.progress.as_ref())
                {
                    progress.send_replace(advance);
                }
            }
            WorkerReport::Alive => {}
        }
    }
}
