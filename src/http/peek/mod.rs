//! Scanner that finds a few top-level members of a JSON object without building the object.
//!
//! The scanner serves requests whose body is forwarded as the bytes that came: only the members that decide the route
//! are decoded. So it reads like Ollama's decoder (Go's `encoding/json`) where that matters: keys match in any case,
//! `null` and duplicates are reported in order for the caller to apply Go's rules, bytes behind the first value are
//! ignored. The scanner is no validator: what it cannot follow is [`PeekError::NotAnObject`], and what it skips may be
//! wrong. Memory is the same for any body.

use std::io::{self, BufRead, BufReader, Read};

use memchr::memchr2;

/// Most decoded bytes of a value that are kept. The longest legal model name is a fifth of it.
const MAX_VALUE_BYTES: usize = 2048;

/// Deepest nesting that is followed; Go's decoder has the same bound.
const MAX_DEPTH: usize = 10_000;

/// Most decoded bytes of a key that are kept: more than the longest key that callers look for.
const MAX_KEY_BYTES: usize = 32;

/// Size of one read from a file in bytes.
const READ_BYTES: usize = 64 << 10;

/// Top-level key to look for, in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberKey {
    name: &'static str,
    /// If set, this member stands for a value that is an object.
    member: Option<&'static str>,
}

impl MemberKey {
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, member: None }
    }

    /// Returns a key whose value, if it is an object, is read as the object's member of this name:
    /// [`PeekedValue::Empty`] if it has none.
    #[must_use]
    pub const fn with_member(name: &'static str, member: &'static str) -> Self {
        Self {
            name,
            member: Some(member),
        }
    }
}

/// Value in as much detail as decisions need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeekedValue {
    /// String, cut at `MAX_VALUE_BYTES`.
    Text(String),
    Bool(bool),
    /// The number 1.
    One,
    Null,
    /// Object or array without members.
    Empty,
    Other,
}

/// Reason why a body could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum PeekError {
    #[error("the body is not a JSON object")]
    NotAnObject,
    #[error("the body could not be read")]
    Read(#[from] io::Error),
}

/// Scans the first JSON value of `reader`, and calls `visit` with the name and value of each member that `keys` has, in
/// the order of the text.
pub fn scan(
    reader: impl Read,
    keys: &[MemberKey],
    visit: impl FnMut(&'static str, PeekedValue),
) -> Result<(), PeekError> {
    Scanner {
        input: BufReader::with_capacity(READ_BYTES, reader),
    }
    .object(keys, visit)
}

/// Scans the first JSON value of `bytes`, like [`scan`].
pub fn scan_slice(
    bytes: &[u8],
    keys: &[MemberKey],
    visit: impl FnMut(&'static str, PeekedValue),
) -> Result<(), PeekError> {
    Scanner { input: bytes }.object(keys, visit)
}

struct Scanner<R> {
    input: R,
}

/// Detail in which a value is read.
#[derive(Clone, Copy)]
enum Detail {
    Skipped,
    Value,
    /// Value, or the member of this name if the value is an object.
    Member(&'static str),
}

impl Detail {
    fn of(key: Option<&MemberKey>) -> Self {
        match key {
            None => Self::Skipped,
            Some(MemberKey { member: None, .. }) => Self::Value,
            Some(MemberKey {
                member: Some(member), ..
            }) => Self::Member(member),
        }
    }
}

impl<R: BufRead> Scanner<R> {
    fn object(mut self, keys: &[MemberKey], mut visit: impl FnMut(&'static str, PeekedValue)) -> Result<(), PeekError> {
        match self.token()? {
            b'{' => {}
            // Go decodes `null` into a struct as no member at all.
            b'n' if matches!(self.scalar(b'n')?, PeekedValue::Null) => return Ok(()),
            _ => return Err(PeekError::NotAnObject),
        }
        self.members(|scanner, key| {
            let key = key
                .map(fold)
                .and_then(|key| keys.iter().find(|known| known.name == key));
            let value = scanner.value(Detail::of(key))?;
            if let Some(key) = key {
                visit(key.name, value);
            }
            Ok(())
        })
    }

    /// Reads the rest of an object: `visit` gets each key (`None` for one longer than any that is looked for), and has
    /// to read the value.
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

    fn value(&mut self, detail: Detail) -> Result<PeekedValue, PeekError> {
        match (self.token()?, detail) {
            (b'"', Detail::Skipped) => self.skip_text().map(|()| PeekedValue::Other),
            (b'"', _) => Ok(PeekedValue::Text(self.text(MAX_VALUE_BYTES)?.0)),
            (b'{', Detail::Member(name)) => self.member(name),
            (b'{' | b'[', _) => self.nested(),
            (first @ (b'-' | b'0'..=b'9' | b't' | b'f' | b'n'), _) => self.scalar(first),
            _ => Err(PeekError::NotAnObject),
        }
    }

    /// Reads the rest of an object and returns its member of this name.
    fn member(&mut self, name: &str) -> Result<PeekedValue, PeekError> {
        // Of several members with this name the last one counts, as in Go.
        let mut found = PeekedValue::Empty;
        self.members(|scanner, key| {
            let is_it = key.is_some_and(|key| fold(key) == name);
            let value = scanner.value(if is_it { Detail::Value } else { Detail::Skipped })?;
            if is_it {
                found = value;
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Skips the rest of an object or array.
    fn nested(&mut self) -> Result<PeekedValue, PeekError> {
        match self.token()? {
            b'}' | b']' => Ok(PeekedValue::Empty),
            b'"' => {
                self.skip_text()?;
                self.skip_nested(1)
            }
            b'{' | b'[' => self.skip_nested(2),
            _ => self.skip_nested(1),
        }
    }

    /// Returns the next byte; fails for a body that ends too early.
    fn byte(&mut self) -> Result<u8, PeekError> {
        let byte = *self.input.fill_buf()?.first().ok_or(PeekError::NotAnObject)?;
        self.input.consume(1);
        Ok(byte)
    }

    /// Returns the next byte that is not blank.
    fn token(&mut self) -> Result<u8, PeekError> {
        loop {
            let byte = self.byte()?;
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Ok(byte);
            }
        }
    }

    /// Reads the rest of a number, `true`, `false` or `null`, up to its delimiter.
    fn scalar(&mut self, first: u8) -> Result<PeekedValue, PeekError> {
        // One byte more than `false`, the longest word: a text that fills it matches none.
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
            b"true" => PeekedValue::Bool(true),
            b"false" => PeekedValue::Bool(false),
            b"null" => PeekedValue::Null,
            b"1" => PeekedValue::One,
            [b'-' | b'0'..=b'9', ..] => PeekedValue::Other,
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
                    // The escaped character may be a quote. The digits of a `\u` cannot, so they are skipped as text.
                    self.byte()?;
                }
            }
        }
    }

    /// Skips to the end of the outermost of `depth` open objects and arrays.
    fn skip_nested(&mut self, mut depth: usize) -> Result<PeekedValue, PeekError> {
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
                _ if depth == 1 => return Ok(PeekedValue::Other),
                _ => depth -= 1,
            }
        }
    }

    /// Decodes the rest of a string; returns true if it was cut at `max_bytes`.
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

    /// Returns buffered bytes, at least one.
    fn filled(&mut self) -> Result<&[u8], PeekError> {
        let buffer = self.input.fill_buf()?;
        if buffer.is_empty() {
            Err(PeekError::NotAnObject)
        } else {
            Ok(buffer)
        }
    }
}

/// String that is being decoded, up to a bound.
struct Text {
    bytes: Vec<u8>,
    max_bytes: usize,
    cut: bool,
    /// High half of an escaped surrogate pair whose low half may follow.
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

    /// Writes U+FFFD for a high surrogate without its low half, as Go's decoder does.
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
        // The cut may have split a character.
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

/// Folds a key to lower case as Go's `encoding/json` does: besides ASCII, U+017F (long s) matches `s` and U+212A
/// (Kelvin sign) matches `k`.
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
