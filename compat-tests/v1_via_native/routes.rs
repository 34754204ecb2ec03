//! Requests that are sent to a native route, and their translation.

use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use super::{LAST, PASSED, chat, config, daemon, native, ollama, path_of, playing, sized};
use crate::harness::{
    hubllama::{Hubllama, Setup, wait_until},
    raw_http::{Connection, Head, PATIENCE},
};

const CHAT: &str = "/v1/chat/completions";
const TOOL: &str = r#"{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}"#;

fn tools() -> Value {
    serde_json::from_str(&format!("[{TOOL}]")).expect("JSON")
}

#[track_caller]
fn succeeds(daemon: &Hubllama, path: &str, body: &Value) -> (Head, Value) {
    let (head, text) = daemon.post(path, body);
    assert_eq!(head.status(), 200, "{body}: {text}\n{}", daemon.log());
    (head, serde_json::from_str(&text).expect("JSON"))
}

#[test]
fn each_field_that_ollama_leaves_out_arrives_at_its_native_route() {
    let ollama = playing(&[r#"{"message":{"role":"assistant","content":"Hi"},"done":false}"#, LAST]);
    let daemon = daemon(&ollama);
    for (more, place, expected) in [
        (json!({"num_ctx": 2048}), "/options/num_ctx", json!(2048)),
        (json!({"keep_alive": "10m"}), "/keep_alive", json!(600)),
        (json!({"keep_alive": -1}), "/keep_alive", json!(-1)),
        (json!({"think": false}), "/think", json!(false)),
        (json!({"think": "high"}), "/think", json!("high")),
        (
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
            "/think",
            json!(false),
        ),
        (
            json!({"options": {"num_gpu": 0, "repeat_penalty": 1.5}}),
            "/options/num_gpu",
            json!(0),
        ),
        (
            json!({"options": {"temperature": 0.25}}),
            "/options/temperature",
            json!(0.25),
        ),
        (json!({"max_completion_tokens": 9}), "/options/num_predict", json!(9)),
        (json!({"top_k": 7}), "/options/top_k", json!(7)),
        (json!({"min_p": 0.5}), "/options/min_p", json!(0.5)),
        // The members that Ollama reads on this route are sent as well.
        (
            json!({"num_ctx": 512, "max_tokens": 3, "seed": 5}),
            "/options/seed",
            json!(5),
        ),
        (json!({"num_ctx": 512}), "/options/temperature", json!(1.0)),
        (json!({"num_ctx": 512}), "/options/top_p", json!(1.0)),
        (json!({"num_ctx": 512, "stop": "end"}), "/options/stop", json!(["end"])),
        (
            json!({"num_ctx": 512, "reasoning_effort": "low"}),
            "/think",
            json!("low"),
        ),
        (
            json!({"num_ctx": 512, "response_format": {"type": "json_object"}}),
            "/format",
            json!("json"),
        ),
        (json!({"num_ctx": 512, "tools": tools()}), "/tools", tools()),
        (
            json!({"num_ctx": 512, "logprobs": true, "top_logprobs": 2}),
            "/top_logprobs",
            json!(2),
        ),
    ] {
        let (head, answer) = succeeds(&daemon, CHAT, &chat(&more));
        assert_eq!(answer["choices"][0]["message"]["content"], "Hi");
        assert_eq!(head.header("x-hubllama-ignored"), None, "{more}");
        let (path, body) = native(&ollama);
        assert_eq!(
            (path.as_str(), body.pointer(place)),
            ("/api/chat", Some(&expected)),
            "{more}: {body}"
        );
        assert_eq!(
            (&body["model"], &body["messages"][0]["content"]),
            (&json!("m"), &json!("x"))
        );
    }
    let none = chat(&json!({"tools": tools(), "tool_choice": "none"}));
    let (head, _) = succeeds(&daemon, CHAT, &none);
    assert_eq!(head.header("x-hubllama-ignored"), None);
    assert_eq!(native(&ollama).1.get("tools"), None);
}

#[test]
fn what_ollama_cannot_do_on_any_route_is_named() {
    let ollama = playing(&[LAST]);
    let daemon = daemon(&ollama);
    for (more, expected) in [
        (json!({"tool_choice": "required", "tools": tools()}), "tool_choice"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": tools()}),
            "tool_choice",
        ),
        (
            json!({"parallel_tool_calls": false, "logit_bias": {"1": 5}, "tools": tools()}),
            "parallel_tool_calls, logit_bias",
        ),
        (json!({"logit_bias": {"1": 5}, "stream": true}), "logit_bias"),
    ] {
        let (head, text) = daemon.post(CHAT, &chat(&more));
        assert_eq!(
            (head.status(), head.header("x-hubllama-ignored")),
            (200, Some(expected)),
            "{more}: {text}"
        );
        let (_, body) = native(&ollama);
        assert_eq!(body.get("tools").is_some(), more.get("tools").is_some());
    }
}

#[test]
fn a_request_without_such_a_field_passes_byte_for_byte() {
    let ollama = playing(&[LAST]);
    let daemon = daemon(&ollama);
    for body in [
        r#" {"model":"m", "messages":[{"role":"user","content":"num_ctx"}],"x":1.0 } tail"#,
        r#"{"model":"m","messages":[],"n":1,"tool_choice":"auto","options":{},"num_ctx":null,"parallel_tool_calls":true}"#,
        r#"{"model":"m","n":2,"N":1,"logit_bias":{},"user":"u","metadata":{"think":true}}"#,
        r#"{"num_ctx":5}"#,
        r#"{"model":"  ","num_ctx":5}"#,
        r#"{"model":"m","num_ctx":5"#,
    ] {
        let (head, reply) = daemon.request("POST", CHAT, body);
        assert_eq!((head.status(), reply.as_str()), (200, PASSED), "{body}");
        let received = ollama.received();
        assert_eq!((path_of(&received), &received.body[..]), (CHAT, body.as_bytes()));
    }
    for path in ["/api/chat", "/v1/audio/transcriptions", "/v1/unknown"] {
        let body = r#"{"model":"m","num_ctx":5,"n":2,"options":{"a":1},"stream":false}"#;
        daemon.request("POST", path, body);
        let received = ollama.received();
        assert_eq!((path_of(&received), &received.body[..]), (path, body.as_bytes()));
    }
}

#[test]
fn the_setting_is_off_by_default_and_follows_the_file() {
    let ollama = playing(&[LAST]);
    let daemon = Setup::default().upstream(ollama.url()).start();
    let body = chat(&json!({"num_ctx": 512}));
    assert_eq!(daemon.post(CHAT, &body).1, PASSED);
    drop(daemon);

    let daemon = Setup::default().config(&config(&ollama, false)).start();
    let is_passed = || daemon.post(CHAT, &body).1 == PASSED;
    assert!(is_passed());
    for via_native in [true, false] {
        daemon.write_config(&config(&ollama, via_native));
        let seen = wait_until(PATIENCE, || (is_passed() != via_native).then_some(()));
        assert!(
            seen.is_some(),
            "v1_via_native = {via_native} did not take effect:\n{}",
            daemon.log()
        );
    }
}

#[test]
fn the_headers_of_the_client_reach_ollama_as_on_a_pass_through() {
    let ollama = playing(&[LAST]);
    let daemon = daemon(&ollama);
    let body = chat(&json!({"num_ctx": 512})).to_string();
    let mut client = Connection::open(daemon.address());
    client.send(format!(
        "POST {CHAT}?a=b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer mine\r\nUser-Agent: me/1\r\nX-Mine: 1\r\n\
         Origin: http://localhost:3000\r\nAccept: text/event-stream\r\nAccept-Encoding: gzip\r\nConnection: keep-alive, x-private\r\n\
         X-Private: 1\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let head = client.head();
    assert_eq!(head.status(), 200);
    assert_eq!(
        head.header("access-control-allow-origin"),
        Some("http://localhost:3000")
    );
    for path in ["/api/show", "/api/chat"] {
        let received = ollama.received();
        assert_eq!(received.head.line, format!("POST {path} HTTP/1.1"));
        let header = |name: &str| received.head.header(name);
        assert_eq!(
            [
                header("authorization"),
                header("user-agent"),
                header("x-mine"),
                header("content-type")
            ],
            [Some("Bearer mine"), Some("me/1"), Some("1"), Some("application/json")]
        );
        assert_eq!(header("host"), Some(ollama.address().to_string().as_str()));
        assert!(header("x-hubllama-hop").is_some());
        for gone in ["origin", "accept", "accept-encoding", "x-private", "transfer-encoding"] {
            assert_eq!(header(gone), None, "{gone}");
        }
    }
}

#[test]
fn a_compressed_body_is_unpacked_for_the_native_route() {
    let ollama = playing(&[LAST]);
    let daemon = daemon(&ollama);
    let text = chat(&json!({"num_ctx": 512})).to_string();
    let body = compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
    let mut client = Connection::open(daemon.address());
    client.send(format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: zstd\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    client.send(&body);
    assert_eq!(client.head().status(), 200);
    assert_eq!(native(&ollama).1["options"]["num_ctx"], 512);
}

#[test]
fn a_ring_of_daemons_is_noticed() {
    let ollama = playing(&[LAST]);
    let daemon = daemon(&ollama);
    let (head, _) = succeeds(&daemon, CHAT, &chat(&json!({"num_ctx": 512})));
    assert_eq!(head.status(), 200);
    let hop = ollama
        .received()
        .head
        .header("x-hubllama-hop")
        .expect("a hop")
        .to_owned();
    let body = chat(&json!({"num_ctx": 512})).to_string();
    let mut client = Connection::open(daemon.address());
    client.send(format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nX-Hubllama-Hop: {hop}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let head = client.head();
    let reply = client.body(&head);
    assert_eq!(head.status(), 508, "{}", String::from_utf8_lossy(&reply));
}

#[test]
fn the_other_routes_have_such_fields_too() {
    let ollama = ollama(|request, connection| match path_of(request) {
        "/api/embed" => connection
            .try_send(sized(
                "200 OK",
                r#"{"model":"m","embeddings":[[0.5,-0.5]],"prompt_eval_count":3}"#,
            ))
            .is_ok(),
        "/api/generate" => super::frames(
            connection,
            &[
                r#"{"response":"Hi","done":false}"#,
                r#"{"response":"","done":true,"done_reason":"stop"}"#,
            ],
        ),
        _ => super::frames(connection, &[r#"{"message":{"content":"Hi"},"done":false}"#, LAST]),
    });
    let daemon = daemon(&ollama);
    let (_, answer) = succeeds(
        &daemon,
        "/v1/completions",
        &json!({"model": "m", "prompt": "x", "num_ctx": 512, "max_tokens": 4}),
    );
    assert_eq!(answer["choices"][0]["text"], "Hi");
    let (path, body) = native(&ollama);
    assert_eq!((path.as_str(), &body["options"]["num_ctx"]), ("/api/chat", &json!(512)));

    let (_, answer) = succeeds(
        &daemon,
        "/v1/completions",
        &json!({"model": "m", "prompt": "x", "suffix": "y", "keep_alive": 0}),
    );
    assert_eq!(answer["choices"][0]["text"], "Hi");
    let (path, body) = native(&ollama);
    assert_eq!(
        (path.as_str(), &body["suffix"], &body["keep_alive"]),
        ("/api/generate", &json!("y"), &json!(0))
    );

    let (_, answer) = succeeds(
        &daemon,
        "/v1/embeddings",
        &json!({"model": "m", "input": "x", "truncate": false}),
    );
    assert_eq!(answer["data"][0]["embedding"], json!([0.5, -0.5]));
    let (path, body) = native(&ollama);
    assert_eq!(
        (path.as_str(), &body["truncate"], &body["input"]),
        ("/api/embed", &json!(false), &json!(["x"]))
    );

    let message =
        json!({"model": "m", "max_tokens": 5, "num_ctx": 512, "messages": [{"role": "user", "content": "x"}]});
    let (_, answer) = succeeds(&daemon, "/v1/messages", &message);
    assert_eq!(answer["content"][0]["text"], "Hi");
    let (path, body) = native(&ollama);
    assert_eq!((path.as_str(), &body["options"]["num_ctx"]), ("/api/chat", &json!(512)));

    let (_, answer) = succeeds(
        &daemon,
        "/v1/responses",
        &json!({"model": "m", "input": "x", "keep_alive": "1h"}),
    );
    assert_eq!(answer["output"][0]["content"][0]["text"], "Hi");
    let (path, body) = native(&ollama);
    assert_eq!((path.as_str(), &body["keep_alive"]), ("/api/chat", &json!(3600)));
}
