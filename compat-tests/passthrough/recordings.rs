//! Every exchange that was recorded from a real Ollama, played again behind the daemon.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hubllama::config::Config;
use serde_json::Value;

use super::{HOP, handler};
use crate::harness::{
    daemon::Daemon,
    fake_ollama::FakeOllama,
    raw_http::{Connection, chunk_of},
};

/// Belongs to one connection, or to its server.
const CONNECTION_HEADERS: [&str; 4] = ["connection", "date", "transfer-encoding", HOP];

struct Recording {
    name: String,
    method: String,
    path: String,
    request_headers: Vec<(String, String)>,
    request_body: Option<Vec<u8>>,
    status: u16,
    headers: Vec<(String, String)>,
    chunks: Vec<Vec<u8>>,
}

impl Recording {
    fn read(path: &Path) -> Self {
        let recording: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (request, response) = (&recording["request"], &recording["response"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let chunks: Vec<_> = response["chunks"].as_array().unwrap().iter().map(bytes).collect();
        // Some recorded bodies were shortened, or parts of them masked; those of HEAD are not there at all.
        let length = chunks.iter().map(Vec::len).sum::<usize>().to_string();
        let is_length = |name: &str| name == "Content-Length" && request["method"] != "HEAD";
        Self {
            name: text(&recording["name"]),
            method: text(&request["method"]),
            path: text(&request["path"]),
            request_headers: request["headers"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, value)| (name.clone(), text(value)))
                .collect(),
            request_body: request.get("body").filter(|body| !body.is_null()).map(bytes),
            status: response["status"].as_u64().unwrap() as u16,
            headers: response["headers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|line| (text(&line[0]), text(&line[1])))
                .map(|(name, value)| {
                    if is_length(&name) {
                        (name, length.clone())
                    } else {
                        (name, value)
                    }
                })
                .collect(),
            chunks,
        }
    }

    /// Whether the daemon forwards such a request, instead of answering it by itself.
    fn is_forwarded(&self) -> bool {
        let path = self.path.split('?').next().unwrap();
        let ours = ["/", "/api/version", "/api/tags", "/api/ps", "/v1/models"].contains(&path);
        let refused = [301, 307, 405].contains(&self.status) && path != "/api/nothing";
        let headers = |name: &str| {
            self.request_headers
                .iter()
                .any(|(header, _)| header.eq_ignore_ascii_case(name))
        };
        let body = String::from_utf8_lossy(self.request_body.as_deref().unwrap_or_default()).into_owned();
        !ours && !refused && !headers("origin") && !self.name.starts_with("host-") && !body.contains("\"hf:")
    }

    fn is_chunked(&self) -> bool {
        self.headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"))
    }

    fn request(&self) -> Vec<u8> {
        let mut request = format!("{} {} HTTP/1.1\r\n", self.method, self.path).into_bytes();
        for (name, value) in &self.request_headers {
            request.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        let body = self.request_body.as_deref();
        if let Some(body) = body {
            request.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(body.unwrap_or_default());
        request
    }

    fn play(&self, connection: &mut Connection) {
        connection.send(format!("HTTP/1.1 {} Recorded\r\n", self.status));
        for (name, value) in &self.headers {
            connection.send(format!("{name}: {value}\r\n"));
        }
        connection.send("\r\n");
        for chunk in &self.chunks {
            connection.send(if self.is_chunked() {
                chunk_of(chunk)
            } else {
                chunk.clone()
            });
        }
        if self.is_chunked() {
            connection.send("0\r\n\r\n");
        }
    }
}

fn bytes(body: &Value) -> Vec<u8> {
    match (body["text"].as_str(), body["base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(base64)) => STANDARD.decode(base64).unwrap(),
        (None, None) => panic!("no body: {body}"),
    }
}

fn without_connection(headers: &[(String, String)]) -> Vec<(String, String)> {
    let kept = |name: &str| !CONNECTION_HEADERS.iter().any(|other| other.eq_ignore_ascii_case(name));
    headers.iter().filter(|(name, _)| kept(name)).cloned().collect()
}

#[test]
fn every_recorded_exchange_passes_unchanged() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ollama-recordings");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();

    let playing: Arc<Mutex<Option<Arc<Recording>>>> = Arc::default();
    let played = Arc::clone(&playing);
    let ollama = FakeOllama::start(move |_, connection| {
        let recording = played.lock().unwrap().clone().expect("a recording to play");
        recording.play(connection);
        !recording
            .headers
            .iter()
            .any(|(name, value)| name == "Connection" && value == "close")
    });
    let daemon = Daemon::start(Config::default(), handler);
    daemon.set_upstream(&ollama.url());

    let mut count = 0;
    for recording in paths
        .iter()
        .map(|path| Arc::new(Recording::read(path)))
        .filter(|recording| recording.is_forwarded())
    {
        let name = &recording.name;
        *playing.lock().unwrap() = Some(Arc::clone(&recording));
        let mut client = Connection::open(daemon.address());
        client.send(recording.request());
        let head = client.head();
        let body = if recording.method == "HEAD" {
            Vec::new()
        } else {
            client.body(&head)
        };

        let received = ollama.received();
        assert_eq!(
            received.head.line,
            format!("{} {} HTTP/1.1", recording.method, recording.path),
            "{name}"
        );
        assert_eq!(
            received.body,
            recording.request_body.clone().unwrap_or_default(),
            "{name}"
        );
        let sent = without_connection(&recording.request_headers);
        for (header, value) in sent.iter().filter(|(header, _)| header != "Host") {
            assert!(
                received.head.headers.contains(&(header.clone(), value.clone())),
                "{name}: {header}"
            );
        }

        assert_eq!(head.line, format!("HTTP/1.1 {} Recorded", recording.status), "{name}");
        assert_eq!(
            without_connection(&head.headers),
            without_connection(&recording.headers),
            "{name}"
        );
        assert!(body == recording.chunks.concat(), "{name}");
        count += 1;
    }
    assert!(count > 200, "only {count} recordings were played");
}
