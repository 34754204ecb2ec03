//! `convert`: a GGUF file from a checkpoint that is on this machine. No daemon is asked.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    config::{self, Inputs},
    convert::{Advance, Part, Stage, TargetType},
    hub::HfName,
    lifecycle::{WorkerCommand, convert},
    stdx::size::human_bytes,
    worker::protocol::ConvertJob,
};

pub(super) async fn run(
    inputs: &Inputs,
    checkpoint: &str,
    target: TargetType,
    output: Option<PathBuf>,
    any_tokenizer: bool,
    part: Part,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let (folder, name) = find(inputs, checkpoint)?;
    let shows = std::io::stderr().is_terminal();
    if !shows {
        match target {
            TargetType::Stored => eprintln!("converting {} to the type that it has", folder.display()),
            _ => eprintln!("converting {} to {target}", folder.display()),
        }
    }
    let job = ConvertJob {
        folder,
        name,
        target,
        output,
        any_tokenizer,
        header_only: false,
        part,
    };
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(
        "{prefix:10} {wide_bar} {decimal_bytes:>10}/{decimal_total_bytes:10} {decimal_bytes_per_sec:>12} {eta:>4}",
    )?);
    let command = WorkerCommand {
        log: "warn".into(),
        ..WorkerCommand::default()
    };
    let show = bar.clone();
    let work = convert(job, &command, move |Advance { stage, done, total }| {
        show.set_prefix(match stage {
            Stage::Planning => "planning",
            Stage::Writing => "converting",
            Stage::Syncing => "syncing",
        });
        if show.length() != Some(total) {
            // The rate is that of the writing.
            show.reset();
            show.set_length(total);
        }
        show.set_position(done);
    });
    let converted = tokio::select! {
        converted = work => converted?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted; nothing was written"),
    };
    bar.finish_and_clear();
    for note in converted.notes {
        eprintln!("note: {note}");
    }
    eprintln!(
        "wrote {} ({}, {}) in {:.1} s",
        converted.output.display(),
        human_bytes(converted.bytes),
        converted.file_type,
        started.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

/// The folder of a checkpoint, and what the model is called.
fn find(inputs: &Inputs, checkpoint: &str) -> anyhow::Result<(PathBuf, String)> {
    let folder = Path::new(checkpoint);
    if folder.is_dir() {
        let folder = folder
            .canonicalize()
            .with_context(|| format!("{checkpoint} cannot be read"))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok((folder, name));
    }
    if !checkpoint
        .get(..3)
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case("hf:"))
    {
        bail!("{checkpoint} is neither a folder nor a name as hf:ORG/REPO");
    }
    let name = HfName::parse(checkpoint)?;
    let cache = config::load(inputs)?.config.hub.cache_dir;
    let repository = cache.join(format!("models--{}--{}", name.org, name.repo));
    let revision = name.revision.as_deref().unwrap_or("main");
    let commit = std::fs::read_to_string(repository.join("refs").join(revision));
    let commit = commit.map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
    // A commit is the name of one folder.
    let is_commit = commit.len() == 40 && commit.bytes().all(|digit| digit.is_ascii_hexdigit());
    let snapshot = repository.join("snapshots").join(&commit);
    if !is_commit || !snapshot.is_dir() {
        return Err(anyhow!(
            "{checkpoint} is not in {}; download it first, for instance with `hf download {}/{}`",
            cache.display(),
            name.org,
            name.repo
        ));
    }
    Ok((snapshot, name.repo))
}
