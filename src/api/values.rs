//! Request values that several dialects share: `keep_alive`, `think`, `format`, `options`, images and tools.

use serde_json::value::RawValue;

use super::{error::ApiError, options::RequestOptions, tools};
use crate::{
    go::{
        decode::{DecodeError, FieldPath, JsonNode, decode_base64},
        duration::GoDuration,
        quote,
    },
    inference::{AnswerFormat, KeepAlive, Message, ThinkLevel, ThinkMode, ToolDefinition},
};

/// Most images or audio clips of one message.
const MAX_MEDIA: usize = 256;

/// Most messages in one request.
const MAX_MESSAGES: usize = 1 << 16;

/// Reads `keep_alive`: seconds as a number, or a Go duration; negative is forever.
pub(crate) fn keep_alive(node: &JsonNode<'_>) -> Result<Option<KeepAlive>, DecodeError> {
    match node {
        JsonNode::Null => Ok(None),
        JsonNode::Number(digits) => {
            // Every JSON number parses as `f64`; one that is too large becomes infinite, and so means forever.
            let seconds: f64 = digits.parse().unwrap_or(f64::INFINITY);
            Ok(Some(match std::time::Duration::try_from_secs_f64(seconds) {
                Ok(duration) => KeepAlive::For(duration),
                // The number is negative, or longer than a duration can be.
                Err(_) => KeepAlive::Forever,
            }))
        }
        JsonNode::String(text) => {
            // `to_std` fails only for a negative duration, and clients send `"-1m"` for forever.
            let duration = GoDuration::parse(text).map_err(DecodeError::new)?;
            Ok(Some(duration.to_std().map_or(KeepAlive::Forever, KeepAlive::For)))
        }
        other => Err(DecodeError::new(format!("Unsupported type: '{}'", other.go_type()))),
    }
}

/// Reads `think`: a boolean or an effort.
pub(crate) fn think(node: &JsonNode<'_>) -> Result<ThinkMode, DecodeError> {
    match node {
        JsonNode::Null => Ok(ThinkMode::Unset),
        JsonNode::Bool(true) => Ok(ThinkMode::On),
        JsonNode::Bool(false) => Ok(ThinkMode::Off),
        JsonNode::String(word) => Ok(ThinkMode::Level(match word.as_ref() {
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

/// `format` as the client sent it. It is judged late: Ollama answers a bad one with 500, after all other checks.
#[derive(Debug, Default)]
pub(crate) enum FormatField {
    /// Absent, `null` or an empty string.
    #[default]
    Unset,
    Json,
    Schema(Box<RawValue>),
    /// Any other value, as JSON text.
    Bad(String),
}

impl FormatField {
    pub(crate) fn read(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        Ok(match node {
            JsonNode::Null => Self::Unset,
            // Ollama takes an empty string for no format.
            JsonNode::String(text) if text.is_empty() => Self::Unset,
            JsonNode::String(text) if text == "json" => Self::Json,
            JsonNode::Object(_) => Self::Schema(node.to_raw()?),
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

/// `options` as the client sent it. It is judged late: Ollama answers a bad option after the checks of the model.
#[derive(Debug, Default)]
pub(crate) struct OptionsField(Option<Result<RequestOptions, ApiError>>);

impl OptionsField {
    pub(crate) fn read(node: JsonNode<'_>, root: &'static str) -> Result<Self, DecodeError> {
        let entries = node.read_object(FieldPath(root, "options"), "map[string]interface {}")?;
        Ok(Self(Some(RequestOptions::read(entries))))
    }

    /// Returns the options, or the error in them.
    pub(crate) fn into_options(self) -> Result<RequestOptions, ApiError> {
        self.0.unwrap_or_else(|| Ok(RequestOptions::default()))
    }
}

/// Reads a list of base64 texts.
pub(crate) fn media(node: JsonNode<'_>, field: FieldPath) -> Result<Vec<Vec<u8>>, DecodeError> {
    let items = node.read_array(field, "[]api.ImageData")?;
    if items.len() > MAX_MEDIA {
        return Err(DecodeError::new(format!(
            "a message holds more than {MAX_MEDIA} images"
        )));
    }
    items
        .into_iter()
        .map(|item| match item {
            JsonNode::String(text) => decode_base64(&text),
            // Go decodes `null` in a list of byte slices as an empty one.
            JsonNode::Null => Ok(Vec::new()),
            other => Err(other.mismatch(field, "api.ImageData")),
        })
        .collect()
}

/// Reads tool definitions in OpenAI's shape, which is Ollama's, too.
pub(crate) fn tools(node: JsonNode<'_>, field: FieldPath) -> Result<Vec<ToolDefinition>, DecodeError> {
    let items = node.read_array(field, "api.Tools")?;
    tools::check_count(items.len())?;
    items
        .iter()
        .map(|item| match item {
            // The definition stays raw: Ollama drops keywords of JSON Schema that its struct lacks (`$ref`, `minimum`,
            // …), but a template may show the model all of them.
            JsonNode::Object(_) => item.to_raw().map(ToolDefinition::new),
            other => Err(other.mismatch(field, "api.Tool")),
        })
        .collect()
}

/// Fails for a request with more than [`MAX_MESSAGES`] messages.
pub(crate) fn check_message_count(messages: usize) -> Result<(), DecodeError> {
    if messages > MAX_MESSAGES {
        return Err(DecodeError::new(format!(
            "the request holds more than {MAX_MESSAGES} messages"
        )));
    }
    Ok(())
}

/// Returns the name of the tool in the latest call with this id; empty if there is none.
///
/// Templates want a result to name its tool. OpenAI's and Anthropic's wires give only the id of the call.
pub(crate) fn tool_of_call(messages: &[Message], id: &str) -> String {
    messages
        .iter()
        // Backwards, as in Ollama: if an id occurs twice, a result belongs to the later call.
        .rev()
        .flat_map(|message| &message.tool_calls)
        .find(|call| call.id == id)
        .map(|call| call.name.clone())
        .unwrap_or_default()
}

/// Converts a number of a wire to the 32 bits that samplers count in.
#[expect(clippy::cast_possible_truncation, reason = "samplers count in 32 bits")]
pub(crate) fn to_f32(number: f64) -> f32 {
    number as f32
}

/// Converts `top_k`; a count beyond 32 bits is no limit either.
pub(crate) fn top_k(count: i64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Converts `num_ctx`, a number of tokens; `None`, which is the model's default, for one that makes no sense.
pub(crate) fn context_length(tokens: i64) -> Option<u32> {
    u32::try_from(tokens).ok().filter(|tokens| *tokens > 0)
}

/// Converts a value to plain JSON.
pub(crate) fn plain_value(node: &JsonNode<'_>) -> Result<serde_json::Value, DecodeError> {
    serde_json::from_str(&node.to_json()).map_err(|error| DecodeError::new(error.to_string()))
}

/// Checks the range of `top_logprobs`.
pub(crate) fn top_logprobs(wanted: i64) -> Result<u8, ApiError> {
    u8::try_from(wanted)
        .ok()
        // 20 is OpenAI's limit, which Ollama has adopted.
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
            (JsonNode::Null, None),
            (JsonNode::Number("0"), Some(KeepAlive::ZERO)),
            (
                JsonNode::Number("1.5"),
                Some(KeepAlive::For(Duration::from_millis(1500))),
            ),
            (JsonNode::Number("-1"), Some(KeepAlive::Forever)),
            (JsonNode::Number("1e300"), Some(KeepAlive::Forever)),
            (JsonNode::String("0".into()), Some(KeepAlive::ZERO)),
            (JsonNode::String("0s".into()), Some(KeepAlive::ZERO)),
            (
                JsonNode::String("1h30m".into()),
                Some(KeepAlive::For(Duration::from_secs(5400))),
            ),
            (JsonNode::String("-1m".into()), Some(KeepAlive::Forever)),
        ] {
            assert_eq!(keep_alive(&node).unwrap(), expected, "{node:?}");
        }
        for (node, expected) in [
            (JsonNode::String("10".into()), "time: missing unit in duration \"10\""),
            (JsonNode::String("soon".into()), "time: invalid duration \"soon\""),
            (JsonNode::String("".into()), "time: invalid duration \"\""),
            (JsonNode::Bool(true), "Unsupported type: 'bool'"),
        ] {
            assert_eq!(keep_alive(&node).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn think_is_a_boolean_or_a_level() {
        assert_eq!(think(&JsonNode::Bool(false)).unwrap(), ThinkMode::Off);
        assert_eq!(
            think(&JsonNode::String("max".into())).unwrap(),
            ThinkMode::Level(ThinkLevel::Max)
        );
        assert_eq!(
            think(&JsonNode::String("xyz".into())).unwrap_err().to_string(),
            "invalid think value: \"xyz\" (must be \"high\", \"medium\", \"low\", \"max\", true, or false)"
        );
        assert!(
            think(&JsonNode::Number("1"))
                .unwrap_err()
                .to_string()
                .starts_with("think must be")
        );
    }

    #[test]
    fn a_bad_format_is_shown_as_go_quotes_it() {
        for (node, expected) in [
            (
                JsonNode::String("xml".into()),
                r#"invalid format: "\"xml\""; expected "json" or a valid JSON Schema object"#,
            ),
            (
                JsonNode::Number("1"),
                r#"invalid format: "1"; expected "json" or a valid JSON Schema object"#,
            ),
        ] {
            let error = FormatField::read(&node).unwrap().into_format().unwrap_err();
            assert_eq!((error.status.as_u16(), error.message.as_str()), (500, expected));
        }
        assert!(
            FormatField::read(&JsonNode::String("".into()))
                .unwrap()
                .into_format()
                .unwrap()
                .is_none()
        );
    }
}
