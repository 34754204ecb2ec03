//! The child process: one resident model, the helper that compiles what strangers wrote, or the quantizer of files.
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
mod embed;
mod engine;
mod generation;
mod inspect;
mod output;
mod prefix;
mod prepare;
pub mod protocol;
mod quantize;
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
};

use embed::EmbedTask;
pub use inspect::{BuildReport, build_report};
use prepare::Prepared;
use protocol::{Command, PROTOCOL_VERSION, Report};
pub use template::{Comparison, Conversation, TemplateReport, template_report};

/// Inputs that wait for the engine between two decode steps.
const INPUT_QUEUE: usize = 4096;
/// Template engines, grammar compilers and parsers recurse over what strangers wrote.
const ENGINE_STACK_BYTES: usize = 64 << 20;
/// Address space of the helper: a template that doubles a string dies here, not in the machine's memory.
const HELPER_ADDRESS_SPACE_BYTES: u64 = 4 << 30;

/// What a worker process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerRole {
    /// Holds one model.
    Model,
    /// Renders templates; holds no weights.
    Helper,
    /// Quantises files.
    Quantizer,
}

/// The main function of `hubllama worker`; returns when the socket on standard input is closed.
///
/// # Errors
/// When standard input is no socket, or the engine thread cannot be started.
pub fn run(role: WorkerRole) -> std::io::Result<()> {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    if role == WorkerRole::Helper {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::As).maximum;
        let limit = Some(HELPER_ADDRESS_SPACE_BYTES.min(maximum.unwrap_or(u64::MAX)));
        setrlimit(
            Resource::As,
            Rlimit {
                current: limit,
                maximum,
            },
        )?;
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
            let mut reports = Reports::new(socket);
            reports.send(&Report::Hello {
                version: PROTOCOL_VERSION,
            });
            match role {
                WorkerRole::Model => engine::run(&receiver, &sender, &mut reports),
                WorkerRole::Helper => compile::run(&receiver, &mut reports),
                WorkerRole::Quantizer => quantize::run(&receiver, &mut reports),
            }
        })?;
    engine
        .join()
        .map_err(|_| std::io::Error::other("the engine thread panicked"))
}

/// Forwards commands until the socket closes; then ends the process at once, whatever the engine is doing: a load or
/// a decode step cannot be interrupted otherwise, and nobody is left to read its result.
fn read_commands(socket: UnixStream, sender: &SyncSender<Input>) {
    let mut reader = BufReader::new(socket);
    loop {
        match protocol::read(&mut reader) {
            Ok(Some(Ok(command))) => {
                if sender.send(Input::Command(command)).is_err() {
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
struct Reports {
    socket: UnixStream,
    buffer: Vec<u8>,
}

impl Reports {
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            buffer: Vec::with_capacity(4096),
        }
    }

    /// Writes one frame. A failure means that the daemon is gone; the reader thread ends the process then.
    fn send(&mut self, report: &Report) {
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
enum Input {
    /// From the daemon.
    Command(Command),
    /// A job that can be started, or why not.
    Prepared(u64, Result<Box<Prepared>, crate::inference::Failure>),
    /// Texts that are cut into tokens.
    Embed(EmbedTask),
    /// To be passed on to the daemon.
    Report(Report),
}

type Inputs = Receiver<Input>;
