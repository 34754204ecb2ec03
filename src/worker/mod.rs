//! Child process of the daemon: it holds one model, renders untrusted templates, or converts checkpoints.
//!
//! A worker is this same binary, started again as `hubllama worker` with one end of a Unix socket pair as its standard
//! input. It ends when that socket closes. The daemon's side (`lifecycle`) shares only [`protocol`] with it.
//!
//! In a model's worker a reader thread takes frames off the socket. The thread of `prepare` tokenizes prompts and
//! compiles schemas and grammars. The engine thread owns the model and its contexts and runs the loop of `engine`: it
//! takes inputs, gives jobs to slots (`generation`, `slot`), plans a batch, decodes it, chooses tokens (`sampling`,
//! `constraint`) and sends what they add to the answers (`answer`). Everything that decides without llama.cpp is pure
//! and tested without a model: `scheduler`, `prefix` (which knows token ids only), `output`, `reasoning`.

pub mod answer;
mod constraint;
mod convert;
mod embed;
mod engine;
mod error;
mod generation;
mod helper;
mod inspect;
mod output;
mod picking;
mod prefix;
mod prepare;
pub mod protocol;
mod reasoning;
mod sampling;
mod scheduler;
mod slot;
mod template;

use std::{
    io::{BufReader, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use crate::{gguf::GgmlType, llama};
use embed::EmbedTask;
pub use error::WorkerError;
pub use inspect::{BuildReport, build_report};
use prepare::PreparedJob;
use protocol::{DaemonCommand, PROTOCOL_VERSION, WorkerReport};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
pub use template::{ProbeReport, PromptComparison, TemplateReport, template_report};

/// Largest number of inputs that wait for the engine between two decode steps.
const INPUT_QUEUE: usize = 4096;
/// Stack of the engine thread. Template engines, grammar compilers and parsers recurse over untrusted text.
const ENGINE_STACK_BYTES: usize = 64 << 20;
/// Limit on the helper's address space, which stops a template that doubles a string again and again.
const HELPER_ADDRESS_SPACE_BYTES: u64 = 4 << 30;
/// Limit on the converter's data segment, four times what the largest known tokenizers take. The address space is not
/// limited, because every thread reserves much of it that it never uses.
const CONVERTER_DATA_BYTES: u64 = 8 << 30;

/// Time between two signs of life of jobs that give no text. The daemon takes a worker for hung after much longer.
const LIFE_INTERVAL: Duration = Duration::from_secs(1);

/// Purpose of a worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerRole {
    /// Holds one model.
    Model,
    /// Renders templates; holds no weights.
    Helper,
    /// Converts checkpoints to GGUF files.
    Converter,
}

/// Runs `hubllama worker`; returns when the socket on standard input is closed.
///
/// # Errors
/// If standard input is no socket, or the engine thread cannot be started.
pub fn run(role: WorkerRole) -> std::io::Result<()> {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    // Before any thread starts: the limits hold for the whole process.
    match role {
        WorkerRole::Helper => limit(Resource::As, HELPER_ADDRESS_SPACE_BYTES)?,
        WorkerRole::Converter => limit(Resource::Data, CONVERTER_DATA_BYTES)?,
        WorkerRole::Model => {}
    }
    // Bounded: a daemon that sends faster than the engine takes waits in its socket.
    let (sender, receiver) = sync_channel(INPUT_QUEUE);
    let reader = socket.try_clone()?;
    let to_engine = sender.clone();
    thread::Builder::new()
        .name("socket".into())
        .spawn(move || read_commands(reader, &to_engine))?;
    let engine = thread::Builder::new()
        .name("engine".into())
        .stack_size(ENGINE_STACK_BYTES)
        .spawn(move || {
            let mut reports = ReportSender::new(socket);
            reports.send(&WorkerReport::Hello {
                version: PROTOCOL_VERSION,
            });
            match role {
                WorkerRole::Model => engine::run(&receiver, &sender, &mut reports),
                WorkerRole::Helper => helper::run(&receiver, &mut reports),
                WorkerRole::Converter => convert::run(&receiver, &mut reports),
            }
        })?;
    engine
        .join()
        .map_err(|_| std::io::Error::other("the engine thread panicked"))
}

/// Lowers a resource limit of this process to `bytes`, unless it is lower already.
fn limit(resource: Resource, bytes: u64) -> std::io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    let current = [current, maximum].into_iter().flatten().fold(bytes, u64::min);
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    Ok(setrlimit(resource, limit)?)
}

/// Forwards commands until the socket closes, then ends the process at once, even in the middle of a load or a decode
/// step: those cannot be interrupted otherwise, and nobody is left to read their result.
fn read_commands(socket: UnixStream, sender: &SyncSender<EngineInput>) {
    let mut reader = BufReader::new(socket);
    loop {
        match protocol::read(&mut reader) {
            Ok(Some(Ok(command))) => {
                if sender.send(EngineInput::Command(command)).is_err() {
                    return;
                }
            }
            // Only this command is lost; the other jobs of this worker go on.
            Ok(Some(Err(error))) => tracing::error!(%error, "a command does not decode"),
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "unreadable frame from the daemon");
                break;
            }
        }
    }
    // Not `exit`, whose C++ destructors would race with the engine thread.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

/// Sender of reports to the daemon.
#[derive(Debug)]
struct ReportSender {
    socket: UnixStream,
    buffer: Vec<u8>,
}

impl ReportSender {
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            buffer: Vec::with_capacity(4096),
        }
    }

    /// Writes one frame. A failure is only logged: the daemon is gone then, and the reader thread is about to end the
    /// process.
    fn send(&mut self, report: &WorkerReport) {
        self.buffer.clear();
        match protocol::encode(report, &mut self.buffer) {
            Ok(()) => {
                if let Err(error) = self.socket.write_all(&self.buffer) {
                    tracing::debug!(%error, "the daemon is gone");
                }
            }
            Err(error) => tracing::error!(%error, "a report could not be encoded"),
        }
    }
}

/// Message to the engine thread.
#[derive(Debug)]
enum EngineInput {
    Command(DaemonCommand),
    /// Job that can be started, or the reason why it cannot.
    Prepared(u64, Result<Box<PreparedJob>, crate::inference::Failure>),
    /// Texts to convert to vectors, as tokens.
    Embed(EmbedTask),
    /// Report of another thread, to be passed on to the daemon: the engine thread alone writes to the socket.
    Report(WorkerReport),
}

type EngineInputs = Receiver<EngineInput>;

/// Quantizer that [`convert`](crate::convert) is given. Its layer does not see `llama`, so errors cross as text.
fn quantize_rows(weight_type: GgmlType, numbers: &[f32], row: usize, out: &mut Vec<u8>) -> Result<(), String> {
    llama::quantize_rows(weight_type, numbers, row, out).map_err(|error| error.to_string())
}
