//! `convert`: makes a GGUF file from a checkpoint of safetensors on this machine, without a daemon.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    config::{self, ConfigInputs},
    convert::{ConversionProgress, ConversionStage, GgufRole},
    hub::{HfName, find_snapshot},
    inference::WeightType,
    lifecycle::{WorkerCommand, convert},
    stdx::size::human_bytes,
    worker::protocol::{ConversionOutput, ConversionRequest},
};

pub(super) async fn run(
    inputs: &ConfigInputs,
    checkpoint: &str,
    target: WeightType,
    output: Option<PathBuf>,
    any_tokenizer: bool,
    part: GgufRole,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let (folder, name) = find(inputs, checkpoint)?;
    // With a terminal, the progress bar tells the same.
    if !std::io::stderr().is_terminal() {
        match target {
            WeightType::Stored => eprintln!("converting {} to the type that it is stored in", folder.display()),
            _ => eprintln!("converting {} to {target}", folder.display()),
        }
    }
    let request = ConversionRequest {
        checkpoint: folder,
        name,
        weight_type: target,
        part,
        form: ConversionOutput::Full,
        output,
        allow_tokenizer_mismatch: any_tokenizer,
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
    let work = convert(request, &command, move |ConversionProgress { stage, done, total }| {
        show.set_prefix(match stage {
            ConversionStage::Planning => "planning",
            ConversionStage::Writing => "converting",
            ConversionStage::Syncing => "syncing",
        });
        if show.length() != Some(total) {
            // Planning has no bytes; without the reset its time would lower the rate.
            show.reset();
            show.set_length(total);
        }
        show.set_position(done);
    });
    let converted = tokio::select! {
        converted = work => converted?,
        // The converter does not receive Ctrl-C itself, since it has a process group of its own; dropping `work` kills
        // it.
        _ = tokio::signal::ctrl_c() => bail!("interrupted; nothing was written"),
    };
    bar.finish_and_clear();
    for note in converted.notes {
        eprintln!("note: {note}");
    }
    eprintln!(
        "wrote {} ({}, {}) in {:.1} s",
        converted.path.display(),
        human_bytes(converted.bytes),
        converted.file_type,
        started.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

/// Finds a checkpoint by its folder or by an hf: name; returns the folder and the name of the model.
fn find(inputs: &ConfigInputs, checkpoint: &str) -> anyhow::Result<(PathBuf, String)> {
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
        bail!("{checkpoint} is neither a folder nor a name such as hf:ORG/REPO");
    }
    let name = HfName::parse(checkpoint)?;
    let cache = config::load(inputs)?.config.hub.cache_dir;
    let snapshot = find_snapshot(&cache, &name).ok_or_else(|| {
        anyhow!(
            "{checkpoint} is not in {}; download it first, for instance with `hf download {}/{}`",
            cache.display(),
            name.org,
            name.repo
        )
    })?;
    Ok((snapshot, name.repo))
}
