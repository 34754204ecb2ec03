//! Tests with requests that a real Ollama was recorded answering. An error there has the same status, content type and
//! bytes here; an answer has the same keys in the same order.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use http_body_util::BodyExt;
use hyper::{Method, Request};
use serde_json::Value;

use super::fake::{FakeProvider, calls, finish, text, thinking};
use crate::{
    api::{ApiEndpoint, ApiHandler, RequestHandler},
    config::{Config, UnsupportedTools},
    http::body,
    inference::{Event, FinishReason, ModelCapability},
    provider::{Ollama, Registry},
};

const FOLDER: &str = "fixtures/ollama-recordings";

/// Names of the recorded models, and those of the test; Ollama adds the tag in some sentences.
const NAMES: [(&str, &str); 4] = [
    // The longest name goes first: it contains the next one, and they are replaced one after the other.
    ("registry.ollama.ai/library/smollm2:latest", "hf:o/r:Q4_K_M"),
    ("smollm2", "hf:o/r"),
    ("toolsmol", "hf:o/r"),
    ("minilm", "hf:o/r"),
];

/// Recorded errors that do not depend on the engine.
const ERRORS: [&str; 43] = [
    "anthropic-empty-body",
    "anthropic-no-max-tokens",
    "anthropic-no-messages",
    "anthropic-tools",
    "embed-mixed",
    "embed-number",
    "minilm-embed-array-in-array",
    "generate-array-body",
    "generate-format-bad",
    "generate-format-number",
    "generate-image-bad-base64",
    "generate-keep-alive-bad",
    "generate-option-wrong-type",
    "generate-prompt-wrong-type",
    "generate-raw-with-template",
    "generate-stream-string",
    "generate-suffix",
    "generate-think-bad",
    "generate-think-unsupported",
    "generate-top-logprobs-21",
    "generate-empty-body",
    "generate-gzip-body",
    "generate-no-model",
    "generate-not-json",
    "generate-truncated",
    "chat-content-array",
    "chat-messages-object",
    "chat-no-model",
    "chat-think",
    "chat-tools",
    "minilm-v1-tokens",
    "tools-result-v1-bad-arguments",
    "v1-chat-bad-part",
    "v1-chat-empty-body",
    "v1-chat-no-messages",
    "v1-chat-reasoning-bad",
    "v1-chat-remote-image",
    "v1-chat-tools",
    "v1-chat-wrong-type",
    "v1-embeddings-bad-format",
    "v1-embeddings-no-input",
    "v1-embeddings-tokens",
    "v1-chat-no-model",
];

/// Recorded answers, whose shape is compared.
const ANSWERS: [&str; 50] = [
    "anthropic-once",
    "anthropic-stream",
    "anthropic-system-blocks",
    "embed-empty-list",
    "embed-empty-string",
    "embed-no-input",
    "embeddings-empty",
    "minilm-embed-dim-negative",
    "minilm-embed-dim-too-large",
    "minilm-embed-empty-string",
    "minilm-embed-list-with-empty",
    "minilm-embed-long",
    "minilm-embed-one",
    "minilm-embeddings",
    "generate-load",
    "generate-unload",
    "generate-once",
    "generate-stream",
    "generate-raw",
    "generate-context",
    "generate-system",
    "generate-template",
    "generate-top-logprobs-alone",
    "generate-keep-alive-minus-1",
    "generate-upper-case-keys",
    "generate-option-float-for-int",
    "chat-load",
    "chat-load-empty-messages",
    "chat-once",
    "chat-stream",
    "chat-system-history",
    "chat-tool-result",
    "v1-chat",
    "v1-chat-stream",
    "v1-chat-stream-usage",
    "v1-chat-parts",
    "v1-chat-json-object",
    "v1-chat-json-schema",
    "v1-chat-length",
    "v1-completions",
    "v1-completions-stream",
    "v1-responses",
    "v1-responses-items",
    "v1-responses-no-input",
    "v1-responses-stream",
    "think-v1-effort-none",
    "tools-result-v1",
    "minilm-v1-base64-dim4",
    "minilm-v1-empty",
    "minilm-v1",
];

struct Recorded {
    endpoint: ApiEndpoint,
    body: Vec<u8>,
    status: u64,
    content_type: String,
    reply: String,
}

fn load(name: &str) -> Option<Recorded> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(FOLDER)
        .join(format!("{name}.json"));
    let json: Value = serde_json::from_slice(&std::fs::read(path).ok()?).unwrap();
    let (request, response) = (&json["request"], &json["response"]);
    let endpoint = match request["path"].as_str().unwrap() {
        "/api/chat" => ApiEndpoint::Chat,
        "/api/generate" => ApiEndpoint::Generate,
        "/api/embed" => ApiEndpoint::Embed,
        "/api/embeddings" => ApiEndpoint::Embeddings,
        "/v1/chat/completions" => ApiEndpoint::OpenAiChat,
        "/v1/completions" => ApiEndpoint::OpenAiCompletions,
        "/v1/embeddings" => ApiEndpoint::OpenAiEmbeddings,
        "/v1/responses" => ApiEndpoint::OpenAiResponses,
        "/v1/messages" => ApiEndpoint::AnthropicMessages,
        other => panic!("{name}: {other}"),
    };
    let body = match (&request["body"]["text"], &request["body"]["base64"]) {
        (Value::String(text), _) => ours(text).into_bytes(),
        (_, Value::String(text)) => crate::go::decode::decode_base64(text).unwrap(),
        _ => Vec::new(),
    };
    let header = |wanted: &str| {
        let headers = response["headers"].as_array().unwrap().iter();
        headers
            .rev()
            .find(|pair| pair[0].as_str() == Some(wanted))
            .map(|pair| pair[1].as_str().unwrap().to_owned())
    };
    let chunks = response["chunks"].as_array().unwrap().iter();
    Some(Recorded {
        endpoint,
        body,
        status: response["status"].as_u64().unwrap(),
        content_type: header("Content-Type").unwrap(),
        reply: ours(&chunks.map(|chunk| chunk["text"].as_str().unwrap()).collect::<String>()),
    })
}

fn ours(text: &str) -> String {
    NAMES
        .iter()
        .fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
}

async fn replay(recorded: &Recorded, events: Vec<Event>, capabilities: &[ModelCapability]) -> (u64, String, String) {
    let mut config = Config::default();
    config.ollama.enabled = false;
    // Ollama refuses tools that the template does not support, and so do its recordings.
    config.engine.unsupported_tools = UnsupportedTools::Refuse;
    let provider = FakeProvider::new(events).with_capabilities(capabilities);
    let api = ApiHandler {
        registry: Registry::new(Arc::new(provider)),
        upstream: Arc::new(Ollama::new()),
        config: Arc::new(ArcSwap::from_pointee(config)),
        health: Arc::new(|| Value::Null),
        config_status: Arc::new(|| Value::Null),
    };
    let request = Request::builder()
        .method(Method::POST)
        .uri("/x")
        .body(body::full(recorded.body.clone()))
        .unwrap();
    let response = api.handle(recorded.endpoint.clone(), request).await;
    let status = u64::from(response.status().as_u16());
    let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, content_type, String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn recorded_errors_come_back_byte_for_byte() {
    for name in ERRORS {
        let recorded = load(name).unwrap_or_else(|| panic!("{name} is missing"));
        let (status, content_type, reply) = replay(&recorded, Vec::new(), &[ModelCapability::Completion]).await;
        let expected = (recorded.status, recorded.content_type, without_id(recorded.reply));
        assert_eq!((status, content_type, without_id(reply)), expected, "{name}");
    }
}

/// Removes the random id from an error of the Anthropic dialect.
fn without_id(mut reply: String) -> String {
    if let Some(at) = reply.find("\"req_") {
        // The id is `req_` and 24 hex digits; the slice begins behind the quote and the prefix.
        let digits = at + 5..at + 29;
        assert!(
            reply[digits.clone()].bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{reply}"
        );
        reply.replace_range(digits, "");
    }
    reply
}

/// Returns the keys of every line or event with their nesting; lists are represented by their first item.
fn shape(reply: &str) -> Vec<String> {
    let (mut shapes, mut event) = (Vec::new(), "");
    for line in reply.lines().filter(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix("event: ") {
            event = name;
            continue;
        }
        let data = line.strip_prefix("data: ").unwrap_or(line);
        let shape = serde_json::from_str(data).map_or_else(|_| data.to_owned(), |value| keys(&value));
        shapes.push(format!("{event}{shape}"));
    }
    // The number of pieces of an answer depends on the engine.
    shapes.dedup();
    shapes
}

fn keys(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let members: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}:{}", keys(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.first().map(keys).unwrap_or_default()),
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(_) => "n".to_owned(),
        Value::String(_) => "s".to_owned(),
    }
}

#[tokio::test]
async fn recorded_answers_have_the_same_shape() {
    for name in ANSWERS {
        let Some(recorded) = load(name) else {
            panic!("{name} is missing")
        };
        let context: &[i32] = if recorded.reply.contains("\"context\"") {
            &[1, 2]
        } else {
            &[]
        };
        let events = vec![text("a"), text("b"), finish(FinishReason::Length, context)];
        let (status, content_type, reply) = replay(
            &recorded,
            events,
            &[ModelCapability::Completion, ModelCapability::Tools],
        )
        .await;
        assert_eq!(
            (status, content_type),
            (recorded.status, recorded.content_type),
            "{name}: {reply}"
        );
        assert_eq!(shape(&reply), shape(&recorded.reply), "{name}");
        assert_eq!(reply.ends_with('\n'), recorded.reply.ends_with('\n'), "{name}");
    }
}

#[tokio::test]
async fn the_first_event_of_a_message_guesses_its_tokens_as_recorded() {
    for name in ["anthropic-stream", "think-anthropic-stream"] {
        let mut recorded = load(name).unwrap_or_else(|| panic!("{name} is missing"));
        recorded.body = String::from_utf8(recorded.body)
            .unwrap()
            .replace("\"toolsmol\"", "\"hf:o/r\"")
            .into_bytes();
        let events = vec![finish(FinishReason::Stop, &[])];
        let (_, _, reply) = replay(
            &recorded,
            events,
            &[ModelCapability::Completion, ModelCapability::Thinking],
        )
        .await;
        let guess = |reply: &str| {
            let start = reply.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
            serde_json::from_str::<Value>(start).unwrap()["message"]["usage"]["input_tokens"].clone()
        };
        assert_eq!(guess(&reply), guess(&recorded.reply), "{name}");
    }
}

#[tokio::test]
async fn recorded_thoughts_and_calls_have_the_same_shape() {
    let call = || calls(&[("call_1", "get_weather", r#"{"city":"Paris"}"#)]);
    let two_calls = || {
        calls(&[
            ("call_1", "f", r#"{"city":"Paris"}"#),
            ("call_2", "f", r#"{"city":"Rome"}"#),
        ])
    };
    let cases: [(&str, Vec<Event>); 21] = [
        ("think-anthropic-once", vec![thinking("H"), thinking("m"), text("x")]),
        ("think-anthropic-stream", vec![thinking("H"), thinking("m"), text("x")]),
        ("tools-call-anthropic-once", vec![call()]),
        ("tools-call-anthropic-stream", vec![call()]),
        ("tools-text-then-call-anthropic-once", vec![text("x"), call()]),
        ("tools-text-then-call-anthropic-stream", vec![text("x"), call()]),
        ("tools-two-calls-anthropic-once", vec![two_calls()]),
        ("tools-two-calls-anthropic-stream", vec![two_calls()]),
        ("think-true-once", vec![thinking("H"), thinking("m"), text("x")]),
        ("think-true-stream", vec![thinking("H"), thinking("m"), text("x")]),
        ("think-v1-once", vec![thinking("H"), text("x")]),
        ("think-v1-stream", vec![thinking("H"), thinking("m"), text("x")]),
        ("tools-call-once", vec![call()]),
        ("tools-call-stream", vec![call()]),
        ("think-responses-stream", vec![thinking("H"), thinking("m"), text("x")]),
        ("tools-call-responses-stream", vec![call()]),
        ("tools-two-calls-responses-stream", vec![call(), call()]),
        ("tools-call-v1-once", vec![call()]),
        ("tools-two-calls-v1-stream", vec![call(), call()]),
        ("tools-text-then-call-v1-once", vec![text("x"), call()]),
        ("tools-text-then-call-v1-stream", vec![text("x"), text("y"), call()]),
    ];
    for (name, mut events) in cases {
        let recorded = load(name).unwrap_or_else(|| panic!("{name} is missing"));
        events.push(finish(FinishReason::Stop, &[]));
        let able = [
            ModelCapability::Completion,
            ModelCapability::Tools,
            ModelCapability::Thinking,
        ];
        let (status, content_type, reply) = replay(&recorded, events, &able).await;
        assert_eq!(
            (status, content_type),
            (recorded.status, recorded.content_type),
            "{name}: {reply}"
        );
        assert_eq!(shape(&reply), shape(&recorded.reply), "{name}");
    }
}
