//! Requests that wait, that exceed the queue, and whose clients disconnect.

use rustix::process::Signal;
use serde_json::Value;

use super::{ENDLESS, assert_answers, count, load, loading_worker, wait_for_count};
use crate::harness::{
    hubllama::{Hubllama, MODEL, Setup, is_alive, send_signal, wait_until},
    raw_http::PATIENCE,
    stream::Stream,
};

/// Ollama's error text, which contains two consecutive spaces.
const BUSY: &str = "server busy, please try again.  maximum pending requests exceeded";

fn one_slot(more: &str) -> Hubllama {
    Setup::with_model()
        .config(&format!(
            "[engine]\nthreads = 1\ncontext_length = 512\nparallel = 1\n{more}"
        ))
        .start()
}

fn assert_busy(daemon: &Hubllama) {
    let (head, body) = daemon.post("/api/generate", &count(MODEL, 1));
    assert_eq!(head.status(), 503, "{body}");
    let error: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(error["error"], BUSY);
}

#[test]
fn requests_that_wait_for_a_load_are_bounded() {
    let daemon = one_slot("max_queue = 2\n");
    let mut first = Stream::open(&daemon, "/api/generate", &count(MODEL, 2));
    let worker = loading_worker(&daemon);
    send_signal(worker, Signal::STOP);
    let mut second = Stream::open(&daemon, "/api/generate", &count(MODEL, 2));
    wait_for_count(&daemon, "waiting", 2);
    assert_busy(&daemon);
    send_signal(worker, Signal::CONT);
    for waiting in [&mut first, &mut second] {
        assert_eq!(waiting.rest().last().expect("a last frame")["eval_count"], 2);
    }
}

#[test]
fn requests_that_wait_for_their_turn_on_a_model_are_bounded() {
    let daemon = one_slot("max_queue = 1\n");
    load(&daemon, MODEL);
    let mut running = Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS));
    running.frames(2);
    let mut waiting = Stream::open(&daemon, "/api/generate", &count(MODEL, 2));
    wait_for_count(&daemon, "answering", 2);
    assert_busy(&daemon);
    running.frames(2);
    drop(running);
    assert_eq!(waiting.rest().last().expect("a last frame")["eval_count"], 2);
    assert_answers(&daemon, MODEL);
}

// Work for a client that has disconnected must stop (trap 33).
#[test]
fn a_client_that_disconnects_frees_its_slot() {
    let daemon = one_slot("");
    load(&daemon, MODEL);
    let mut gone = Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS));
    gone.frames(2);
    drop(gone);
    assert_answers(&daemon, MODEL);
    // An unstreamed request behaves in the same way, although nothing was sent yet.
    let mut whole = count(MODEL, ENDLESS);
    whole["stream"] = false.into();
    let gone = Stream::open(&daemon, "/api/generate", &whole);
    wait_for_count(&daemon, "answering", 1);
    drop(gone);
    assert_answers(&daemon, MODEL);
}

#[test]
fn a_client_that_goes_away_while_it_waits_leaves_the_queue() {
    let daemon = one_slot("max_queue = 2\n");
    load(&daemon, MODEL);
    let mut running = Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS));
    running.frames(2);
    let gone: Vec<Stream> = (0..2)
        .map(|_| Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS)))
        .collect();
    wait_for_count(&daemon, "answering", 3);
    assert_busy(&daemon);
    drop(gone);
    wait_for_count(&daemon, "answering", 1);
    running.frames(2);
    drop(running);
    assert_answers(&daemon, MODEL);
}

#[test]
fn a_load_that_nobody_waits_for_any_more_is_given_up() {
    let daemon = one_slot("");
    let gone = Stream::open(&daemon, "/api/generate", &count(MODEL, 1));
    let worker = loading_worker(&daemon);
    send_signal(worker, Signal::STOP);
    wait_for_count(&daemon, "in_transition", 1);
    drop(gone);
    wait_for_count(&daemon, "in_transition", 0);
    let ended = wait_until(PATIENCE, || (!is_alive(worker)).then_some(()));
    assert!(ended.is_some(), "its process goes too");
    assert_answers(&daemon, MODEL);
}

#[test]
fn a_client_that_goes_away_while_its_model_loads_does_not_take_the_others_load() {
    let daemon = one_slot("");
    let gone = Stream::open(&daemon, "/api/generate", &count(MODEL, 1));
    let worker = loading_worker(&daemon);
    send_signal(worker, Signal::STOP);
    let mut stays = Stream::open(&daemon, "/api/generate", &count(MODEL, 2));
    wait_for_count(&daemon, "waiting", 2);
    drop(gone);
    wait_for_count(&daemon, "waiting", 1);
    send_signal(worker, Signal::CONT);
    assert_eq!(stays.rest().last().expect("a last frame")["eval_count"], 2);
    assert_eq!(daemon.workers(), [worker]);
}
