//! Finds the few top-level members of a JSON object that decide its way, without building the object.
//!
//! The body itself is sent on as the bytes that came, so this reads like Ollama's decoder (Go's `encoding/json`) where
//! that matters: keys in any case, the last duplicate wins, `null` changes nothing, bytes behind the first value are
//! not looked at. It is no validator: what it cannot follow is [`PeekError::NotAnObject`], and what it skips may be
//! wrong. Memory is the same for any body.

use std::io::{self, BufRead, BufReader, Read};

use memchr::memchr2;

use super::spool::Spooled;

/// Decoded bytes of a value that are kept. The longest legal model name is a fifth of it.
pub const MAX_VALUE_BYTES: usize = 2048;

/// Depth of nesting that is followed; Go's decoder has the same bound.
const MAX_DEPTH: usize = 10_000;

/// Decoded bytes of a key that are kept: more than the longest key that is looked for.
const MAX_KEY_BYTES: usize = 16;

/// Bytes that are read from a file at once.
const READ_BYTES: usize = 64 << 10;

/// What was found. A value of another type than expected counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// `model`
    pub model: Option<String>,
    /// `name`, the older spelling of `model`
    pub name: Option<String>,
    /// `from`, of a creation
    pub from: Option<String>,
    /// `source`, of a copy
    pub source: Option<String>,
    /// `destination`, of a copy
    pub destination: Option<String>,
    /// `stream`
    pub stream: Option<bool>,
}

/// Why nothing could be said of a body.
#[derive(Debug, thiserror::Error)]
pub enum PeekError {
    /// It is not a whole JSON object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// Reading it failed.
    #[error("the body could not be read")]
    Read(#[from] io::Error),
}

/// Looks through a body, off the async threads where it lies in a file.
pub async fn spooled(body: &Spooled) -> Result<Members, PeekError> {
    match body.as_slice() {
        Some(bytes) => scan_slice(bytes),
        None => {
            let reader = body.reader();
            tokio::task::spawn_blocking(move || scan(reader))
                .await
                .map_err(io::Error::other)?
        }
    }
}

/// Looks through the first JSON value of `reader`. Strings longer than [`MAX_VALUE_BYTES`] are returned cut.
pub fn scan(reader: impl Read) -> Result<Members, PeekError> {
    Scanner {
        input: BufReader::with_capacity(READ_BYTES, reader),
    }
    .object()
}

/// Looks through the first JSON value of `bytes`.
pub fn scan_slice(bytes: &[u8]) -> Result<Members, PeekError> {
    Scanner { input: bytes }.object()
}

struct Scanner<R> {
    input: R,
}

/// A value in as much detail as its member needs.
enum Value {
    Text(String),
    Bool(bool),
    Null,
    Other,
}

impl<R: BufRead> Scanner<R> {
    fn object(mut self) -> Result<Members, PeekError> {
        let mut found = Members::default();
        match self.token()? {
            b'{' => {}
            b'n' if matches!(self.scalar(b'n')?, Value::Null) => return Ok(found),
            _ => return Err(PeekError::NotAnObject),
        }
        let mut byte = self.token()?;
        if byte == b'}' {
            return Ok(found);
        }
        loop {
            if byte != b'"' {
                return Err(PeekError::NotAnObject);
            }
            let (key, cut) = self.text(MAX_KEY_BYTES)?;
            if self.token()? != b':' {
                return Err(PeekError::NotAnObject);
            }
            let member = if cut { None } else { Member::of(&key) };
            let value = self.value(member.is_some())?;
            if let Some(member) = member {
                member.set(&mut found, value);
            }
            match self.token()? {
                b',' => byte = self.token()?,
                b'}' => return Ok(found),
                _ => return Err(PeekError::NotAnObject),
            }
        }
    }

    fn value(&mut self, wanted: bool) -> Result<Value, PeekError> {
        match self.token()? {
            b'"' if wanted => Ok(Value::Text(self.text(MAX_VALUE_BYTES)?.0)),
            b'"' => self.skip_text().map(|()| Value::Other),
            b'{' | b'[' => self.skip_nested().map(|()| Value::Other),
            first @ (b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => self.scalar(first),
            _ => Err(PeekError::NotAnObject),
        }
    }

    /// The next byte, or the error of a body that ends too early.
    fn byte(&mut self) -> Result<u8, PeekError> {
        let byte = *self.input.fill_buf()?.first().ok_or(PeekError::NotAnObject)?;
        self.input.consume(1);
        Ok(byte)
    }

    /// The next byte that is no blank.
    fn token(&mut self) -> Result<u8, PeekError> {
        loop {
            let byte = self.byte()?;
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Ok(byte);
            }
        }
    }

    /// The rest of a number, `true`, `false` or `null`, up to what delimits it.
    fn scalar(&mut self, first: u8) -> Result<Value, PeekError> {
        let mut text = [first, 0, 0, 0, 0, 0];
        let mut len = 1;
        // A body may end right behind a top-level `null`.
        while let Some(&byte) = self.input.fill_buf()?.first() {
            if matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n') {
                break;
            }
            if len < text.len() {
                text[len] = byte;
                len += 1;
            }
            self.input.consume(1);
        }
        Ok(match &text[..len] {
            b"true" => Value::Bool(true),
            b"false" => Value::Bool(false),
            b"null" => Value::Null,
            [b'-' | b'0'..=b'9', ..] => Value::Other,
            _ => return Err(PeekError::NotAnObject),
        })
    }

    /// Skips the rest of a string.
    fn skip_text(&mut self) -> Result<(), PeekError> {
        loop {
            let buffer = self.filled()?;
            match memchr2(b'"', b'\\', buffer) {
                None => {
                    let len = buffer.len();
                    self.input.consume(len);
                }
                Some(at) => {
                    let quote = buffer[at] == b'"';
                    self.input.consume(at + 1);
                    if quote {
                        return Ok(());
                    }
                    self.byte()?;
                }
            }
        }
    }

    /// Skips the rest of an object or array.
    fn skip_nested(&mut self) -> Result<(), PeekError> {
        let mut depth = 1usize;
        loop {
            let buffer = self.filled()?;
            let Some(at) = buffer
                .iter()
                .position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']'))
            else {
                let len = buffer.len();
                self.input.consume(len);
                continue;
            };
            let byte = buffer[at];
            self.input.consume(at + 1);
            match byte {
                b'"' => self.skip_text()?,
                b'{' | b'[' if depth == MAX_DEPTH => return Err(PeekError::NotAnObject),
                b'{' | b'[' => depth += 1,
                _ if depth == 1 => return Ok(()),
                _ => depth -= 1,
            }
        }
    }

    /// Decodes the rest of a string; says whether it was cut at `max_bytes`.
    fn text(&mut self, max_bytes: usize) -> Result<(String, bool), PeekError> {
        let mut text = Text {
            bytes: Vec::new(),
            max_bytes,
            cut: false,
            high_surrogate: None,
        };
        loop {
            let buffer = self.filled()?;
            let run = memchr2(b'"', b'\\', buffer);
            let len = run.unwrap_or(buffer.len());
            text.push(&buffer[..len]);
            let special = run.map(|at| buffer[at]);
            self.input.consume(len + usize::from(special.is_some()));
            match special {
                None => {}
                Some(b'"') => return Ok(text.finish()),
                Some(_) => match self.byte()? {
                    b'u' => {
                        let unit = self.hex_unit()?;
                        text.push_unit(unit);
                    }
                    b'b' => text.push(&[8]),
                    b'f' => text.push(&[12]),
                    b'n' => text.push(b"\n"),
                    b'r' => text.push(b"\r"),
                    b't' => text.push(b"\t"),
                    byte @ (b'"' | b'\\' | b'/') => text.push(&[byte]),
                    _ => return Err(PeekError::NotAnObject),
                },
            }
        }
    }

    fn hex_unit(&mut self) -> Result<u16, PeekError> {
        let mut unit = 0u16;
        for _ in 0..4 {
            let digit = char::from(self.byte()?).to_digit(16).ok_or(PeekError::NotAnObject)?;
            unit = unit << 4 | digit as u16;
        }
        Ok(unit)
    }

    /// Buffered bytes, at least one.
    fn filled(&mut self) -> Result<&[u8], PeekError> {
        let buffer = self.input.fill_buf()?;
        if buffer.is_empty() {
            Err(PeekError::NotAnObject)
        } else {
            Ok(buffer)
        }
    }
}

/// A string that is being decoded, up to a bound.
struct Text {
    bytes: Vec<u8>,
    max_bytes: usize,
    cut: bool,
    /// First half of an escaped surrogate pair.
    high_surrogate: Option<u16>,
}

impl Text {
    fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.high_surrogate.take().is_some() {
            self.append("\u{fffd}".as_bytes());
        }
        self.append(bytes);
    }

    fn push_unit(&mut self, unit: u16) {
        if let (Some(high), 0xdc00..=0xdfff) = (self.high_surrogate, unit) {
            self.high_surrogate = None;
            let code = 0x10000 + ((u32::from(high) - 0xd800) << 10) + (u32::from(unit) - 0xdc00);
            self.push_char(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
        } else if (0xd800..0xdc00).contains(&unit) {
            self.push_lone_surrogate();
            self.high_surrogate = Some(unit);
        } else {
            self.push_char(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }

    fn push_char(&mut self, char: char) {
        self.push(char.encode_utf8(&mut [0; 4]).as_bytes());
    }

    fn push_lone_surrogate(&mut self) {
        if self.high_surrogate.take().is_some() {
            self.append("\u{fffd}".as_bytes());
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = self.max_bytes - self.bytes.len();
        self.cut |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn finish(mut self) -> (String, bool) {
        self.push_lone_surrogate();
        if self.cut
            && let Err(error) = str::from_utf8(&self.bytes)
            && error.error_len().is_none()
        {
            self.bytes.truncate(error.valid_up_to());
        }
        let text = match String::from_utf8(self.bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        };
        (text, self.cut)
    }
}

#[derive(Clone, Copy)]
enum Member {
    Model,
    Name,
    From,
    Source,
    Destination,
    Stream,
}

impl Member {
    fn of(key: &str) -> Option<Self> {
        Some(match fold(key).as_str() {
            "model" => Self::Model,
            "name" => Self::Name,
            "from" => Self::From,
            "source" => Self::Source,
            "destination" => Self::Destination,
            "stream" => Self::Stream,
            _ => return None,
        })
    }

    fn set(self, members: &mut Members, value: Value) {
        if matches!(value, Value::Null) {
            return;
        }
        let slot = match self {
            Self::Model => &mut members.model,
            Self::Name => &mut members.name,
            Self::From => &mut members.from,
            Self::Source => &mut members.source,
            Self::Destination => &mut members.destination,
            Self::Stream => {
                members.stream = if let Value::Bool(stream) = value {
                    Some(stream)
                } else {
                    None
                };
                return;
            }
        };
        *slot = if let Value::Text(text) = value {
            Some(text)
        } else {
            None
        };
    }
}

/// Lower case as Go folds keys: besides ASCII, the long s and the Kelvin sign are letters of it.
fn fold(key: &str) -> String {
    key.chars()
        .map(|char| match char {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(body: &str) -> Option<String> {
        scan_slice(body.as_bytes()).unwrap().model
    }

    // Traps 27, 62
    #[test]
    fn the_model_is_found() {
        for (body, expected) in [
            (r#"{"model":"a"}"#, Some("a")),
            (
                r#" {"prompt":"x\"}","Model" : "a" , "options":{"model":"no"}}"#,
                Some("a"),
            ),
            (r#"{"model":"a","MODEL":"b"}"#, Some("b")),
            (r#"{"model":"a","model":null}"#, Some("a")),
            (r#"{"model":"a","model":5}"#, None),
            (r#"{"model":"a"} {"model":"b"}"#, Some("a")),
            (r#"{"model":"a"}]]"#, Some("a")),
            (r#"{"mod\u0065l":"hf:\u006f\/r"}"#, Some("hf:o/r")),
            (r#"{"model":"\ud83d\ude00"}"#, Some("😀")),
            (r#"{"model":"\ud83dx\ud83d"}"#, Some("\u{fffd}x\u{fffd}")),
            (r#"{"model":"\ud83d\ud83d\ude00\u0041"}"#, Some("\u{fffd}😀A")),
            (r#"{"model":"\ude00"}"#, Some("\u{fffd}")),
            (r#"{"models":"a","mode":"b","modelmodelmodelmodel":"c"}"#, None),
            (r#"{"a":[[{"model":"x"}],"]"],"b":-1e5,"c":true,"model":""}"#, Some("")),
            ("{}", None),
            ("null", None),
            (" null ", None),
        ] {
            assert_eq!(model(body).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn every_member_is_found() {
        let body = r#"{"model":"m","name":"n","from":"f","\u017fource":"s","deſtination":"d","stream":false}"#;
        let text = |text: &str| Some(text.to_owned());
        let expected = Members {
            model: text("m"),
            name: text("n"),
            from: text("f"),
            source: text("s"),
            destination: text("d"),
            stream: Some(false),
        };
        assert_eq!(scan_slice(body.as_bytes()).unwrap(), expected);
        assert_eq!(scan_slice(br#"{"stream":true,"stream":"yes"}"#).unwrap().stream, None);
        assert_eq!(
            scan_slice(br#"{"stream":true,"stream":null}"#).unwrap().stream,
            Some(true)
        );
    }

    #[test]
    fn what_is_no_object_is_said_so() {
        let deep = format!("{{\"a\":{}", "[".repeat(MAX_DEPTH + 1));
        for body in [
            "",
            "  ",
            "\u{feff}{\"model\":\"a\"}",
            "model=a",
            "[]",
            "\"model\"",
            "nul",
            "nullx",
            "{",
            "{\"model\"",
            "{\"model\":",
            "{\"model\":\"a",
            "{\"model\":\"a\"",
            "{\"model\":\"a\",}",
            "{\"model\" \"a\"}",
            "{model:\"a\"}",
            "{\"model\":}",
            "{\"model\":\"\\x\"}",
            "{\"model\":\"\\u12g4\"}",
            "{\"a\":[1,2}",
            "{\"a\":1 \"model\":\"b\"}",
            &deep,
        ] {
            let brief = &body[..body.len().min(40)];
            assert!(
                matches!(scan_slice(body.as_bytes()), Err(PeekError::NotAnObject)),
                "{brief}"
            );
        }
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let body = format!("{{\"model\":\"hf:{}\"}}", "é".repeat(MAX_VALUE_BYTES));
        let found = model(&body).unwrap();
        assert!(found.starts_with("hf:é") && found.len() >= MAX_VALUE_BYTES - 1 && found.len() <= MAX_VALUE_BYTES);
        assert!(found.chars().skip(3).all(|char| char == 'é'));
    }

    /// A reader that gives at most so many bytes at a time.
    struct Pieces<'a> {
        bytes: &'a [u8],
        sizes: std::iter::Cycle<std::vec::IntoIter<usize>>,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let size = self.sizes.next().unwrap_or(1).min(buffer.len());
            self.bytes.read(&mut buffer[..size])
        }
    }

    fn in_pieces(bytes: &[u8], sizes: Vec<usize>) -> Result<Members, PeekError> {
        scan(Pieces {
            bytes,
            sizes: sizes.into_iter().cycle(),
        })
    }

    fn any_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f32>().prop_map(|number| serde_json::json!(number)),
            any::<String>().prop_map(Into::into),
            "[\\[\\]{}\"\\\\,: a]{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn any_key() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(vec![
                "model",
                "Model",
                "name",
                "FROM",
                "source",
                "destination",
                "stream",
                "prompt"
            ])
            .prop_map(str::to_owned),
            any::<String>(),
        ]
    }

    /// What serde_json and the rules of this module make of the members, one after the other.
    fn expected(members: &[(String, serde_json::Value)]) -> Members {
        let mut found = Members::default();
        for (key, value) in members {
            if let Some(member) = Member::of(key) {
                let value = match value {
                    serde_json::Value::String(text) => Value::Text(text.clone()),
                    serde_json::Value::Bool(value) => Value::Bool(*value),
                    serde_json::Value::Null => Value::Null,
                    _ => Value::Other,
                };
                member.set(&mut found, value);
            }
        }
        found
    }

    proptest! {
        #[test]
        fn valid_objects_read_as_serde_json_reads_them(
            members in prop::collection::vec((any_key(), any_value()), 0..8),
            blank in "[ \t\r\n]{0,3}",
            sizes in prop::collection::vec(1usize..9, 1..5),
        ) {
            let mut body = format!("{blank}{{");
            for (at, (key, value)) in members.iter().enumerate() {
                let comma = if at == 0 { "" } else { "," };
                body += &format!("{comma}{blank}{}{blank}:{blank}{value}{blank}", serde_json::json!(key));
            }
            body += "}";
            prop_assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok());
            prop_assert_eq!(scan_slice(body.as_bytes()).unwrap(), expected(&members));
            prop_assert_eq!(in_pieces(body.as_bytes(), sizes).unwrap(), expected(&members));
        }

        #[test]
        fn the_way_a_body_is_cut_changes_nothing(
            body in prop_oneof![
                "\\{(\"(model|na\\\\u006de)\":(\"[a\\\\\"u0]{0,6}\"|[0-9tn\\[\\]]{1,3}),?){0,3}\\}?.{0,2}".prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..64),
            ],
            sizes in prop::collection::vec(1usize..9, 1..5),
        ) {
            let whole = scan_slice(&body).map_err(|error| error.to_string());
            let pieces = in_pieces(&body, sizes).map_err(|error| error.to_string());
            prop_assert_eq!(whole, pieces);
        }
    }
}
