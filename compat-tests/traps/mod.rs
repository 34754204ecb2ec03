//! Mistakes that other proxies and re-implementations of Ollama make: the list [`TRAPS`]. Each has a test that refers
//! to its number: in Rust, Go and JavaScript with a comment above the test or check that ends with `(trap 1).` or
//! `(traps 1, 2).` or is only `Trap 1`, in Python with the same after `#`, and in a scenario with the field `traps`.
//! Tests without a better place are here.

mod list;
mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

pub(crate) use self::list::TRAPS;
use crate::{
    harness::{
        fake_ollama::FakeOllama,
        hubllama::{Hubllama, MODEL, Setup},
        stream::{Stream, text_of},
        tools_model::{self, history, tool, two_calls},
    },
    scenarios::File,
};

const ENGINE: &str = "[engine]\nthreads = 1\ncontext_length = 2048\n";

/// Returns the names of the tests for each trap.
pub(crate) fn tests() -> BTreeMap<u8, BTreeSet<String>> {
    let mut tests: BTreeMap<u8, BTreeSet<String>> = BTreeMap::new();
    for (trap, test) in sources::named() {
        tests.entry(trap).or_default().insert(test);
    }
    for (name, file) in File::all() {
        for scenario in file.scenarios {
            for trap in scenario.traps {
                let test = format!("`scenarios/{name}.json`: {}", scenario.what);
                tests.entry(trap).or_default().insert(test);
            }
        }
    }
    tests
}

#[test]
fn every_trap_has_a_test_that_names_it() {
    let numbers: Vec<u8> = TRAPS.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=67).collect::<Vec<u8>>(), "the list has every number once");
    let tests = tests();
    let without: Vec<_> = TRAPS.iter().filter(|(number, _)| !tests.contains_key(number)).collect();
    assert!(without.is_empty(), "no test names these: {without:#?}");
    let unknown: Vec<_> = tests.keys().filter(|number| !numbers.contains(number)).collect();
    assert!(unknown.is_empty(), "no such traps: {unknown:?}");
}

/// Sends a request and returns the JSON of its reply.
#[track_caller]
fn answer(daemon: &Hubllama, path: &str, request: &Value) -> Value {
    let (head, body) = daemon.post(path, request);
    assert_eq!(head.status(), 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

// Axum and other frameworks limit bodies to 2 MiB by default (trap 24).
#[test]
fn bodies_of_many_megabytes_are_read() {
    let daemon = Setup::with_model().config(ENGINE).start();
    // The invalid value is at the end of the body, so the error shows that the whole body was read.
    let request =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "x".repeat(24 << 20)}], "think": "hard"});
    let (head, body) = daemon.post("/api/chat", &request);
    assert_eq!(head.status(), 400, "{body}");
    assert!(body.contains("invalid think value"), "{body}");
}

// Clients parse every line as a frame, stop at `error` and wait for `done` (traps 4, 5, 35, 36).
#[test]
fn frames_are_short_and_without_error_and_the_last_one_is_done() {
    let daemon = Setup::with_model().config(ENGINE).start();
    let request = json!({
        "model": MODEL, "prompt": "Count to twenty.", "logprobs": true, "top_logprobs": 20,
        "options": {"temperature": 0, "num_predict": 20},
    });
    let mut stream = Stream::open(&daemon, "/api/generate", &request);
    let lines: Vec<String> = std::iter::from_fn(|| stream.line()).collect();
    assert!(
        lines.iter().all(|line| !line.is_empty() && line.len() < 1 << 20),
        "{lines:#?}"
    );
    let frames: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(frames.iter().all(|frame| frame.get("error").is_none()), "{frames:#?}");
    let done: Vec<bool> = frames.iter().map(|frame| frame["done"] == true).collect();
    assert_eq!(
        done.iter().position(|done| *done),
        Some(frames.len() - 1),
        "{frames:#?}"
    );
}

// Clients match results to calls by id, and show all content to the user (traps 7, 8, 66).
#[test]
fn tool_calls_have_unique_ids_and_never_leak_into_text() {
    let daemon = Setup::default().with_tools().config(ENGINE).start();
    let native = json!({
        "model": tools_model::MODEL, "messages": history(&two_calls()), "tools": [tool()],
        "options": {"temperature": 0, "num_predict": 90},
    });
    let frames = Stream::open(&daemon, "/api/chat", &native).rest();
    let calls: Vec<&Value> = frames
        .iter()
        .filter_map(|frame| frame["message"]["tool_calls"].as_array())
        .flatten()
        .collect();
    let ids_of = |calls: &[&Value]| -> BTreeSet<String> {
        let id = |call: &&Value| call["id"].as_str().filter(|id| !id.is_empty()).map(str::to_owned);
        calls.iter().filter_map(id).collect()
    };
    assert_eq!((calls.len(), ids_of(&calls).len()), (2, 2), "{frames:#?}");
    assert!(
        calls.iter().all(|call| call["function"]["arguments"].is_object()),
        "{calls:?}"
    );
    let leaked = |frame: &Value| {
        frame["message"]["content"]
            .as_str()
            .is_some_and(|text| text.contains("tool_call"))
    };
    assert!(!frames.iter().any(leaked), "{frames:#?}");

    let openai = json!({
        "model": tools_model::MODEL, "messages": history(&two_calls()), "tools": [tool()],
        "temperature": 0, "max_tokens": 90,
    });
    let whole = answer(&daemon, "/v1/chat/completions", &openai);
    let calls: Vec<&Value> = whole["choices"][0]["message"]["tool_calls"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    assert_eq!((calls.len(), ids_of(&calls).len()), (2, 2), "{whole}");
    assert!(
        calls.iter().all(|call| call["function"]["arguments"].is_string()),
        "{whole}"
    );

    let mut function = tool()["function"].take();
    let schema = function["parameters"].take();
    let anthropic = json!({
        "model": tools_model::MODEL, "messages": history(&two_calls()), "temperature": 0, "max_tokens": 90,
        "tools": [{"name": function["name"], "input_schema": schema}],
    });
    let whole = answer(&daemon, "/v1/messages", &anthropic);
    let blocks = whole["content"].as_array().into_iter().flatten();
    let calls: Vec<&Value> = blocks.filter(|block| block["type"] == "tool_use").collect();
    assert_eq!((calls.len(), ids_of(&calls).len()), (2, 2), "{whole}");
}

// A model may load for minutes before Ollama sends its first byte (trap 32).
#[test]
fn a_slow_ollama_is_not_timed_out() {
    const SILENCE: Duration = Duration::from_millis(2500);
    let ollama = FakeOllama::start(|_, connection| {
        thread::sleep(SILENCE);
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
        thread::sleep(SILENCE);
        connection.try_send("half").is_ok()
    });
    // All limits are as short as they can be.
    let config = format!(
        "[ollama]\nurl = \"{}\"\nconnect_timeout = \"1s\"\n[engine]\nstream_timeout = \"1s\"\nload_timeout = \"1s\"\n",
        ollama.url()
    );
    let daemon = Setup::default().config(&config).start();
    let (head, body) = daemon.post("/api/chat", &json!({"model": "llama3.2"}));
    assert_eq!((head.status(), &*body), (200, "halfhalf"));
}

// Ollama would refuse an hf: name, or look for it in its own registry (traps 59, 62).
#[test]
fn no_request_with_an_hf_name_reaches_ollama() {
    let ollama = FakeOllama::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    let daemon = Setup::default().upstream(ollama.url()).start();
    let routes = [
        ("POST", "/api/generate"),
        ("POST", "/api/chat"),
        ("POST", "/api/embed"),
        ("POST", "/api/embeddings"),
        ("POST", "/api/show"),
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("DELETE", "/api/delete"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
    ];
    for (method, path) in routes {
        // Of several equal keys, in any case, the last one counts.
        let (head, body) = daemon.request(
            method,
            path,
            r#"{"model":"llama3.2","MODEL":" HF:nobody/none-GGUF:Q4_0"}"#,
        );
        assert_ne!(head.status(), 502, "{path}: {body}");
    }
    for body in [
        r#"{"source":"hf:nobody/none-GGUF","destination":"x"}"#,
        r#"{"source":"x","destination":"hf:nobody/none-GGUF"}"#,
    ] {
        daemon.request("POST", "/api/copy", body);
    }
    daemon.request("POST", "/api/create", r#"{"model":"x","from":"hf:nobody/none-GGUF"}"#);
    // Other requests to Ollama only ask for its lists. This chat is the first request that should be forwarded.
    daemon.post("/api/chat", &json!({"model": "llama3.2"}));
    loop {
        let received = ollama.received();
        let text = String::from_utf8_lossy(&received.body).to_lowercase();
        assert!(!text.contains("hf:"), "{}: {text}", received.head.line);
        if received.head.line.starts_with("POST /api/chat") {
            break;
        }
    }
}

// Without a request or setting there is no repeat penalty (trap 40).
#[test]
fn there_is_no_repeat_penalty_by_default() {
    let daemon = Setup::with_model().config(ENGINE).start();
    let text = |penalty: Value| {
        let request = json!({
            "model": MODEL, "prompt": "one two one two one two one", "raw": true, "stream": false,
            "options": {"temperature": 0, "num_predict": 12, "repeat_penalty": penalty},
        });
        text_of(&[answer(&daemon, "/api/generate", &request)])
    };
    let plain = text(Value::Null);
    assert_eq!(plain, text(json!(1.0)), "the default is no penalty");
    assert_ne!(plain, text(json!(1.9)), "a penalty has an effect");
}

// Clients offer only listed models for selection (trap 57).
#[test]
fn a_configured_model_is_listed_before_it_is_downloaded() {
    let named = "hf:nobody/later-GGUF:Q4_0";
    let daemon = Setup::default()
        .config(&format!("[aliases]\nlater = \"{named}\"\n"))
        .start();
    let tags = daemon.get_json("/api/tags");
    let names: Vec<&Value> = tags["models"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| &entry["name"])
        .collect();
    assert!(
        names.contains(&&json!(named)) && names.contains(&&json!("later:latest")),
        "{tags}"
    );
}

// A chat repeats its whole history with every turn (trap 67).
#[test]
fn the_next_turn_evaluates_only_new_tokens() {
    let daemon = Setup::with_model().config(ENGINE).start();
    let mut messages =
        vec![json!({"role": "user", "content": "The quick brown fox jumps over the lazy dog. ".repeat(40)})];
    let turn = |messages: &[Value]| {
        let request = json!({
            "model": MODEL, "messages": messages, "stream": false, "options": {"temperature": 0, "num_predict": 8},
        });
        answer(&daemon, "/api/chat", &request)
    };
    let first = turn(&messages);
    messages.extend([first["message"].clone(), json!({"role": "user", "content": "Go on."})]);
    let second = turn(&messages);
    let number = |reply: &Value, key: &str| reply[key].as_u64().expect("a number");
    // The count is that of the whole prompt; the duration shows how much was evaluated.
    assert!(number(&second, "prompt_eval_count") > number(&first, "prompt_eval_count") + 8);
    let (first, second) = (
        number(&first, "prompt_eval_duration"),
        number(&second, "prompt_eval_duration"),
    );
    assert!(second < first / 3, "{second} ns after {first} ns");
}
