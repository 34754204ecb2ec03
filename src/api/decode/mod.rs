//! Request bodies, read the way Go's `encoding/json` reads them into a struct: keys in any case, unknown keys ignored,
//! the last duplicate wins, one value and no look behind it, and the same sentences when it does not fit.
//!
//! Nothing here knows a route or a model.

mod base64;
mod fields;
mod node;
mod parse;

pub(crate) use base64::decode as decode_base64;
pub(crate) use fields::{Field, entries_of};
pub(crate) use node::Node;

/// Why a body could not be read. The text is Go's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Nothing but blanks.
    #[error("missing request body")]
    Empty,
    /// The value does not end.
    #[error("unexpected EOF")]
    Truncated,
    /// Not JSON, or JSON of another shape.
    #[error("{0}")]
    Malformed(String),
}

impl DecodeError {
    /// An error in our own words.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Malformed(message.into())
    }
}

/// A text as Go's `%q` prints it.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            other => push_printable(&mut quoted, other),
        }
    }
    quoted.push('"');
    quoted
}

/// A byte as Go's JSON scanner names it: as the Latin-1 character that it is, between single quotes.
fn quote_byte(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => "'\\\\'".to_owned(),
        byte => {
            let mut quoted = String::from("'");
            push_printable(&mut quoted, char::from(byte));
            quoted.push('\'');
            quoted
        }
    }
}

fn push_printable(out: &mut String, character: char) {
    match character {
        '\u{7}' => out.push_str("\\a"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{b}' => out.push_str("\\v"),
        other if u32::from(other) < 0x20 || other == '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(other))),
        other if other.is_control() || other == '\u{a0}' || other == '\u{ad}' => {
            out.push_str(&format!("\\u{:04x}", u32::from(other)));
        }
        other => out.push(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_follows_go() {
        assert_eq!(quote("a \"b\" \\ \n é"), r#""a \"b\" \\ \n é""#);
        assert_eq!(quote_byte(0x1f), "'\\x1f'");
        assert_eq!(quote_byte(0xef), "'ï'");
        assert_eq!(quote_byte(b'\''), "'\\''");
    }
}
