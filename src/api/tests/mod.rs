//! Tests of the dialects as a whole, over a scripted provider: order of checks, byte forms, leases.

mod aliases;
pub(super) mod fake;
mod recordings;

use std::{
    net::TcpListener,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use http_body_util::BodyExt;
use hyper::{Method, Request, Response};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::fake::{FakeProvider, calls, finish, mask, text, thinking};
use super::{ApiEndpoint, ApiHandler, RequestHandler};
use crate::{
    config::{Config, UnsupportedTools},
    http::body::{self, Body},
    inference::{Event, Failure, FinishReason, InferencePrompt, KeepAlive, ModelCapability, ThinkMode},
    provider::{Ollama, Registry},
};

pub(super) const UTF8: &str = "application/json; charset=utf-8";
pub(super) const NO_CAPABILITY: &[ModelCapability] = &[ModelCapability::Completion];
pub(super) const THINKER: &[ModelCapability] = &[
    ModelCapability::Completion,
    ModelCapability::Thinking,
    ModelCapability::Insert,
];
pub(super) const VECTORS: &[ModelCapability] = &[ModelCapability::Embedding];

/// Returns the URL of a port without a listener.
fn nowhere() -> String {
    // The listener is closed on return, and the system does not soon give its port to another.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

pub(super) fn api(provider: &Arc<FakeProvider>, config: Config) -> ApiHandler {
    ApiHandler {
        registry: Registry::new(provider.clone()),
        upstream: Arc::new(Ollama::new()),
        config: Arc::new(ArcSwap::from_pointee(config)),
        health: Arc::new(|| json!({"status": "ok"})),
        config_status: Arc::new(|| json!({"sources": []})),
    }
}

pub(super) fn alone(provider: FakeProvider) -> (Arc<FakeProvider>, ApiHandler) {
    let mut config = Config::default();
    config.ollama.url = nowhere();
    let provider = Arc::new(provider);
    let api = api(&provider, config);
    (provider, api)
}

pub(super) fn simple() -> Vec<Event> {
    vec![text("Hi"), text(" <you>"), finish(FinishReason::Stop, &[1, 2])]
}

pub(super) async fn send(api: &ApiHandler, endpoint: ApiEndpoint, body: &str) -> Response<Body> {
    let request = Request::builder()
        .method(Method::POST)
        // The endpoint is given, so the path does not matter.
        .uri("/x")
        .body(body::full(body.to_owned()))
        .unwrap();
    api.handle(endpoint, request).await
}

pub(super) async fn read(response: Response<Body>) -> (u16, String, String) {
    let status = response.status().as_u16();
    let kind = response
        .headers()
        .get("content-type")
        .map(|value| value.to_str().unwrap().to_owned());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind.unwrap_or_default(), mask(&bytes))
}

pub(super) async fn check(provider: FakeProvider, endpoint: ApiEndpoint, body: &str, expected: (u16, &str, &str)) {
    let (_, api) = alone(provider);
    let (status, kind, text) = read(send(&api, endpoint.clone(), body).await).await;
    assert_eq!((status, kind.as_str(), text.as_str()), expected, "{endpoint:?} {body}");
}

pub(super) fn body(fields: &str) -> String {
    format!("{{\"model\":\"hf:o/r\"{fields}}}")
}

pub(super) const CHAT: &str = r#","messages":[{"role":"user","content":"x"}]"#;
const FIRST: &str = "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"message\":{\"role\":\"assistant\",\"content\":\"Hi\"},\"done\":false}\n";
const METRICS: &str = "\"total_duration\":40,\"load_duration\":1,\"prompt_eval_count\":10,\"prompt_eval_duration\":20,\"eval_count\":2,\"eval_duration\":10}";

#[tokio::test]
async fn a_chat_streams_one_line_an_event_and_its_model_is_echoed_as_sent() {
    let expected = format!(
        "{FIRST}{}{}{METRICS}\n",
        "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"message\":{\"role\":\"assistant\",\"content\":\" \\u003cyou\\u003e\"},\"done\":false}\n",
        "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",",
    );
    let events = vec![text("Hi"), text(" <you>"), finish(FinishReason::Stop, &[])];
    check(
        FakeProvider::new(events),
        ApiEndpoint::Chat,
        &body(CHAT),
        (200, "application/x-ndjson", &expected),
    )
    .await;
}

#[tokio::test]
async fn without_a_stream_the_pieces_are_joined() {
    let events = vec![
        thinking("H"),
        thinking("m"),
        text("a"),
        text("b"),
        calls(&[("c", "f", "{}")]),
        finish(FinishReason::Length, &[]),
    ];
    let expected = format!(
        "{}{METRICS}",
        "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"message\":{\"role\":\"assistant\",\"content\":\"ab\",\"thinking\":\"Hm\",\"tool_calls\":[{\"id\":\"c\",\"function\":{\"index\":0,\"name\":\"f\",\"arguments\":{}}}]},\"done\":true,\"done_reason\":\"length\","
    );
    let request = body(&format!("{CHAT},\"stream\":false"));
    check(
        FakeProvider::new(events),
        ApiEndpoint::Chat,
        &request,
        (200, UTF8, &expected),
    )
    .await;
}

#[tokio::test]
async fn generate_ends_with_the_context() {
    let expected = format!(
        "{}{METRICS}",
        "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"response\":\"Hi \\u003cyou\\u003e\",\"done\":true,\"done_reason\":\"stop\",\"context\":[1,2],"
    );
    let request = body(",\"prompt\":\"x\",\"stream\":false");
    check(
        FakeProvider::new(simple()),
        ApiEndpoint::Generate,
        &request,
        (200, UTF8, &expected),
    )
    .await;
}

#[tokio::test]
async fn errors_of_requests_have_the_status_and_the_words_of_ollama() {
    let card = |capabilities| FakeProvider::new(simple()).with_capabilities(capabilities);
    let missing = || {
        let mut provider = FakeProvider::new(simple());
        provider.card = Err(Failure::NotFound("hf:o/r".into()));
        provider
    };
    let cases: Vec<(FakeProvider, ApiEndpoint, String, u16, &str)> = vec![
        (
            missing(),
            ApiEndpoint::Chat,
            body(CHAT),
            404,
            "model 'hf:o/r' not found",
        ),
        (
            missing(),
            ApiEndpoint::Generate,
            body(""),
            404,
            "model 'hf:o/r' not found",
        ),
        (missing(), ApiEndpoint::Show, body(""), 404, "model 'hf:o/r' not found"),
        (
            missing(),
            ApiEndpoint::Delete,
            body(""),
            404,
            "model 'hf:o/r' not found",
        ),
        (
            missing(),
            ApiEndpoint::Chat,
            body(",\"top_logprobs\":21"),
            400,
            "top_logprobs must be between 0 and 20",
        ),
        (
            missing(),
            ApiEndpoint::Chat,
            body(",\"messages\":[{\"content\":[]}]"),
            400,
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
        ),
        (
            card(NO_CAPABILITY),
            ApiEndpoint::Generate,
            body(",\"prompt\":\"x\",\"raw\":true,\"template\":\"t\",\"think\":true"),
            400,
            "raw mode does not support template, system, or context",
        ),
        (
            card(NO_CAPABILITY),
            ApiEndpoint::Generate,
            body(",\"prompt\":\"x\",\"think\":true"),
            400,
            "\\\"hf:o/r\\\" does not support thinking",
        ),
        (
            card(NO_CAPABILITY),
            ApiEndpoint::Chat,
            body(&format!("{CHAT},\"think\":\"high\"")),
            400,
            "\\\"hf:o/r\\\" does not support thinking",
        ),
        (
            card(VECTORS),
            ApiEndpoint::Generate,
            body(""),
            400,
            "\\\"hf:o/r\\\" does not support generate",
        ),
        (
            card(VECTORS),
            ApiEndpoint::Chat,
            body(CHAT),
            400,
            "\\\"hf:o/r\\\" does not support chat",
        ),
        (
            card(NO_CAPABILITY),
            ApiEndpoint::Generate,
            body(",\"prompt\":\"x\",\"suffix\":\"y\",\"options\":{\"num_ctx\":\"x\"}"),
            400,
            "hf:o/r:Q4_K_M does not support insert",
        ),
        (
            card(NO_CAPABILITY),
            ApiEndpoint::Generate,
            body(",\"prompt\":\"x\",\"options\":{\"num_ctx\":\"x\"}"),
            500,
            "option \\\"num_ctx\\\" must be of type integer",
        ),
        (
            card(NO_CAPABILITY),
            ApiEndpoint::Generate,
            body(",\"prompt\":\"x\",\"format\":1"),
            500,
            "invalid format: \\\"1\\\"; expected \\\"json\\\" or a valid JSON Schema object",
        ),
        (
            card(NO_CAPABILITY),
            ApiEndpoint::Generate,
            body(",\"prompt\":\"x\",\"template\":\"{{ .Prompt\""),
            500,
            "template: :1: unclosed action",
        ),
        (
            card(NO_CAPABILITY),
            ApiEndpoint::Push,
            body(""),
            400,
            "hf:o/r cannot be pushed: it comes from the Hugging Face Hub; upload it there instead",
        ),
    ];
    for (provider, endpoint, request, status, message) in cases {
        check(
            provider,
            endpoint,
            &request,
            (status, UTF8, &format!("{{\"error\":\"{message}\"}}")),
        )
        .await;
    }
}

// A load that fails is a status, never a 200 with an error frame (trap 30).
#[tokio::test]
async fn failures_before_the_first_event_are_statuses_also_for_a_stream() {
    for (failure, kind, status, message) in [
        (
            Failure::Busy,
            UTF8,
            503,
            "server busy, please try again.  maximum pending requests exceeded",
        ),
        (Failure::Load("no memory".into()), UTF8, 500, "no memory"),
        (
            Failure::ContextExceeded {
                prompt_tokens: 9,
                context_length: 4,
            },
            "application/json",
            400,
            "request (9 tokens) exceeds the available context size (4 tokens), try increasing it",
        ),
    ] {
        let mut provider = FakeProvider::new(Vec::new());
        provider.refusal = Some(failure);
        let expected = format!("{{\"error\":\"{message}\"}}");
        check(provider, ApiEndpoint::Chat, &body(CHAT), (status, kind, &expected)).await;
    }
}

// A failure in a stream is its last frame, not an abrupt end (trap 65).
#[tokio::test]
async fn failures_in_a_stream_are_its_last_frame() {
    for (last, message) in [
        (Some(Err(Failure::Worker("the worker died".into()))), "the worker died"),
        (None, "the answer ended without its last event; try again"),
    ] {
        let mut provider = FakeProvider::new(vec![text("Hi")]);
        provider.events.extend(last);
        let expected = format!("{FIRST}{{\"error\":\"{message}\"}}\n");
        check(
            provider,
            ApiEndpoint::Chat,
            &body(CHAT),
            (200, "application/x-ndjson", &expected),
        )
        .await;
    }
}

#[tokio::test]
async fn empty_prompts_load_and_unload() {
    let (provider, api) = alone(FakeProvider::new(simple()).with_capabilities(NO_CAPABILITY));
    for (endpoint, fields, expected) in [
        (
            ApiEndpoint::Generate,
            ",\"keep_alive\":\"10m\",\"options\":{\"num_ctx\":99}",
            r#"{"model":"hf:o/r","created_at":"T","response":"","done":true,"done_reason":"load"}"#,
        ),
        (
            ApiEndpoint::Generate,
            ",\"keep_alive\":0",
            r#"{"model":"hf:o/r","created_at":"T","response":"","done":true,"done_reason":"unload"}"#,
        ),
        (
            ApiEndpoint::Chat,
            "",
            r#"{"model":"hf:o/r","created_at":"T","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}"#,
        ),
        (
            ApiEndpoint::Chat,
            ",\"messages\":[],\"keep_alive\":\"0s\"",
            r#"{"model":"hf:o/r","created_at":"T","message":{"role":"assistant","content":""},"done":true,"done_reason":"unload"}"#,
        ),
    ] {
        let (status, kind, text) = read(send(&api, endpoint, &body(fields)).await).await;
        assert_eq!((status, kind.as_str(), text.as_str()), (200, UTF8, expected));
    }
    assert_eq!(provider.unloads.load(Ordering::Relaxed), 2);
    let loads = provider.loads.lock().unwrap();
    assert_eq!(loads[0].0.context_length, Some(99));
    assert_eq!(loads[0].1, Some(KeepAlive::For(Duration::from_secs(600))));
    assert!(provider.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_request_maps_to_the_neutral_vocabulary() {
    let (provider, api) = alone(FakeProvider::new(simple()).with_capabilities(THINKER));
    let ask = async |endpoint, fields: &str| {
        let (status, _, text) = read(send(&api, endpoint, &body(fields)).await).await;
        assert_eq!(status, 200, "{text}");
        provider.last_request()
    };

    let request = ask(
        ApiEndpoint::Generate,
        ",\"prompt\":\"p\",\"system\":\"s\",\"context\":[5,6],\"images\":[\"aGk=\"]",
    )
    .await;
    let InferencePrompt::Chat { messages, context, .. } = request.prompt else {
        panic!()
    };
    assert_eq!(
        messages
            .iter()
            .map(|m| (m.role.0.as_str(), m.content.as_str()))
            .collect::<Vec<_>>(),
        [("system", "s"), ("user", "p")]
    );
    assert_eq!((context, messages[1].media.clone()), (vec![5, 6], vec![b"hi".to_vec()]));
    assert!(request.return_context && request.truncate && request.shift);
    assert_eq!(request.think, ThinkMode::On, "a model that can reason does");
    assert_eq!(request.sampling.temperature, None);

    let request = ask(
        ApiEndpoint::Generate,
        ",\"prompt\":\"p\",\"raw\":true,\"think\":false,\"shift\":false",
    )
    .await;
    assert!(matches!(&request.prompt, InferencePrompt::Raw { text } if text == "p"));
    assert!(!request.return_context && !request.shift && request.think == ThinkMode::Off);

    let request = ask(ApiEndpoint::Generate, ",\"prompt\":\"p\",\"suffix\":\"z\"").await;
    assert!(matches!(&request.prompt, InferencePrompt::Infill { prefix, suffix } if prefix == "p" && suffix == "z"));

    let request = ask(
        ApiEndpoint::Generate,
        ",\"prompt\":\"p\",\"template\":\"Q: {{ .Prompt }}\\nA:\"",
    )
    .await;
    assert!(matches!(&request.prompt, InferencePrompt::Raw { text } if text == "Q: p\nA:"));
    assert!(request.return_context);

    let request = ask(
        ApiEndpoint::Chat,
        &format!("{CHAT},\"logprobs\":true,\"top_logprobs\":3,\"keep_alive\":-1"),
    )
    .await;
    assert_eq!(
        (request.logprobs, request.keep_alive),
        (Some(3), Some(KeepAlive::Forever))
    );
    let request = ask(ApiEndpoint::Chat, &format!("{CHAT},\"top_logprobs\":3")).await;
    assert_eq!(request.logprobs, None);
}

#[tokio::test]
async fn tools_for_a_model_without_are_left_out_and_said_or_refused() {
    let tools = format!("{CHAT},\"tools\":[{{\"type\":\"function\",\"function\":{{\"name\":\"f\"}}}}]");
    let (provider, api) = alone(FakeProvider::new(simple()).with_capabilities(NO_CAPABILITY));
    let response = send(&api, ApiEndpoint::Chat, &body(&tools)).await;
    assert_eq!(response.headers()["x-hubllama-ignored"], "tools");
    assert!(matches!(provider.last_request().prompt, InferencePrompt::Chat { tools, .. } if tools.is_empty()));

    let (_, api) = alone(FakeProvider::new(simple()).with_capabilities(NO_CAPABILITY));
    let mut refusing = Config::clone(&api.config.load());
    refusing.engine.unsupported_tools = UnsupportedTools::Refuse;
    api.config.store(Arc::new(refusing));
    let (status, _, text) = read(send(&api, ApiEndpoint::Chat, &body(&tools)).await).await;
    assert_eq!(
        (status, text.as_str()),
        (400, r#"{"error":"hf:o/r:Q4_K_M does not support tools"}"#)
    );

    let (_, api) = alone(FakeProvider::new(simple()).with_capabilities(NO_CAPABILITY));
    let required = body(&format!("{tools},\"tool_choice\":\"required\""));
    let (status, kind, text) = read(send(&api, ApiEndpoint::OpenAiChat, &required).await).await;
    assert_eq!(
        (status, kind.as_str(), text.as_str()),
        (
            400,
            "application/json",
            "{\"error\":{\"message\":\"hf:o/r:Q4_K_M does not support tools\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n"
        )
    );

    let (provider, api) = alone(FakeProvider::new(simple()));
    let response = send(&api, ApiEndpoint::Chat, &body(&tools)).await;
    assert!(!response.headers().contains_key("x-hubllama-ignored"));
    assert!(
        matches!(provider.last_request().prompt, InferencePrompt::Chat { tools, .. } if tools[0].raw.get().contains("\"f\""))
    );
}

#[tokio::test]
async fn chat_completions_stream_and_end_with_done() {
    let (_, api) = alone(FakeProvider::new(simple()));
    let response = send(&api, ApiEndpoint::OpenAiChat, &body(&format!("{CHAT},\"stream\":true"))).await;
    let (status, kind, text) = read(response).await;
    assert_eq!((status, kind.as_str()), (200, "text/event-stream"));
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 4);
    assert!(
        events[0]
            .ends_with(r#""choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":null}]}"#)
    );
    assert!(events[2].ends_with(r#""choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#));
    assert_eq!(events[3], "data: [DONE]");

    let (status, kind, text) = read(send(&api, ApiEndpoint::OpenAiChat, &body(CHAT)).await).await;
    assert_eq!((status, kind.as_str()), (200, "application/json"));
    assert!(
        text.ends_with("\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":2,\"total_tokens\":12}}\n"),
        "{text}"
    );
}

#[tokio::test]
async fn openai_errors_differ_by_who_found_them() {
    let shim = |message: &str, kind: &str| {
        format!("{{\"error\":{{\"message\":\"{message}\",\"type\":\"{kind}\",\"param\":null,\"code\":null}}}}")
    };
    let mut missing = FakeProvider::new(simple());
    missing.card = Err(Failure::NotFound("x".into()));
    check(
        missing,
        ApiEndpoint::OpenAiChat,
        &body(CHAT),
        (
            404,
            "application/json",
            &format!("{}\n", shim("model 'hf:o/r' not found", "not_found_error")),
        ),
    )
    .await;
    check(
        FakeProvider::new(simple()),
        ApiEndpoint::OpenAiChat,
        &body(""),
        (
            400,
            UTF8,
            &shim("[] is too short - 'messages'", "invalid_request_error"),
        ),
    )
    .await;
}

#[tokio::test]
async fn the_lease_lives_as_long_as_the_body_and_no_longer() {
    let mut provider = FakeProvider::new(vec![text("Hi")]);
    provider.hangs = true;
    let (provider, api) = alone(provider);
    for endpoint in [ApiEndpoint::Chat, ApiEndpoint::OpenAiChat] {
        let response = send(&api, endpoint, &body(&format!("{CHAT},\"stream\":true"))).await;
        let mut body = response.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(
            first.windows(2).any(|window| window == b"Hi"),
            "a frame waits for no other"
        );
        // The provider has one reference, and the open stream the other.
        assert_eq!(Arc::strong_count(&provider.lease), 2);
        drop(body);
        assert_eq!(Arc::strong_count(&provider.lease), 1);
    }
}

#[tokio::test]
async fn pulls_and_deletes_reach_the_provider() {
    check(
        FakeProvider::new(Vec::new()),
        ApiEndpoint::Pull,
        "{\"name\":\"hf:o/r\"}",
        (
            200,
            "application/x-ndjson",
            "{\"status\":\"pulling manifest\"}\n{\"status\":\"success\"}\n",
        ),
    )
    .await;
    check(
        FakeProvider::new(Vec::new()),
        ApiEndpoint::Pull,
        &body(",\"stream\":false"),
        (200, "application/json", "{\"status\":\"success\"}"),
    )
    .await;
    let (provider, api) = alone(FakeProvider::new(Vec::new()));
    let (status, kind, text) = read(send(&api, ApiEndpoint::Delete, "{\"name\":\"hf:o/r\"}").await).await;
    assert_eq!((status, kind.as_str(), text.as_str()), (200, "", ""));
    assert_eq!(provider.deletes.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn copilot_finds_the_name_that_it_asked_for() {
    let (_, api) = alone(FakeProvider::new(Vec::new()));
    let request = Request::post("/api/show")
        .header("user-agent", "GitHubCopilotChat/0.30")
        .body(body::full(body("")))
        .unwrap();
    let (_, _, text) = read(api.handle(ApiEndpoint::Show, request).await).await;
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["model_info"]["general.basename"], "hf:o/r");
}

#[tokio::test]
async fn without_upstream_our_models_stay_visible_and_plain_names_get_an_error() {
    let (_, api) = alone(FakeProvider::new(Vec::new()));
    let (status, kind, tags) = read(send(&api, ApiEndpoint::Tags, "").await).await;
    assert_eq!((status, kind.as_str()), (200, UTF8));
    let entry = "{\"models\":[{\"name\":\"hf:o/r:Q4_K_M\",\"model\":\"hf:o/r:Q4_K_M\",\"modified_at\":\"";
    assert!(tags.starts_with(entry), "{tags}");
    assert!(tags.ends_with("\"parameter_size\":\"8.0B\",\"quantization_level\":\"Q4_K_M\",\"context_length\":131072,\"embedding_length\":4096},\"capabilities\":[\"completion\",\"tools\"]}]}"), "{tags}");
    let (_, _, models) = read(send(&api, ApiEndpoint::OpenAiModels, "").await).await;
    assert_eq!(
        models,
        "{\"object\":\"list\",\"data\":[{\"id\":\"hf:o/r:Q4_K_M\",\"object\":\"model\",\"created\":1795416634,\"owned_by\":\"o\"}]}\n"
    );
    let (_, _, model) = read(send(&api, ApiEndpoint::OpenAiModel { id: "hf:o%2Fr".into() }, "").await).await;
    assert_eq!(
        model,
        "{\"id\":\"hf:o/r\",\"object\":\"model\",\"created\":1795416634,\"owned_by\":\"o\"}\n"
    );
    let (_, _, ps) = read(send(&api, ApiEndpoint::Ps, "").await).await;
    assert_eq!(ps, "{\"models\":[]}");
    let (_, _, version) = read(send(&api, ApiEndpoint::Version, "").await).await;
    assert_eq!(version, "{\"version\":\"0.13.5\"}");
    let (status, _, text) = read(send(&api, ApiEndpoint::Chat, "{\"model\":\"llama3\"}").await).await;
    assert!(status == 502 && text.starts_with("{\"error\":"), "{status} {text}");
    let (status, _, text) = read(send(&api, ApiEndpoint::Chat, "").await).await;
    assert_eq!((status, text.as_str()), (400, "{\"error\":\"missing request body\"}"));
    let (status, _, text) = read(send(&api, ApiEndpoint::Generate, "{}").await).await;
    assert_eq!((status, text.as_str()), (404, "{\"error\":\"model '' not found\"}"));
}

#[tokio::test]
async fn the_pages_of_the_daemon_are_json() {
    let (_, api) = alone(FakeProvider::new(Vec::new()));
    for (endpoint, expected) in [
        (ApiEndpoint::Root, "Ollama is running"),
        (ApiEndpoint::Health, "{\"status\":\"ok\"}\n"),
        (ApiEndpoint::Config, "{\"sources\":[]}\n"),
    ] {
        let (status, _, text) = read(send(&api, endpoint, "").await).await;
        assert_eq!((status, text.as_str()), (200, expected));
    }
}

/// Starts a server that answers every connection with the same body, and returns its URL and the requests that it gets.
pub(super) async fn upstream(reply: &'static str) -> (String, tokio::sync::mpsc::Receiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, received) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            // Sending fails after the test has dropped the receiver; then nobody needs the request.
            let _ = sender.send(whole_request(&mut socket).await).await;
            let head = format!(
                // Each connection serves one request, since requests are received once per `accept`.
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                reply.len()
            );
            let _ = socket.write_all(format!("{head}{reply}").as_bytes()).await;
        }
    });
    (url, received)
}

/// Reads a request to its end, according to its `Content-Length`.
async fn whole_request(socket: &mut tokio::net::TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, value)| value.parse().unwrap());
            if body.len() >= length {
                return text;
            }
        }
        if socket.read_buf(&mut request).await.unwrap() == 0 {
            return text;
        }
    }
}

// Merged lists are in Ollama's order, with its entries byte for byte (traps 56, 60).
#[tokio::test]
async fn upstream_entries_come_through_byte_for_byte_newest_first() {
    const ENTRY: &str = r#"{"name":"old:latest","modified_at":"2020-01-01T00:00:00Z","new_field":1.50}"#;
    const NEW: &str = r#"{"name":"new:latest","modified_at":"2030-01-01T00:00:00+02:00"}"#;
    let (url, _received) = upstream(concat!(
        r#"{"models":["#,
        r#"{"name":"new:latest","modified_at":"2030-01-01T00:00:00+02:00"},"#,
        r#"{"name":"old:latest","modified_at":"2020-01-01T00:00:00Z","new_field":1.50}]}"#
    ))
    .await;
    let mut config = Config::default();
    config.ollama.url = url;
    config.aliases.insert("mine".into(), "hf:o/r".into());
    let api = api(&Arc::new(FakeProvider::new(Vec::new())), config);
    let (_, _, tags) = read(send(&api, ApiEndpoint::Tags, "").await).await;
    assert!(
        tags.starts_with(&format!("{{\"models\":[{NEW},{{\"name\":\"hf:o/r:Q4_K_M\"")),
        "{tags}"
    );
    assert!(
        tags.contains("{\"name\":\"mine:latest\",\"model\":\"mine:latest\""),
        "{tags}"
    );
    assert!(tags.ends_with(&format!(",{ENTRY}]}}")), "{tags}");
}

// The body is forwarded, not encoded again (trap 60).
#[tokio::test]
async fn a_plain_name_goes_upstream_as_the_bytes_that_came() {
    let (url, mut received) = upstream("{\"from\":\"ollama\"}").await;
    let mut config = Config::default();
    config.ollama.url = url;
    config.aliases.insert("mine".into(), "hf:o/r".into());
    let provider = Arc::new(FakeProvider::new(simple()));
    let api = api(&provider, config);
    // Keys in any case are one member, of which the last counts. The blanks and `1.0` would not survive an encoder.
    let plain = "{ \"MODEL\":\"hf:o/r\", \"model\":\"llama3\",\"x\":1.0 } trailing";
    let (_, _, text) = read(send(&api, ApiEndpoint::Chat, plain).await).await;
    assert_eq!(text, "{\"from\":\"ollama\"}");
    let sent = received.recv().await.unwrap();
    assert!(sent.ends_with(plain), "{sent}");
    assert!(provider.asked.lock().unwrap().is_empty());

    let alias = format!("{{\"model\":\"mine\"{CHAT}}}");
    let (_, _, text) = read(send(&api, ApiEndpoint::Chat, &alias).await).await;
    assert!(text.starts_with("{\"model\":\"mine\","), "{text}");

    let (status, _, text) = read(send(&api, ApiEndpoint::Delete, "{\"model\":\"mine:latest\"}").await).await;
    assert_eq!((status, text.contains("alias")), (400, true), "{text}");
    assert_eq!(
        provider.deletes.load(Ordering::Relaxed),
        0,
        "what an alias stands for is not removed with it"
    );
}
