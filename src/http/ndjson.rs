//! Newline-delimited JSON, the format of Ollama's streams: one object, one line feed, one frame.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use memchr::memchr;

use super::body::{Body, BoxError};

/// Content type of an NDJSON stream.
pub const CONTENT_TYPE: &str = "application/x-ndjson";

/// Returns a frame with one object. `json` must not hold a line feed.
pub fn frame(json: impl AsRef<[u8]>) -> Bytes {
    let json = json.as_ref();
    let mut frame = BytesMut::with_capacity(json.len() + 1);
    frame.put_slice(json);
    frame.put_u8(b'\n');
    frame.freeze()
}

/// Failure to read a line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// A line is longer than the limit.
    #[error("a line is longer than {limit} bytes")]
    TooLong {
        /// Limit in bytes.
        limit: usize,
    },
    /// The body failed.
    #[error("the stream broke off")]
    Body(#[source] BoxError),
}

/// Reader of a body's lines, each as soon as it is complete.
#[derive(Debug)]
pub struct LineReader {
    body: Body,
    buffer: BytesMut,
    /// Bytes at the front of the buffer that are known to hold no line feed, so that a long line is not searched again
    /// with each frame.
    scanned: usize,
    limit: usize,
}

impl LineReader {
    /// Returns a reader of `body` that accepts lines of at most `limit` bytes.
    #[must_use]
    pub fn new(body: Body, limit: usize) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            scanned: 0,
            limit,
        }
    }

    /// Returns the next line that is not blank, without its line feed; `None` at the end of the body. The last line may
    /// lack a line feed.
    ///
    /// # Errors
    ///
    /// If a line exceeds the limit, or the body fails.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            while let Some(at) = memchr(b'\n', &self.buffer[self.scanned..]) {
                let line = self.buffer.split_to(self.scanned + at).freeze();
                self.buffer.advance(1);
                self.scanned = 0;
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
            }
            self.scanned = self.buffer.len();
            // Only an unfinished line is limited: a finished one is in memory already, and no more of it can come.
            if self.scanned > self.limit {
                return Err(LineError::TooLong { limit: self.limit });
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(LineError::Body(error)),
                None => {
                    self.scanned = 0;
                    let rest = self.buffer.split().freeze();
                    return Ok((!rest.trim_ascii().is_empty()).then_some(rest));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::http::body;

    fn lines(chunks: &[&'static str], limit: usize) -> LineReader {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from(*chunk))).collect();
        LineReader::new(body::stream(stream::iter(chunks)), limit)
    }

    // Clients read whole lines, so the last frame ends with a line feed, too (trap 3).
    #[test]
    fn a_frame_ends_with_a_line_feed() {
        assert_eq!(super::frame("{}"), "{}\n");
    }

    #[tokio::test]
    async fn lines_come_whole_however_they_were_cut() {
        for chunks in [
            &["{\"a\":1}\n{\"b\":2}\n", "\n  \r\n", "{\"c\":3}"][..],
            &["{", "\"a\":1}", "\n{\"b\"", ":2}\n{\"c\":3}\n"],
        ] {
            let mut lines = lines(chunks, 100);
            for expected in ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"] {
                assert_eq!(lines.next().await.unwrap().unwrap(), expected);
            }
            assert_eq!(lines.next().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_line_beyond_the_bound_is_refused() {
        assert!(matches!(
            lines(&["aaaa", "aaaa", "a"], 8).next().await,
            Err(LineError::TooLong { limit: 8 })
        ));
        assert_eq!(
            lines(&["aaaa", "aaaa", "\n"], 8).next().await.unwrap().unwrap(),
            "aaaaaaaa"
        );
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error() {
        let broken = body::stream(stream::iter([Ok(Bytes::from("a\nb")), Err("gone".into())]));
        let mut lines = LineReader::new(broken, 8);
        assert_eq!(lines.next().await.unwrap().unwrap(), "a");
        assert!(matches!(lines.next().await, Err(LineError::Body(_))));
    }
}
