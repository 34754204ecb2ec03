//! Request bodies that are compressed or forms. They are forwarded unchanged for plain names, and hf: names are found
//! in them.

use std::sync::Arc;

use hubllama::config::Config;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::{echo, exchange, handler};
use crate::harness::{daemon::Daemon, fake_ollama::FakeOllama, raw_http::Head};

const V1: [&str; 5] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
];

fn zstd(text: impl AsRef<[u8]>) -> Vec<u8> {
    compress_to_vec(text.as_ref(), CompressionLevel::Fastest)
}

fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Starts a daemon that is offline.
fn daemon(url: &str) -> Daemon {
    let daemon = Daemon::start(Config::default(), handler);
    let mut config = Config::clone(&daemon.settings.load());
    config.ollama.url = url.into();
    config.hub.offline = true;
    config.server.body_memory_bytes = 64 << 10;
    daemon.settings.store(Arc::new(config));
    daemon
}

fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut form = Vec::new();
    for (head, content) in parts {
        form.extend_from_slice(b"--X;Y\r\nContent-Disposition: form-data; ");
        form.extend_from_slice(head.as_bytes());
        form.extend_from_slice(b"\r\n\r\n");
        form.extend_from_slice(content);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(b"--X;Y--\r\n");
    form
}

#[track_caller]
fn passes(daemon: &Daemon, ollama: &FakeOllama, request: &[u8], body: &[u8]) {
    let (head, reply) = exchange(daemon.address(), request);
    assert_eq!(head.status(), 200);
    assert!(ollama.received().body == body, "what Ollama got");
    assert!(reply == body, "what came back");
}

/// Trap 62: compressed bodies and forms reach Ollama as the bytes that came.
#[test]
fn packed_bodies_of_plain_names_pass_untouched() {
    let ollama = echo();
    let daemon = daemon(&ollama.url());
    let long = format!(r#"{{"prompt":"{}","model":"plain"}}"#, "lorem ipsum ".repeat(100_000));
    for path in V1 {
        for body in [
            br#" {"model":"plain","x":1.0,"model":"plain2"} tail"#.to_vec(),
            zstd(r#"{"model":"plain","messages":[]}"#),
            zstd(&long),
            // No hf: name can be found in these bodies, so that Ollama answers with its own error.
            zstd(&long)[..100].to_vec(),
            b"no zstd at all".to_vec(),
            zstd(format!(r#"{{"model":"hf:o/r","x":"{}"}}"#, " ".repeat(21 << 20))),
        ] {
            passes(
                &daemon,
                &ollama,
                &post(path, "Content-Encoding: zstd\r\n", &body),
                &body,
            );
        }
        let body = br#"{"model":"plain","input":"x","tools":[{"type":"web_search"}],"max_tokens":1}"#;
        passes(&daemon, &ollama, &post(path, "", body), body);
    }
    let audio: Vec<u8> = (0..3_000_000u32).map(|at| (at * 7 / 3) as u8).collect();
    let file = ("name=\"file\"; filename=\"a; name=model\"", &audio[..]);
    let model = ("name=\"model\"", &b"plain"[..]);
    for parts in [[model, file], [file, model]] {
        let body = form(&parts);
        let headers = "Content-Type: multipart/form-data; boundary=\"X;Y\"\r\n";
        passes(
            &daemon,
            &ollama,
            &post("/v1/audio/transcriptions", headers, &body),
            &body,
        );
    }
}

/// Trap 62, the other side: what Ollama would unpack to find the name, we unpack too.
#[test]
fn packed_bodies_of_hf_names_are_found_and_only_where_ollama_unpacks() {
    let ollama = echo();
    let daemon = daemon(&ollama.url());
    let ours = |head: &Head, body: &[u8], what: &str| {
        let body = String::from_utf8_lossy(body).into_owned();
        assert!(
            head.status() != 200 && body.contains("hf:o/r"),
            "{what}: {} {body}",
            head.line
        );
    };
    let body = zstd(
        r#"{"MODEL":"hf:o/r","messages":[{"role":"user","content":"x"}],"input":"x","prompt":"x","max_tokens":1}"#,
    );
    for path in V1 {
        let (head, reply) = exchange(daemon.address(), &post(path, "Content-Encoding: zstd\r\n", &body));
        ours(&head, &reply, path);
    }
    // The native routes do not decompress bodies, so that Ollama answers with its own error.
    let request = post("/api/chat", "Content-Encoding: zstd\r\n", &body);
    passes(&daemon, &ollama, &request, &body);

    let audio = vec![b'x'; 200_000];
    let file = ("name=\"file\"; filename=\"a.wav\"", &audio[..]);
    let model = ("name=\"model\"", &b"hf:o/r"[..]);
    for parts in [[model, file], [file, model]] {
        let headers = "Content-Type: multipart/form-data; boundary=\"X;Y\"\r\n";
        let request = post("/v1/audio/transcriptions", headers, &form(&parts));
        let (head, reply) = exchange(daemon.address(), &request);
        ours(&head, &reply, "form");
    }
}

#[test]
fn a_body_that_does_not_unpack_is_explained_here_while_ollama_is_away() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = daemon(&format!("http://{}", socket.local_addr().unwrap()));
    drop(socket);
    let too_long = zstd(format!("{{\"model\":\"hf:o/r\",\"x\":\"{}\"}}", " ".repeat(21 << 20)));
    for (path, body, status, expected) in [
        (
            V1[0],
            &b"{\"model\":\"hf:o/r\"}"[..],
            400,
            "invalid input: magic number mismatch",
        ),
        (
            V1[4],
            b"{\"model\":\"hf:o/r\"}",
            400,
            "invalid input: magic number mismatch",
        ),
        (V1[0], &too_long, 400, "http: request body too large"),
        (V1[0], &zstd("{\"model\":"), 400, "unexpected EOF"),
        (V1[0], &zstd("{\"model\":\"plain\"}"), 502, "does not answer"),
    ] {
        let (head, reply) = exchange(daemon.address(), &post(path, "Content-Encoding: zstd\r\n", body));
        let reply: serde_json::Value = serde_json::from_slice(&reply).unwrap();
        let message = reply["error"]["message"].as_str().expect("the dialect's shape");
        assert_eq!(head.status(), status, "{message}");
        assert!(message.contains(expected), "{message}");
    }
}
