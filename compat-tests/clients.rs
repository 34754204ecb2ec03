//! Official clients call the real binary, which pulls the real model from a loopback Hub.

use std::process::Command;

use crate::harness::{
    fake_hub::{FakeHub, Source},
    hubllama::{Hubllama, MODEL, MODEL_SHA256, REPO, Setup, gguf},
};

/// Names the Python that has the clients; `make test` makes one.
const PYTHON: &str = "HUBLLAMA_TEST_PYTHON";

/// Runs one of the scripts in `clients/`; it ends with a failure at the first check that fails.
fn run(script: &str, daemon: &Hubllama, arguments: &[&str]) {
    let Some(python) = std::env::var_os(PYTHON) else {
        println!("skipped: {PYTHON} names no Python with the clients; `make test` sets it");
        return;
    };
    let script = format!("{}/compat-tests/clients/{script}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python)
        .arg(script)
        .arg(daemon.url())
        .args(arguments)
        .output()
        .expect("Python starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(
        output.status.success(),
        "{}\n{}\nthe daemon's log:\n{}",
        text(&output.stdout),
        text(&output.stderr),
        daemon.log()
    );
}

#[test]
fn ollama_s_python_client_pulls_chats_and_deletes() {
    let hub = FakeHub::start();
    let sha256 = hub.add(REPO, "SmolLM2-135M-Instruct.Q4_1.gguf", Source::Path(gguf()));
    assert_eq!(sha256, MODEL_SHA256);
    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 1\n")
        .start();
    run("ollama_python.py", &daemon, &[MODEL, "--pull", MODEL]);
}

#[test]
fn ollama_s_python_client_makes_copies_and_deletes_models() {
    let daemon = Setup::with_model().config("[engine]\nthreads = 1\n").start();
    run("ollama_python_create.py", &daemon, &[MODEL]);
}

#[test]
fn openai_s_python_client_chats() {
    let daemon = Setup::with_model().config("[engine]\nthreads = 1\n").start();
    run("openai_python.py", &daemon, &[MODEL]);
}
