//! Life cycle of workers: loading, keep-alive, eviction, queues and crashes, as clients see them.

mod crashes;
mod queues;
mod residency;
mod stopping;

use serde_json::{Value, json};

use crate::harness::raw_http::PATIENCE;
use crate::harness::{
    fixture_file::gguf,
    hubllama::{Hubllama, Setup, wait_until},
};

/// Second model with the same weights under another name, which is loaded separately.
const SECOND: &str = "hf:Example-Org/Second-GGUF:Q4_K_M";

/// Configuration with one compute thread, since the tests share the machine, and a small context length.
const ENGINE: &str = "[engine]\nthreads = 1\ncontext_length = 512\nparallel = 2\n";

/// Number of tokens that takes longer than any test.
const ENDLESS: u32 = 5000;

fn two_models(config: &str) -> Setup {
    Setup::with_model()
        .file("Example-Org/Second-GGUF", "second-Q4_K_M.gguf", gguf())
        .config(config)
}

/// Starts an answer that continues until the test ends it.
fn count(model: &str, tokens: u32) -> Value {
    json!({
        "model": model, "prompt": "1, 2, 3, 4, 5, 6,", "raw": true,
        "options": {"temperature": 0, "num_predict": tokens},
    })
}

/// Checks that a model answers a short request.
#[track_caller]
fn assert_answers(daemon: &Hubllama, model: &str) {
    let mut request = count(model, 3);
    request["stream"] = false.into();
    let (head, body) = daemon.post("/api/generate", &request);
    assert_eq!(head.status(), 200, "{body}\n{}", daemon.log());
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(answer["eval_count"], 3, "{body}");
}

/// Loads a model and returns its process.
#[track_caller]
fn load(daemon: &Hubllama, model: &str) -> i32 {
    let before = daemon.workers();
    assert_answers(daemon, model);
    let new: Vec<i32> = daemon
        .workers()
        .into_iter()
        .filter(|pid| !before.contains(pid))
        .collect();
    assert_eq!(new.len(), 1, "one new worker");
    new[0]
}

/// Returns the process of a load that has just started.
fn loading_worker(daemon: &Hubllama) -> i32 {
    wait_until(PATIENCE, || daemon.workers().first().copied()).expect("a worker")
}

/// Returns the names in `/api/ps`.
fn resident(daemon: &Hubllama) -> Vec<String> {
    let ps = daemon.get_json("/api/ps");
    let models = ps["models"].as_array().expect("a list");
    models
        .iter()
        .map(|model| model["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// Waits until a number in `/health` has this value.
#[track_caller]
fn wait_for_count(daemon: &Hubllama, key: &str, count: u64) {
    let seen = wait_until(PATIENCE, || {
        (daemon.get_json("/health")["models"][key] == count).then_some(())
    });
    assert!(seen.is_some(), "{key} is not {count}: {}", daemon.get_json("/health"));
}
