//! Tests of the routes as a whole, over a scripted provider.

use std::sync::Arc;

use http_body_util::BodyExt;

use crate::{
    api::{
        ApiEndpoint,
        tests::{
            NO_CAPABILITY, THINKER, UTF8, VECTORS, alone, body,
            fake::{FakeProvider, calls, finish, text, thinking},
            read, send,
        },
    },
    inference::{Event, Failure, FinishReason, InferencePrompt, ThinkMode, ToolChoice},
};

const JSON: &str = "application/json";
const ASK: &str = r#","max_tokens":9,"messages":[{"role":"user","content":"x"}]"#;
const TOOL: &str = r#","tools":[{"name":"f","input_schema":{"type":"object"}}]"#;

fn simple() -> Vec<Event> {
    vec![text("Hi"), finish(FinishReason::Stop, &[])]
}

/// Replaces every generated id by its prefix.
fn mask(text: &str) -> String {
    let mut out = text.to_owned();
    for word in ["req_", "msg_"] {
        let mut from = 0;
        while let Some(at) = out[from..].find(word) {
            let start = from + at + word.len();
            let digits = &out[start..start + 24];
            assert!(digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digits}");
            out.replace_range(start..start + 24, "");
            from = start;
        }
    }
    out
}

async fn post(provider: FakeProvider, endpoint: ApiEndpoint, fields: &str) -> (u16, String, String) {
    let (_, api) = alone(provider);
    let (status, kind, text) = read(send(&api, endpoint, &body(fields)).await).await;
    (status, kind, mask(&text))
}

#[tokio::test]
async fn a_message_comes_whole_or_as_events() {
    let (status, kind, text) = post(FakeProvider::new(simple()), ApiEndpoint::AnthropicMessages, ASK).await;
    assert_eq!((status, kind.as_str()), (200, JSON));
    assert_eq!(
        text,
        "{\"id\":\"msg_\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"hf:o/r\",\"content\":[{\"type\":\"text\",\"text\":\"Hi\"}],\"stop_reason\":\"end_turn\",\"usage\":{\"input_tokens\":10,\"output_tokens\":2}}\n"
    );

    let (_, api) = alone(FakeProvider::new(simple()));
    let request = body(&format!("{ASK},\"stream\":true"));
    let response = send(&api, ApiEndpoint::AnthropicMessages, &request).await;
    assert_eq!(response.headers()["cache-control"], "no-cache");
    let (status, kind, text) = read(response).await;
    assert_eq!((status, kind.as_str()), (200, "text/event-stream"));
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
}

#[tokio::test]
async fn errors_differ_by_who_found_them() {
    let shim = |kind: &str, message: &str| {
        format!(
            "{{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":\"{message}\"}},\"request_id\":\"req_\"}}"
        )
    };
    let missing = || {
        let mut provider = FakeProvider::new(simple());
        provider.card = Err(Failure::NotFound("x".into()));
        provider
    };
    let refusing = |failure| {
        let mut provider = FakeProvider::new(simple());
        provider.refusal = Some(failure);
        provider
    };
    let cases = [
        (
            missing(),
            r#","messages":[{"role":"user","content":"x"}]"#.to_owned(),
            (
                400,
                UTF8,
                "invalid_request_error",
                "max_tokens is required and must be positive",
                "",
            ),
        ),
        (
            missing(),
            r#","max_tokens":1"#.to_owned(),
            (400, UTF8, "invalid_request_error", "messages is required", ""),
        ),
        (
            missing(),
            ASK.to_owned(),
            (404, JSON, "not_found_error", "model 'hf:o/r' not found", "\n"),
        ),
        (
            refusing(Failure::Busy),
            format!("{ASK},\"stream\":true"),
            (
                503,
                JSON,
                "overloaded_error",
                "server busy, please try again.  maximum pending requests exceeded",
                "\n",
            ),
        ),
        (
            refusing(Failure::Forbidden("gated".into())),
            ASK.to_owned(),
            (403, JSON, "permission_error", "gated", "\n"),
        ),
        (
            refusing(Failure::Load("no memory".into())),
            ASK.to_owned(),
            (500, JSON, "api_error", "no memory", "\n"),
        ),
        (
            FakeProvider::new(simple()).with_capabilities(VECTORS),
            ASK.to_owned(),
            (
                400,
                JSON,
                "invalid_request_error",
                "\\\"hf:o/r\\\" does not support chat",
                "\n",
            ),
        ),
        (
            FakeProvider::new(simple()).with_capabilities(NO_CAPABILITY),
            format!("{ASK}{TOOL},\"tool_choice\":{{\"type\":\"any\"}}"),
            (
                400,
                JSON,
                "invalid_request_error",
                "hf:o/r:Q4_K_M does not support tools",
                "\n",
            ),
        ),
        (
            FakeProvider::new(simple()),
            format!("{ASK},\"options\":{{\"num_ctx\":\"x\"}}"),
            (
                500,
                JSON,
                "api_error",
                "option \\\"num_ctx\\\" must be of type integer",
                "\n",
            ),
        ),
    ];
    for (provider, fields, (status, content_type, kind, message, end)) in cases {
        assert_eq!(
            post(provider, ApiEndpoint::AnthropicMessages, &fields).await,
            (status, content_type.to_owned(), format!("{}{end}", shim(kind, message))),
            "{fields}"
        );
    }
}

#[tokio::test]
async fn without_upstream_a_request_without_a_name_is_answered_here() {
    let (_, api) = alone(FakeProvider::new(simple()));
    for (body, message) in [("", "EOF"), ("{}", "model is required"), ("{", "unexpected EOF")] {
        for endpoint in [ApiEndpoint::AnthropicMessages, ApiEndpoint::AnthropicCountTokens] {
            let (status, kind, text) = read(send(&api, endpoint, body).await).await;
            assert_eq!((status, kind.as_str()), (400, UTF8), "{body}");
            assert!(text.contains(&format!("\"message\":\"{message}\"")), "{text}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_an_error_event() {
    for (last, message) in [
        (Some(Err(Failure::Worker("the worker died".into()))), "the worker died"),
        (None, "the answer ended without its last event; try again"),
    ] {
        let mut provider = FakeProvider::new(vec![text("Hi")]);
        provider.events.extend(last);
        let (status, _, text) = post(
            provider,
            ApiEndpoint::AnthropicMessages,
            &format!("{ASK},\"stream\":true"),
        )
        .await;
        assert_eq!(status, 200);
        let expected = format!(
            "\n\nevent: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":\"{message}\"}}}}\n\n"
        );
        assert!(text.ends_with(&expected), "{text}");
        assert!(!text.contains("message_stop"), "{text}");
    }
}

#[tokio::test]
async fn a_request_maps_to_the_neutral_vocabulary() {
    let (provider, api) = alone(FakeProvider::new(simple()));
    let fields = format!(
        "{ASK}{TOOL},\"system\":\"s\",\"tool_choice\":{{\"type\":\"tool\",\"name\":\"f\",\"disable_parallel_tool_use\":true}}"
    );
    let response = send(&api, ApiEndpoint::AnthropicMessages, &body(&fields)).await;
    assert!(!response.headers().contains_key("x-hubllama-ignored"));
    let request = provider.last_request();
    let InferencePrompt::Chat {
        messages,
        tools,
        tool_choice,
        parallel_tool_calls,
        ..
    } = request.prompt
    else {
        panic!()
    };
    let roles: Vec<&str> = messages.iter().map(|message| message.role.0.as_str()).collect();
    assert_eq!(roles, ["system", "user"]);
    assert_eq!(
        tools[0].raw.get(),
        r#"{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}"#
    );
    assert_eq!(
        (tool_choice, parallel_tool_calls),
        (ToolChoice::Function("f".into()), false)
    );
    assert_eq!(request.sampling.num_predict, Some(9));

    let fields = format!("{ASK}{TOOL},\"tool_choice\":{{\"type\":\"none\"}}");
    send(&api, ApiEndpoint::AnthropicMessages, &body(&fields)).await;
    let InferencePrompt::Chat { tools, tool_choice, .. } = provider.last_request().prompt else {
        panic!()
    };
    assert_eq!((tools.len(), tool_choice), (0, ToolChoice::None));
}

#[tokio::test]
async fn what_a_model_cannot_do_is_left_out_and_said() {
    let (provider, api) = alone(FakeProvider::new(simple()).with_capabilities(NO_CAPABILITY));
    let fields = format!("{ASK}{TOOL},\"thinking\":{{\"type\":\"enabled\",\"budget_tokens\":50}}");
    let response = send(&api, ApiEndpoint::AnthropicMessages, &body(&fields)).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-hubllama-ignored"]),
        (200, &"tools, thinking".parse().unwrap())
    );
    assert_eq!(provider.last_request().think, ThinkMode::Unset);

    let (provider, api) = alone(FakeProvider::new(simple()).with_capabilities(THINKER));
    let fields = format!("{ASK},\"thinking\":{{\"type\":\"enabled\",\"budget_tokens\":50}}");
    let response = send(&api, ApiEndpoint::AnthropicMessages, &body(&fields)).await;
    assert!(!response.headers().contains_key("x-hubllama-ignored"));
    let request = provider.last_request();
    assert_eq!((request.think, request.thinking_budget), (ThinkMode::On, Some(50)));
}

#[tokio::test]
async fn tokens_are_counted_without_an_answer() {
    let (provider, api) = alone(FakeProvider::new(Vec::new()));
    let request = body(r#","system":"ab","messages":[{"role":"user","content":"cde"}]"#);
    let (status, kind, text) = read(send(&api, ApiEndpoint::AnthropicCountTokens, &request).await).await;
    // Two texts, one line each, one token per byte.
    assert_eq!(
        (status, kind.as_str(), text.as_str()),
        (200, JSON, "{\"input_tokens\":7}\n")
    );
    assert!(provider.asked.lock().unwrap().is_empty());

    let doubled = body(r#","messages":[{"role":"user","content":"aab"}]"#);
    let (_, _, text) = read(send(&api, ApiEndpoint::AnthropicCountTokens, &doubled).await).await;
    assert_eq!(text, "{\"input_tokens\":3}\n", "the first token is not counted twice");

    let (status, kind, text) = post(FakeProvider::new(Vec::new()), ApiEndpoint::AnthropicCountTokens, "").await;
    assert_eq!((status, kind.as_str()), (400, UTF8));
    assert!(text.contains("\"message\":\"messages is required\""), "{text}");
}

#[tokio::test]
async fn the_lease_lives_as_long_as_the_body() {
    let mut provider = FakeProvider::new(vec![thinking("Hm"), calls(&[("c", "f", "{}")])]);
    provider.hangs = true;
    let (provider, api) = alone(provider);
    let request = body(&format!("{ASK},\"stream\":true"));
    let response = send(&api, ApiEndpoint::AnthropicMessages, &request).await;
    let mut stream = response.into_body();
    let first = stream.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(
        first.starts_with(b"event: message_start\n"),
        "a frame waits for no other"
    );
    assert_eq!(Arc::strong_count(&provider.lease), 2);
    drop(stream);
    assert_eq!(Arc::strong_count(&provider.lease), 1);
}
