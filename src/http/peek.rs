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
    ("chat_template_kwargs", Nothing::Empty),
    ("keep_alive", Nothing::Null),
    ("logit_bias", Nothing::Empty),
    ("logprobs", Nothing::Null),
    ("max_completion_tokens", Nothing::Null),
    ("min_p", Nothing::Null),
    ("n", Nothing::One),
    ("num_ctx", Nothing::Null),
    ("options", Nothing::Empty),
    ("output_config", Nothing::NoFormat),
    ("output_format", Nothing::Null),
    ("parallel_tool_calls", Nothing::True),
    ("reasoning_effort", Nothing::Null),
    ("think", Nothing::Null),
    ("thinking_budget_tokens", Nothing::Null),
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
    /// `tool_choice`: the word, or the `type` of the object
    pub tool_choice: Option<String>,
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
    /// An object without the member `format`.
    NoFormat,
}

impl Nothing {
    fn is(self, value: &Value) -> bool {
        matches!(
            (self, value),
            (_, Value::Null)
                | (Self::Empty | Self::NoFormat, Value::Empty)
                | (Self::One, Value::One)
                | (Self::True, Value::Bool(true))
        )
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

/// A value in as much detail as its member needs. Where a member of an object is wanted, that one stands for the object,
/// and [`Value::Empty`] for an object that lacks it.
enum Value {
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
    /// Of an object this member.
    Member(&'static str),
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
            (b'{', Want::Member(name)) => self.member(name),
            (b'{' | b'[', _) => self.nested(),
            (first @ (b'-' | b'0'..=b'9' | b't' | b'f' | b'n'), _) => self.scalar(first),
            _ => Err(PeekError::NotAnObject),
        }
    }

    /// One member of the object whose rest this is.
    fn member(&mut self, name: &str) -> Result<Value, PeekError> {
        let mut found = Value::Empty;
        self.members(|scanner, key| {
            let wanted = key.is_some_and(|key| fold(key) == name);
            let value = scanner.value(if wanted { Want::Value } else { Want::Nothing })?;
            if wanted {
                found = value;
            }
            Ok(())
        })?;
        Ok(found)
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
    ToolChoice,
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
            "tool_choice" => Self::ToolChoice,
            _ => {
                let (name, nothing) = ASKS.into_iter().find(|(name, _)| *name == key)?;
                Self::Asks(name, nothing)
            }
        })
    }

    fn want(self) -> Want {
        match self {
            Self::ToolChoice => Want::Member("type"),
            Self::Asks(_, Nothing::NoFormat) => Want::Member("format"),
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
            (Self::ToolChoice, _) => &mut members.tool_choice,
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
mod tests;
