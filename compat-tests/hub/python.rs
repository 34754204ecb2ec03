//! Cache shared with Python's huggingface_hub: each side reads the files of the other, and both may write at the same
//! time.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::*;
use crate::harness::{
    hubllama::{Setup, wait_until},
    raw_http::PATIENCE,
};

/// Returns the Python with huggingface_hub, which `make test` installs; `None` without it.
pub(super) fn python() -> Option<PathBuf> {
    let python = std::env::var_os("HUBLLAMA_TEST_PYTHON");
    if python.is_none() {
        println!("skipped: HUBLLAMA_TEST_PYTHON names no Python with huggingface_hub; `make test` sets it");
    }
    python.map(PathBuf::from)
}

pub(super) fn quiet(program: &Path, home: &Path, cache: &Path, server: &FakeHub) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("HF_HUB_CACHE", cache)
        .env("HF_ENDPOINT", server.url())
        .env("HF_HUB_DISABLE_XET", "1")
        .env("HF_HUB_DISABLE_UPDATE_CHECK", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .stdin(Stdio::null());
    command
}

/// Builds the command `hf download REPO [FILE]`.
fn hf(python: &Path, home: &Path, cache: &Path, server: &FakeHub, arguments: &[&str]) -> Command {
    let mut command = quiet(&python.with_file_name("hf"), home, cache, server);
    command.args(["download", REPO]).args(arguments);
    command
}

fn finish(mut child: Child) -> bool {
    let status = wait_until(4 * PATIENCE, || child.try_wait().expect("waits"));
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    status.is_some_and(|status| status.success())
}

#[track_caller]
pub(super) fn run(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[tokio::test]
async fn python_reads_what_we_wrote() {
    let Some(python) = python() else { return };
    let bench = Bench::new();
    let mut expected = Vec::new();
    for (path, size) in [
        ("sub/m-Q8_0-00001-of-00002.gguf", 3 * MIB),
        ("sub/m-Q8_0-00002-of-00002.gguf", MIB),
        ("mmproj-F16.gguf", 70_000),
    ] {
        let sha256 = bench.server.add(REPO, path, Source::Bytes(noise(size)));
        expected.push(format!("{path}={sha256}"));
    }
    bench.pull(NAME).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/clients/hub_python.py");
    let said = run(quiet(&python, home.path(), bench.cache.path(), &bench.server)
        .env("HF_HUB_OFFLINE", "1")
        .arg(script)
        .arg(bench.cache.path())
        .arg(REPO)
        .args(expected));
    assert_eq!(said.lines().count(), 4, "{said}");
    // Online, it finds nothing to download.
    let before = bench.server.hits("/cdn").bytes;
    run(&mut hf(&python, home.path(), bench.cache.path(), &bench.server, &[]));
    assert_eq!(bench.server.hits("/cdn").bytes, before);
}

#[tokio::test]
async fn we_read_what_python_wrote() {
    let Some(python) = python() else { return };
    let (mut bench, content, sha256) = Bench::with_model(3 * MIB);
    let home = tempfile::tempdir().unwrap();
    run(&mut hf(&python, home.path(), bench.cache.path(), &bench.server, &[]));
    let fetched = bench.server.hits("/cdn").bytes;
    let model = bench
        .library
        .locate(&bench.config, &name("hf:test-org/tiny-gguf"))
        .await
        .unwrap();
    assert_eq!(
        (model.canonical.as_str(), &model.digest, model.owned),
        (NAME, &sha256, false)
    );
    assert!(fs::read(&model.base.files[0]).unwrap() == content);
    let checked = model.verify(|_| ()).await.unwrap();
    assert_eq!(checked[0].verdict, hubllama::library::FileVerdict::Good);
    bench.pull(NAME).await.unwrap();
    assert_eq!(bench.server.hits("/cdn").bytes, fetched, "nothing is fetched again");
    assert_eq!(bench.library.update(&bench.config, &name(NAME)).await, Ok(None));
    bench.config.offline = true;
    assert_eq!(bench.library.list(&bench.config).await.len(), 1);
    assert_eq!(
        bench.library.delete(&bench.config, &name(NAME)).await,
        Ok(DeleteOutcome::Unlisted),
        "it is not ours to remove"
    );
    assert!(model.base.files[0].exists());
}

#[test]
fn two_daemons_and_hf_download_share_one_download() {
    let Some(python) = python() else { return };
    let server = FakeHub::start();
    let content = noise(16 * MIB);
    let sha256 = server.add(REPO, "tiny-Q8_0.gguf", Source::Bytes(content.clone()));
    server.faults(|faults| faults.delay = Duration::from_millis(40));
    let first = Setup::default().hub(server.url()).start();
    let cache = first.folder.path().join("hub");
    let second = Setup::default().hub(server.url()).cache(cache.clone()).start();
    let home = tempfile::tempdir().unwrap();
    let download = hf(&python, home.path(), &cache, &server, &["tiny-Q8_0.gguf"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("hf starts");
    let body = serde_json::json!({ "model": NAME });
    let frames = std::thread::scope(|scope| {
        let pulls = [&first, &second].map(|daemon| scope.spawn(|| daemon.post("/api/pull", &body).1));
        pulls.map(|pull| pull.join().expect("a pull"))
    });
    assert!(finish(download));
    for frames in frames {
        assert!(frames.ends_with("{\"status\":\"success\"}\n"), "{frames}");
    }
    let repo = cache.join("models--Test-Org--Tiny-GGUF");
    assert!(fs::read(repo.join("blobs").join(sha256)).unwrap() == content);
    assert_eq!(
        fs::read_dir(repo.join("blobs")).unwrap().count(),
        1,
        "nothing half is left by anybody"
    );
    assert_eq!(server.hits("/cdn").bytes, content.len() as u64, "it came once");
    for daemon in [&first, &second] {
        let listed = daemon.get_json("/api/tags");
        assert_eq!(
            listed["models"][0]["name"],
            serde_json::Value::Null,
            "noise is no model: {listed}"
        );
    }
}
