//! Downloads: a large file from a Hub on the loopback interface with hubllama, with `curl` and `sha256sum`, and with
//! Hugging Face's `hf download`. Each starts with an empty folder, after the previous one's data was written to disk.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::{
    fake_hub::{FakeHub, Source},
    processes::{Process, binaries},
    report::{Report, Row, median},
};

const REPO: &str = "Bench/Large-GGUF";
const FILE: &str = "large-Q8_0.gguf";
const BYTES: u64 = 2_000_000_000;
/// Number of rounds, each of which downloads the file three times.
const ROUNDS: u32 = 3;

/// Serves the file until the process is killed. Prints its address and the hash of the file.
pub(crate) fn serve(file: &Path) -> Result<()> {
    let hub = FakeHub::start();
    let sha256 = hub.add(REPO, FILE, Source::Path(file.to_owned()));
    println!("{} {sha256}", hub.url());
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}

/// Measures the rate of each contender. Targets: 0.9 of `curl` with `sha256sum`, and no less than `hf download`.
pub(crate) fn measure(rounds: u32, report: &mut Report) -> Result<Vec<Row>> {
    let binaries = binaries();
    // The folder is next to the program, because /tmp may be in memory.
    let folder = tempfile::tempdir_in(binaries.hubllama.parent().unwrap_or(Path::new(".")))?;
    let file = folder.path().join("source");
    write_noise(&file)?;
    let mut server = Process::start(
        Command::new(env::current_exe()?)
            .arg("--hub")
            .arg(&file)
            .stdout(Stdio::piped()),
    )?;
    let stdout = server.take_stdout().context("the Hub has no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let (url, sha256) = line.trim().split_once(' ').context("the Hub did not say its address")?;

    let hf = env::var_os("HUBLLAMA_TEST_PYTHON")
        .map(|python| PathBuf::from(python).with_file_name("hf"))
        .filter(|hf| hf.exists());
    let contender = |which: usize, hf: Option<&Path>| -> Result<f64> {
        let target = tempfile::tempdir_in(folder.path())?;
        rustix::fs::sync();
        let begin = Instant::now();
        match (which, hf) {
            (0, _) => curl(&target, url, sha256)?,
            (1, _) => hubllama(&binaries.hubllama, &target, url, sha256)?,
            (_, Some(hf)) => hf_download(hf, &target, url)?,
            (_, None) => {}
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = BYTES as f64 / 1e6 / begin.elapsed().as_secs_f64();
        Ok(rate)
    };
    let count = if hf.is_some() { 3 } else { 2 };
    let mut rates = [const { Vec::new() }; 3];
    // The first run is not measured; it brings the source into the page cache.
    contender(0, None)?;
    for round in 0..rounds.min(ROUNDS) as usize {
        for turn in 0..count {
            let which = (round + turn) % count;
            let rate = contender(which, hf.as_deref())?;
            eprintln!("round {round}: {} {rate:.0} MB/s", ["curl", "hubllama", "hf"][which]);
            rates[which].push(rate);
        }
    }
    let [by_curl, by_us, by_hf] = &rates;
    let ratio = |peer: &[f64]| median(by_us.iter().zip(peer).map(|(ours, peer)| ours / peer));
    let row = |peer: &str, rates: &[f64], target: f64| Row {
        what: format!(
            "pull of {} MB from a Hub on the loopback interface, verified",
            BYTES / 1_000_000
        ),
        peer: format!("{peer} {:.0} MB/s", median(rates.iter().copied())),
        ours: format!("{:.0} MB/s", median(by_us.iter().copied())),
        figure: format!("{:.2}", ratio(rates)),
        target: format!("≥ {target:.2}"),
        met: ratio(rates) >= target,
    };
    let mut rows = vec![row("curl and sha256sum", by_curl, 0.9)];
    if hf.is_some() {
        rows.push(row("hf download (not verified)", by_hf, 1.0));
    } else {
        report.skip("hf download", "hf is missing (HUBLLAMA_TEST_PYTHON)");
    }
    Ok(rows)
}

/// Fills a buffer with bytes that neither repeat nor compress.
fn write_noise(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut left = BYTES;
    while left > 0 {
        let block: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(1 << 17)
        .flatten()
        .collect();
        let length = left.min(block.len() as u64);
        file.write_all(&block[..usize::try_from(length)?])?;
        left -= length;
    }
    Ok(file.sync_all()?)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{} failed: {}{}",
        command.get_program().display(),
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

fn curl(target: &TempDir, url: &str, sha256: &str) -> Result<()> {
    let file = target.path().join(FILE);
    run(Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--location", "--output"])
        .arg(&file)
        .arg(format!("{url}/{REPO}/resolve/main/{FILE}")))?;
    let said = run(Command::new("sha256sum").arg(&file))?;
    ensure!(said.starts_with(sha256), "curl fetched something else");
    Ok(())
}

fn clean<'c>(command: &'c mut Command, target: &TempDir, url: &str) -> &'c mut Command {
    command
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("HOME", target.path())
        .env("HF_HUB_CACHE", target.path().join("hub"))
        .env("HF_ENDPOINT", url)
}

fn hubllama(program: &Path, target: &TempDir, url: &str, sha256: &str) -> Result<()> {
    // Nothing listens on port 1, so the command does not use a daemon.
    run(clean(&mut Command::new(program), target, url)
        .env("HUBLLAMA_LISTEN", "127.0.0.1:1")
        .args(["pull", &format!("hf:{REPO}:Q8_0")]))?;
    let blob = target.path().join("hub/models--Bench--Large-GGUF/blobs").join(sha256);
    ensure!(fs::metadata(blob)?.len() == BYTES, "hubllama fetched something else");
    Ok(())
}

fn hf_download(program: &Path, target: &TempDir, url: &str) -> Result<()> {
    run(clean(&mut Command::new(program), target, url)
        .env("HF_HUB_DISABLE_XET", "1")
        .env("HF_HUB_DISABLE_UPDATE_CHECK", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .args(["download", REPO, FILE]))?;
    Ok(())
}
