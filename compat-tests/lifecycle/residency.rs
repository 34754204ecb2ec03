//! Keep-alive and eviction of models.

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{ENDLESS, ENGINE, SECOND, assert_answers, count, load, resident, two_models, wait_for_count};
use crate::harness::{
    hubllama::{Hubllama, MODEL, Setup, is_alive, send_signal, wait_until},
    raw_http::PATIENCE,
    stream::Stream,
};

fn one_model() -> Hubllama {
    Setup::with_model().config(ENGINE).start()
}

fn generate(daemon: &Hubllama, changes: Value) -> Value {
    let mut request = count(MODEL, 2);
    request["stream"] = false.into();
    for (key, value) in changes.as_object().expect("an object") {
        request[key] = value.clone();
    }
    let (head, body) = daemon.post("/api/generate", &request);
    assert_eq!(head.status(), 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

fn ps(daemon: &Hubllama) -> Value {
    daemon.get_json("/api/ps")["models"][0].clone()
}

#[track_caller]
fn wait_unloaded(daemon: &Hubllama, worker: i32) {
    let gone = wait_until(PATIENCE, || {
        (resident(daemon).is_empty() && !is_alive(worker)).then_some(())
    });
    assert!(gone.is_some(), "still there: {:?}", resident(daemon));
}

#[test]
fn keep_alive_zero_unloads_as_soon_as_the_answer_is_out() {
    let daemon = one_model();
    let worker = load(&daemon, MODEL);
    generate(&daemon, json!({"keep_alive": 0}));
    wait_unloaded(&daemon, worker);
}

// Clients load and unload models with empty prompts (traps 21, 22).
#[test]
fn an_empty_prompt_loads_and_with_keep_alive_zero_unloads() {
    let daemon = one_model();
    let loaded = generate(&daemon, json!({"prompt": ""}));
    assert_eq!(
        (&loaded["done_reason"], &loaded["done"]),
        (&"load".into(), &true.into())
    );
    assert_eq!(resident(&daemon), [MODEL]);
    let worker = daemon.workers()[0];
    let unloaded = generate(&daemon, json!({"prompt": "", "keep_alive": "0s"}));
    assert_eq!(unloaded["done_reason"], "unload");
    wait_unloaded(&daemon, worker);
    // Unloading a model that is not loaded is not an error.
    let unloaded = generate(&daemon, json!({"prompt": "", "keep_alive": 0}));
    assert_eq!(unloaded["done_reason"], "unload");
    assert_eq!(daemon.workers(), Vec::<i32>::new());
}

#[test]
fn an_unload_waits_for_the_answer_that_is_under_way() {
    let daemon = one_model();
    let worker = load(&daemon, MODEL);
    let mut stream = Stream::open(&daemon, "/api/generate", &count(MODEL, 60));
    stream.frames(2);
    generate(&daemon, json!({"prompt": "", "keep_alive": 0}));
    let rest = stream.rest();
    assert_eq!(rest.last().expect("a last frame")["eval_count"], 60);
    wait_unloaded(&daemon, worker);
}

#[test]
fn a_model_expires_after_its_keep_alive() {
    let daemon = one_model();
    let worker = load(&daemon, MODEL);
    generate(&daemon, json!({"keep_alive": "1s"}));
    wait_unloaded(&daemon, worker);
}

// Go cannot parse a year after 9999, so `expires_at` stays below it (traps 22, 53).
#[test]
fn a_negative_keep_alive_keeps_the_model_forever() {
    let daemon = one_model();
    generate(&daemon, json!({"keep_alive": -1}));
    let year: i32 = ps(&daemon)["expires_at"].as_str().expect("a time")[..4]
        .parse()
        .expect("a year");
    assert!((2300..2400).contains(&year), "{year}");
}

#[test]
fn an_idle_model_makes_room_for_another() {
    let daemon = two_models(&format!("{ENGINE}max_loaded_models = 1\n")).start();
    let first = load(&daemon, MODEL);
    assert_eq!(resident(&daemon), [MODEL]);
    load(&daemon, SECOND);
    assert_eq!(resident(&daemon), [SECOND]);
    assert!(!is_alive(first));
}

#[test]
fn a_model_in_use_is_not_evicted_and_the_other_request_is_served_after_it() {
    let daemon = two_models(&format!("{ENGINE}max_loaded_models = 1\n")).start();
    let first = load(&daemon, MODEL);
    let mut using = Stream::open(&daemon, "/api/generate", &count(MODEL, 100));
    using.frames(2);
    let mut waiting = Stream::open(&daemon, "/api/generate", &count(SECOND, 3));
    wait_for_count(&daemon, "waiting", 1);
    assert!(is_alive(first));
    let rest = using.rest();
    assert_eq!(rest.last().expect("a last frame")["eval_count"], 100);
    let served = waiting.rest();
    assert_eq!(served.last().expect("a last frame")["eval_count"], 3);
    assert_eq!(resident(&daemon), [SECOND]);
}

#[test]
fn a_request_that_waits_for_room_is_not_overtaken_for_ever() {
    let daemon = two_models(&format!("{ENGINE}max_loaded_models = 1\n")).start();
    load(&daemon, MODEL);
    let mut using = Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS));
    using.frames(2);
    let mut waiting = Stream::open(&daemon, "/api/generate", &count(SECOND, 3));
    wait_for_count(&daemon, "waiting", 1);
    // This request arrived later, and would keep the first model busy forever.
    let later = Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS));
    wait_for_count(&daemon, "waiting", 2);
    drop(using);
    let served = waiting.rest();
    assert_eq!(served.last().expect("a last frame")["eval_count"], 3);
    drop(later);
}

#[test]
fn a_request_that_waited_for_room_and_went_away_holds_nobody_off() {
    let daemon = two_models(&format!("{ENGINE}max_loaded_models = 1\n")).start();
    load(&daemon, MODEL);
    let mut using = Stream::open(&daemon, "/api/generate", &count(MODEL, ENDLESS));
    using.frames(2);
    let gone = Stream::open(&daemon, "/api/generate", &count(SECOND, 3));
    wait_for_count(&daemon, "waiting", 1);
    drop(gone);
    wait_for_count(&daemon, "waiting", 0);
    assert_answers(&daemon, MODEL);
    using.frames(2);
}

#[test]
fn a_larger_context_loads_anew_and_a_smaller_one_does_not() {
    let daemon = one_model();
    let with_context = |tokens: u32| {
        generate(
            &daemon,
            json!({"options": {"num_ctx": tokens, "num_predict": 2, "temperature": 0}}),
        );
        (daemon.workers()[0], ps(&daemon)["context_length"].as_u64())
    };
    let (first, length) = with_context(256);
    assert_eq!(length, Some(256));
    let (second, length) = with_context(1024);
    assert_eq!(length, Some(1024));
    assert_ne!(first, second);
    assert_eq!(with_context(256), (second, Some(1024)));
    // A request without a context length accepts any.
    generate(&daemon, json!({}));
    assert_eq!(daemon.workers(), [second]);
    // A context length above the trained one is reduced to it, so the second request does not reload the model.
    let (third, length) = with_context(100_000);
    assert_eq!(length, Some(8192));
    assert_eq!(with_context(200_000), (third, Some(8192)));
}

#[test]
fn a_larger_context_waits_for_the_answer_that_is_under_way() {
    let daemon = one_model();
    let worker = load(&daemon, MODEL);
    let mut using = Stream::open(&daemon, "/api/generate", &count(MODEL, 60));
    using.frames(2);
    let mut larger = count(MODEL, 3);
    larger["options"]["num_ctx"] = 2048.into();
    let mut larger = Stream::open(&daemon, "/api/generate", &larger);
    wait_for_count(&daemon, "waiting", 1);
    let rest = using.rest();
    assert_eq!(rest.last().expect("a last frame")["eval_count"], 60);
    assert_eq!(larger.rest().last().expect("a last frame")["eval_count"], 3);
    assert_eq!(ps(&daemon)["context_length"], 2048);
    assert!(!is_alive(worker));
}

#[test]
fn an_idle_model_whose_worker_dies_is_loaded_again() {
    let daemon = one_model();
    let worker = load(&daemon, MODEL);
    send_signal(worker, Signal::KILL);
    wait_for_count(&daemon, "resident", 0);
    assert_answers(&daemon, MODEL);
}
