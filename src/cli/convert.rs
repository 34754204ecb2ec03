//! `convert`: a GGUF file from a checkpoint that is on this machine. No daemon is asked.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Inputs},
    convert::{Planned, TargetType, plan},
    hub::HfName,
    stdx::size::human_bytes,
};

pub(super) async fn run(
    inputs: &Inputs,
    checkpoint: String,
    target: TargetType,
    output: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let (folder, name) = find(inputs, &checkpoint)?;
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    let work = move || convert(&folder, &name, target, output, &cancel);
    tokio::task::spawn_blocking(work)
        .await
        .context("the conversion panicked")?
}

fn convert(
    folder: &Path,
    name: &str,
    target: TargetType,
    output: Option<PathBuf>,
    cancel: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let Planned {
        model,
        file_type,
        notes,
    } = plan(folder, name, target)?;
    for note in notes {
        eprintln!("note: {note}");
    }
    let output = output.unwrap_or_else(|| PathBuf::from(format!("{name}-{file_type}.gguf")));
    let bar = ProgressBar::new(model.file_len());
    let style = "{prefix} {wide_bar} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
    bar.set_style(ProgressStyle::with_template(style)?);
    bar.set_prefix(file_type);
    if !std::io::stderr().is_terminal() {
        eprintln!(
            "converting {} to {file_type}: {} of {} tensors",
            folder.display(),
            human_bytes(model.file_len()),
            model.recipes().len()
        );
    }
    model.write(&output, &|done, _| bar.set_position(done), cancel)?;
    bar.finish_and_clear();
    eprintln!(
        "wrote {} ({}, {file_type}) in {:.1} s",
        output.display(),
        human_bytes(model.file_len()),
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
