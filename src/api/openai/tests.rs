//! Tests of the routes of this dialect over a scripted provider: order of checks, statuses, headers, several answers.

use std::sync::{Arc, atomic::Ordering};

use arc_swap::ArcSwap;
use http_body_util::BodyExt;
use hyper::{HeaderMap, Method, Request, header::CONTENT_TYPE};
use serde_json::Value;

use crate::{
    api::{
        ApiEndpoint, ApiHandler, RequestHandler,
        tests::fake::{FakeProvider, calls, finish, text, thinking},
    },
    config::Config,
    http::body,
    inference::{
        AnswerFormat, Event, Failure, FinishReason, InferencePrompt, KeepAlive, ModelCapability, ThinkLevel, ThinkMode,
        ToolChoice, VectorNormalization,
    },
    provider::{Ollama, Registry},
};

const TEXT: &[ModelCapability] = &[ModelCapability::Completion];
const ABLE: &[ModelCapability] = &[
    ModelCapability::Completion,
    ModelCapability::Tools,
    ModelCapability::Thinking,
    ModelCapability::Insert,
];
const VECTORS: &[ModelCapability] = &[ModelCapability::Embedding];
const HEARING: &[ModelCapability] = &[ModelCapability::Completion, ModelCapability::Audio];

const CHAT: &str = r#","messages":[{"role":"user","content":"x"}]"#;
const TOOLS: &str = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;
const IGNORED: &str = "x-hubllama-ignored";

/// Reply of a route.
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Reply {
    fn kind(&self) -> &str {
        self.headers[CONTENT_TYPE].to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn ignored(&self) -> &str {
        self.headers
            .get(IGNORED)
            .map_or("", |value| value.to_str().unwrap_or("?"))
    }

    /// Returns the data of every event; that of `[DONE]` as a string.
    fn events(&self) -> Vec<Value> {
        assert_eq!(self.kind(), "text/event-stream", "{}", self.body);
        self.body
            .split_terminator("\n\n")
            .filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")))
            .map(|data| serde_json::from_str(data).unwrap_or_else(|_| data.into()))
            .collect()
    }
}

struct House {
    provider: Arc<FakeProvider>,
    api: ApiHandler,
}

fn house(provider: FakeProvider) -> House {
    let mut config = Config::default();
    config.ollama.enabled = false;
    let provider = Arc::new(provider);
    let api = ApiHandler {
        registry: Registry::new(provider.clone()),
        upstream: Arc::new(Ollama::new()),
        config: Arc::new(ArcSwap::from_pointee(config)),
        health: Arc::new(|| Value::Null),
        config_status: Arc::new(|| Value::Null),
    };
    House { provider, api }
}

fn answering(events: Vec<Event>, capabilities: &[ModelCapability]) -> House {
    house(FakeProvider::new(events).with_capabilities(capabilities))
}

fn simple(capabilities: &[ModelCapability]) -> House {
    answering(vec![text("Hi"), finish(FinishReason::Stop, &[])], capabilities)
}

impl House {
    async fn send(&self, endpoint: ApiEndpoint, content_type: &str, body: String) -> Reply {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/x")
            .header(CONTENT_TYPE, content_type)
            .body(body::full(body))
            .unwrap();
        let response = self.api.handle(endpoint, request).await;
        let (parts, body) = response.into_parts();
        Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        }
    }

    /// Sends a body with the model's name and these fields.
    async fn ask(&self, endpoint: ApiEndpoint, fields: &str) -> Reply {
        let body = format!("{{\"model\":\"hf:o/r\"{fields}}}");
        self.send(endpoint, "application/json", body).await
    }
}

fn error(message: &str, kind: &str) -> String {
    let message = message.replace('"', "\\\"");
    format!("{{\"error\":{{\"message\":\"{message}\",\"type\":\"{kind}\",\"param\":null,\"code\":null}}}}")
}

const SHIM: &str = "application/json; charset=utf-8";
const HANDLER: &str = "application/json";

async fn check_error(house: House, endpoint: ApiEndpoint, fields: &str, status: u16, kind: &str, message: &str) {
    let reply = house.ask(endpoint.clone(), fields).await;
    let word = match status {
        400 => "invalid_request_error",
        404 => "not_found_error",
        _ => "api_error",
    };
    let end = if kind == SHIM { "" } else { "\n" };
    assert_eq!(
        (reply.status, reply.kind(), reply.body.as_str()),
        (status, kind, format!("{}{end}", error(message, word)).as_str()),
        "{endpoint:?} {fields}"
    );
}

fn missing() -> House {
    let mut provider = FakeProvider::new(Vec::new());
    provider.card = Err(Failure::NotFound("hf:o/r".into()));
    house(provider)
}

fn refusing(failure: Failure) -> House {
    let mut provider = FakeProvider::new(Vec::new());
    provider.refusal = Some(failure);
    house(provider)
}

#[tokio::test]
async fn errors_have_the_shape_of_whoever_found_them() {
    use ApiEndpoint::{OpenAiChat, OpenAiCompletions, OpenAiEmbeddings, OpenAiResponses};
    let not_found = "model 'hf:o/r' not found";
    for (house, endpoint, fields, status, kind, message) in [
        (missing(), OpenAiChat, CHAT, 404, HANDLER, not_found),
        (missing(), OpenAiCompletions, "", 404, HANDLER, not_found),
        (missing(), OpenAiResponses, r#","input":"x""#, 404, HANDLER, not_found),
        (
            missing(),
            OpenAiEmbeddings,
            r#","input":"x""#,
            404,
            HANDLER,
            "model \"hf:o/r\" not found, try pulling it first",
        ),
        (missing(), OpenAiEmbeddings, "", 400, SHIM, "invalid input"),
        (
            missing(),
            OpenAiEmbeddings,
            r#","input":[1]"#,
            400,
            HANDLER,
            "invalid input type",
        ),
        (
            missing(),
            OpenAiCompletions,
            r#","stop":[1]"#,
            400,
            SHIM,
            "invalid type for 'stop' field: float64",
        ),
        (
            missing(),
            OpenAiCompletions,
            r#","logprobs":21"#,
            400,
            HANDLER,
            "top_logprobs must be between 0 and 20",
        ),
        (
            missing(),
            OpenAiChat,
            r#","messages":[{"role":"user","content":"x"}],"n":9"#,
            400,
            SHIM,
            "n must be between 1 and 8",
        ),
        (
            missing(),
            OpenAiChat,
            r#","messages":[{"role":"user","content":"x"}],"tool_choice":"required""#,
            400,
            SHIM,
            "tool_choice requires a call, and the request has no tools",
        ),
        (
            missing(),
            OpenAiChat,
            r#","messages":[{"role":"user","content":"x"}],"logit_bias":{"1":101}"#,
            400,
            SHIM,
            "logit_bias must map token ids to numbers from -100 to 100",
        ),
        (
            missing(),
            OpenAiResponses,
            r#","input":"x","previous_response_id":"resp_1""#,
            400,
            SHIM,
            "previous_response_id is not supported: no responses are kept here; send the whole conversation as input",
        ),
        (
            simple(VECTORS),
            OpenAiChat,
            CHAT,
            400,
            HANDLER,
            "\"hf:o/r\" does not support chat",
        ),
        (
            simple(VECTORS),
            OpenAiCompletions,
            r#","prompt":"x""#,
            400,
            HANDLER,
            "\"hf:o/r\" does not support generate",
        ),
        (
            simple(TEXT),
            OpenAiCompletions,
            r#","prompt":"x","suffix":"y""#,
            400,
            HANDLER,
            "hf:o/r:Q4_K_M does not support insert",
        ),
        (
            simple(TEXT),
            OpenAiResponses,
            r#","input":"x","reasoning":{"effort":"high"}"#,
            400,
            HANDLER,
            "\"hf:o/r\" does not support thinking",
        ),
        (
            simple(TEXT),
            OpenAiEmbeddings,
            r#","input":"x","options":{"num_ctx":"x"}"#,
            500,
            HANDLER,
            "option \"num_ctx\" must be of type integer",
        ),
        (
            refusing(Failure::Busy),
            OpenAiResponses,
            r#","input":"x","stream":true"#,
            503,
            HANDLER,
            "server busy, please try again.  maximum pending requests exceeded",
        ),
        (
            refusing(Failure::Load("no memory".into())),
            OpenAiCompletions,
            r#","prompt":"x","stream":true"#,
            500,
            HANDLER,
            "no memory",
        ),
        (
            refusing(Failure::Invalid("too long".into())),
            OpenAiEmbeddings,
            r#","input":"x""#,
            400,
            HANDLER,
            "too long",
        ),
    ] {
        check_error(house, endpoint, fields, status, kind, message).await;
    }
}

#[tokio::test]
async fn a_failure_in_a_stream_is_an_event_of_its_own_and_the_last() {
    let broken = || {
        let mut provider = FakeProvider::new(vec![text("Hi")]);
        provider.events.push(Err(Failure::Worker("the worker died".into())));
        house(provider)
    };
    let expected = error("the worker died", "api_error");
    for (endpoint, fields) in [
        (ApiEndpoint::OpenAiChat, CHAT),
        (ApiEndpoint::OpenAiCompletions, r#","prompt":"x""#),
    ] {
        let reply = broken().ask(endpoint, &format!("{fields},\"stream\":true")).await;
        assert_eq!((reply.status, reply.kind()), (200, "text/event-stream"));
        assert!(
            reply.body.ends_with(&format!("\n\ndata: {expected}\n\n")),
            "{}",
            reply.body
        );
    }
    let reply = broken()
        .ask(ApiEndpoint::OpenAiResponses, r#","input":"x","stream":true"#)
        .await;
    let last = reply.events().pop().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["error"]["message"], "the worker died");
}

#[tokio::test]
async fn several_answers_are_several_requests_of_one_prompt() {
    let house = simple(TEXT);
    let reply = house
        .ask(ApiEndpoint::OpenAiChat, &format!("{CHAT},\"n\":3,\"seed\":5"))
        .await;
    let json = reply.json();
    let choices = json["choices"].as_array().unwrap();
    let indexes: Vec<u64> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert!(choices.iter().all(|choice| choice["message"]["content"] == "Hi"));
    assert_eq!(
        json["usage"].to_string(),
        r#"{"prompt_tokens":10,"completion_tokens":6,"total_tokens":16}"#
    );
    let seeds: Vec<_> = house
        .provider
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|request| request.sampling.seed)
        .collect();
    assert_eq!(seeds, [Some(5), Some(6), Some(7)]);
    assert_eq!(reply.ignored(), "");
}

#[tokio::test]
async fn several_answers_share_a_stream_with_one_end() {
    let house = simple(TEXT);
    let fields = format!("{CHAT},\"n\":2,\"stream\":true,\"stream_options\":{{\"include_usage\":true}}");
    let reply = house.ask(ApiEndpoint::OpenAiChat, &fields).await;
    let mut events = reply.events();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let usage = events.pop().unwrap();
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"]),
        (&Value::Array(Vec::new()), &14.into())
    );
    assert_eq!(events.len(), 4);
    for index in 0..2 {
        let own: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(own[0]["delta"].to_string(), r#"{"role":"assistant","content":"Hi"}"#);
        assert_eq!(own[1]["finish_reason"], "stop");
        assert_eq!(own.len(), 2);
    }
    assert_eq!(Arc::strong_count(&house.provider.lease), 1, "all leases are given back");
}

#[tokio::test]
async fn a_dropped_stream_gives_back_the_leases_of_all_its_answers() {
    let mut provider = FakeProvider::new(vec![text("Hi")]);
    provider.hangs = true;
    let house = house(provider);
    let body = format!("{{\"model\":\"hf:o/r\"{CHAT},\"n\":2,\"stream\":true}}");
    let request = Request::post("/x").body(body::full(body)).unwrap();
    let mut body = house.api.handle(ApiEndpoint::OpenAiChat, request).await.into_body();
    let mut seen = String::new();
    while seen.matches("\"content\":\"Hi\"").count() < 2 {
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        seen.push_str(std::str::from_utf8(&data).unwrap());
    }
    assert_eq!(Arc::strong_count(&house.provider.lease), 3);
    drop(body);
    assert_eq!(Arc::strong_count(&house.provider.lease), 1);
}

#[tokio::test]
async fn a_choice_of_tools_reaches_the_model() {
    for (choice, expected, shown) in [
        (r#""auto""#, ToolChoice::Auto, 1),
        (r#""none""#, ToolChoice::None, 0),
        (r#""required""#, ToolChoice::Required, 1),
        (
            r#"{"type":"function","function":{"name":"f"}}"#,
            ToolChoice::Function("f".into()),
            1,
        ),
    ] {
        let house = simple(ABLE);
        let fields = format!("{CHAT}{TOOLS},\"tool_choice\":{choice},\"parallel_tool_calls\":false");
        let reply = house.ask(ApiEndpoint::OpenAiChat, &fields).await;
        assert_eq!((reply.status, reply.ignored()), (200, ""));
        let InferencePrompt::Chat {
            tools,
            tool_choice,
            parallel_tool_calls,
            ..
        } = house.provider.last_request().prompt
        else {
            panic!()
        };
        assert_eq!(
            (tool_choice, tools.len(), parallel_tool_calls),
            (expected, shown, false)
        );
    }
}

#[tokio::test]
async fn tools_of_a_model_without_are_left_out_and_their_choice_with_them() {
    let allowed = r#","tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}}"#;
    let house = simple(TEXT);
    let reply = house
        .ask(ApiEndpoint::OpenAiChat, &format!("{CHAT}{TOOLS}{allowed}"))
        .await;
    assert_eq!((reply.status, reply.ignored()), (200, "tools"));
    let some_built_in = r#","input":"x","tools":[{"type":"function","name":"f"},{"type":"web_search"}]"#;
    let reply = simple(TEXT).ask(ApiEndpoint::OpenAiResponses, some_built_in).await;
    assert_eq!((reply.status, reply.ignored()), (200, "tools"));
    let required = format!("{CHAT}{TOOLS},\"tool_choice\":\"required\"");
    check_error(
        simple(TEXT),
        ApiEndpoint::OpenAiChat,
        &required,
        400,
        HANDLER,
        "hf:o/r:Q4_K_M does not support tools",
    )
    .await;
}

#[tokio::test]
async fn a_prompt_can_be_looked_at() {
    let house = simple(TEXT);
    let reply = house
        .ask(
            ApiEndpoint::OpenAiChat,
            r#","messages":[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":"data:;base64,aGk="}]}],"stream":true,"_debug_render_only":true"#,
        )
        .await;
    assert_eq!((reply.status, reply.kind()), (200, HANDLER));
    assert_eq!(
        reply.json()["_debug_info"].to_string(),
        r#"{"rendered_template":"x\n","image_count":1}"#
    );
    assert!(house.provider.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn reasoning_is_asked_for_in_many_ways() {
    let high = ThinkMode::Level(ThinkLevel::High);
    for (fields, able, unable) in [
        ("", ThinkMode::On, Some(ThinkMode::Unset)),
        (r#","think":false"#, ThinkMode::Off, Some(ThinkMode::Off)),
        (r#","think":"high""#, high, None),
        (r#","reasoning_effort":"none""#, ThinkMode::Off, Some(ThinkMode::Off)),
        (r#","reasoning_effort":"high","think":false"#, high, None),
        (
            r#","chat_template_kwargs":{"enable_thinking":false}"#,
            ThinkMode::Off,
            Some(ThinkMode::Off),
        ),
        (
            r#","chat_template_kwargs":{"enable_thinking":true}"#,
            ThinkMode::On,
            Some(ThinkMode::Unset),
        ),
    ] {
        for (capabilities, expected) in [(ABLE, Some(able)), (TEXT, unable)] {
            let house = simple(capabilities);
            let reply = house.ask(ApiEndpoint::OpenAiChat, &format!("{CHAT}{fields}")).await;
            let seen = (reply.status == 200).then(|| house.provider.last_request().think);
            assert_eq!(seen, expected, "{fields}");
            assert_eq!(reply.ignored(), "");
        }
    }
}

#[tokio::test]
async fn completions_answer_one_prompt_or_several() {
    let house = answering(vec![thinking("Hm"), text("Hi"), finish(FinishReason::Stop, &[])], ABLE);
    let reply = house
        .ask(
            ApiEndpoint::OpenAiCompletions,
            r#","prompt":["a","b"],"n":2,"echo":true,"best_of":3"#,
        )
        .await;
    let json = reply.json();
    assert_eq!(json["choices"].as_array().unwrap().len(), 4);
    assert_eq!(
        json["choices"][3].to_string(),
        r#"{"text":"Hi","index":3,"finish_reason":"stop","reasoning":"Hm"}"#
    );
    assert_eq!(json["usage"]["prompt_tokens"], 20);
    assert_eq!(reply.ignored(), "echo, best_of");
    assert_eq!(house.provider.last_request().think, ThinkMode::Off);

    let reply = house
        .ask(
            ApiEndpoint::OpenAiCompletions,
            r#","prompt":"a","suffix":"b","think":true"#,
        )
        .await;
    assert_eq!(reply.status, 200);
    let request = house.provider.last_request();
    assert!(matches!(request.prompt, InferencePrompt::Infill { .. }));
    assert_eq!(request.think, ThinkMode::On);
}

#[tokio::test]
async fn requests_without_anything_to_answer_load_and_unload() {
    for (fields, unloads) in [(r#","options":{"num_ctx":99}"#, 0), (r#","keep_alive":0"#, 1)] {
        for endpoint in [ApiEndpoint::OpenAiCompletions, ApiEndpoint::OpenAiResponses] {
            for stream in [false, true] {
                let house = simple(TEXT);
                let reply = house
                    .ask(endpoint.clone(), &format!("{fields},\"stream\":{stream}"))
                    .await;
                assert_eq!(reply.status, 200);
                assert_eq!(house.provider.unloads.load(Ordering::Relaxed), unloads);
                assert_eq!(house.provider.loads.lock().unwrap().len(), 1 - unloads);
                assert!(house.provider.asked.lock().unwrap().is_empty());
                if unloads == 0 {
                    assert_eq!(house.provider.loads.lock().unwrap()[0].0.context_length, Some(99));
                }
                let word = if unloads == 0 { "load" } else { "unload" };
                let done = match (&endpoint, stream) {
                    (ApiEndpoint::OpenAiCompletions, false) => reply.json()["choices"][0]["finish_reason"] == word,
                    (ApiEndpoint::OpenAiCompletions, true) => {
                        let events = reply.events();
                        events[0]["choices"][0]["finish_reason"] == word && events[1] == "[DONE]"
                    }
                    (_, false) => reply.json()["output"][0]["content"][0]["text"] == "",
                    (_, true) => reply.events()[2]["type"] == "response.completed",
                };
                assert!(done, "{}", reply.body);
            }
        }
    }
}

#[tokio::test]
async fn embeddings_ask_for_unit_vectors() {
    let house = simple(VECTORS);
    let reply = house
        .ask(
            ApiEndpoint::OpenAiEmbeddings,
            r#","input":["ab",""],"dimensions":4,"keep_alive":-1,"num_ctx":64,"truncate":false"#,
        )
        .await;
    assert_eq!(
        (reply.status, reply.kind(), reply.body.as_str()),
        (
            200,
            HANDLER,
            "{\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"embedding\":[2,0.5],\"index\":0},{\"object\":\"embedding\",\"embedding\":[0,0.5],\"index\":1}],\"model\":\"hf:o/r\",\"usage\":{\"prompt_tokens\":2,\"total_tokens\":2}}\n"
        )
    );
    let asked = house.provider.embedded.lock().unwrap().pop().unwrap();
    assert_eq!(asked.inputs, ["ab", ""]);
    assert_eq!((asked.dimensions, asked.truncate), (Some(4), false));
    assert_eq!(
        (asked.normalization, asked.keep_alive, asked.load.context_length),
        (VectorNormalization::Unit, Some(KeepAlive::Forever), Some(64))
    );
    let reply = house
        .ask(
            ApiEndpoint::OpenAiEmbeddings,
            r#","input":"ab","encoding_format":"base64","dimensions":-1"#,
        )
        .await;
    assert_eq!(reply.json()["data"][0]["embedding"], "AAAAQAAAAD8=");
    let asked = house.provider.embedded.lock().unwrap().pop().unwrap();
    assert_eq!((asked.dimensions, asked.truncate), (None, true));
}

#[tokio::test]
async fn a_response_repeats_its_request_and_names_what_it_ignored() {
    let house = simple(ABLE);
    let fields = r#","input":"x","instructions":"Be brief.","temperature":0.5,"top_p":0.25,"max_output_tokens":7,"truncation":"auto","parallel_tool_calls":false,"reasoning":{"effort":"low","summary":"auto"},"store":true,"tools":[{"type":"function","name":"f","parameters":{"type":"object"}},{"type":"web_search"}],"tool_choice":{"type":"function","name":"f"},"text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object"}}}"#;
    let reply = house.ask(ApiEndpoint::OpenAiResponses, fields).await;
    let json = reply.json();
    for (key, expected) in [
        ("instructions", r#""Be brief.""#),
        ("temperature", "0.5"),
        ("top_p", "0.25"),
        ("max_output_tokens", "7"),
        ("truncation", r#""auto""#),
        ("parallel_tool_calls", "false"),
        ("reasoning", r#"{"effort":"low","summary":"auto"}"#),
        ("tool_choice", r#"{"type":"function","name":"f"}"#),
        (
            "text",
            r#"{"format":{"type":"json_schema","name":"n","schema":{"type":"object"}}}"#,
        ),
        ("store", "false"),
        ("status", r#""completed""#),
    ] {
        assert_eq!(json[key].to_string(), expected, "{key}");
    }
    assert_eq!(json["tools"].as_array().unwrap().len(), 2);
    assert_eq!(reply.ignored(), "store, tools");
    let request = house.provider.last_request();
    assert!(matches!(request.format, Some(AnswerFormat::Schema(_))));
    assert_eq!(request.think, ThinkMode::Level(ThinkLevel::Low));
    let InferencePrompt::Chat { tools, tool_choice, .. } = request.prompt else {
        panic!()
    };
    assert_eq!((tools.len(), tool_choice), (1, ToolChoice::Function("f".into())));

    let house = answering(vec![calls(&[("c", "f", "{}")]), finish(FinishReason::Stop, &[])], ABLE);
    let reply = house
        .ask(
            ApiEndpoint::OpenAiResponses,
            r#","input":"x","stream":true,"reasoning":{"effort":"low"}"#,
        )
        .await;
    assert_eq!(reply.headers["cache-control"], "no-cache");
    let events = reply.events();
    assert_eq!(
        events[0]["response"]["reasoning"].to_string(),
        r#"{"effort":"low","summary":null}"#
    );
    assert_eq!(events.last().unwrap()["response"]["output"][0]["call_id"], "c");
    assert!(!reply.body.contains("[DONE]"));
}

const FORM: &str = "multipart/form-data; boundary=XX";

fn form(fields: &[(&str, &str)], file: &str) -> String {
    let mut form = String::from("--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nhf:o/r\r\n");
    for (name, value) in fields {
        form.push_str(&format!(
            "--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        ));
    }
    form.push_str(&format!(
        "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n{file}\r\n--XX--\r\n"
    ));
    form
}

#[tokio::test]
async fn a_model_that_does_not_hear_says_so() {
    let reply = simple(TEXT)
        .send(ApiEndpoint::OpenAiTranscriptions, FORM, form(&[], "RIFF"))
        .await;
    let message = "hf:o/r:Q4_K_M does not support audio input: it cannot transcribe";
    assert_eq!(
        (reply.status, reply.kind(), reply.body.as_str()),
        (
            400,
            HANDLER,
            format!("{}\n", error(message, "invalid_request_error")).as_str()
        )
    );
    let reply = simple(TEXT)
        .send(ApiEndpoint::OpenAiTranscriptions, FORM, form(&[], ""))
        .await;
    assert_eq!(
        (reply.kind(), reply.body.as_str()),
        (SHIM, error("audio file is empty", "invalid_request_error").as_str())
    );
}

#[tokio::test]
async fn a_model_that_hears_transcribes() {
    let house = || {
        answering(
            vec![text(" so "), text("it is\n"), finish(FinishReason::Stop, &[])],
            HEARING,
        )
    };
    let reply = house()
        .send(
            ApiEndpoint::OpenAiTranscriptions,
            FORM,
            form(&[("stream", "true")], "RIFF"),
        )
        .await;
    assert_eq!(
        (reply.kind(), reply.body.as_str(), reply.ignored()),
        (HANDLER, "{\"text\":\"so it is\"}\n", "stream")
    );
    let reply = house()
        .send(
            ApiEndpoint::OpenAiTranscriptions,
            FORM,
            form(&[("response_format", "text")], "RIFF"),
        )
        .await;
    assert_eq!((reply.kind(), reply.body.as_str()), ("text/plain", "so it is"));
}
