//! The commands that change or check the cache: `rm`, `verify`, `prune` and `import`.
//!
//! `rm` goes through the running daemon, which unloads the model first. The others work on the files of the cache that
//! the configuration names.

use std::{path::Path, process::ExitCode};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::client::Daemon;
use crate::{
    config::{self, ConfigInputs},
    gguf,
    hub::HfName,
    library::{DeleteOutcome, FileVerdict, Library, PruneReason},
    stdx::size::human_bytes,
};

/// Predicate about a model whose files stay.
const UNLISTED: &str = "is no longer listed; its files stay, because another program downloaded them or another model uses them (hubllama rm --files removes them)";

pub(super) async fn remove(inputs: &ConfigInputs, name: &str, files: bool) -> anyhow::Result<ExitCode> {
    let config = config::load(inputs)?.config;
    if let Some(daemon) = Daemon::find(&config).await? {
        // Asked before the removal, after which the daemon no longer knows. A model that cannot be shown can be
        // removed, too.
        let shown = daemon
            .post("/api/show", &json!({ "model": name }))
            .await
            .unwrap_or_default();
        let is_foreign = shown.pointer("/model_info/hubllama.downloaded") == Some(&json!(false));
        let body = if files {
            json!({ "model": name, "files": true })
        } else {
            json!({ "model": name })
        };
        daemon.delete("/api/delete", &body).await?;
        if is_foreign && !files {
            println!("{name} {UNLISTED}");
        } else {
            println!("removed {name}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("no daemon is running; removing from {}", config.hub.cache_dir.display());
    let library = Library::new(&config.state_dir);
    let parsed = HfName::parse(name)?;
    let deleted = if files {
        library.delete_files(&config.hub, &parsed).await?
    } else {
        library.delete(&config.hub, &parsed).await?
    };
    match deleted {
        DeleteOutcome::Removed { bytes_freed } => println!("removed {name}, {} freed", human_bytes(bytes_freed)),
        DeleteOutcome::Unlisted if files => {
            println!("{name} is no longer listed; other caches still hold its files")
        }
        DeleteOutcome::Unlisted => println!("{name} {UNLISTED}"),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn verify(inputs: &ConfigInputs, names: &[String]) -> anyhow::Result<ExitCode> {
    let config = config::load(inputs)?.config;
    let library = Library::new(&config.state_dir);
    let mut models = Vec::new();
    for name in names {
        models.push(library.locate(&config.hub, &HfName::parse(name)?).await?);
    }
    if names.is_empty() {
        models = library.list(&config.hub).await;
    }
    let bar = bar(models.iter().map(|model| model.size_bytes).sum());
    let mut is_good = true;
    for model in models {
        let (name, read) = (&model.canonical, bar.clone());
        let checked = model.verify(move |bytes| read.inc(bytes)).await?;
        let mut lines = Vec::new();
        for file in checked {
            let path = file.path.display();
            match file.verdict {
                FileVerdict::Good => {}
                FileVerdict::Unknown => lines.push(format!("unknown  {name}: the cache has no hash for {path}")),
                FileVerdict::Corrupt { expected, actual } => {
                    is_good = false;
                    lines.push(format!(
                        "corrupt  {name}: {path} has the hash {actual}, not {expected}; hubllama rm --files {name}, then \
                         pull it again"
                    ));
                }
            }
        }
        if lines.is_empty() {
            lines.push(format!("good     {name}  {}", human_bytes(model.size_bytes)));
        }
        // The bar is hidden meanwhile, since it would overwrite the lines.
        bar.suspend(|| println!("{}", lines.join("\n")));
    }
    bar.finish_and_clear();
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) async fn prune(inputs: &ConfigInputs, apply: bool) -> anyhow::Result<ExitCode> {
    let config = config::load(inputs)?.config;
    let library = Library::new(&config.state_dir);
    let items = library.prunable(&config.hub).await?;
    for item in &items {
        let kind = match item.reason {
            PruneReason::Partial => "partial",
            PruneReason::Superseded => "superseded",
            PruneReason::Unconverted => "unusable",
            PruneReason::Orphan => "unused",
        };
        println!("{kind:10}  {:>9}  {}", human_bytes(item.bytes), item.description);
    }
    let bytes: u64 = items.iter().map(|item| item.bytes).sum();
    let cache = config.hub.cache_dir.display();
    if items.is_empty() {
        println!("nothing to remove in {cache}");
    } else if apply {
        let freed = library.prune(items).await?;
        println!("{} freed in {cache}", human_bytes(freed));
    } else {
        println!(
            "{} in {cache} can be removed with hubllama prune --apply; nothing was removed",
            human_bytes(bytes)
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn import(inputs: &ConfigInputs, file: &Path, name: &str) -> anyhow::Result<ExitCode> {
    let config = config::load(inputs)?.config;
    let name = HfName::parse(name)?;
    // The file may come from a stranger. A malformed one should not be found out by the first load.
    let header = gguf::GgufHeader::open(file)
        .map_err(|error| anyhow::anyhow!("{} is not a usable GGUF file: {error}", file.display()))?;
    gguf::precheck(&header)?;
    let bar = bar(std::fs::metadata(file)?.len());
    let copied = bar.clone();
    let model = Library::new(&config.state_dir)
        .import(&config.hub, file, &name, move |bytes| copied.inc(bytes))
        .await?;
    bar.finish_and_clear();
    println!("imported {}  {}", model.canonical, human_bytes(model.size_bytes));
    Ok(ExitCode::SUCCESS)
}

/// Returns a progress bar of `total` bytes; it is hidden without a terminal.
fn bar(total: u64) -> ProgressBar {
    let style = "{wide_bar} {decimal_bytes:>10}/{decimal_total_bytes:10} {decimal_bytes_per_sec:>12} {eta:>4}";
    let bar = ProgressBar::new(total);
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
