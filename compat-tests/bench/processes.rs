//! Starting the contenders on free ports, waiting until they answer, and ending them: each is stopped by its own id and waited for.

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

/// Time that a contender has to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The name under which [`Hubllama`] serves the test model.
pub(crate) const MODEL: &str = "hf:HuggingFaceTB/SmolLM2-135M-Instruct-GGUF:Q4_1";

/// Programs and files that the run uses; the optional ones are `None` when they are not there.
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

/// A child process that ends with this value.
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

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Processes that its threads started.
    pub(crate) fn children(&self) -> Vec<i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id()));
        let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let lists = tasks.into_iter().flatten().flatten().map(of_task);
        let pids = lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        pids.filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Calls until the reply's status is 200.
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

/// Whether `GET path` is answered with 200.
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

/// The upstream of [`crate::upstream`], as a process of its own.
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

/// nginx as a plain proxy, set up the way one streams through it: kept connections, nothing buffered.
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
        // Workers of a root's nginx become `nobody`, who may not enter the folder.
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

/// The daemon, with a state folder and a Hub cache of its own.
pub(crate) struct Hubllama {
    pub(crate) address: SocketAddr,
    process: Process,
    _folder: TempDir,
}

impl Hubllama {
    /// `gguf` is what the Hub cache holds as [`MODEL`].
    pub(crate) fn start(program: &Path, upstream: &str, gguf: Option<&Path>) -> Result<Self> {
        Self::start_with(program, upstream, |cache| {
            gguf.map_or(Ok(()), |gguf| seed_cache(cache, gguf))?;
            Ok("")
        })
    }

    /// `prepare` fills the Hub cache and gives the configuration.
    pub(crate) fn start_with(
        program: &Path,
        upstream: &str,
        prepare: impl FnOnce(&Path) -> Result<&'static str>,
    ) -> Result<Self> {
        // Beside the program: the model can be linked there instead of copied.
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
            _folder: folder,
        })
    }

    /// Resident memory of the daemon itself, without its workers.
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

/// What must not leak from the caller's environment into the daemon.
fn is_setting(name: &str) -> bool {
    ["HUBLLAMA_", "HUGGINGFACE_", "OLLAMA_", "HF_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Lays a file into a Hub cache the way huggingface_hub does.
fn seed_cache(cache: &Path, gguf: &Path) -> Result<()> {
    let mut hasher = Sha256::new();
    hasher.update(fs::read(gguf)?);
    let sha256: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let commit = &sha256[..40];
    let repo = cache.join("models--HuggingFaceTB--SmolLM2-135M-Instruct-GGUF");
    let snapshot = repo.join("snapshots").join(commit);
    for folder in [&repo.join("blobs"), &repo.join("refs"), &snapshot] {
        fs::create_dir_all(folder)?;
    }
    let blob = repo.join("blobs").join(&sha256);
    if fs::hard_link(gguf, &blob).is_err() {
        fs::copy(gguf, &blob)?;
    }
    let name = gguf.file_name().context("the model has no file name")?;
    symlink(Path::new("../../blobs").join(&sha256), snapshot.join(name))?;
    fs::write(repo.join("refs/main"), commit)?;
    Ok(())
}

/// llama.cpp's own server: eight sequences of 2048 tokens, two compute threads.
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
