//! Newline-delimited JSON, as Ollama streams it: one object, one line feed, one frame.

use bytes::{BufMut, Bytes, BytesMut};

/// Content type of a stream.
pub const CONTENT_TYPE: &str = "application/x-ndjson";

/// One object as a frame. `json` is compact: it holds no line feed of its own.
pub fn frame(json: impl AsRef<[u8]>) -> Bytes {
    let json = json.as_ref();
    let mut frame = BytesMut::with_capacity(json.len() + 1);
    frame.put_slice(json);
    frame.put_u8(b'\n');
    frame.freeze()
}

#[cfg(test)]
mod tests {
    // Trap 3
    #[test]
    fn a_frame_ends_with_a_line_feed() {
        assert_eq!(super::frame("{}"), "{}\n");
    }
}
