//! Plays every exchange that was recorded from a real Ollama behind the daemon.

use std::sync::{Arc, Mutex};

use hubllama::config::Config;

use super::{HOP, handler};
use crate::harness::{
    daemon::Daemon,
    fake_ollama::FakeOllama,
    raw_http::{Connection, chunk_of},
    recording::Recording,
};

/// Headers that belong to a connection or to its server.
const CONNECTION_HEADERS: [&str; 4] = ["connection", "date", "transfer-encoding", HOP];

impl Recording {
    /// Returns true if the daemon forwards the request.
    fn is_forwarded(&self) -> bool {
        let path = self.route();
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

fn without_connection(headers: &[(String, String)]) -> Vec<(String, String)> {
    let kept = |name: &str| !CONNECTION_HEADERS.iter().any(|other| other.eq_ignore_ascii_case(name));
    headers.iter().filter(|(name, _)| kept(name)).cloned().collect()
}

// JSON that is parsed and serialized again loses order and number formats (traps 60, 61).
#[test]
fn every_recorded_exchange_passes_unchanged() {
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
    for recording in Recording::all()
        .into_iter()
        .map(Arc::new)
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
