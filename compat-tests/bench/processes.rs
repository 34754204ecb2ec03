//! Starts the contenders on free ports, waits until they answer, and ends each by its process id.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Time limit for a contender to start, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Name of the test model in [`Hubllama`].
pub(crate) const MODEL: &str = "hf:HuggingFaceTB/SmolLM2-135M-Instruct-GGUF:Q4_1";

/// Name of the checkpoint in [`Hubllama::with_checkpoint`], without a type.
pub(crate) const CHECKPOINT: &str = "hf:Bench/Checkpoint";

/// Programs and files for the run; the optional ones are `None` if they are missing.
pub(crate) struct Binaries {
    pub(crate) hubllama: PathBuf,
    pub(crate) nginx: Option<PathBuf>,
    pub(crate) llama_server: Option<PathBuf>,
    pub(crate) gguf: Option<PathBuf>,
}

pub(crate) fn binaries() -> Binaries {
    let existing = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
    Binaries {
        hubllama: env!("CARGO_BIN_EXE_hubllama").into(),
        nginx: existing("HUBLLAMA_TEST_NGINX"),
        llama_server: existing("LLAMA_SERVER"),
        gguf: existing("HUBLLAMA_TEST_GGUF"),
    }
}

/// Child process that is ended when the value is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| {
            format!("cannot start {}", command.get_program().display())
        })?))
    }

    pub(crate) fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.0.stdout.take()
    }

    /// Returns the exit status if the process has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Returns the child processes of all its threads.
    pub(crate) fn children(&self) -> Vec<i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id()));
        let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let lists = tasks.into_iter().flatten().flatten().map(of_task);
        let pids = lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        pids.filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Sends requests until the status of the reply is 200.
    fn wait_until_ready(&mut self, address: SocketAddr, path: &str, log: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !answers(address, path) {
            let log = || fs::read_to_string(log).unwrap_or_default();
            if let Some(status) = self.0.try_wait()? {
                bail!("it ended early with {status}:\n{}", log());
            }
            ensure!(
                Instant::now() < deadline,
                "it did not answer on {address} in time:\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while let Ok(None) = self.0.try_wait() {
            if Instant::now() > deadline {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Returns true if `GET path` returns 200.
fn answers(address: SocketAddr, path: &str) -> bool {
    let call = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        Ok(start.ends_with(b" 200"))
    };
    call().unwrap_or(false)
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Process that runs [`crate::upstream`].
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    _process: Process,
}

impl Upstream {
    pub(crate) fn start() -> Result<Self> {
        let mut process = Process::start(
            Command::new(env::current_exe()?)
                .arg("--upstream")
                .stdout(Stdio::piped()),
        )?;
        let stdout = process.0.stdout.take().context("the upstream has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        Ok(Self {
            address: line.trim().parse().context("the upstream did not say its address")?,
            _process: process,
        })
    }
}

/// nginx as a proxy for streams, with persistent connections and without buffering.
pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Nginx {
    pub(crate) fn start(program: &Path, upstream: SocketAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = free_address()?;
        let dir = folder.path().display();
        // As root, nginx runs its workers as `nobody`, who cannot read the folder.
        let user = if rustix::process::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let settings = format!(
            "daemon off; worker_processes auto; {user} pid {dir}/pid; error_log {dir}/log warn;
            events {{ worker_connections 1024; }}
            http {{
                access_log off; keepalive_requests 100000000;
                client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
                uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
                upstream ollama {{ server {upstream}; keepalive 64; keepalive_requests 100000000; }}
                server {{
                    listen {address};
                    location / {{
                        proxy_pass http://ollama; proxy_http_version 1.1; proxy_set_header Connection \"\";
                        proxy_buffering off;
                    }}
                }}
            }}"
        );
        let (file, log) = (folder.path().join("nginx.conf"), folder.path().join("log"));
        fs::write(&file, settings)?;
        let output = fs::File::create(&log)?;
        let mut command = Command::new(program);
        command
            .arg("-p")
            .arg(folder.path())
            .arg("-e")
            .arg(&log)
            .arg("-c")
            .arg(&file)
            .stderr(output);
        let mut process = Process::start(&mut command)?;
        process
            .wait_until_ready(address, "/api/version", &log)
            .context("nginx")?;
        Ok(Self {
            address,
            _process: process,
            _folder: folder,
        })
    }
}

/// Daemon with its own state folder and Hub cache.
pub(crate) struct Hubllama {
    pub(crate) address: SocketAddr,
    process: Process,
    folder: TempDir,
}

impl Hubllama {
    /// Starts a daemon whose cache has `gguf` as [`MODEL`].
    pub(crate) fn start(program: &Path, upstream: &str, gguf: Option<&Path>) -> Result<Self> {
        Self::start_with(program, upstream, |cache| {
            let repo = "HuggingFaceTB--SmolLM2-135M-Instruct-GGUF";
            gguf.map_or(Ok(()), |gguf| seed_cache(cache, repo, &[gguf.to_owned()]))?;
            Ok(String::new())
        })
    }

    /// Starts a daemon whose cache has the files of a folder as [`CHECKPOINT`].
    pub(crate) fn with_checkpoint(program: &Path, config: String, checkpoint: &Path) -> Result<Self> {
        Self::start_with(program, "http://127.0.0.1:9", |cache| {
            let entries = fs::read_dir(checkpoint)?.collect::<std::io::Result<Vec<_>>>()?;
            let files: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
            seed_cache(cache, "Bench--Checkpoint", &files)?;
            Ok(config)
        })
    }

    /// Starts a daemon. `prepare` fills the Hub cache and returns the configuration.
    pub(crate) fn start_with(
        program: &Path,
        upstream: &str,
        prepare: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<Self> {
        // The folder is next to the program, so that the model can be linked instead of copied.
        let folder = tempfile::tempdir_in(program.parent().unwrap_or(Path::new(".")))?;
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("hub"))?;
        fs::write(at("config.toml"), prepare(&at("hub"))?)?;
        let address = free_address()?;
        let output = fs::File::create(at("log"))?;
        let mut command = Command::new(program);
        for (name, _) in env::vars_os().filter(|(name, _)| is_setting(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command
            .arg("serve")
            .env("HUBLLAMA_LISTEN", address.to_string())
            .env("HUBLLAMA_UPSTREAM", upstream)
            .env("HUBLLAMA_STATE", at("state"))
            .env("HUBLLAMA_CONFIG", at("config.toml"))
            .env("HF_HUB_CACHE", at("hub"))
            .env("HF_HUB_OFFLINE", "1")
            .env("OLLAMA_NUM_PARALLEL", "8")
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut process = Process::start(&mut command)?;
        process
            .wait_until_ready(address, "/api/version", &at("log"))
            .context("hubllama")?;
        Ok(Self {
            address,
            process,
            folder,
        })
    }

    /// Folder with configuration, cache and state.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the processes of models that are loaded or being loaded.
    pub(crate) fn workers(&self) -> Result<Vec<i32>> {
        let mut workers = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.process.0.id()))? {
            let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            for pid in children.split_ascii_whitespace() {
                let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if command.split('\0').any(|argument| argument == "model") {
                    workers.push(pid.parse()?);
                }
            }
        }
        Ok(workers)
    }

    pub(crate) fn wait_for_no_worker(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.workers()?.is_empty() {
            ensure!(Instant::now() < deadline, "a model stays loaded");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Returns the resident memory of the daemon in bytes, without its workers.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

/// Environment variables of the caller that the daemon must not see.
fn is_setting(name: &str) -> bool {
    ["HUBLLAMA_", "HUGGINGFACE_", "OLLAMA_", "HF_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Adds files to a Hub cache in the layout of huggingface_hub.
fn seed_cache(cache: &Path, repo: &str, files: &[PathBuf]) -> Result<()> {
    /// Commit that does not exist on the Hub.
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let repo = cache.join(format!("models--{repo}"));
    let snapshot = repo.join("snapshots").join(COMMIT);
    for folder in [&repo.join("blobs"), &repo.join("refs"), &snapshot] {
        fs::create_dir_all(folder)?;
    }
    for file in files {
        let sha256 = Sha256::digest(fs::read(file)?);
        let sha256: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let blob = repo.join("blobs").join(&sha256);
        if fs::hard_link(file, &blob).is_err() {
            fs::copy(file, &blob)?;
        }
        let name = file.file_name().context("the model has no file name")?;
        symlink(Path::new("../../blobs").join(&sha256), snapshot.join(name))?;
    }
    fs::write(repo.join("refs/main"), COMMIT)?;
    Ok(())
}

/// llama.cpp's server with eight sequences of 2048 tokens and two compute threads.
pub(crate) struct LlamaServer {
    pub(crate) address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl LlamaServer {
    pub(crate) fn start(program: &Path, gguf: &Path, threads: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = free_address()?;
        let log = folder.path().join("log");
        let output = fs::File::create(&log)?;
        let mut command = Command::new(program);
        command
            .arg("-m")
            .arg(gguf)
            .args([
                "-c",
                "16384",
                "-np",
                "8",
                "-t",
                &threads.to_string(),
                "-tb",
                &threads.to_string(),
            ])
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut process = Process::start(&mut command)?;
        process
            .wait_until_ready(address, "/health", &log)
            .context("llama-server")?;
        Ok(Self {
            address,
            _process: process,
            _folder: folder,
        })
    }
}
