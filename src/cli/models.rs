//! The commands `pull` and `list`.
//!
//! The commands ask the running daemon, whose configuration may name another cache than the user's. Without a daemon
//! they work in this process, on the cache that the configuration names.

use std::{collections::HashMap, io::IsTerminal, process::ExitCode, time::Duration};

use futures_util::StreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::client::Daemon;
use crate::{
    config::{self, ConfigInputs},
    hub::HfName,
    inference::PullEvent,
    library::Library,
    lifecycle::WorkerCommand,
    stdx::size::human_bytes,
};

/// Longest wait for the Hub to tell of newer commits. The answers are kept for a day, so that few commands wait.
pub(super) const UPDATE_PATIENCE: Duration = Duration::from_secs(1);

pub(super) async fn pull(inputs: &ConfigInputs, name: &str) -> anyhow::Result<ExitCode> {
    let config = config::load(inputs)?.config;
    let mut bars = Bars::default();
    match Daemon::find(&config).await? {
        Some(daemon) => {
            eprintln!("pulling {name} through {}", daemon.base());
            let body = serde_json::json!({ "model": name });
            daemon
                .post_lines("/api/pull", &body, |frame| {
                    let number = |key: &str| frame.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
                    let text = |key: &str| frame.get(key).and_then(serde_json::Value::as_str);
                    let status = text("status").unwrap_or_default();
                    match text("digest") {
                        Some(digest) => bars.file(status, digest, number("total"), number("completed")),
                        None => bars.status(status),
                    }
                })
                .await?;
        }
        None => {
            eprintln!(
                "no daemon is running; pulling {name} into {}",
                config.hub.cache_dir.display()
            );
            let name = HfName::parse(name)?;
            // Only warnings: the log of the converter would break up the progress bars.
            let command = WorkerCommand {
                log: "warn".into(),
                ..WorkerCommand::default()
            };
            let library = Library::with_worker(&config.state_dir, command);
            let mut events = library.pull(&config.hub, &name);
            while let Some(event) = events.next().await {
                match event? {
                    PullEvent::Status(status) => bars.status(status),
                    PullEvent::File {
                        digest,
                        total,
                        completed,
                    } => bars.file("pulling", &digest, total, completed),
                    PullEvent::Converting {
                        digest,
                        total,
                        completed,
                    } => bars.file("converting model", &digest, total, completed),
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn list(inputs: &ConfigInputs) -> anyhow::Result<ExitCode> {
    let config = config::load(inputs)?.config;
    let mut rows = vec![[
        "NAME".to_owned(),
        "SIZE".into(),
        "QUANTIZATION".into(),
        "MODIFIED".into(),
    ]];
    let library = Library::new(&config.state_dir);
    let mut names = None;
    match Daemon::find(&config).await? {
        Some(daemon) => {
            let listing = daemon.get("/api/tags").await?;
            for model in listing
                .get("models")
                .and_then(|models| models.as_array())
                .into_iter()
                .flatten()
            {
                let text = |pointer: &str| {
                    model
                        .pointer(pointer)
                        .and_then(|text| text.as_str())
                        .unwrap_or("-")
                        .to_owned()
                };
                let size = model.get("size").and_then(serde_json::Value::as_u64).unwrap_or(0);
                let modified = minutes(&text("/modified_at"));
                rows.push([
                    text("/name"),
                    human_bytes(size),
                    text("/details/quantization_level"),
                    modified,
                ]);
                names.get_or_insert_with(Vec::new).push(text("/name"));
            }
        }
        None => {
            eprintln!("no daemon is running; listing {}", config.hub.cache_dir.display());
            for model in library.list(&config.hub).await {
                let modified = minutes(&crate::stdx::timestamp::rfc3339_local(model.modified_at));
                rows.push([
                    model.canonical,
                    human_bytes(model.size_bytes),
                    model.base.label,
                    modified,
                ]);
            }
        }
    }
    let mut widths = [0; 4];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for [name, size, label, modified] in &rows {
        println!(
            "{name:0$}  {size:>1$}  {label:2$}  {modified}",
            widths[0], widths[1], widths[2]
        );
    }
    let mut models = library.list(&config.hub).await;
    // The daemon may use another cache, of whose models nothing is known here.
    models.retain(|model| names.as_ref().is_none_or(|names| names.contains(&model.canonical)));
    let updates = library
        .updates(&config.hub, &models, &config.state_dir, UPDATE_PATIENCE)
        .await;
    for (model, update) in models.iter().zip(updates) {
        if let Some(update) = update {
            eprintln!(
                "update: {0} has {1} of new files on the Hub; hubllama pull {0}",
                model.canonical,
                human_bytes(update.bytes)
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Shortens an RFC 3339 timestamp to date and minute.
fn minutes(timestamp: &str) -> String {
    timestamp.chars().take(16).collect::<String>().replace('T', " ")
}

/// Progress bars: one for each file with a terminal, else a line for each step.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    files: HashMap<String, ProgressBar>,
}

impl Bars {
    fn status(&mut self, status: &str) {
        if std::io::stderr().is_terminal() {
            // `println` of the bars keeps the text from being overwritten by them.
            let _ = self.all.println(status);
        } else {
            eprintln!("{status}");
        }
    }

    fn file(&mut self, status: &str, digest: &str, total: u64, completed: u64) {
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        let bar = self.files.entry(digest.to_owned()).or_insert_with(|| {
            // Decimal units, like all other sizes that hubllama prints.
            let style =
                "{prefix} {wide_bar} {decimal_bytes:>10}/{decimal_total_bytes:10} {decimal_bytes_per_sec:>12} {eta:>4}";
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            // Hidden until its length and prefix are set.
            let bar = ProgressBar::hidden().with_style(style);
            bar.set_length(total);
            // The digest of a download is the hash of the file; that of a conversion means nothing to the user.
            let (first, name) = (status.split(' ').next().unwrap_or_default(), digest);
            let prefix = if first == "pulling" { name } else { first };
            bar.set_prefix(format!("{prefix:12.12}"));
            self.all.add(bar)
        });
        bar.set_length(total);
        bar.set_position(completed);
        if completed == total && !bar.is_finished() {
            bar.finish();
        }
    }
}
