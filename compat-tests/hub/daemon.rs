//! Downloads as clients of a daemon see them.

use serde_json::{Value, json};

use super::*;
use crate::harness::{
    fixture_file::gguf,
    hubllama::{Hubllama, MODEL, Setup},
};

const SMALL: &str = "Example-Org/Small-GGUF";
const SMALL_NAME: &str = "hf:Example-Org/Small-GGUF:Q4_1";

/// Starts a Hub that has the real model under two names.
fn hub() -> FakeHub {
    let hub = FakeHub::start();
    hub.add(SMALL, "small-Q4_1.gguf", Source::Path(gguf()));
    hub.add("Example-Org/Other-GGUF", "other-Q4_1.gguf", Source::Path(gguf()));
    hub
}

fn generate(daemon: &Hubllama, model: &str) -> (u16, Value) {
    let body = json!({"model": model, "prompt": "Hi", "stream": false, "options": {"num_predict": 2, "num_ctx": 256}});
    let (head, body) = daemon.post("/api/generate", &body);
    (head.status(), serde_json::from_str(&body).expect("JSON"))
}

fn listed(daemon: &Hubllama) -> Vec<(String, u64)> {
    let tags = daemon.get_json("/api/tags");
    let models = tags["models"].as_array().cloned().unwrap_or_default();
    let entry = |model: Value| {
        let name = model["name"].as_str().unwrap_or_default().to_owned();
        (name, model["size"].as_u64().unwrap_or_default())
    };
    models.into_iter().map(entry).collect()
}

#[test]
fn a_model_of_the_configuration_is_listed_at_once_and_pulled_on_its_first_use() {
    let hub = hub();
    let daemon = Setup::default()
        .hub(hub.url())
        .config(&format!(
            "[engine]\nthreads = 1\n[models.\"{SMALL_NAME}\"]\ntop_k = 1\n"
        ))
        .start();
    assert_eq!(listed(&daemon), [(SMALL_NAME.to_owned(), 0)]);
    assert_eq!(hub.hits("").requests, 0, "a listing asks nobody");
    let (status, reply) = generate(&daemon, SMALL_NAME);
    assert_eq!((status, &reply["done"]), (200, &Value::Bool(true)), "{reply}");
    let size = fs::metadata(gguf()).unwrap().len();
    assert_eq!(listed(&daemon), [(SMALL_NAME.to_owned(), size)]);
    // Other models have to be pulled first.
    let (status, reply) = generate(&daemon, "hf:Example-Org/Other-GGUF:Q4_1");
    assert_eq!(status, 404, "{reply}");
}

#[test]
fn auto_pull_extends_that_to_any_name_and_a_setting_to_another_spelling() {
    let hub = hub();
    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 1\n[hub]\nauto_pull = true\nclaim_hf_co = true\n")
        .start();
    let (status, reply) = generate(&daemon, "hf.co/example-org/other-gguf:q4_1");
    assert_eq!(status, 200, "{reply}");
    assert_eq!(listed(&daemon)[0].0, "hf:Example-Org/Other-GGUF:Q4_1");
    let (status, reply) = generate(&daemon, "hf:Example-Org/Absent-GGUF");
    assert_eq!(status, 404, "{reply}");
}

#[test]
fn two_clients_join_one_pull_and_see_its_frames() {
    let hub = hub();
    hub.faults(|faults| faults.delay = Duration::from_millis(5));
    let daemon = Setup::default().hub(hub.url()).start();
    let body = json!({ "model": SMALL_NAME });
    let replies = std::thread::scope(|scope| {
        let pulls = [(); 2].map(|()| scope.spawn(|| daemon.post("/api/pull", &body)));
        pulls.map(|pull| pull.join().expect("a pull"))
    });
    let size = fs::metadata(gguf()).unwrap().len();
    assert_eq!(hub.hits("/cdn").bytes, size, "it came once");
    for (head, body) in replies {
        assert_eq!(head.status(), 200);
        let frames: Vec<Value> = body
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(frames[0], json!({"status": "pulling manifest"}));
        assert_eq!(frames[frames.len() - 1], json!({"status": "success"}));
        let progress: Vec<&Value> = frames.iter().filter(|frame| frame.get("digest").is_some()).collect();
        assert!(
            progress.len() > 3 && progress.iter().all(|frame| frame["total"] == size),
            "{body}"
        );
        let completed: Vec<u64> = progress
            .iter()
            .map(|frame| frame["completed"].as_u64().unwrap_or(0))
            .collect();
        assert!(
            completed.is_sorted() && completed.last() == Some(&size),
            "{completed:?}"
        );
    }
}

#[test]
fn what_is_cached_answers_at_once_while_the_hub_says_nothing() {
    let hub = hub();
    hub.faults(|faults| faults.api_hangs = true);
    let daemon = Setup::with_model()
        .hub(hub.url())
        .config("[engine]\nthreads = 1\n[hub]\nauto_pull = true\nconnect_timeout = \"500ms\"\n")
        .start();
    let (status, reply) = generate(&daemon, MODEL);
    assert_eq!(status, 200, "{reply}");
    let shown = daemon.post("/api/show", &json!({ "model": MODEL })).0.status();
    assert_eq!((shown, listed(&daemon).len()), (200, 1));
    assert_eq!(hub.hits("").requests, 0, "nobody was asked");
    let started = std::time::Instant::now();
    let pulled = daemon.post("/api/pull", &json!({ "model": MODEL })).1;
    assert!(pulled.ends_with("{\"status\":\"success\"}\n"), "{pulled}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_chat_that_waits_for_a_download_can_say_so_in_its_reasoning() {
    let hub = hub();
    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 1\n[hub]\nauto_pull = true\nprogress_in_thinking = true\n")
        .start();
    let chat = |think: bool, model: &str| {
        let body = json!({
            "model": model, "think": think, "options": {"num_predict": 2, "num_ctx": 256},
            "messages": [{"role": "user", "content": "Hi"}],
        });
        let (head, body) = daemon.post("/api/chat", &body);
        let frames: Vec<Value> = body
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let thinking: String = frames
            .iter()
            .filter_map(|frame| frame["message"]["thinking"].as_str())
            .collect();
        (head.status(), thinking, frames)
    };
    let (status, thinking, frames) = chat(true, SMALL_NAME);
    assert_eq!(status, 200);
    assert!(thinking.starts_with("Downloading b179c9523d0e, 98 MB.\n"), "{thinking}");
    assert!(thinking.ends_with("100 %\nLoading the model.\n\n"), "{thinking}");
    assert_eq!(
        frames.last().map(|frame| &frame["done"]),
        Some(&Value::Bool(true)),
        "{frames:?}"
    );
    // A model that does not exist is an error inside the stream.
    let (_, _, frames) = chat(true, "hf:Example-Org/Absent-GGUF");
    assert!(
        frames.last().is_some_and(|frame| frame["error"].is_string()),
        "{frames:?}"
    );
    // Without reasoning, the answer waits for the download.
    let (status, thinking, _) = chat(false, "hf:Example-Org/Other-GGUF:Q4_1");
    assert_eq!((status, thinking.as_str()), (200, ""));
}
