//! Parsed JSON value that borrows from the body: a request may carry many megabytes of base64.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::error::DecodeError;

/// Members of an object in the order of the text, duplicates included.
pub(crate) type JsonMembers<'a> = Vec<(Cow<'a, str>, JsonNode<'a>)>;

/// JSON value as Go's decoder sees it.
///
/// It differs from [`serde_json::Value`]: duplicate keys stay, numbers keep their spelling, and strings borrow from the
/// body when they have no escapes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum JsonNode<'a> {
    Null,
    Bool(bool),
    /// Number as it was written.
    Number(&'a str),
    /// String with its escapes resolved.
    String(Cow<'a, str>),
    Array(Vec<JsonNode<'a>>),
    Object(JsonMembers<'a>),
}

impl JsonNode<'_> {
    /// Returns the member of a free-form object by its exact name; the last of several.
    pub(crate) fn member(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(entries) => entries.iter().rev().find(|(key, _)| key == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Returns the member of a free-form object if it is a string.
    pub(crate) fn text_member(&self, name: &str) -> Option<&str> {
        match self.member(name) {
            Some(Self::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Returns the word that Go's `UnmarshalTypeError` uses for the value.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }

    /// Returns the type that Go's `reflect.TypeOf` names for the value decoded into an `any`.
    pub(crate) fn go_type(&self) -> &'static str {
        match self {
            Self::Null => "<nil>",
            Self::Bool(_) => "bool",
            Self::Number(_) => "float64",
            Self::String(_) => "string",
            Self::Array(_) => "[]interface {}",
            Self::Object(_) => "map[string]interface {}",
        }
    }

    /// Returns the value as JSON text that every later parser accepts: the order of keys and the spelling of numbers
    /// are kept, invalid UTF-8 and lone surrogates are replaced.
    pub(crate) fn to_json(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    /// Returns the value as JSON text that serde serializes unchanged.
    pub(crate) fn to_raw(&self) -> Result<Box<RawValue>, DecodeError> {
        RawValue::from_string(self.to_json()).map_err(|error| DecodeError::new(error.to_string()))
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(true) => out.push_str("true"),
            Self::Bool(false) => out.push_str("false"),
            Self::Number(digits) => out.push_str(digits),
            Self::String(text) => write_string(text, out),
            Self::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(entries) => {
                out.push('{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write_string(key, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other if u32::from(other) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(other))),
            other => out.push(other),
        }
    }
    out.push('"');
}
