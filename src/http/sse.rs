//! Server-sent events, the format of OpenAI's and Anthropic's streams.

use bytes::{BufMut, Bytes, BytesMut};

/// Content type of an event stream.
pub const CONTENT_TYPE: &str = "text/event-stream";

/// End of an OpenAI stream.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// Comment that parsers ignore and that keeps proxies from closing an idle connection.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// Returns an event without a name. Each line of `data` becomes a `data:` line.
pub fn data(data: impl AsRef<[u8]>) -> Bytes {
    encode(None, data.as_ref())
}

/// Returns an event with a name.
pub fn event(name: &str, data: impl AsRef<[u8]>) -> Bytes {
    encode(Some(name), data.as_ref())
}

fn encode(name: Option<&str>, data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(data.len() + name.map_or(0, |name| name.len() + 8) + 8);
    if let Some(name) = name {
        frame.put_slice(b"event: ");
        frame.put_slice(name.as_bytes());
        frame.put_u8(b'\n');
    }
    for line in data.split(|byte| *byte == b'\n') {
        frame.put_slice(b"data: ");
        frame.put_slice(line);
        frame.put_u8(b'\n');
    }
    frame.put_u8(b'\n');
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events() {
        assert_eq!(data("{}"), "data: {}\n\n");
        assert_eq!(event("ping", "{}"), "event: ping\ndata: {}\n\n");
        assert_eq!(data("a\nb"), "data: a\ndata: b\n\n");
    }
}
