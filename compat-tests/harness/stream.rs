//! Reads a streamed reply frame by frame as it arrives.

use serde_json::Value;

use super::{
    hubllama::Hubllama,
    raw_http::{Connection, Head},
};

/// Request in progress. Dropping it closes its connection, as a client does that disconnects.
pub(crate) struct Stream {
    connection: Connection,
    head: Option<Head>,
    pending: Vec<u8>,
    ended: bool,
    /// True when the body has ended as its framing requires.
    pub(crate) whole: bool,
}

impl Stream {
    /// Sends a request without reading the reply.
    pub(crate) fn open(daemon: &Hubllama, path: &str, body: &Value) -> Self {
        Self::on(Connection::open(daemon.address()), path, body)
    }

    /// Sends a request on an existing connection without reading the reply.
    pub(crate) fn on(mut connection: Connection, path: &str, body: &Value) -> Self {
        let body = body.to_string();
        connection.send(format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        Self {
            connection,
            head: None,
            pending: Vec::new(),
            ended: false,
            whole: false,
        }
    }

    /// Waits for the head of the reply and returns it.
    pub(crate) fn head(&mut self) -> &Head {
        self.head.get_or_insert_with(|| self.connection.head())
    }

    /// Returns the next line of the body without its line feed; `None` at the end.
    pub(crate) fn line(&mut self) -> Option<String> {
        let chunked = self.head().header("transfer-encoding") == Some("chunked");
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(String::from_utf8(line[..end].to_vec()).expect("UTF-8"));
            }
            if self.ended {
                let rest = std::mem::take(&mut self.pending);
                return (!rest.is_empty()).then(|| String::from_utf8(rest).expect("UTF-8"));
            }
            if !chunked {
                let head = self.head().clone();
                let (body, whole) = self.connection.body_so_far(&head);
                self.pending.extend(body);
                (self.ended, self.whole) = (true, whole);
                continue;
            }
            match self.connection.try_chunk() {
                Some(chunk) if chunk.is_empty() => (self.ended, self.whole) = (true, true),
                Some(chunk) => self.pending.extend(chunk),
                None => self.ended = true,
            }
        }
    }

    /// Returns the next frame of an NDJSON body; `None` at the end.
    pub(crate) fn frame(&mut self) -> Option<Value> {
        self.line()
            .map(|line| serde_json::from_str(&line).unwrap_or_else(|_| panic!("no frame: {line:?}")))
    }

    /// Returns the next `count` frames, none of which may be the last.
    pub(crate) fn frames(&mut self, count: usize) -> Vec<Value> {
        (0..count)
            .map(|_| {
                let frame = self.frame().expect("a frame");
                assert_eq!(frame["done"], false, "{frame}");
                frame
            })
            .collect()
    }

    /// Returns all remaining frames.
    pub(crate) fn rest(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.frame()).collect()
    }
}

/// Returns the text of `/api/generate` frames.
pub(crate) fn text_of(frames: &[Value]) -> String {
    frames
        .iter()
        .map(|frame| frame["response"].as_str().expect("text"))
        .collect()
}
