//! Killed workers and failed loads.

use std::{fs, path::PathBuf};

use rustix::process::Signal;
use serde_json::json;

use super::{ENDLESS, ENGINE, SECOND, assert_answers, count, load, loading_worker, two_models, wait_for_count};
use crate::harness::{
    fixture_file::gguf,
    hubllama::{Hubllama, MODEL, Setup, children, is_alive, send_signal, wait_until},
    raw_http::PATIENCE,
    stream::Stream,
};

const DIED: &str = "model runner has unexpectedly stopped";

fn assert_gone(pids: &[i32]) {
    let gone = wait_until(PATIENCE, || pids.iter().all(|&pid| !is_alive(pid)).then_some(()));
    assert!(gone.is_some(), "a process is left behind");
}

// Clients only see an error in a stream if it is a frame (trap 65).
#[test]
fn a_killed_worker_ends_only_its_own_answers() {
    let daemon = two_models(ENGINE).start();
    let victim = load(&daemon, MODEL);
    load(&daemon, SECOND);
    let mut doomed = Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS));
    let mut doomed_sse = Stream::open(
        &daemon,
        "/v1/chat/completions",
        &json!({"model": MODEL, "stream": true, "max_tokens": ENDLESS, "temperature": 0,
                "messages": [{"role": "user", "content": "Write a very long story about a fox."}]}),
    );
    let mut other = Stream::open(&daemon, "/api/generate", &count(SECOND, ENDLESS));
    doomed.frames(3);
    other.frames(3);
    assert!(doomed_sse.line().is_some_and(|line| line.starts_with("data: {")));

    send_signal(victim, Signal::KILL);
    let rest = doomed.rest();
    let last = rest.last().expect("a last frame");
    assert!(last["error"].as_str().is_some_and(|text| text.contains(DIED)), "{last}");
    assert!(doomed.whole, "the body ends as HTTP wants it");

    let mut events = Vec::new();
    while let Some(line) = doomed_sse.line() {
        events.extend(line.strip_prefix("data: ").map(str::to_owned));
    }
    let last = events.last().expect("a last event");
    assert!(last.contains(r#""error""#) && last.contains(DIED), "{last}");
    assert!(doomed_sse.whole);

    other.frames(10);
    assert_answers(&daemon, MODEL);
    assert!(!daemon.workers().contains(&victim));
}

#[test]
fn a_request_that_a_worker_crashed_under_is_refused_for_a_while_and_no_other_is() {
    let daemon = Setup::with_model().config(ENGINE).start();
    load(&daemon, MODEL);
    let poison = count(MODEL, ENDLESS);
    let mut stream = Stream::open(&daemon, "/api/generate", &poison);
    stream.frames(3);
    send_signal(daemon.workers()[0], Signal::ABORT);
    let rest = stream.rest();
    let last = rest.last().expect("a last frame");
    assert!(last["error"].as_str().is_some_and(|text| text.contains(DIED)), "{last}");

    // Different sampling parameters do not make it a different request.
    let mut again = poison.clone();
    again["options"]["seed"] = json!(7);
    for request in [&poison, &again] {
        let (head, body) = daemon.post("/api/generate", request);
        assert_eq!(head.status(), 400, "{body}");
        assert!(body.contains("refused for a minute"), "{body}");
    }
    let mut other = count(MODEL, 2);
    (other["prompt"], other["stream"]) = (json!("Another question."), json!(false));
    let (head, body) = daemon.post("/api/generate", &other);
    assert_eq!(head.status(), 200, "{body}");
}

#[test]
fn a_daemon_that_is_killed_leaves_no_process_behind() {
    let mut daemon = two_models(ENGINE).start();
    // One worker generates, one is stopped during its load, and the third is the helper.
    let chat = json!({"model": MODEL, "options": {"num_predict": ENDLESS, "temperature": 0},
                      "messages": [{"role": "user", "content": "Write a very long story about a fox."}]});
    let mut stream = Stream::open(&daemon, "/api/chat", &chat);
    stream.frames(2);
    let decoding = daemon.workers()[0];
    let _waiting = Stream::open(&daemon, "/api/generate", &count(SECOND, 1));
    let loading =
        wait_until(PATIENCE, || daemon.workers().into_iter().find(|&pid| pid != decoding)).expect("a second worker");
    send_signal(loading, Signal::STOP);
    assert_eq!(daemon.get_json("/health")["models"]["in_transition"], 1);
    let children = children(daemon.pid());
    assert_eq!(children.len(), 3, "two workers and the helper");

    let status = daemon.end(Signal::KILL).expect("it is gone");
    assert!(!status.success());
    send_signal(loading, Signal::CONT);
    assert_gone(&children);
}

#[test]
fn a_helper_that_is_killed_is_started_again() {
    let daemon = Setup::with_model().config(ENGINE).start();
    let chat = json!({"model": MODEL, "stream": false, "options": {"num_predict": 2},
                      "messages": [{"role": "user", "content": "Hi"}]});
    for _ in 0..3 {
        let (head, body) = daemon.post("/api/chat", &chat);
        assert_eq!(head.status(), 200, "{body}");
        let helpers = daemon.helpers();
        assert_eq!(helpers.len(), 1);
        // The next request may arrive before the daemon notices the end of the process.
        send_signal(helpers[0], Signal::KILL);
    }
}

#[test]
fn a_load_that_dies_three_times_is_refused_for_a_while_and_said_in_health() {
    let daemon = two_models(ENGINE).start();
    load(&daemon, SECOND);
    for _ in 0..3 {
        let mut request = Stream::open(&daemon, "/api/generate", &count(MODEL, 1));
        let worker = wait_until(PATIENCE, || daemon.workers().get(1).copied()).expect("a second worker");
        send_signal(worker, Signal::KILL);
        assert_eq!(request.head().status(), 500);
        let frame = request.frame().expect("an error");
        assert_eq!(
            frame["error"],
            "the model could not be loaded: the worker process died while loading"
        );
    }
    let mut request = Stream::open(&daemon, "/api/generate", &count(MODEL, 1));
    let frame = request.frame().expect("an error");
    assert!(
        frame["error"]
            .as_str()
            .is_some_and(|text| text.contains("refused for a minute")),
        "{frame}"
    );
    let health = daemon.get_json("/health");
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["quarantined"][0]["deaths"], 3, "{health}");
    assert_answers(&daemon, SECOND);
}

#[test]
fn a_load_without_progress_is_given_up() {
    let daemon = Setup::with_model()
        .config("[engine]\nload_timeout = \"1s\"\ncontext_length = 512\nthreads = 1\n")
        .start();
    let mut request = Stream::open(&daemon, "/api/generate", &count(MODEL, 1));
    let worker = loading_worker(&daemon);
    send_signal(worker, Signal::STOP);
    assert_eq!(request.head().status(), 500);
    let frame = request.frame().expect("an error");
    assert_eq!(frame["error"], "the model could not be loaded: no progress for 1 s");
    assert_gone(&[worker]);
    assert_answers(&daemon, MODEL);
}

/// Returns the real model with one 32-bit number in its header replaced.
fn patched(folder: &std::path::Path, key: &str, value: u32) -> PathBuf {
    let mut bytes = fs::read(gguf()).expect("the model");
    let at = bytes
        .windows(key.len())
        .position(|window| window == key.as_bytes())
        .expect("the key");
    // A key is followed by its type and its value.
    let at = at + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let path = folder.join(format!("{key}-{value}"));
    fs::write(&path, bytes).expect("written");
    path
}

fn cut(folder: &std::path::Path, size: u64) -> PathBuf {
    let path = folder.join(format!("cut-{size}"));
    fs::copy(gguf(), &path).expect("copied");
    let file = fs::File::options().write(true).open(&path).expect("opened");
    file.set_len(size).expect("cut");
    path
}

#[track_caller]
fn assert_refused(daemon: &Hubllama, model: &str, reason: &str) {
    let (head, body) = daemon.post("/api/generate", &count(model, 1));
    assert_eq!(head.status(), 500, "{model}: {body}");
    let error: serde_json::Value = serde_json::from_str(body.trim_end()).expect("one JSON object");
    let sentence = error["error"].as_str().expect("a sentence");
    assert!(sentence.contains(reason), "{model}: {sentence}");
}

// Clients expect a status for a failed load, not a frame (trap 30).
#[test]
fn damaged_files_are_refused_with_an_explanation() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let daemon = Setup::with_model()
        .config(ENGINE)
        .file("Example-Org/Cut-GGUF", "cut-Q4_K_M.gguf", cut(folder, 60 << 20))
        .file("Example-Org/Stub-GGUF", "stub-Q4_K_M.gguf", cut(folder, 100_000))
        .file(
            "Example-Org/Blocks-GGUF",
            "blocks-Q4_K_M.gguf",
            patched(folder, "llama.block_count", 31),
        )
        .file(
            "Example-Org/Many-GGUF",
            "many-Q4_K_M.gguf",
            patched(folder, "llama.block_count", 100_000),
        )
        .file(
            "Example-Org/Heads-GGUF",
            "heads-Q4_K_M.gguf",
            patched(folder, "llama.attention.head_count", 0),
        )
        .file(
            "Example-Org/Width-GGUF",
            "width-Q4_K_M.gguf",
            patched(folder, "llama.embedding_length", 0xffff_fff0),
        )
        .file(
            "Example-Org/Rope-GGUF",
            "rope-Q4_K_M.gguf",
            patched(folder, "llama.rope.dimension_count", 7),
        )
        .start();
    load(&daemon, MODEL);
    let mut stream = Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS));
    stream.frames(2);
    for (name, reason) in [
        ("Cut", "the download is incomplete"),
        ("Stub", "the download is incomplete"),
        ("Blocks", "loaded: tensor 'blk.30.attn_norm.weight' not found"),
        ("Many", "block_count is 100000"),
        ("Heads", "has wrong shape"),
        ("Width", "n_rot"),
        ("Rope", "n_rot"),
    ] {
        assert_refused(&daemon, &format!("hf:Example-Org/{name}-GGUF:Q4_K_M"), reason);
    }
    stream.frames(2);
    drop(stream);
    assert_answers(&daemon, MODEL);
    wait_for_count(&daemon, "in_transition", 0);
}
