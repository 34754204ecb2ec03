//! Finds the few top-level members of a JSON object that decide its way, without building the object.
//!
//! The body itself is sent on as the bytes that came, so this reads like Ollama's decoder (Go's `encoding/json`) where
//! that matters: keys in any case, the last duplicate wins, `null` changes nothing, bytes behind the first value are
//! not looked at. It is no validator: what it cannot follow is [`PeekError::NotAnObject`], and what it skips may be
//! wrong. Memory is the same for any body.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Read},
};

use memchr::memchr2;

/// Decoded bytes of a value that are kept. The longest legal model name is a fifth of it.
pub const MAX_VALUE_BYTES: usize = 2048;

/// Depth of nesting that is followed; Go's decoder has the same bound.
const MAX_DEPTH: usize = 10_000;

/// Decoded bytes of a key that are kept: more than the longest key that is looked for.
const MAX_KEY_BYTES: usize = 32;

/// Members beside those of [`Members`] that are looked for, each with what it may hold without asking for anything.
///
/// They are the ones that Ollama's `/v1` routes leave out of what they make of a request, on one of them at least.
const ASKS: [(&str, Nothing); 17] = [
    ("best_of", Nothing::One),
    ("chat_template_kwargs", Nothing::Empty),
    ("keep_alive", Nothing::Null),
    ("logit_bias", Nothing::Empty),
    ("max_completion_tokens", Nothing::Null),
    ("max_output_tokens", Nothing::Null),
    ("min_p", Nothing::Null),
    ("n", Nothing::One),
    ("num_ctx", Nothing::Null),
    ("options", Nothing::Empty),
    ("parallel_tool_calls", Nothing::True),
    ("repeat_penalty", Nothing::Null),
    ("think", Nothing::Null),
    ("thinking_budget", Nothing::Null),
    ("tool_choice", Nothing::Auto),
    ("top_k", Nothing::Null),
    ("truncate", Nothing::Null),
];

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
    /// Those of the members that Ollama's `/v1` routes leave out which hold more than a default.
    pub asks: BTreeSet<&'static str>,
}

/// What asks for nothing, beside `null`.
#[derive(Clone, Copy)]
enum Nothing {
    Null,
    Empty,
    One,
    True,
    /// The word, alone or as the `type` of an object.
    Auto,
}

impl Nothing {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null)
            | (Self::Empty, Value::Empty)
            | (Self::One, Value::One)
            | (Self::True, Value::Bool(true)) => true,
            (Self::Auto, Value::Text(word)) => word.is_empty() || word == "auto",
            _ => false,
        }
    }
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
    /// A string; of an object, where that is asked for, its `type`.
    Text(String),
    Bool(bool),
    /// The number 1.
    One,
    Null,
    /// An object or array without members.
    Empty,
    Other,
}

/// How much of a value is wanted.
#[derive(Clone, Copy)]
enum Want {
    Nothing,
    Value,
    /// Of an object its `type`.
    Type,
}

impl<R: BufRead> Scanner<R> {
    fn object(mut self) -> Result<Members, PeekError> {
        let mut found = Members::default();
        match self.token()? {
            b'{' => {}
            b'n' if matches!(self.scalar(b'n')?, Value::Null) => return Ok(found),
            _ => return Err(PeekError::NotAnObject),
        }
        self.members(|scanner, key| {
            let member = key.and_then(Member::of);
            let value = scanner.value(member.map_or(Want::Nothing, Member::want))?;
            if let Some(member) = member {
                member.set(&mut found, value);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Goes through the rest of an object: `visit` gets each key, if it is no longer than any that is looked for, and
    /// reads the value.
    fn members(
        &mut self,
        mut visit: impl FnMut(&mut Self, Option<&str>) -> Result<(), PeekError>,
    ) -> Result<(), PeekError> {
        let mut byte = self.token()?;
        if byte == b'}' {
            return Ok(());
        }
        loop {
            if byte != b'"' {
                return Err(PeekError::NotAnObject);
            }
            let (key, cut) = self.text(MAX_KEY_BYTES)?;
            if self.token()? != b':' {
                return Err(PeekError::NotAnObject);
            }
            visit(self, (!cut).then_some(&key))?;
            match self.token()? {
                b',' => byte = self.token()?,
                b'}' => return Ok(()),
                _ => return Err(PeekError::NotAnObject),
            }
        }
    }

    fn value(&mut self, want: Want) -> Result<Value, PeekError> {
        match (self.token()?, want) {
            (b'"', Want::Nothing) => self.skip_text().map(|()| Value::Other),
            (b'"', _) => Ok(Value::Text(self.text(MAX_VALUE_BYTES)?.0)),
            (b'{', Want::Type) => self.kind(),
            (b'{' | b'[', _) => self.nested(),
            (first @ (b'-' | b'0'..=b'9' | b't' | b'f' | b'n'), _) => self.scalar(first),
            _ => Err(PeekError::NotAnObject),
        }
    }

    /// The `type` of the object whose rest this is.
    fn kind(&mut self) -> Result<Value, PeekError> {
        let mut kind = Value::Other;
        self.members(|scanner, key| {
            match key {
                Some(key) if fold(key) == "type" => kind = scanner.value(Want::Value)?,
                _ => {
                    scanner.value(Want::Nothing)?;
                }
            }
            Ok(())
        })?;
        Ok(match kind {
            Value::Text(_) => kind,
            _ => Value::Other,
        })
    }

    /// Skips the rest of an object or array.
    fn nested(&mut self) -> Result<Value, PeekError> {
        match self.token()? {
            b'}' | b']' => Ok(Value::Empty),
            b'"' => {
                self.skip_text()?;
                self.skip_nested(1)
            }
            b'{' | b'[' => self.skip_nested(2),
            _ => self.skip_nested(1),
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
            b"1" => Value::One,
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

    /// Skips to the end of an object or array that is this deep in others.
    fn skip_nested(&mut self, mut depth: usize) -> Result<Value, PeekError> {
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
                _ if depth == 1 => return Ok(Value::Other),
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
    Asks(&'static str, Nothing),
}

impl Member {
    fn of(key: &str) -> Option<Self> {
        let key = fold(key);
        Some(match key.as_str() {
            "model" => Self::Model,
            "name" => Self::Name,
            "from" => Self::From,
            "source" => Self::Source,
            "destination" => Self::Destination,
            "stream" => Self::Stream,
            _ => {
                let (name, nothing) = ASKS.into_iter().find(|(name, _)| *name == key)?;
                Self::Asks(name, nothing)
            }
        })
    }

    fn want(self) -> Want {
        match self {
            Self::Asks(_, Nothing::Auto) => Want::Type,
            _ => Want::Value,
        }
    }

    fn set(self, members: &mut Members, value: Value) {
        let slot = match (self, &value) {
            (Self::Asks(name, nothing), value) => {
                if nothing.is(value) {
                    members.asks.remove(name);
                } else {
                    members.asks.insert(name);
                }
                return;
            }
            (_, Value::Null) => return,
            (Self::Stream, value) => {
                members.stream = match value {
                    Value::Bool(stream) => Some(*stream),
                    _ => None,
                };
                return;
            }
            (Self::Model, _) => &mut members.model,
            (Self::Name, _) => &mut members.name,
            (Self::From, _) => &mut members.from,
            (Self::Source, _) => &mut members.source,
            (Self::Destination, _) => &mut members.destination,
        };
        *slot = match value {
            Value::Text(text) => Some(text),
            _ => None,
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
            asks: BTreeSet::new(),
        };
        assert_eq!(scan_slice(body.as_bytes()).unwrap(), expected);
        assert_eq!(scan_slice(br#"{"stream":true,"stream":"yes"}"#).unwrap().stream, None);
        assert_eq!(
            scan_slice(br#"{"stream":true,"stream":null}"#).unwrap().stream,
            Some(true)
        );
    }

    #[test]
    fn members_that_ask_for_something_are_told_from_those_that_do_not() {
        for (body, expected) in [
            (r#"{"num_ctx":2048,"model":"a"}"#, &["num_ctx"][..]),
            (
                r#"{"Num_Ctx":0,"THIN\u212a":false,"\u212aeep_alive":"0"}"#,
                &["keep_alive", "num_ctx", "think"],
            ),
            (r#"{"num_ctx":null,"think":null,"keep_alive":null}"#, &[]),
            (r#"{"num_ctx":1,"num_ctx":null}"#, &[]),
            (r#"{"num_ctx":null,"num_ctx":1}"#, &["num_ctx"]),
            (r#"{"n":1,"best_of":1}"#, &[]),
            (r#"{"n":2,"best_of":10}"#, &["best_of", "n"]),
            (r#"{"n":2,"N":1}"#, &[]),
            (r#"{"parallel_tool_calls":true}"#, &[]),
            (r#"{"parallel_tool_calls":false}"#, &["parallel_tool_calls"]),
            (r#"{"options":{},"logit_bias": { } ,"chat_template_kwargs":[ ]}"#, &[]),
            (
                r#"{"options":{"a":{}},"logit_bias":{"1":2}}"#,
                &["logit_bias", "options"],
            ),
            (r#"{"tool_choice":"auto"}"#, &[]),
            (r#"{"tool_choice":{"x":[{"type":"any"}],"TYPE":"auto"}}"#, &[]),
            (r#"{"tool_choice":"none"}"#, &["tool_choice"]),
            (
                r#"{"tool_choice":{"type":"function","function":{"type":"auto"}}}"#,
                &["tool_choice"],
            ),
            (r#"{"tool_choice":{}}"#, &["tool_choice"]),
            (r#"{"messages":[{"num_ctx":1,"think":true}],"a":{"n":2}}"#, &[]),
        ] {
            let found = scan_slice(body.as_bytes()).unwrap();
            assert_eq!(found.asks.into_iter().collect::<Vec<_>>(), expected, "{body}");
        }
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
                "prompt",
                "num_ctx",
                "n",
                "options",
                "tool_choice",
                "parallel_tool_calls",
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
                let is_object = value.is_object();
                let value = match value {
                    serde_json::Value::String(text) => Value::Text(text.clone()),
                    serde_json::Value::Bool(value) => Value::Bool(*value),
                    serde_json::Value::Null => Value::Null,
                    serde_json::Value::Number(number) if number.as_i64() == Some(1) => Value::One,
                    serde_json::Value::Array(items) if items.is_empty() => Value::Empty,
                    serde_json::Value::Object(entries) if entries.is_empty() => Value::Empty,
                    serde_json::Value::Object(entries) => match entries.iter().rfind(|(key, _)| fold(key) == "type") {
                        Some((_, serde_json::Value::String(kind))) => Value::Text(kind.clone()),
                        _ => Value::Other,
                    },
                    _ => Value::Other,
                };
                // Only of a choice the type is looked for.
                let value = match (member.want(), value) {
                    (Want::Value, Value::Text(_)) if is_object => Value::Other,
                    (_, value) => value,
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
