//! Reads the exchanges with a real Ollama that are recorded in `fixtures/ollama-recordings`.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

/// Recorded request and its reply.
#[derive(Clone, Debug)]
pub(crate) struct Recording {
    pub(crate) name: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) request_headers: Vec<(String, String)>,
    pub(crate) request_body: Option<Vec<u8>>,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    /// Pieces of the body as they were received; each is one flush.
    pub(crate) chunks: Vec<Vec<u8>>,
}

impl Recording {
    /// Reads all recordings, sorted by name.
    pub(crate) fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ollama-recordings");
        let mut paths: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Self {
        let recording: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (request, response) = (&recording["request"], &recording["response"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let chunks: Vec<_> = response["chunks"].as_array().unwrap().iter().map(bytes).collect();
        // Some recorded bodies were shortened or masked, so that the recorded length is wrong. Replies to HEAD have no
        // body.
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

    /// Returns the path without its query.
    pub(crate) fn route(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    pub(crate) fn request(&self) -> Vec<u8> {
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
}

fn bytes(body: &Value) -> Vec<u8> {
    match (body["text"].as_str(), body["base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(base64)) => STANDARD.decode(base64).unwrap(),
        (None, None) => panic!("no body: {body}"),
    }
}
