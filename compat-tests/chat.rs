//! A real model answers a chat through Ollama's API.

use serde_json::{Value, json};

use crate::harness::hubllama::{MODEL, Setup};

fn frames(body: &str) -> Vec<Value> {
    body.lines()
        .map(|line| serde_json::from_str(line).expect("one JSON object a line"))
        .collect()
}

#[test]
fn a_streamed_chat_is_the_same_text_as_one_that_is_not() {
    let daemon = Setup::with_model().start();
    let request = |stream: bool| {
        json!({
            "model": MODEL, "stream": stream,
            "messages": [{"role": "user", "content": "Explain in one sentence what gravity is."}],
            "options": {"temperature": 0, "num_predict": 40},
        })
    };
    let (head, body) = daemon.post("/api/chat", &request(true));
    assert_eq!(head.status(), 200, "{body}");
    assert_eq!(head.header("content-type"), Some("application/x-ndjson"));
    let frames = frames(&body);
    let text: String = frames
        .iter()
        .map(|frame| frame["message"]["content"].as_str().expect("text"))
        .collect();
    assert!(text.contains("force"), "{text}");
    let last = frames.last().expect("a last frame");
    assert_eq!(last["done"], true);
    assert!(last["eval_count"].as_u64().is_some_and(|count| count > 5));
    let (_, once) = daemon.post("/api/chat", &request(false));
    let once: Value = serde_json::from_str(&once).expect("JSON");
    assert_eq!(once["message"]["content"], text);
    // For the second request, the KV cache holds all of the prompt except its last token.
    assert_eq!(once["prompt_eval_count"], last["prompt_eval_count"]);
}
