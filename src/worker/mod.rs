//! The child process: one resident model, the helper that compiles what strangers wrote, or the converter of checkpoints.
//!
//! It is this same binary, started again as `hubllama worker` with one end of a Unix socket pair as its standard input.
//! It ends when that socket closes. `protocol` is all that the daemon's side shares with it.
//!
//! A reader thread takes frames off the socket; a thread that prepares (`prepare`) tokenises prompts and compiles schemas and
//! grammars; the engine thread owns model and contexts as locals and runs the loop of `engine`: take inputs, admit, plan,
//! decode, sample, emit. Everything that decides is pure and has no llama type in it: `scheduler`, `prefix`, `output`,
//! `reasoning`.

pub mod answer;
mod compile;
mod constraint;
mod convert;
mod embed;
mod engine;
mod error;
mod generation;
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

/// Inputs that wait for the engine between two decode steps.
const INPUT_QUEUE: usize = 4096;
/// Template engines, grammar compilers and parsers recurse over what strangers wrote.
const ENGINE_STACK_BYTES: usize = 64 << 20;
/// Address space of the helper: a template that doubles a string dies here, not in the machine's memory.
const HELPER_ADDRESS_SPACE_BYTES: u64 = 4 << 30;
/// Memory of the converter: the largest tokenizers take a quarter of it, and what a stranger made may take no more. Not the
/// address space, of which every thread reserves much that it never uses.
const CONVERTER_DATA_BYTES: u64 = 8 << 30;

/// Time between two signs of life of jobs that give no text.
const LIFE_INTERVAL: Duration = Duration::from_secs(1);

/// What a worker process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerRole {
    /// Holds one model.
    Model,
    /// Renders templates; holds no weights.
    Helper,
    /// Makes GGUF files of checkpoints.
    Converter,
}

/// The main function of `hubllama worker`; returns when the socket on standard input is closed.
///
/// # Errors
/// When standard input is no socket, or the engine thread cannot be started.
pub fn run(role: WorkerRole) -> std::io::Result<()> {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    match role {
        WorkerRole::Helper => limit(Resource::As, HELPER_ADDRESS_SPACE_BYTES)?,
        WorkerRole::Converter => limit(Resource::Data, CONVERTER_DATA_BYTES)?,
        WorkerRole::Model => {}
    }
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
                WorkerRole::Helper => compile::run(&receiver, &mut reports),
                WorkerRole::Converter => convert::run(&receiver, &mut reports),
            }
        })?;
    engine
        .join()
        .map_err(|_| std::io::Error::other("the engine thread panicked"))
}

/// Bounds what this process may use of something, but never raises a bound.
fn limit(resource: Resource, bytes: u64) -> std::io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    let current = [current, maximum].into_iter().flatten().fold(bytes, u64::min);
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    Ok(setrlimit(resource, limit)?)
}

/// Forwards commands until the socket closes; then ends the process at once, whatever the engine is doing: a load or
/// a decode step cannot be interrupted otherwise, and nobody is left to read its result.
fn read_commands(socket: UnixStream, sender: &SyncSender<EngineInput>) {
    let mut reader = BufReader::new(socket);
    loop {
        match protocol::read(&mut reader) {
            Ok(Some(Ok(command))) => {
                if sender.send(EngineInput::Command(command)).is_err() {
                    return;
                }
            }
            // One job's command is lost; the other jobs of this worker are not to suffer.
            Ok(Some(Err(error))) => tracing::error!(%error, "a command does not decode"),
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "unreadable frame from the daemon");
                break;
            }
        }
    }
    // Not `exit`: its destructors would race with the engine thread.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

/// The daemon's end of the socket, seen from the engine thread.
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

    /// Writes one frame. A failure means that the daemon is gone; the reader thread ends the process then.
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

/// What reaches the engine thread.
#[derive(Debug)]
enum EngineInput {
    /// From the daemon.
    Command(DaemonCommand),
    /// A job that can be started, or why not.
    Prepared(u64, Result<Box<PreparedJob>, crate::inference::Failure>),
    /// Texts that are cut into tokens.
    Embed(EmbedTask),
    /// To be passed on to the daemon.
    Report(WorkerReport),
}

type EngineInputs = Receiver<EngineInput>;

/// Quantizer that [`convert`](crate::convert) is given. Its layer does not see `llama`, so errors cross as text.
fn quantize_rows(weight_type: GgmlType, numbers: &[f32], row: usize, out: &mut Vec<u8>) -> Result<(), String> {
    llama::quantize_rows(weight_type, numbers, row, out).map_err(|error| error.to_string())
}
