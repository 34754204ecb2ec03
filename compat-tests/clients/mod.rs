//! Runs scripts with official, unmodified clients against the real binary. The scripts are in this folder.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{
    facts,
    fake_hub::{FakeHub, Source},
    fixture_file::gguf,
    hubllama::{Hubllama, MODEL, MODEL_SHA256, Setup},
    minilm, tools_model,
};

/// Model that clients with a pull function pull and delete.
const PULLED: &str = "hf:Example-Org/Pulled-GGUF:Q4_1";

/// Names of the clients in `docs/compatibility.md`.
pub(crate) const CLIENTS: [&str; 8] = [
    OLLAMA_PYTHON,
    OLLAMA_JAVASCRIPT,
    OLLAMA_GO,
    OPENAI_PYTHON,
    OPENAI_JAVASCRIPT,
    ANTHROPIC_PYTHON,
    LANGCHAIN,
    AI_SDK,
];
const OLLAMA_PYTHON: &str = "`ollama`, Python";
const OLLAMA_JAVASCRIPT: &str = "`ollama`, JavaScript";
const OLLAMA_GO: &str = "`github.com/ollama/ollama/api`, Go";
const OPENAI_PYTHON: &str = "`openai`, Python";
const OPENAI_JAVASCRIPT: &str = "`openai`, JavaScript";
const ANTHROPIC_PYTHON: &str = "`anthropic`, Python";
const LANGCHAIN: &str = "`langchain-ollama`, Python";
const AI_SDK: &str = "Vercel AI SDK: `ollama-ai-provider-v2`, `@ai-sdk/openai-compatible`";

/// Kind of the facts about clients.
pub(crate) const FACT: &str = "client";

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/clients")
}

/// Returns a path that `make test` has prepared, or `None` to skip the test.
fn prepared(variable: &str) -> Option<OsString> {
    let found = env::var_os(variable).filter(|path| Path::new(path).exists());
    if found.is_none() {
        println!(
            "skipped: {variable} names nothing that is there; `make test` prepares it, and says why where it cannot"
        );
    }
    found
}

fn python(script: &str) -> Option<Command> {
    let mut command = Command::new(prepared("HUBLLAMA_TEST_PYTHON")?);
    command
        .arg(scripts().join("python").join(script))
        // No bytecode is written into the repository.
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Some(command)
}

fn javascript(script: &str) -> Option<Command> {
    let folder = PathBuf::from(prepared("HUBLLAMA_TEST_JAVASCRIPT")?);
    // Node.js searches for packages from the script's folder upwards, so the scripts are copied next to them.
    for entry in fs::read_dir(scripts().join("javascript")).expect("the scripts") {
        let path = entry.expect("a script").path();
        if path.extension().is_some_and(|extension| extension == "mjs") {
            fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("the script is copied");
        }
    }
    let mut command = Command::new("node");
    command.arg(folder.join(script));
    Some(command)
}

fn go() -> Option<Command> {
    Some(Command::new(prepared("HUBLLAMA_TEST_GO_CLIENT")?))
}

/// Starts a daemon with the three models, and a Hub with another one.
fn start() -> (FakeHub, Hubllama) {
    let hub = FakeHub::start();
    let sha256 = hub.add("Example-Org/Pulled-GGUF", "pulled-Q4_1.gguf", Source::Path(gguf()));
    assert_eq!(sha256, MODEL_SHA256);
    let setup = Setup::with_model().with_tools().with_minilm();
    let daemon = setup
        .hub(hub.url())
        .config("[engine]\nthreads = 1\ncontext_length = 2048\n")
        .start();
    (hub, daemon)
}

/// Runs a script, which exits with an error at the first check that fails, and records the names of its checks.
fn run(client: &str, command: Option<Command>) {
    let Some(mut command) = command else {
        return facts::put(FACT, client, &[facts::SKIPPED.to_owned()]);
    };
    let (_hub, daemon) = start();
    let output = command
        .arg(daemon.url())
        .args([MODEL, tools_model::MODEL, minilm::MODEL, PULLED])
        .output()
        .expect("the client starts");
    let (printed, complaint) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    println!("{printed}");
    assert!(
        output.status.success(),
        "{printed}\n{complaint}\nthe daemon's log:\n{}",
        daemon.log()
    );
    let checks: Vec<String> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("ok "))
        .map(str::to_owned)
        .collect();
    assert!(!checks.is_empty(), "the script checked nothing");
    facts::put(FACT, client, &checks);
}

#[test]
fn ollama_s_python_client() {
    run(OLLAMA_PYTHON, python("ollama_client.py"));
}

#[test]
fn ollama_s_javascript_client() {
    run(OLLAMA_JAVASCRIPT, javascript("ollama.mjs"));
}

#[test]
fn ollama_s_go_client() {
    run(OLLAMA_GO, go());
}

#[test]
fn openai_s_python_client() {
    run(OPENAI_PYTHON, python("openai_client.py"));
}

#[test]
fn openai_s_javascript_client() {
    run(OPENAI_JAVASCRIPT, javascript("openai.mjs"));
}

#[test]
fn anthropic_s_python_client() {
    run(ANTHROPIC_PYTHON, python("anthropic_client.py"));
}

#[test]
fn langchain() {
    run(LANGCHAIN, python("langchain_client.py"));
}

#[test]
fn the_ai_sdk() {
    run(AI_SDK, javascript("ai_sdk.mjs"));
}
