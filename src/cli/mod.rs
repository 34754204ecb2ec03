//! Command line: parses arguments, calls the module that does the work, and prints for people. No other module prints.
//!
//! `serve` runs the daemon in this process. `pull`, `list`, `show` and `rm` ask a running daemon over its own API, and
//! work on the cache directly if there is none. Each of the other commands has a file of its own.

mod args;
mod client;
mod convert;
mod doctor;
mod manage;
mod models;
mod search;
mod show;
mod template;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Arguments, Command, ConfigCommand, WorkerRoleArgument};
use crate::{
    config::{self, ConfigInputs},
    convert::GgufRole,
    daemon, observability,
    worker::{self, WorkerRole},
};

/// Exit status for a wrong configuration: `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

/// Parses the command line and runs its command.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before the inputs are collected: a worker reads no configuration, the daemon sends it what it needs.
    if let Some(Command::Worker { role }) = arguments.command {
        return run_worker(role);
    }
    let inputs = arguments.inputs();
    match arguments
        .command
        .unwrap_or(Command::Serve(args::ServeArguments::default()))
    {
        Command::Serve(_) => serve(inputs),
        Command::Config {
            command: ConfigCommand::Check,
        } => check(&inputs),
        Command::Convert {
            checkpoint,
            target,
            output,
            any_tokenizer,
            mmproj,
        } => {
            let role = if mmproj { GgufRole::Projector } else { GgufRole::Model };
            with_runtime(convert::run(&inputs, &checkpoint, target, output, any_tokenizer, role))
        }
        Command::Doctor => with_runtime(doctor::run(&inputs)),
        Command::Pull { name } => with_runtime(models::pull(&inputs, &name)),
        Command::List => with_runtime(models::list(&inputs)),
        Command::Rm { name, files } => with_runtime(manage::remove(&inputs, &name, files)),
        Command::Show { name, updates } => with_runtime(show::show(&inputs, &name, updates)),
        Command::Search { words, limit } => with_runtime(search::search(&inputs, &words, limit)),
        Command::Verify { names } => with_runtime(manage::verify(&inputs, &names)),
        Command::Prune { apply } => with_runtime(manage::prune(&inputs, apply)),
        Command::Import { file, name } => with_runtime(manage::import(&inputs, &file, &name)),
        Command::Template(arguments) => with_runtime(template::run(&inputs, &arguments)),
        // Handled above.
        Command::Worker { .. } => ExitCode::FAILURE,
    }
}

fn with_runtime(work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    runtime.block_on(work).unwrap_or_else(|error| fail(&error))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn check(inputs: &ConfigInputs) -> ExitCode {
    let report = config::check_report(inputs);
    print!("{}", report.text);
    if report.good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_CONFIG)
    }
}

fn serve(inputs: ConfigInputs) -> ExitCode {
    match daemon::run(inputs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(daemon::StartError::Config(problems)) => {
            eprintln!("error: the configuration has problems\n{problems}");
            ExitCode::from(EXIT_CONFIG)
        }
        Err(error) => fail(&error.into()),
    }
}

fn run_worker(role: WorkerRoleArgument) -> ExitCode {
    let log = config::LogConfig {
        level: std::env::var("HUBLLAMA_LOG").unwrap_or_else(|_| "info".into()),
        ..config::LogConfig::default()
    };
    // A failure only means that the worker does not log.
    let _ = observability::init(&log);
    let role = match role {
        WorkerRoleArgument::Model => WorkerRole::Model,
        WorkerRoleArgument::Helper => WorkerRole::Helper,
        WorkerRoleArgument::Converter => WorkerRole::Converter,
    };
    match worker::run(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the worker cannot run: {error}");
            ExitCode::FAILURE
        }
    }
}
