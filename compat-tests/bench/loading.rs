//! Loading a safetensors checkpoint: streamed from its own files, and from a GGUF file that is converted once. The
//! checkpoint is that of the test model, in BF16 and three shards.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    client::{Connection, run},
    processes::{CHECKPOINT, Hubllama, binaries},
    report::{Report, Row, median},
    smollm2,
};

const TYPES: [&str; 2] = ["BF16", "Q8_0"];
/// Number of tokens in an answer.
const TOKENS: u64 = 64;
/// Target for the time to the first token of a model whose files are on disk.
const FIRST_WORD_SECONDS: f64 = 3.0;

/// Both ways, in the order in which they are measured.
const WAYS: [&str; 2] = ["stream", "file"];

/// Measurements of one way.
#[derive(Default)]
struct Costs {
    /// Seconds to the first token on the first use of a model whose files are on disk.
    first: f64,
    /// Disk space of the conversion in bytes.
    disk: u64,
    /// Seconds of loads with an empty and with a filled page cache.
    cold: Vec<f64>,
    warm: Vec<f64>,
    /// Tokens per second.
    prefill: Vec<f64>,
    decode: Vec<f64>,
    /// Peak memory of the worker in bytes, and the part that is not backed by a file.
    peak: Vec<f64>,
    anonymous: Vec<f64>,
}

/// One daemon for each way, each with its own cache.
struct Contender {
    daemon: Hubllama,
    costs: Costs,
}

/// Adds rows that compare streaming with the file for each type.
pub(crate) fn measure(rounds: u32, report: &mut Report) -> Result<Vec<Row>> {
    let binaries = binaries();
    let Some(gguf) = &binaries.gguf else {
        report.skip(
            "loading safetensors",
            "the test model is not there (HUBLLAMA_TEST_GGUF)",
        );
        return Ok(Vec::new());
    };
    // The folder is next to the program, because /tmp may be in memory.
    let folder = tempfile::tempdir_in(binaries.hubllama.parent().unwrap_or(Path::new(".")))?;
    let checkpoint = folder.path().join("SmolLM2");
    smollm2::write(&checkpoint, gguf);
    let mut rows = Vec::new();
    for kind in TYPES {
        let mut contenders = Vec::new();
        for way in WAYS {
            let config = format!("[hub]\nsafetensors = \"{way}\"\nauto_pull = true\n");
            let daemon = Hubllama::with_checkpoint(&binaries.hubllama, config, &checkpoint)?;
            let mut contender = Contender {
                daemon,
                costs: Costs::default(),
            };
            contender.prepare(kind)?;
            contenders.push(contender);
        }
        for round in 1..=rounds {
            for turn in 0..WAYS.len() {
                let which = (round as usize + turn) % WAYS.len();
                contenders[which].round(kind, round)?;
            }
        }
        let [stream, file] = &contenders[..] else {
            unreachable!("two ways")
        };
        rows.extend(compare(kind, &stream.costs, &file.costs));
    }
    Ok(rows)
}

impl Contender {
    fn model(kind: &str) -> String {
        format!("{CHECKPOINT}:{kind}")
    }

    /// Measures the first use, which plans or converts, loads and answers.
    fn prepare(&mut self, kind: &str) -> Result<()> {
        let begin = Instant::now();
        // In offline mode, a pull converts the cached checkpoint.
        self.ask("/api/pull", &json!({"model": Self::model(kind), "stream": false}))?;
        self.generate(kind, "The first", 1)?;
        self.costs.first = begin.elapsed().as_secs_f64();
        self.costs.disk = files(&self.daemon.folder().join("state/converted"))
            .iter()
            .map(|path| fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512))
            .sum();
        self.unload(kind)
    }

    fn round(&mut self, kind: &str, round: u32) -> Result<()> {
        forget(self.daemon.folder())?;
        let cold = self.load(kind)?;
        self.costs.cold.push(cold);
        self.unload(kind)?;
        let warm = self.load(kind)?;
        self.costs.warm.push(warm);
        // The prompt starts with a number, so that no round finds its prompt in the prefix cache.
        let story = format!(
            "{round}. {}",
            "Once upon a time there was a fox who lived in a wood. ".repeat(30)
        );
        let reply = self.generate(kind, &story, TOKENS)?;
        self.costs.prefill.push(rate(&reply, "prompt_eval")?);
        self.costs.decode.push(rate(&reply, "eval")?);
        let worker = *self.daemon.workers()?.first().context("no worker runs")?;
        self.costs.peak.push(memory(worker, "VmHWM:")?);
        self.costs.anonymous.push(memory(worker, "RssAnon:")?);
        self.unload(kind)
    }

    /// Returns the seconds that a client waits for a load.
    fn load(&self, kind: &str) -> Result<f64> {
        let begin = Instant::now();
        self.generate(kind, "", 0)?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn unload(&self, kind: &str) -> Result<()> {
        self.ask(
            "/api/generate",
            &json!({"model": Self::model(kind), "keep_alive": 0, "stream": false}),
        )?;
        self.daemon.wait_for_no_worker()
    }

    fn generate(&self, kind: &str, prompt: &str, tokens: u64) -> Result<Value> {
        let options = json!({"temperature": 0, "num_predict": tokens, "num_ctx": 2048});
        let request = json!({"model": Self::model(kind), "prompt": prompt, "raw": true, "stream": false, "keep_alive": -1, "options": options});
        self.ask("/api/generate", &request)
    }

    fn ask(&self, path: &str, request: &Value) -> Result<Value> {
        let body = Bytes::from(request.to_string());
        let text = run(async {
            let mut connection = Connection::open(self.daemon.address).await?;
            connection.post_text(path, &body).await
        })?;
        serde_json::from_str(&text).with_context(|| format!("the reply is not JSON: {text}"))
    }
}

/// Returns the tokens per second of a part of a reply.
fn rate(reply: &Value, part: &str) -> Result<f64> {
    let number = |key: &str| reply[format!("{part}_{key}")].as_f64();
    let (tokens, nanoseconds) = number("count").zip(number("duration")).context("no durations")?;
    ensure!(tokens > 1.0, "the model said nothing: {reply}");
    Ok(tokens * 1e9 / nanoseconds)
}

/// Returns a field of `/proc/PID/status` in bytes.
fn memory(pid: i32, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("no {name}"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}

/// Returns every regular file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.path()).filter(|path| !path.is_symlink()) {
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Drops the files of a daemon from the page cache.
fn forget(folder: &Path) -> Result<()> {
    for path in files(folder) {
        let file = fs::File::open(&path)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

fn compare(kind: &str, stream: &Costs, file: &Costs) -> Vec<Row> {
    let middle = |values: &[f64]| median(values.iter().copied());
    let row = |what: &str, values: [&[f64]; 2], show: &dyn Fn(f64) -> String, limit: Limit| {
        let [stream, file] = values;
        let figure = median(stream.iter().zip(file).map(|(stream, file)| stream / file));
        Row {
            what: format!("safetensors as {kind}: {what}"),
            peer: format!("file {}", show(middle(file))),
            ours: format!("streamed {}", show(middle(stream))),
            figure: format!("{figure:.2}"),
            target: limit.to_string(),
            met: limit.holds(figure),
        }
    };
    let (seconds, tokens) = (
        |seconds: f64| format!("{seconds:.2} s"),
        |rate: f64| format!("{rate:.1} tokens/s"),
    );
    let megabytes = |bytes: f64| format!("{:.0} MB", bytes / 1e6);
    let first = Row {
        what: format!("safetensors as {kind}: first answer, from files on disk"),
        peer: format!("file {}", seconds(file.first)),
        ours: format!("streamed {}", seconds(stream.first)),
        figure: seconds(stream.first),
        target: format!("≤ {FIRST_WORD_SECONDS:.0} s"),
        met: stream.first <= FIRST_WORD_SECONDS,
    };
    let disk = ([stream.disk as f64], [file.disk as f64]);
    vec![
        first,
        row("disk", [&disk.0, &disk.1], &megabytes, Limit::AtMost(0.05)),
        row(
            "load, empty page cache",
            [&stream.cold, &file.cold],
            &seconds,
            Limit::None,
        ),
        row(
            "load, filled page cache",
            [&stream.warm, &file.warm],
            &seconds,
            Limit::None,
        ),
        row("prompt", [&stream.prefill, &file.prefill], &tokens, Limit::AtLeast(0.9)),
        row(
            "generation",
            [&stream.decode, &file.decode],
            &tokens,
            Limit::AtLeast(0.9),
        ),
        row(
            "peak memory of the worker",
            [&stream.peak, &file.peak],
            &megabytes,
            Limit::AtMost(1.3),
        ),
        row(
            "memory that cannot be reclaimed",
            [&stream.anonymous, &file.anonymous],
            &megabytes,
            Limit::None,
        ),
    ]
}

/// Target for a ratio of streamed to file.
#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// No target; the figure is only shown.
    None,
}

impl Limit {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
            Self::None => true,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
            Self::None => f.write_str("–"),
        }
    }
}
