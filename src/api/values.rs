//! Request values that several dialects share: keep_alive, think, format, images and tools.

use serde_json::value::RawValue;

use super::error::ApiError;
use crate::{
    go::{
        decode::{DecodeError, Field, Node, decode_base64},
        duration::GoDuration,
        quote,
    },
    inference::{AnswerFormat, KeepAlive, ThinkLevel, ThinkMode},
};

/// Images or audio that one message may carry.
const MAX_MEDIA: usize = 256;

/// Tools that one request may define.
const MAX_TOOLS: usize = 1024;

/// `keep_alive`: seconds as a number, or a Go duration; negative is forever.
pub(crate) fn keep_alive(node: &Node<'_>) -> Result<Option<KeepAlive>, DecodeError> {
    match node {
        Node::Null => Ok(None),
        Node::Number(digits) => {
            let seconds: f64 = digits.parse().unwrap_or(f64::INFINITY);
            Ok(Some(match std::time::Duration::try_from_secs_f64(seconds) {
                Ok(duration) => KeepAlive::For(duration),
                // Negative, or longer than anything runs.
                Err(_) => KeepAlive::Forever,
            }))
        }
        Node::String(text) => {
            let duration = GoDuration::parse(text).map_err(DecodeError::new)?;
            Ok(Some(duration.to_std().map_or(KeepAlive::Forever, KeepAlive::For)))
        }
        other => Err(DecodeError::new(format!("Unsupported type: '{}'", other.go_type()))),
    }
}

/// `think`: a boolean or an effort.
pub(crate) fn think(node: &Node<'_>) -> Result<ThinkMode, DecodeError> {
    match node {
        Node::Null => Ok(ThinkMode::Unset),
        Node::Bool(true) => Ok(ThinkMode::On),
        Node::Bool(false) => Ok(ThinkMode::Off),
        Node::String(word) => Ok(ThinkMode::Level(match word.as_ref() {
            "low" => ThinkLevel::Low,
            "medium" => ThinkLevel::Medium,
            "high" => ThinkLevel::High,
            "max" => ThinkLevel::Max,
            other => {
                return Err(DecodeError::new(format!(
                    "invalid think value: {} (must be \"high\", \"medium\", \"low\", \"max\", true, or false)",
                    quote(other)
                )));
            }
        })),
        _ => Err(DecodeError::new(
            "think must be a boolean or string (\"high\", \"medium\", \"low\", \"max\", true, or false)",
        )),
    }
}

/// `format` as it came. It is judged late, since Ollama answers a bad one with 500 after all other checks.
#[derive(Debug, Default)]
pub(crate) enum FormatField {
    /// Absent, `null` or an empty string.
    #[default]
    Unset,
    /// `"json"`
    Json,
    /// A JSON schema.
    Schema(Box<RawValue>),
    /// Something else, as JSON text.
    Bad(String),
}

impl FormatField {
    pub(crate) fn read(node: &Node<'_>) -> Result<Self, DecodeError> {
        Ok(match node {
            Node::Null => Self::Unset,
            Node::String(text) if text.is_empty() => Self::Unset,
            Node::String(text) if text == "json" => Self::Json,
            Node::Object(_) => Self::Schema(node.to_raw()?),
            other => Self::Bad(other.to_json()),
        })
    }

    pub(crate) fn into_format(self) -> Result<Option<AnswerFormat>, ApiError> {
        match self {
            Self::Unset => Ok(None),
            Self::Json => Ok(Some(AnswerFormat::Json)),
            Self::Schema(schema) => Ok(Some(AnswerFormat::Schema(schema))),
            Self::Bad(text) => Err(ApiError::internal(format!(
                "invalid format: {}; expected \"json\" or a valid JSON Schema object",
                quote(&text)
            ))),
        }
    }
}

/// A list of base64 texts.
pub(crate) fn media(node: Node<'_>, field: Field) -> Result<Vec<Vec<u8>>, DecodeError> {
    let items = node.read_array(field, "[]api.ImageData")?;
    if items.len() > MAX_MEDIA {
        return Err(DecodeError::new(format!(
            "a message holds more than {MAX_MEDIA} images"
        )));
    }
    items
        .into_iter()
        .map(|item| match item {
            Node::String(text) => decode_base64(&text),
            Node::Null => Ok(Vec::new()),
            other => Err(other.mismatch(field, "api.ImageData")),
        })
        .collect()
}

/// Tool definitions as they came.
pub(crate) fn tools(node: Node<'_>, field: Field) -> Result<Vec<Box<RawValue>>, DecodeError> {
    let items = node.read_array(field, "api.Tools")?;
    if items.len() > MAX_TOOLS {
        return Err(DecodeError::new(format!(
            "the request defines more than {MAX_TOOLS} tools"
        )));
    }
    items
        .iter()
        .map(|item| match item {
            Node::Object(_) => item.to_raw(),
            other => Err(other.mismatch(field, "api.Tool")),
        })
        .collect()
}

/// A value as plain JSON.
pub(crate) fn plain_value(node: &Node<'_>) -> Result<serde_json::Value, DecodeError> {
    serde_json::from_str(&node.to_json()).map_err(|error| DecodeError::new(error.to_string()))
}

/// `top_logprobs` within its range.
pub(crate) fn top_logprobs(wanted: i64) -> Result<u8, ApiError> {
    u8::try_from(wanted)
        .ok()
        .filter(|count| *count <= 20)
        .ok_or_else(|| ApiError::bad_request("top_logprobs must be between 0 and 20"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn keep_alive_comes_in_every_form_that_clients_send() {
        for (node, expected) in [
            (Node::Null, None),
            (Node::Number("0"), Some(KeepAlive::ZERO)),
            (Node::Number("1.5"), Some(KeepAlive::For(Duration::from_millis(1500)))),
            (Node::Number("-1"), Some(KeepAlive::Forever)),
            (Node::Number("1e300"), Some(KeepAlive::Forever)),
            (Node::String("0".into()), Some(KeepAlive::ZERO)),
            (Node::String("0s".into()), Some(KeepAlive::ZERO)),
            (
                Node::String("1h30m".into()),
                Some(KeepAlive::For(Duration::from_secs(5400))),
            ),
            (Node::String("-1m".into()), Some(KeepAlive::Forever)),
        ] {
            assert_eq!(keep_alive(&node).unwrap(), expected, "{node:?}");
        }
        for (node, expected) in [
            (Node::String("10".into()), "time: missing unit in duration \"10\""),
            (Node::String("soon".into()), "time: invalid duration \"soon\""),
            (Node::String("".into()), "time: invalid duration \"\""),
            (Node::Bool(true), "Unsupported type: 'bool'"),
        ] {
            assert_eq!(keep_alive(&node).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn think_is_a_boolean_or_a_level() {
        assert_eq!(think(&Node::Bool(false)).unwrap(), ThinkMode::Off);
        assert_eq!(
            think(&Node::String("max".into())).unwrap(),
            ThinkMode::Level(ThinkLevel::Max)
        );
        assert_eq!(
            think(&Node::String("xyz".into())).unwrap_err().to_string(),
            "invalid think value: \"xyz\" (must be \"high\", \"medium\", \"low\", \"max\", true, or false)"
        );
        assert!(
            think(&Node::Number("1"))
                .unwrap_err()
                .to_string()
                .starts_with("think must be")
        );
    }

    #[test]
    fn a_bad_format_is_shown_as_go_quotes_it() {
        for (node, expected) in [
            (
                Node::String("xml".into()),
                r#"invalid format: "\"xml\""; expected "json" or a valid JSON Schema object"#,
            ),
            (
                Node::Number("1"),
                r#"invalid format: "1"; expected "json" or a valid JSON Schema object"#,
            ),
        ] {
            let error = FormatField::read(&node).unwrap().into_format().unwrap_err();
            assert_eq!((error.status.as_u16(), error.message.as_str()), (500, expected));
        }
        assert!(
            FormatField::read(&Node::String("".into()))
                .unwrap()
                .into_format()
                .unwrap()
                .is_none()
        );
    }
}
