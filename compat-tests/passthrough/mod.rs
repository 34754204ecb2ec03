//! Requests for plain names and their replies are forwarded byte for byte.

mod packed;
mod recordings;

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http_body_util::BodyExt;
use hubllama::{
    api::{ApiHandler, RequestHandler, StatusDocument},
    config::Config,
    http::body,
    library::Library,
    lifecycle::{Lifecycle, TemplateHelper, WorkerCommand},
    provider::{CallContext, HuggingFace, Ollama, Registry, UpstreamError},
    server::BoundAddress,
};
use hyper::{HeaderMap, Request};

use crate::harness::{
    daemon::Daemon,
    fake_ollama::FakeOllama,
    raw_http::{Connection, Head, PATIENCE, chunk_of},
};

/// Headers that every hop adds. They are not compared.
const HOP: &str = "x-hubllama-hop";

/// Creates the daemon's own API as the handler. No hf: model is requested, so no worker is started.
fn handler(config: Arc<ArcSwap<Config>>) -> Arc<dyn RequestHandler> {
    let worker = WorkerCommand::default();
    let lifecycle = Lifecycle::start(worker.clone());
    let hub = Library::new(Path::new("/nonexistent"));
    let nothing: StatusDocument = Arc::new(|| serde_json::Value::Null);
    Arc::new(ApiHandler {
        registry: Registry::new(Arc::new(HuggingFace::new(hub, lifecycle, TemplateHelper::new(worker)))),
        upstream: Arc::new(Ollama::new()),
        config,
        health: Arc::clone(&nothing),
        config_status: nothing,
    })
}

fn daemon(ollama: &FakeOllama) -> Daemon {
    let daemon = Daemon::start(Config::default(), handler);
    daemon.set_upstream(&ollama.url());
    daemon
}

/// Returns a JSON object of this length in bytes.
fn json_of(len: usize) -> Vec<u8> {
    let frame = br#"{"model":"m","prompt":""}"#.len();
    let text: Vec<u8> = (0..len.saturating_sub(frame))
        .map(|at| b'a' + (at % 23 + at / 977 % 3) as u8)
        .collect();
    let text = String::from_utf8(text).unwrap();
    format!(r#"{{"model":"m","prompt":"{text}"}}"#).into_bytes()
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Sends a request on a new connection.
fn exchange(address: SocketAddr, request: &[u8]) -> (Head, Vec<u8>) {
    let mut connection = Connection::open(address);
    connection.send(request);
    let head = connection.head();
    let body = connection.body(&head);
    (head, body)
}

/// Returns a sender for the test, and the receiver on which a script waits for it.
fn gate() -> (SyncSender<()>, Mutex<Receiver<()>>) {
    let (open, opened) = sync_channel(64);
    (open, Mutex::new(opened))
}

fn wait(gate: &Mutex<Receiver<()>>) {
    gate.lock()
        .unwrap()
        .recv_timeout(PATIENCE)
        .expect("the test opens the gate");
}

/// Starts an Ollama that returns every body with the framing in which it was received.
fn echo() -> FakeOllama {
    FakeOllama::start(|request, connection| {
        if request.head.header("transfer-encoding").is_some() {
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            connection.send_chunked(&request.body, 100_000);
        } else {
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                request.body.len()
            ));
            connection.send(&request.body);
        }
        true
    })
}

// Blobs and images make bodies of any size (traps 24, 60).
#[test]
fn bodies_of_every_size_arrive_as_they_were_sent() {
    let ollama = echo();
    let daemon = daemon(&ollama);
    for path in ["/api/chat", "/api/blobs/sha256:00"] {
        for len in [0, 1 << 10, 50 << 20] {
            let sent = if len == 0 { Vec::new() } else { json_of(len) };
            for chunked in [false, true] {
                let mut client = Connection::open(daemon.address());
                let framing = if chunked {
                    "transfer-encoding: chunked".into()
                } else {
                    format!("Content-LENGTH: {}", sent.len())
                };
                client.send(format!(
                    "POST {path}?a=%2F&b HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
                ));
                // Ollama may answer while the client is still sending.
                let writer_bytes = sent.clone();
                if chunked {
                    client.send_chunked(&writer_bytes, 64 << 10);
                } else {
                    client.send(&writer_bytes);
                }
                let head = client.head();
                let body = client.body(&head);

                let received = ollama.received();
                let what = format!("{path} {len} {chunked}");
                assert_eq!(received.head.line, format!("POST {path}?a=%2F&b HTTP/1.1"), "{what}");
                assert!(received.whole && received.body == sent, "{what}");
                assert!(body == sent, "{what}");
                let (length, encoding) = (
                    received.head.header("content-length"),
                    received.head.header("transfer-encoding"),
                );
                assert_eq!((length.is_some(), encoding.is_some()), (!chunked, chunked), "{what}");
                assert_eq!(head.header("transfer-encoding").is_some(), chunked, "{what}");
            }
        }
    }
}

// Ollama checks Host and Origin, so those of the client are not forwarded (traps 29, 61).
#[test]
fn headers_keep_their_spelling_and_order() {
    let ollama = FakeOllama::answering(
        "HTTP/1.1 299 Quite Fine\r\ncontent-TYPE: text/x\r\nX-Odd-Name: 1\r\nx-odd-name: 2\r\nVary: Origin\r\n\
         Access-Control-Allow-Origin: *\r\nKeep-Alive: timeout=5\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
         DATE: Mon, 23 Nov 2026 00:00:00 GMT\r\ncontent-length: 2\r\n\r\nok",
    );
    let daemon = daemon(&ollama);
    let (head, body) = exchange(
        daemon.address(),
        b"POST /api/chat HTTP/1.1\r\nhOST: localhost:1\r\nuser-AGENT: curl/8\r\nAccept: */*\r\naccept-encoding: gzip\r\n\
          AUTHORIZATION: Bearer x\r\nX-A: 1\r\nOrigin: http://localhost:3000\r\nconnection: keep-alive, x-private\r\n\
          X-Private: 1\r\nTE: trailers\r\nx-a: 2\r\nContent-Length: 2\r\n\r\n{}",
    );
    let received = ollama.received();
    let pairs = |lines: &[(&str, &str)]| -> Vec<(String, String)> {
        lines
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    assert!(received.head.header(HOP).is_some());
    assert_eq!(
        received.head.without(&[HOP]),
        pairs(&[
            ("hOST", &ollama.address().to_string()),
            ("user-AGENT", "curl/8"),
            ("Accept", "*/*"),
            ("accept-encoding", "gzip"),
            ("AUTHORIZATION", "Bearer x"),
            ("X-A", "1"),
            ("x-a", "2"),
            ("Content-Length", "2"),
        ])
    );
    assert_eq!(
        (head.line.as_str(), body.as_slice()),
        ("HTTP/1.1 299 Quite Fine", &b"ok"[..])
    );
    assert_eq!(
        head.headers,
        pairs(&[
            ("content-TYPE", "text/x"),
            ("X-Odd-Name", "1"),
            ("x-odd-name", "2"),
            ("DATE", "Mon, 23 Nov 2026 00:00:00 GMT"),
            ("content-length", "2"),
            // hubllama's server adds these headers for the origin.
            ("Vary", "Origin"),
            ("Access-Control-Allow-Origin", "http://localhost:3000"),
        ])
    );
}

/// Ollama sends each frame only after the client has received the one before it, so no frame can have been held back.
// A proxy that buffers delays every token (trap 31).
#[test]
fn no_frame_is_held_back() {
    for (content_type, frames) in [
        (
            "application/x-ndjson",
            ["{\"a\":1}\n", "{\"a\":\"\u{2028}<\"}\n", "{\"done\":true}\n"],
        ),
        (
            "text/event-stream",
            ["data: {\"a\":1}\n\n", "event: ping\ndata: {}\n\n", "data: [DONE]\n\n"],
        ),
    ] {
        let (open, gate) = gate();
        let ollama = FakeOllama::start(move |_, connection| {
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
            ));
            for frame in frames {
                wait(&gate);
                connection.send(chunk_of(frame));
            }
            wait(&gate);
            connection.send("0\r\n\r\n");
            true
        });
        let daemon = daemon(&ollama);
        let mut client = Connection::open(daemon.address());
        client.send(post("/v1/chat/completions", b"{\"model\":\"m\",\"stream\":true}"));
        let head = client.head();
        assert_eq!(head.header("Content-Type"), Some(content_type));
        for frame in frames {
            open.send(()).unwrap();
            assert_eq!(client.chunk().as_deref(), Some(frame.as_bytes()));
        }
        open.send(()).unwrap();
        assert_eq!(client.chunk(), None);
    }
}

// Ollama generates until its client disconnects (trap 33).
#[test]
fn a_client_that_disconnects_ends_its_request_to_ollama() {
    let beginnings = ["", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"];
    for beginning in beginnings {
        let (started, starts) = sync_channel(1);
        let (report, reports) = sync_channel(1);
        let ollama = FakeOllama::start(move |_, connection| {
            connection.send(beginning);
            started.send(()).unwrap();
            report.send(connection.closes()).unwrap();
            false
        });
        let daemon = daemon(&ollama);
        let mut client = Connection::open(daemon.address());
        client.send(post("/api/generate", b"{\"model\":\"m\"}"));
        starts.recv_timeout(PATIENCE).expect("a request at Ollama");
        if !beginning.is_empty() {
            client.head();
            client.chunk().expect("a chunk");
        }
        drop(client);
        let closed = reports
            .recv_timeout(Duration::from_secs(2))
            .expect("the connection to end soon");
        assert!(closed);
    }
}

#[test]
fn an_upload_that_breaks_off_breaks_off_at_ollama() {
    let ollama = echo();
    let daemon = daemon(&ollama);
    let mut client = Connection::open(daemon.address());
    client.send("POST /api/blobs/sha256:00 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n");
    client.send(vec![b'x'; 500_000]);
    drop(client);
    assert!(!ollama.received().whole);
}

#[test]
fn a_reply_that_breaks_off_breaks_off() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let ollama = FakeOllama::start(move |_, connection| {
            connection.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n2\r\n{{}}\r\n"));
            false
        });
        let daemon = daemon(&ollama);
        let mut client = Connection::open(daemon.address());
        client.send(post("/api/chat", b"{\"model\":\"m\"}"));
        let head = client.head();
        assert_eq!(head.status(), 200);
        assert!(!client.body_so_far(&head).1);
    }
}

#[test]
fn a_connection_is_used_again() {
    let ollama = echo();
    let daemon = daemon(&ollama);
    let mut client = Connection::open(daemon.address());
    for number in 0..3 {
        let sent = format!("{{\"model\":\"m\",\"number\":{number}}}");
        client.send(post("/api/chat", sent.as_bytes()));
        let head = client.head();
        assert_eq!(client.body(&head), sent.as_bytes());
        assert_eq!(ollama.received().body, sent.as_bytes());
    }
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on() {
    let ollama = echo();
    let daemon = daemon(&ollama);
    let mut client = Connection::open(daemon.address());
    client.send("POST /api/chat HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 13\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.send("{\"model\":\"m\"}");
    let head = client.head();
    assert_eq!(
        (head.status(), client.body(&head).as_slice()),
        (200, &b"{\"model\":\"m\"}"[..])
    );
    assert_eq!(ollama.received().head.header("expect"), None);
}

#[test]
fn a_ring_of_daemons_is_one_clear_error() {
    let first = Daemon::start(Config::default(), handler);
    let second = Daemon::start(Config::default(), handler);
    first.set_upstream(&format!("http://{}", second.address()));
    second.set_upstream(&format!("http://{}", first.address()));
    let own = Daemon::start(Config::default(), handler);
    own.set_upstream(&format!("http://{}", own.address()));
    for daemon in [&first, &own] {
        let (head, body) = exchange(daemon.address(), &post("/api/chat", b"{\"model\":\"m\"}"));
        assert_eq!(
            (head.status(), head.header("content-type")),
            (508, Some("application/json; charset=utf-8"))
        );
        let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(error["error"].as_str().unwrap().contains("ollama.url"), "{error}");
    }
}

/// Returns a port where nothing listens.
fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn an_ollama_that_is_down_is_said_in_every_dialect() {
    let daemon = Daemon::start(Config::default(), handler);
    let url = format!("http://{}", closed_port());
    daemon.set_upstream(&url);
    for (path, pointer) in [
        ("/api/chat", "/error"),
        ("/v1/completions", "/error/message"),
        ("/v1/messages", "/error/message"),
    ] {
        let (head, body) = exchange(daemon.address(), &post(path, b"{\"model\":\"m\"}"));
        assert_eq!(head.status(), 502, "{path}");
        let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let sentence = error.pointer(pointer).and_then(|text| text.as_str()).unwrap();
        assert!(sentence.contains(&url) && sentence.contains("ollama.url"), "{sentence}");
    }
}

#[test]
fn an_ollama_that_closes_without_a_word_is_502() {
    let ollama = FakeOllama::start(|_, _| false);
    let daemon = daemon(&ollama);
    let (head, _) = exchange(daemon.address(), &post("/api/chat", b"{\"model\":\"m\"}"));
    assert_eq!(head.status(), 502);
    ollama.received();
}

#[test]
fn an_ollama_that_is_switched_off_is_404() {
    let mut config = Config::default();
    config.ollama.enabled = false;
    let daemon = Daemon::start(config, handler);
    let (head, body) = exchange(daemon.address(), &post("/api/chat", b"{\"model\":\"m\"}"));
    assert_eq!(head.status(), 404);
    assert!(String::from_utf8(body).unwrap().contains("ollama.enabled"));
}

#[test]
fn listings_are_fetched_within_bounds() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let get = |ollama: &FakeOllama, headers: &HeaderMap| {
        let mut config = Config::default();
        config.ollama.url = ollama.url();
        let call = CallContext {
            config: Arc::new(config),
            arrived: Instant::now(),
        };
        runtime.block_on(Ollama::new().get(&call, "/api/tags?x", headers))
    };
    let mut headers = HeaderMap::new();
    headers.insert(HOP, "somebody".parse().unwrap());

    let ollama = FakeOllama::answering("HTTP/1.1 203 OK\r\nContent-Length: 2\r\n\r\n{}");
    let (status, body) = get(&ollama, &headers).unwrap();
    assert_eq!((status.as_u16(), body.as_ref()), (203, &b"{}"[..]));
    let received = ollama.received().head;
    assert_eq!(received.line, "GET /api/tags?x HTTP/1.1");
    assert!(received.header(HOP).unwrap().starts_with("somebody, "));

    let huge = FakeOllama::answering("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{}");
    assert!(matches!(get(&huge, &headers), Err(UpstreamError::TooLarge { .. })));
    let broken = FakeOllama::start(|_, connection| {
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}");
        false
    });
    assert!(matches!(get(&broken, &headers), Err(UpstreamError::Unfinished { .. })));
}

#[test]
fn a_soft_stop_lets_streams_end() {
    let (open, gate) = gate();
    let ollama = FakeOllama::start(move |_, connection| {
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
        wait(&gate);
        connection.send("1\r\nb\r\n0\r\n\r\n");
        true
    });
    let daemon = daemon(&ollama);
    let mut idle = Connection::open(daemon.address());
    let mut client = Connection::open(daemon.address());
    client.send(post("/api/chat", b"{\"model\":\"m\"}"));
    client.head();
    assert_eq!(client.chunk().as_deref(), Some(&b"a"[..]));

    daemon.stop.soft.cancel();
    assert!(idle.closes());
    open.send(()).unwrap();
    assert_eq!((client.chunk().as_deref(), client.chunk()), (Some(&b"b"[..]), None));
    daemon.ended().unwrap();
}

#[test]
fn a_stop_drops_streams_in_the_end() {
    for hard in [false, true] {
        let ollama = FakeOllama::start(move |_, connection| {
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
            connection.closes();
            false
        });
        let daemon = daemon(&ollama);
        let mut config = Config::clone(&daemon.settings.load());
        config.server.shutdown_timeout = if hard {
            Duration::from_secs(3600)
        } else {
            Duration::from_millis(50)
        };
        daemon.settings.store(Arc::new(config));
        let mut client = Connection::open(daemon.address());
        client.send(post("/api/chat", b"{\"model\":\"m\"}"));
        client.head();
        daemon.stop.soft.cancel();
        if hard {
            daemon.stop.hard.cancel();
        }
        daemon.ended().unwrap();
        assert!(client.closes());
    }
}

#[test]
fn a_head_beyond_the_bound_is_refused() {
    let ollama = echo();
    let daemon = daemon(&ollama);
    let padding = "x".repeat(daemon.settings.load().server.max_header_bytes);
    let mut client = Connection::open(daemon.address());
    let _ = client.try_send(format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: {padding}\r\n\r\n"
    ));
    assert_eq!(client.head().status(), 431);
}

#[test]
fn connections_beyond_the_bound_wait() {
    let ollama = echo();
    let mut config = Config::default();
    config.server.max_connections = 1;
    config.ollama.url = ollama.url();
    let daemon = Daemon::start(config, handler);
    let mut first = Connection::open(daemon.address());
    first.send(post("/api/chat", b"{\"number\":1}"));
    let head = first.head();
    first.body(&head);
    assert_eq!(ollama.received().body, b"{\"number\":1}");

    let mut second = Connection::open(daemon.address());
    second.send(post("/api/chat", b"{\"number\":2}"));
    first.send(post("/api/chat", b"{\"number\":3}"));
    let head = first.head();
    first.body(&head);
    assert_eq!(ollama.received().body, b"{\"number\":3}");
    drop(first);
    let head = second.head();
    assert_eq!(second.body(&head), b"{\"number\":2}");
}

#[test]
fn http_2_and_unix_sockets_reach_the_same_server() {
    let ollama = echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut config = Config::default();
    config.ollama.url = ollama.url();
    config.server.listen = vec!["127.0.0.1:0".into(), format!("unix:{}", path.display())];
    let daemon = Daemon::start(config, handler);
    assert_eq!(daemon.addresses()[1], BoundAddress::Unix(path.clone()));

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let executor = hyper_util::rt::TokioExecutor::new();
        let client = hyper_util::client::legacy::Client::builder(executor.clone())
            .http2_only(true)
            .build_http();
        let request = Request::post(format!("http://{}/api/chat?q", daemon.address()))
            .body(body::full("{}"))
            .unwrap();
        let response = client.request(request).await.unwrap();
        assert_eq!(response.version(), hyper::Version::HTTP_2);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{}");
        assert_eq!(ollama.received().head.line, "POST /api/chat?q HTTP/1.1");

        let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        // Host names are only checked on addresses that web pages can reach.
        let request = Request::post("/api/chat")
            .header("host", "any.example")
            .body(body::full("{}"))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
    });
    daemon.stop.soft.cancel();
    daemon.stop.hard.cancel();
    daemon.ended().unwrap();
    assert!(!path.exists());
}
