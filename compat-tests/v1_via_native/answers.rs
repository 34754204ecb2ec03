//! Replies of Ollama's native routes, translated to the `/v1` format.

use std::{sync::mpsc::sync_channel, time::Duration};

use serde_json::{Value, json};

use super::{LAST, chat, daemon, frames, gate, ollama, path_of, playing, show, sized, wait};
use crate::harness::{
    fake_ollama::FakeOllama,
    hubllama::{Hubllama, Setup},
    raw_http::{Connection, PATIENCE, chunk_of},
    stream::Stream,
};

const CHAT: &str = "/v1/chat/completions";

const THINKING: &str = r#"{"message":{"role":"assistant","content":"","thinking":"Hm"},"done":false}"#;
const TEXT: &str = r#"{"message":{"role":"assistant","content":"Hi <you>"},"done":false}"#;
const CALLS: &str = r#"{"message":{"role":"assistant","content":"","tool_calls":[{"id":"c1","function":{"index":0,"name":"f","arguments":{"b":1,"a":"x"}}},{"id":"c2","function":{"index":1,"name":"g","arguments":{}}}]},"done":false}"#;

fn asked(more: &Value) -> Value {
    let mut body = chat(more);
    body["num_ctx"] = 512.into();
    body
}

/// Returns the JSON after `data: ` of the next event, skipping comments.
fn event(stream: &mut Stream) -> Option<String> {
    loop {
        let line = stream.line()?;
        if let Some(data) = line.strip_prefix("data: ") {
            return Some(data.to_owned());
        }
    }
}

fn chunk(stream: &mut Stream) -> Value {
    serde_json::from_str(&event(stream).expect("an event")).expect("JSON")
}

/// Ollama sends each frame only after the client has received the one before it, so no frame can have been held back.
#[test]
fn a_frame_arrives_before_the_next_is_let_go() {
    let (open, opened) = gate();
    let ollama = ollama(move |_, connection| {
        connection.send("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n");
        for frame in [THINKING, TEXT, CALLS, LAST] {
            wait(&opened);
            connection.send(chunk_of(format!("{frame}\n")));
        }
        connection.try_send("0\r\n\r\n").is_ok()
    });
    let daemon = daemon(&ollama);
    let request = asked(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut stream = Stream::open(&daemon, CHAT, &request);
    let mut next = || {
        open.send(()).expect("the script waits");
        let chunk = chunk(&mut stream);
        assert_eq!(
            (&chunk["object"], &chunk["model"]),
            (&json!("chat.completion.chunk"), &json!("m"))
        );
        chunk["choices"][0]["delta"].clone()
    };
    assert_eq!(next(), json!({"role": "assistant", "content": "", "reasoning": "Hm"}));
    assert_eq!(next(), json!({"content": "Hi <you>"}));
    let calls = json!([
        {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":\"x\"}"}},
        {"id": "c2", "index": 1, "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]);
    assert_eq!(next(), json!({"content": "", "tool_calls": calls}));
    assert_eq!(next(), json!({}), "the end");
    let usage = chunk(&mut stream);
    assert_eq!(
        (
            &usage["choices"],
            &usage["usage"]["prompt_tokens"],
            &usage["usage"]["completion_tokens"]
        ),
        (&json!([]), &json!(10), &json!(2))
    );
    assert_eq!(event(&mut stream).as_deref(), Some("[DONE]"));
    assert_eq!(event(&mut stream), None);
    assert!(stream.whole);
}

#[test]
fn a_whole_answer_has_thinking_text_and_calls() {
    let ollama = playing(&[THINKING, TEXT, CALLS, LAST]);
    let daemon = daemon(&ollama);
    let (head, body) = daemon.post(CHAT, &asked(&json!({})));
    assert_eq!(
        (head.status(), head.header("content-type")),
        (200, Some("application/json"))
    );
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(
        choice["message"],
        json!({
            "role": "assistant",
            "content": "Hi <you>",
            "reasoning": "Hm",
            "tool_calls": [
                {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":\"x\"}"}},
                {"id": "c2", "index": 1, "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        })
    );
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12})
    );
}

#[test]
fn a_conversation_with_calls_and_pictures_goes_there_in_native_form() {
    let ollama = playing(&[LAST]);
    let daemon = daemon(&ollama);
    let messages = json!([
        {"role": "user", "content": [
            {"type": "text", "text": "look"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,/wA/"}},
        ]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"b\":1}"}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]);
    assert_eq!(
        daemon.post(CHAT, &asked(&json!({ "messages": messages }))).0.status(),
        200
    );
    let (_, body) = super::native(&ollama);
    assert_eq!(
        body["messages"],
        json!([
            {"role": "user", "content": "look", "images": ["/wA/"]},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"b": 1}}},
            ]},
            {"role": "tool", "content": "7", "tool_name": "f", "tool_call_id": "c1"},
        ])
    );
}

#[test]
fn several_answers_are_several_requests() {
    let ollama = playing(&[TEXT, LAST]);
    let daemon = daemon(&ollama);
    let (head, body) = daemon.post(CHAT, &chat(&json!({"n": 3, "seed": 5})));
    assert_eq!(
        (head.status(), head.header("x-hubllama-ignored")),
        (200, None),
        "{body}"
    );
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    let choices = answer["choices"].as_array().expect("a list");
    assert_eq!(choices.len(), 3);
    assert!(
        choices.iter().all(|choice| choice["message"]["content"] == "Hi <you>"),
        "{body}"
    );
    assert_eq!(path_of(&ollama.received()), "/api/show");
    let mut seeds: Vec<Value> = (0..3)
        .map(|_| {
            let request = ollama.received();
            assert_eq!(path_of(&request), "/api/chat");
            serde_json::from_slice::<Value>(&request.body).expect("JSON")["options"]["seed"].take()
        })
        .collect();
    seeds.sort_by_key(Value::as_i64);
    assert_eq!(seeds, [5, 6, 7], "each has a seed of its own");
}

/// Starts an Ollama with these replies on `/api/show` and `/api/chat`.
fn saying(show: String, chat: String) -> FakeOllama {
    FakeOllama::start(move |request, connection| {
        let reply = if path_of(request) == "/api/show" { &show } else { &chat };
        connection.try_send(reply).is_ok()
    })
}

fn error(daemon: &Hubllama, more: &Value) -> (u16, Value) {
    let (head, body) = daemon.post(CHAT, &asked(more));
    let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"));
    (head.status(), body["error"].clone())
}

#[test]
fn errors_keep_their_status_and_their_words() {
    let knows = || sized("200 OK", &show(&["completion", "tools"]));
    let said = |text: &str| json!({ "error": text }).to_string();
    for (show, chat, status, kind, message) in [
        (
            sized("404 Not Found", &said("model 'm:latest' not found")),
            String::new(),
            404,
            "not_found_error",
            "model 'm' not found",
        ),
        (
            knows(),
            sized("404 Not Found", &said("model 'm' not found")),
            404,
            "not_found_error",
            "model 'm' not found",
        ),
        (
            knows(),
            sized(
                "400 Bad Request",
                &said("registry.ollama.ai/library/m:latest does not support tools"),
            ),
            400,
            "invalid_request_error",
            "registry.ollama.ai/library/m:latest does not support tools",
        ),
        (
            knows(),
            sized(
                "503 Service Unavailable",
                &said("server busy, please try again.  maximum pending requests exceeded"),
            ),
            503,
            "api_error",
            "server busy, please try again.  maximum pending requests exceeded",
        ),
        (
            knows(),
            sized(
                "401 Unauthorized",
                r#"{"error":"unauthorized","signin_url":"https://x"}"#,
            ),
            401,
            "api_error",
            "unauthorized",
        ),
        (
            knows(),
            sized(
                "500 Internal Server Error",
                &said("llama runner process has terminated"),
            ),
            500,
            "api_error",
            "llama runner process has terminated",
        ),
    ] {
        let ollama = saying(show, chat);
        let daemon = daemon(&ollama);
        for streams in [false, true] {
            let (seen, error) = error(&daemon, &json!({ "stream": streams }));
            assert_eq!(
                (seen, &error["type"], &error["message"]),
                (status, &json!(kind), &json!(message)),
                "{error}"
            );
        }
    }
}

#[test]
fn an_ollama_that_is_none_is_a_bad_gateway() {
    for (show, chat) in [
        (sized("200 OK", "<html>"), String::new()),
        (sized("200 OK", "{}"), sized("418 Teapot", "<html>")),
        (sized("200 OK", "{}"), sized("302 Found", "{\"error\":\"x\"}")),
    ] {
        let ollama = saying(show, chat);
        let (status, error) = error(&daemon(&ollama), &json!({}));
        assert_eq!(status, 502, "{error}");
    }
    // If Ollama is not running, the error is that of a forwarded request.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", socket.local_addr().expect("an address"));
    drop(socket);
    let daemon = Setup::default()
        .config(&format!("[ollama]\nurl = \"{url}\"\nv1_via_native = true\n"))
        .start();
    let translated = error(&daemon, &json!({}));
    let (head, body) = daemon.post(CHAT, &chat(&json!({})));
    let passed: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(translated, (head.status(), passed["error"].clone()));
    assert_eq!(translated.0, 502);
}

#[test]
fn an_error_within_the_stream_is_an_event() {
    for rest in [r#"{"error":"model runner has unexpectedly stopped"}"#, "<html>", ""] {
        let ollama = ollama(move |_, connection| {
            let text: &[&str] = if rest.is_empty() { &[TEXT] } else { &[TEXT, rest] };
            frames(connection, text)
        });
        let daemon = daemon(&ollama);
        let mut stream = Stream::open(&daemon, CHAT, &asked(&json!({"stream": true})));
        assert_eq!(chunk(&mut stream)["choices"][0]["delta"]["content"], "Hi <you>");
        let last = chunk(&mut stream);
        let message = last["error"]["message"].as_str().expect("an error");
        if rest.starts_with('{') {
            assert_eq!(message, "model runner has unexpectedly stopped");
        }
        assert_eq!(event(&mut stream), None, "nothing follows it");
    }
}

#[test]
fn a_client_that_disconnects_ends_its_request_to_ollama() {
    for (streams, has_begun) in [(false, false), (true, false), (true, true), (false, true)] {
        let (started, starts) = sync_channel(1);
        let (report, reports) = sync_channel(1);
        let ollama = ollama(move |_, connection| {
            if has_begun {
                connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                connection.send(chunk_of(format!("{TEXT}\n")));
            }
            started.send(()).expect("the test waits");
            report.send(connection.closes()).expect("the test waits");
            false
        });
        let daemon = daemon(&ollama);
        let body = asked(&json!({ "stream": streams })).to_string();
        let mut client = Connection::open(daemon.address());
        client.send(format!(
            "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        starts.recv_timeout(PATIENCE).expect("a request at Ollama");
        if streams && has_begun {
            client.head();
            client.chunk().expect("a chunk");
        }
        drop(client);
        let closed = reports
            .recv_timeout(Duration::from_secs(5))
            .expect("the connection to end soon");
        assert!(closed, "{streams} {has_begun}");
    }
}
