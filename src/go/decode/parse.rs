//! Parser from bytes to a [`JsonNode`], with the error texts of Go's scanner (`encoding/json/scanner.go`).

use std::borrow::Cow;

use super::{
    super::quote::quote_byte,
    error::DecodeError,
    node::{JsonMembers, JsonNode},
};

/// Deepest nesting that is accepted. Go allows 10000, which no client needs and which would overflow the stack of
/// recursive readers of the value.
const MAX_DEPTH: usize = 128;

/// Most values in one body. Bounds the memory of the tree: a value takes some 40 bytes, so 80 MiB at most.
const MAX_VALUES: usize = 1 << 21;

/// Parses the first JSON value of a body. Bytes behind it are ignored, as `json.Decoder.Decode` ignores them.
pub(crate) fn first_value(bytes: &[u8]) -> Result<JsonNode<'_>, DecodeError> {
    let mut parser = Parser {
        bytes,
        at: 0,
        values: 0,
    };
    if parser.peek().is_none() {
        return Err(DecodeError::Empty);
    }
    parser.value(0)
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    values: usize,
}

impl<'a> Parser<'a> {
    /// Skips blanks and returns the next byte without consuming it.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.bytes.get(self.at) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn value(&mut self, depth: usize) -> Result<JsonNode<'a>, DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::new("exceeded max depth"));
        }
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(DecodeError::new(format!(
                "the request body holds more than {MAX_VALUES} values"
            )));
        }
        match self.peek().ok_or(DecodeError::Truncated)? {
            b'{' => self.object(depth).map(JsonNode::Object),
            b'[' => self.array(depth).map(JsonNode::Array),
            b'"' => self.string().map(JsonNode::String),
            b'-' | b'0'..=b'9' => self.number().map(JsonNode::Number),
            b't' => self.literal("true", JsonNode::Bool(true)),
            b'f' => self.literal("false", JsonNode::Bool(false)),
            b'n' => self.literal("null", JsonNode::Null),
            other => Err(unexpected(other, "looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<JsonMembers<'a>, DecodeError> {
        self.at += 1;
        let mut entries = JsonMembers::new();
        loop {
            match self.peek().ok_or(DecodeError::Truncated)? {
                // Behind a comma Go expects another key, so a trailing comma is an error.
                b'}' if entries.is_empty() => break,
                b'"' => {}
                other => return Err(unexpected(other, "looking for beginning of object key string")),
            }
            let key = self.string()?;
            match self.peek().ok_or(DecodeError::Truncated)? {
                b':' => self.at += 1,
                other => return Err(unexpected(other, "after object key")),
            }
            entries.push((key, self.value(depth + 1)?));
            match self.peek().ok_or(DecodeError::Truncated)? {
                b',' => self.at += 1,
                b'}' => break,
                other => return Err(unexpected(other, "after object key:value pair")),
            }
        }
        self.at += 1;
        Ok(entries)
    }

    fn array(&mut self, depth: usize) -> Result<Vec<JsonNode<'a>>, DecodeError> {
        self.at += 1;
        let mut items = Vec::new();
        if self.peek().ok_or(DecodeError::Truncated)? == b']' {
            self.at += 1;
            return Ok(items);
        }
        loop {
            items.push(self.value(depth + 1)?);
            match self.peek().ok_or(DecodeError::Truncated)? {
                b',' => self.at += 1,
                b']' => break,
                other => return Err(unexpected(other, "after array element")),
            }
        }
        self.at += 1;
        Ok(items)
    }

    /// Parses a string whose opening quote is at the cursor. Borrows if it has no escapes.
    fn string(&mut self) -> Result<Cow<'a, str>, DecodeError> {
        let start = self.at + 1;
        let plain = self.plain_run(start);
        match self.bytes.get(plain).ok_or(DecodeError::Truncated)? {
            b'"' => {
                self.at = plain + 1;
                Ok(String::from_utf8_lossy(&self.bytes[start..plain]))
            }
            b'\\' => self.escaped_string(start, plain).map(Cow::Owned),
            &control => Err(unexpected(control, "in string literal")),
        }
    }

    /// Returns the index of the first byte from `from` on that ends a run of ordinary characters.
    fn plain_run(&self, from: usize) -> usize {
        self.bytes[from..]
            .iter()
            .position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20)
            .map_or(self.bytes.len(), |length| from + length)
    }

    fn escaped_string(&mut self, start: usize, first_escape: usize) -> Result<String, DecodeError> {
        let mut text = self.bytes[start..first_escape].to_vec();
        self.at = first_escape;
        loop {
            match *self.bytes.get(self.at).ok_or(DecodeError::Truncated)? {
                b'"' => break,
                b'\\' => {
                    let character = self.escape()?;
                    text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                control if control < 0x20 => return Err(unexpected(control, "in string literal")),
                _ => {
                    let end = self.plain_run(self.at);
                    text.extend_from_slice(&self.bytes[self.at..end]);
                    self.at = end;
                }
            }
        }
        self.at += 1;
        Ok(String::from_utf8(text).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Parses one escape whose backslash is at the cursor. A lone surrogate becomes U+FFFD, as in Go.
    fn escape(&mut self) -> Result<char, DecodeError> {
        let kind = *self.bytes.get(self.at + 1).ok_or(DecodeError::Truncated)?;
        self.at += 2;
        Ok(match kind {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            other => return Err(unexpected(other, "in string escape code")),
        })
    }

    fn unicode_escape(&mut self) -> Result<char, DecodeError> {
        let first = self.four_hex_digits()?;
        if let Some(character) = char::from_u32(first) {
            return Ok(character);
        }
        let is_high = (0xd800..0xdc00).contains(&first);
        if is_high && self.bytes[self.at..].starts_with(b"\\u") {
            let resume = self.at;
            self.at += 2;
            let second = self.four_hex_digits()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            // The second escape is no low surrogate: it stands for a character of its own, and is read next.
            self.at = resume;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn four_hex_digits(&mut self) -> Result<u32, DecodeError> {
        let mut code = 0;
        for _ in 0..4 {
            let byte = *self.bytes.get(self.at).ok_or(DecodeError::Truncated)?;
            let digit = char::from(byte)
                .to_digit(16)
                .ok_or_else(|| unexpected(byte, "in \\u hexadecimal character escape"))?;
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }

    fn number(&mut self) -> Result<&'a str, DecodeError> {
        let start = self.at;
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        match self.bytes.get(self.at) {
            // A number ends after a leading zero: in `01` the `1` is an unexpected character, as in Go.
            Some(b'0') => self.at += 1,
            _ => self.digits("in numeric literal")?,
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(self.at) {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        // Only ASCII was accepted up to here, so this does not fail.
        std::str::from_utf8(&self.bytes[start..self.at]).map_err(|_| DecodeError::Truncated)
    }

    /// Consumes at least one digit.
    fn digits(&mut self, place: &str) -> Result<(), DecodeError> {
        match self.bytes.get(self.at) {
            None => return Err(DecodeError::Truncated),
            Some(byte) if !byte.is_ascii_digit() => return Err(unexpected(*byte, place)),
            Some(_) => {}
        }
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        Ok(())
    }

    fn literal(&mut self, word: &'static str, node: JsonNode<'a>) -> Result<JsonNode<'a>, DecodeError> {
        for expected in word.bytes() {
            let byte = *self.bytes.get(self.at).ok_or(DecodeError::Truncated)?;
            if byte != expected {
                let place = format!("in literal {word} (expecting '{}')", char::from(expected));
                return Err(unexpected(byte, &place));
            }
            self.at += 1;
        }
        Ok(node)
    }
}

fn unexpected(byte: u8, place: &str) -> DecodeError {
    DecodeError::new(format!("invalid character {} {place}", quote_byte(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_error(body: &[u8], expected: &str) {
        let error = first_value(body).expect_err(&String::from_utf8_lossy(body));
        assert_eq!(error.to_string(), expected, "{}", String::from_utf8_lossy(body));
    }

    #[test]
    fn malformed_bodies_get_the_words_of_go() {
        for (body, expected) in [
            (&b""[..], "missing request body"),
            (b" \n\t", "missing request body"),
            (b"{\"model\":\"smol", "unexpected EOF"),
            (b"{\"model\"", "unexpected EOF"),
            (b"[1,", "unexpected EOF"),
            (b"tru", "unexpected EOF"),
            (b"-", "unexpected EOF"),
            (b"model=x", "invalid character 'm' looking for beginning of value"),
            (
                b"{model:1}",
                "invalid character 'm' looking for beginning of object key string",
            ),
            (
                b"{\"a\":1,}",
                "invalid character '}' looking for beginning of object key string",
            ),
            (b"{\"a\" 1}", "invalid character '1' after object key"),
            (b"{\"a\":1 2}", "invalid character '2' after object key:value pair"),
            (b"{\"a\":01}", "invalid character '1' after object key:value pair"),
            (b"[1 2]", "invalid character '2' after array element"),
            (b"[1,]", "invalid character ']' looking for beginning of value"),
            (
                b"\xef\xbb\xbf{}",
                "invalid character '\u{ef}' looking for beginning of value",
            ),
            (
                b"\x1f\x8b\x08",
                "invalid character '\\x1f' looking for beginning of value",
            ),
            (b"\"a\nb\"", "invalid character '\\n' in string literal"),
            (b"\"\\q\"", "invalid character 'q' in string escape code"),
            (
                b"\"\\u12g4\"",
                "invalid character 'g' in \\u hexadecimal character escape",
            ),
            (b"[1.x]", "invalid character 'x' after decimal point in numeric literal"),
            (b"[1ex]", "invalid character 'x' in exponent of numeric literal"),
            (b"[-x]", "invalid character 'x' in numeric literal"),
            (b"trux", "invalid character 'x' in literal true (expecting 'e')"),
        ] {
            check_error(body, expected);
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = "[".repeat(100_000);
        check_error(deep.as_bytes(), "exceeded max depth");
    }

    #[test]
    fn what_follows_the_first_value_is_not_read() {
        assert_eq!(first_value(b"{} trailing").unwrap(), JsonNode::Object(Vec::new()));
        assert_eq!(first_value(b" 12x").unwrap(), JsonNode::Number("12"));
    }

    #[test]
    fn strings_come_out_as_valid_text() {
        for (body, expected) in [
            (&br#""a\u00e9\ud83d\ude00\n\/""#[..], "aé😀\n/"),
            (br#""\ud83dx""#, "\u{fffd}x"),
            (br#""\ud83d\u0041""#, "\u{fffd}A"),
            (b"\"a\xffb\"", "a\u{fffd}b"),
        ] {
            assert_eq!(first_value(body).unwrap(), JsonNode::String(expected.into()));
        }
    }

    #[test]
    fn written_again_a_value_keeps_its_order_and_its_numbers() {
        let text = r#"{"b":[1.50,-0,1e9,null,true],"a":{"c":"x\"\n"}}"#;
        assert_eq!(first_value(text.as_bytes()).unwrap().to_json(), text);
    }
}
