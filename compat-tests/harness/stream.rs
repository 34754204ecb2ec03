//! A streamed answer, read frame by frame as it comes.

use serde_json::Value;

use super::{
    hubllama::Hubllama,
    raw_http::{Connection, Head},
};

/// A request under way. Dropping it closes its connection, as a client does that goes away.
pub(crate) struct Stream {
    connection: Connection,
    head: Option<Head>,
    pending: Vec<u8>,
    ended: bool,
    /// Whether the body ended as its framing says.
    pub(crate) whole: bool,
}

impl Stream {
    /// Sends a request; nothing is read yet.
    pub(crate) fn open(daemon: &Hubllama, path: &str, body: &Value) -> Self {
        Self::on(Connection::open(daemon.address()), path, body)
    }

    /// The same on a connection that a test made.
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

    /// The reply's head, waited for.
    pub(crate) fn head(&mut self) -> &Head {
        self.head.get_or_insert_with(|| self.connection.head())
    }

    /// The next line of the body, without its end.
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

    /// The next frame of an NDJSON body.
    pub(crate) fn frame(&mut self) -> Option<Value> {
        self.line()
            .map(|line| serde_json::from_str(&line).unwrap_or_else(|_| panic!("no frame: {line:?}")))
    }

    /// The next `count` frames, none of which may be the last.
    pub(crate) fn frames(&mut self, count: usize) -> Vec<Value> {
        (0..count)
            .map(|_| {
                let frame = self.frame().expect("a frame");
                assert_eq!(frame["done"], false, "{frame}");
                frame
            })
            .collect()
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.frame()).collect()
    }
}

/// The text of `/api/generate` frames.
pub(crate) fn text_of(frames: &[Value]) -> String {
    frames
        .iter()
        .map(|frame| frame["response"].as_str().expect("text"))
        .collect()
}
