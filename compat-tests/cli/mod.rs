//! Runs the commands of the command line as a user does.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use hubllama::gguf::{GgufHeader, chat_template};
use tempfile::TempDir;

use crate::harness::{
    fake_hub::{FakeHub, Source, TOKEN},
    fake_ollama::FakeOllama,
    fixture_file::gguf,
    hubllama::{Hubllama, MODEL, MODEL_SHA256, Setup, wait_until},
    raw_http::PATIENCE,
};

mod checkpoints;
mod updates;

const REPO: &str = "Example-Org/Small-GGUF";
const NAME: &str = "hf:Example-Org/Small-GGUF:Q4_1";

/// User who runs commands, with a home folder and a cache.
struct Caller {
    home: TempDir,
    variables: Vec<(&'static str, String)>,
}

struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Caller {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().expect("a folder"),
            variables: Vec::new(),
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Returns a user whose commands use this daemon.
    fn of(daemon: &Hubllama) -> Self {
        Self::new().with("HUBLLAMA_LISTEN", daemon.address().to_string())
    }

    /// Returns a user whose commands find no daemon.
    fn alone(hub: &FakeHub) -> Self {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("an address").to_string();
        Self::new()
            .with("HUBLLAMA_LISTEN", address)
            .with("HF_ENDPOINT", hub.url())
    }

    fn cache(&self) -> std::path::PathBuf {
        self.home.path().join("hub")
    }

    fn run(&self, arguments: &[&str]) -> Said {
        let (out, err) = (self.home.path().join("stdout"), self.home.path().join("stderr"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_hubllama"))
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("HF_HUB_CACHE", self.cache())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(File::create(&out).expect("a file"))
            .stderr(File::create(&err).expect("a file"))
            .spawn()
            .expect("the binary starts");
        let status = wait_until(PATIENCE, || child.try_wait().expect("waits"));
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let read = |path: &Path| fs::read_to_string(path).expect("UTF-8");
        let (stdout, stderr) = (read(&out), read(&err));
        let status = status.unwrap_or_else(|| panic!("{arguments:?} does not end: {stdout}{stderr}"));
        Said {
            code: status.code(),
            stdout,
            stderr,
        }
    }

    fn config(&self, text: &str) -> String {
        let path = self.home.path().join("config.toml");
        fs::write(&path, text).expect("written");
        path.display().to_string()
    }
}

fn hub() -> FakeHub {
    let hub = FakeHub::start();
    hub.add(REPO, "small-Q4_1.gguf", Source::Path(gguf()));
    hub
}

#[test]
fn help_names_every_command_and_no_other() {
    let said = Caller::new().run(&["--help"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for command in [
        "serve",
        "config",
        "pull",
        "list",
        "show",
        "rm",
        "search",
        "verify",
        "prune",
        "import",
        "convert",
        "template",
        "doctor",
        "--config",
        "--listen",
        "--upstream",
    ] {
        assert!(said.stdout.contains(command), "{command}: {}", said.stdout);
    }
    assert!(!said.stdout.contains("worker"), "{}", said.stdout);
    let version = Caller::new().run(&["--version"]);
    assert_eq!(version.stdout.trim(), format!("hubllama {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_model_that_a_client_made_is_listed() {
    let daemon = Setup::with_model().start();
    let create = serde_json::json!({"model": "me/mario:v1", "from": MODEL, "system": "You are Mario."});
    let (head, body) = daemon.post("/api/create", &create);
    assert_eq!(head.status(), 200, "{body}");
    let said = Caller::of(&daemon).run(&["list"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let line = said.stdout.lines().find(|line| line.starts_with("me/mario:v1 "));
    assert!(line.is_some_and(|line| line.contains("Q4_1")), "{}", said.stdout);
}

#[test]
fn config_check_praises_a_good_file() {
    let caller = Caller::new();
    let file = caller.config("[engine]\nmax_queue = 9\n");
    let said = caller.run(&["config", "check", "--config", &file]);
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains("The configuration is good."), "{}", said.stdout);
    assert!(
        said.stdout.contains(&format!("engine.max_queue = 9  # {file}:2")),
        "{}",
        said.stdout
    );
}

#[test]
fn config_check_and_serve_list_every_problem_and_say_so_in_their_exit_status() {
    let caller = Caller::new().with("RETRY_ATTEMPTS", "several");
    let file = caller.config("[engine]\nmax_queue = \"many\"\nparalel = 2\n\n[ollama]\nurl = \"nowhere\"\n");
    let check = caller.run(&["config", "check", "--config", &file]);
    let serve = caller.run(&["serve", "--config", &file]);
    for (said, text) in [(&check, &check.stdout), (&serve, &serve.stderr)] {
        assert_eq!(said.code, Some(78), "{}{}", said.stdout, said.stderr);
        for problem in [
            "config.toml:2: engine.max_queue",
            "config.toml:3: engine.paralel",
            "config.toml:6: ollama.url",
            "environment RETRY_ATTEMPTS: hub.retry_attempts",
        ] {
            assert!(text.contains(problem), "{problem}: {text}");
        }
    }
}

#[test]
fn a_configuration_file_that_was_named_has_to_be_there() {
    let said = Caller::new().run(&["serve", "--config", "/nowhere/config.toml"]);
    assert_eq!(said.code, Some(78), "{}", said.stderr);
    assert!(said.stderr.contains("/nowhere/config.toml"), "{}", said.stderr);
}

#[test]
fn doctor_says_what_this_build_is_and_what_is_wrong() {
    let hub = FakeHub::start();
    let said = Caller::alone(&hub)
        .with("HUBLLAMA_UPSTREAM", "http://127.0.0.1:9")
        .run(&["doctor"]);
    assert_eq!(said.code, Some(1), "{}{}", said.stdout, said.stderr);
    let row = |name: &str| {
        let found = said
            .stdout
            .lines()
            .find(|line| line.get(2..).is_some_and(|line| line.starts_with(name)));
        found.unwrap_or_else(|| panic!("{name}: {}", said.stdout)).to_owned()
    };
    assert!(row("version").contains(env!("CARGO_PKG_VERSION")));
    assert!(row("cpu").len() > 20, "{}", row("cpu"));
    assert!(row("daemon").contains("not running"));
    assert!(row("ollama").starts_with('!') && row("ollama").contains("does not answer"));
    assert!(row("hub ").contains("answers"), "{}", row("hub "));
    assert!(row("hub token").contains("none"), "{}", row("hub token"));
    let caller = Caller::alone(&hub).with("HF_TOKEN", TOKEN);
    let file = caller.config(&format!(
        "[hub]\nmirrors = [\"{}/\", \"http://127.0.0.1:9\"]\nextra_caches = [\"/nowhere/hub\"]\n",
        hub.url().replace("127.0.0.1", "localhost")
    ));
    let said = caller.run(&["doctor", "--config", &file]);
    let has = |start: &str, end: &str| {
        let mut lines = said.stdout.lines();
        let found = lines.any(|line| line.trim_start_matches(['!', ' ']).starts_with(start) && line.contains(end));
        assert!(found, "{start} {end}: {}", said.stdout);
    };
    has("hub token", "found, belongs to loopback");
    has("hub mirror", "answers");
    has("hub mirror", "cannot reach");
    has("extra cache", "/nowhere/hub cannot be read");
}

#[test]
fn pull_and_list_go_through_the_running_daemon_into_its_cache() {
    let hub = hub();
    let daemon = Setup::default().hub(hub.url()).start();
    let caller = Caller::of(&daemon);
    let pulled = caller.run(&["pull", NAME]);
    assert_eq!(pulled.code, Some(0), "{}{}", pulled.stdout, pulled.stderr);
    assert!(pulled.stderr.contains("success"), "{}", pulled.stderr);
    let folder = "models--Example-Org--Small-GGUF";
    assert!(daemon.folder.path().join("hub").join(folder).is_dir());
    assert!(
        !caller.cache().join(folder).exists(),
        "the caller's cache is not touched"
    );
    for command in ["list", "ls"] {
        let listed = caller.run(&[command]);
        assert_eq!(listed.code, Some(0), "{}", listed.stderr);
        assert!(
            listed.stdout.lines().any(|line| line.starts_with(NAME)),
            "{}",
            listed.stdout
        );
    }
}

#[test]
fn list_shows_the_models_of_ollama_too() {
    let model = r#"{"name":"plain:latest","model":"plain:latest","modified_at":"2026-01-02T03:04:05Z","size":2000000000,"digest":"00","details":{"quantization_level":"Q4_K_M"}}"#;
    let tags = format!(r#"{{"models":[{model}]}}"#);
    let ollama = FakeOllama::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{tags}",
        tags.len()
    ));
    let daemon = Setup::with_model().upstream(ollama.url()).start();
    let listed = Caller::of(&daemon).run(&["list"]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let lines: Vec<Vec<&str>> = listed
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["NAME", "SIZE", "QUANTIZATION", "MODIFIED"]);
    let names: Vec<&str> = lines[1..].iter().map(|line| line[0]).collect();
    assert!(names.contains(&"plain:latest") && names.contains(&MODEL), "{names:?}");
}

#[test]
fn pull_and_list_work_without_a_daemon_too() {
    let hub = hub();
    let caller = Caller::alone(&hub);
    let pulled = caller.run(&["pull", NAME]);
    assert_eq!(pulled.code, Some(0), "{}{}", pulled.stdout, pulled.stderr);
    assert!(caller.cache().join("models--Example-Org--Small-GGUF").is_dir());
    let listed = caller.run(&["list"]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    assert!(
        listed.stdout.lines().any(|line| line.starts_with(NAME)),
        "{}",
        listed.stdout
    );
}

/// Returns the chat template in the header of the test model.
fn own_template() -> String {
    let header = GgufHeader::open(&gguf()).expect("a GGUF");
    chat_template(&header).expect("a template").to_owned()
}

#[test]
fn template_compares_with_the_repository_token_by_token() {
    let hub = hub();
    hub.add_small(REPO, "chat_template.jinja", &own_template());
    let other = own_template().replace("<|im_start|>' + message", "<|im_start|>the ' + message");
    assert_ne!(other, own_template());
    let config = serde_json::json!({"bos_token": "<s>", "chat_template": other});
    hub.add_small("Example-Org/Other", "tokenizer_config.json", &config.to_string());
    let caller = Caller::alone(&hub);
    assert_eq!(caller.run(&["pull", NAME]).code, Some(0));

    let same = caller.run(&["template", NAME]);
    assert_eq!(same.code, Some(0), "{}{}", same.stdout, same.stderr);
    for part in [
        "the file's key tokenizer.chat_template",
        "chat_template.jinja of Example-Org/Small-GGUF",
        "supports_system_role",
        "thinking  not separated",
        "<|im_start|>user\nHello, who are you?<|im_end|>",
        "And in Rome?",
    ] {
        assert!(same.stdout.contains(part), "{part}: {}", same.stdout);
    }
    assert_eq!(
        same.stdout.lines().filter(|&line| line == "identical").count(),
        2,
        "{}",
        same.stdout
    );

    let different = caller.run(&["template", NAME, "--against", "Example-Org/Other"]);
    assert_eq!(different.code, Some(1), "{}{}", different.stdout, different.stderr);
    for part in [
        "tokenizer_config.json of Example-Org/Other",
        "different after",
        "goes on with  [\"user\"",
        "goes on with [\"the\"",
    ] {
        assert!(different.stdout.contains(part), "{part}: {}", different.stdout);
    }
}

#[test]
fn template_takes_a_file_and_needs_no_network() {
    let path = gguf().display().to_string();
    let caller = Caller::new().with("HF_HUB_OFFLINE", "1");
    let said = caller.run(&["template", &path]);
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains(&path), "{}", said.stdout);
    assert!(said.stdout.contains("no other template was found"), "{}", said.stdout);

    for name in ["hf:Example-Org/Small-GGUF", "llama3", "/nowhere/model.gguf"] {
        let said = caller.run(&["template", name]);
        assert_eq!(said.code, Some(1), "{name}: {}{}", said.stdout, said.stderr);
        assert!(said.stderr.starts_with("error: "), "{}", said.stderr);
        println!("{}", said.stderr);
    }
}

#[test]
fn the_proxy_of_the_environment_is_used() {
    let hub = hub();
    // The host does not exist, so that only a proxy can answer. The content network is reached directly.
    let caller = Caller::alone(&hub)
        .with("HF_ENDPOINT", "http://hub.invalid")
        .with("http_proxy", hub.url())
        .with("no_proxy", "127.0.0.1");
    let pulled = caller.run(&["pull", NAME]);
    assert_eq!(pulled.code, Some(0), "{}{}", pulled.stdout, pulled.stderr);
    assert!(caller.cache().join("models--Example-Org--Small-GGUF").is_dir());
}

#[test]
fn search_says_what_there_is_and_what_fits() {
    let hub = hub();
    hub.set_tags(REPO, &["gguf", "license:apache-2.0"]);
    let huge = Source::Bytes(bytes::Bytes::from_static(b"x"));
    hub.add_claiming("Example-Org/Huge-GGUF", "huge-Q8_0.gguf", huge, 1 << 50);
    hub.set_gated("Example-Org/Huge-GGUF");
    let said = Caller::alone(&hub).run(&["search", "example-org", "gguf"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    println!("{}", said.stdout);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(
        lines[0],
        "hf:Example-Org/Huge-GGUF  (no license given, terms to accept, 1234 downloads)"
    );
    assert!(
        lines[1].ends_with("too large for this machine's memory"),
        "{}",
        lines[1]
    );
    assert_eq!(lines[2], "hf:Example-Org/Small-GGUF  (apache-2.0, 1234 downloads)");
    assert!(
        lines[3].starts_with("  Q4_1  ") && lines[3].ends_with("fits"),
        "{}",
        lines[3]
    );
    let nothing = Caller::alone(&hub).run(&["search", "surely-not-there"]);
    assert_eq!(
        (nothing.code, nothing.stdout.as_str()),
        (Some(1), ""),
        "{}",
        nothing.stderr
    );
    let offline = Caller::alone(&hub).with("HF_HUB_OFFLINE", "1").run(&["search", "x"]);
    assert!(
        offline.stderr.contains("error: the Hub is switched off"),
        "{}",
        offline.stderr
    );
}

#[test]
fn show_says_where_a_model_is_from_with_and_without_a_daemon() {
    let hub = hub();
    hub.set_tags(REPO, &["license:apache-2.0"]);
    let daemon = Setup::default().hub(hub.url()).start();
    for caller in [Caller::of(&daemon).with("HF_ENDPOINT", hub.url()), Caller::alone(&hub)] {
        assert_eq!(caller.run(&["pull", NAME]).code, Some(0));
        let said = caller.run(&["show", NAME]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        println!("{}", said.stdout);
        for line in [
            "  architecture   llama".to_owned(),
            "  parameters     134.5M".to_owned(),
            "  quantization   Q4_1".to_owned(),
            "  license        apache-2.0".to_owned(),
            format!("  repository     {REPO}"),
            format!("  commit         {}", hub.commit(REPO)),
            format!("  pulled from    {}", hub.url()),
            format!("    sha256       {MODEL_SHA256}"),
            "  template       gguf".to_owned(),
            "  downloaded by  hubllama".to_owned(),
        ] {
            assert!(
                said.stdout.lines().any(|shown| shown == line),
                "{line}\n{}",
                said.stdout
            );
        }
    }
    let shown = daemon.post("/api/show", &serde_json::json!({ "model": NAME })).1;
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["model_info"]["hubllama.files"][0]["sha256"], MODEL_SHA256);
    let caller = Caller::alone(&hub);
    assert_eq!(caller.run(&["pull", NAME]).code, Some(0));
    let updates = |caller: &Caller| {
        let said = caller.run(&["show", "--updates", NAME]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said.stdout.lines().last().unwrap_or_default().to_owned()
    };
    assert!(updates(&caller).contains("none"), "{}", updates(&caller));
    let next = bytes::Bytes::from_static(b"other weights");
    hub.add(REPO, "small-Q4_1.gguf", Source::Bytes(next));
    assert!(
        updates(&caller).contains(&hub.commit(REPO)[..12]),
        "{}",
        updates(&caller)
    );
}

#[test]
fn rm_removes_what_is_ours_and_the_rest_only_where_that_is_said() {
    let hub = hub();
    let daemon = Setup::with_model().hub(hub.url()).start();
    let caller = Caller::of(&daemon);
    let blobs = daemon
        .folder
        .path()
        .join("hub/models--HuggingFaceTB--SmolLM2-135M-Instruct-GGUF/blobs");
    let names = || {
        let said = caller.run(&["list"]);
        said.stdout.lines().skip(1).count()
    };
    assert_eq!(caller.run(&["pull", NAME]).code, Some(0));
    assert_eq!(names(), 2);
    assert_eq!(caller.run(&["rm", NAME]).code, Some(0));
    assert!(
        !daemon
            .folder
            .path()
            .join("hub/models--Example-Org--Small-GGUF")
            .exists()
    );
    // The files belong to another program: the model is removed from the list, and the files only with --files.
    let unlisted = caller.run(&["rm", MODEL]);
    assert_eq!(unlisted.code, Some(0), "{}", unlisted.stderr);
    assert!(unlisted.stdout.contains("is no longer listed"), "{}", unlisted.stdout);
    assert_eq!(names(), 0);
    assert_eq!(fs::read_dir(&blobs).expect("still there").count(), 1);
    let removed = caller.run(&["rm", "--files", MODEL]);
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    assert!(!blobs.exists());
    assert_eq!(caller.run(&["rm", MODEL]).code, Some(1));
}

#[test]
fn import_verify_and_prune_look_after_the_cache() {
    let hub = hub();
    let caller = Caller::alone(&hub);
    let file = caller.home.path().join("download.gguf");
    fs::copy(gguf(), &file).expect("a copy");
    let source = file.display().to_string();
    let said = caller.run(&["import", &source, "--as", "hf:Me/Mine:Q4_1"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    println!("{}", said.stdout);
    assert!(said.stdout.starts_with("imported hf:Me/Mine:Q4_1  "), "{}", said.stdout);
    let broken = caller.home.path().join("broken.gguf");
    fs::write(&broken, "GGUF but not really").expect("written");
    let refused = caller.run(&["import", &broken.display().to_string(), "--as", "hf:me/broken"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("is not a usable GGUF file"),
        "{}",
        refused.stderr
    );

    let verified = caller.run(&["verify"]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    assert!(
        verified.stdout.contains("good     hf:Me/Mine:Q4_1"),
        "{}",
        verified.stdout
    );
    let blob = caller.cache().join("models--Me--Mine/blobs").join(MODEL_SHA256);
    let mut content = fs::read(&blob).expect("a blob");
    let last = content.len() - 1;
    content[last] ^= 1;
    fs::write(&blob, content).expect("written");
    let corrupt = caller.run(&["verify", "hf:me/mine"]);
    assert_eq!(corrupt.code, Some(1), "{}", corrupt.stdout);
    assert!(
        corrupt.stdout.starts_with("corrupt  hf:Me/Mine:Q4_1: "),
        "{}",
        corrupt.stdout
    );

    let partial = blob.with_file_name(format!("{}.hubllama.incomplete", "ab".repeat(32)));
    fs::write(&partial, vec![0; 1 << 20]).expect("written");
    let young = caller.run(&["prune"]);
    assert!(young.stdout.starts_with("nothing to remove in"), "{}", young.stdout);
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let opened = File::options().write(true).open(&partial).expect("opens");
    opened.set_modified(hour_ago).expect("its time is set");
    let dry = caller.run(&["prune"]);
    assert!(dry.stdout.contains("partial   "), "{}", dry.stdout);
    assert!(dry.stdout.contains("nothing was removed"), "{}", dry.stdout);
    assert!(partial.exists());
    let applied = caller.run(&["prune", "--apply"]);
    println!("{}{}", dry.stdout, applied.stdout);
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    assert!(!partial.exists() && blob.exists());
}

#[test]
fn a_name_that_is_not_there_is_one_sentence_and_exit_status_one() {
    let hub = hub();
    let daemon = Setup::default().hub(hub.url()).start();
    for caller in [Caller::of(&daemon), Caller::alone(&hub)] {
        for name in [
            "hf:Example-Org/Nothing-GGUF",
            "hf:Example-Org/Small-GGUF:Q9_9",
            "hf:Example-Org/Small-GGUF:a:b",
        ] {
            let said = caller.run(&["pull", name]);
            assert_eq!(said.code, Some(1), "{name}: {}{}", said.stdout, said.stderr);
            let errors: Vec<&str> = said.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
            assert_eq!(errors.len(), 1, "{name}: {}", said.stderr);
            assert_eq!(said.stderr.lines().last(), Some(errors[0]), "{}", said.stderr);
            println!("{name}: {}", errors[0]);
        }
    }
}
