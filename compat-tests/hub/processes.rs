//! Downloads of several processes into one cache, some of which are killed.

use std::{
    process::{Child, Command, Stdio},
    thread,
};

use super::*;
use crate::harness::{hubllama::wait_until, raw_http::PATIENCE};

/// User with a home folder, who pulls into a shared cache.
struct User<'a> {
    server: &'a FakeHub,
    cache: &'a Path,
    home: tempfile::TempDir,
}

impl<'a> User<'a> {
    fn new(server: &'a FakeHub, cache: &'a Path) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { server, cache, home }
    }

    fn pull(&self) -> Child {
        self.command().spawn().expect("the binary starts")
    }

    fn command(&self) -> Command {
        // Nothing listens on port 1, so that the command works without a daemon.
        let mut command = Command::new(env!("CARGO_BIN_EXE_hubllama"));
        command
            .args(["pull", NAME])
            .env_clear()
            .env("HOME", self.home.path())
            .env("HF_HUB_CACHE", self.cache)
            .env("HF_ENDPOINT", self.server.url())
            .env("HUBLLAMA_LISTEN", "127.0.0.1:1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

fn succeeded(mut child: Child) -> bool {
    let status = wait_until(4 * PATIENCE, || child.try_wait().expect("waits"));
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    status.is_some_and(|status| status.success())
}

#[test]
fn twenty_kills_leave_nothing_wrong_and_most_of_what_came() {
    let server = FakeHub::start();
    let content = noise(40 * MIB);
    let sha256 = server.add(REPO, "tiny-Q8_0.gguf", Source::Bytes(content.clone()));
    let cache = tempfile::tempdir().unwrap();
    let user = User::new(&server, cache.path());
    let blob = cache.path().join("models--Test-Org--Tiny-GGUF/blobs").join(&sha256);
    // About 4 MB/s over eight connections: the file takes ten seconds.
    server.faults(|faults| faults.delay = Duration::from_millis(125));
    let mut finished = 0;
    for _ in 0..20 {
        let mut child = user.pull();
        thread::sleep(Duration::from_millis(rand::random_range(20..1600)));
        finished += u32::from(matches!(child.try_wait(), Ok(Some(status)) if status.success()));
        // SIGKILL: no destructor runs.
        let _ = child.kill();
        let _ = child.wait();
        if let Ok(found) = fs::read(&blob) {
            assert!(found == content, "a blob is whole or not there");
        }
    }
    server.faults(|faults| faults.delay = Duration::ZERO);
    let before = server.hits("/cdn").bytes;
    assert!(succeeded(user.pull()));
    assert!(fs::read(&blob).unwrap() == content);
    let last = server.hits("/cdn").bytes - before;
    println!("{finished} of 20 were done before they were killed; {last} bytes were left to the last");
    // A kill loses the bytes that arrived since the last save, and those in buffers and sockets. The rest of twenty
    // runs is kept.
    let whole = content.len() as u64;
    assert!(
        last < whole / 4 * 3,
        "{last} of {whole} bytes had to be fetched in the end"
    );
    let left: Vec<PathBuf> = walk(cache.path())
        .into_iter()
        .filter(|path| path.to_string_lossy().contains(".hubllama."))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn processes_share_one_download() {
    let server = FakeHub::start();
    let content = noise(8 * MIB);
    server.add(REPO, "tiny-Q8_0.gguf", Source::Bytes(content.clone()));
    server.faults(|faults| faults.delay = Duration::from_millis(20));
    let cache = tempfile::tempdir().unwrap();
    let users: Vec<User<'_>> = (0..3).map(|_| User::new(&server, cache.path())).collect();
    let pulls: Vec<Child> = users.iter().map(User::pull).collect();
    for pull in pulls {
        assert!(succeeded(pull));
    }
    assert_eq!(server.hits("/cdn").bytes, content.len() as u64);
}

/// The `hf-hub` crate would take a token from the environment by itself, for whichever server it asks.
#[test]
fn a_token_of_the_environment_is_not_shown_to_mirrors() {
    let (server, mirror) = (FakeHub::start(), FakeHub::start());
    mirror.add(REPO, "tiny-Q8_0.gguf", Source::Bytes(noise(MIB)));
    let cache = tempfile::tempdir().unwrap();
    let user = User::new(&server, cache.path());
    let config = user.home.path().join("config.toml");
    fs::write(&config, format!("[hub]\nmirrors = [\"{}\"]\n", mirror.url())).unwrap();
    let mut command = user.command();
    command.env("HF_TOKEN", TOKEN).env("HUBLLAMA_CONFIG", &config);
    assert!(succeeded(command.spawn().expect("the binary starts")));
    assert!(server.hits("").with_token > 0);
    assert!(mirror.hits("/api/models").requests > 0);
    assert_eq!(mirror.hits("").with_token, 0);
}
