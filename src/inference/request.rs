//! A request after its dialect is taken off.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ToolDefinition;

use super::{KeepAlive, LoadOptions, SamplingOptions};

/// One request for generated text, free of any wire's spelling.
#[derive(Clone, Debug)]
pub struct InferenceRequest {
    /// What to answer.
    pub prompt: InferencePrompt,
    /// Sampling and length.
    pub sampling: SamplingOptions,
    /// Options that matter when the model is loaded.
    pub load: LoadOptions,
    /// Constraint on the answer.
    pub format: Option<AnswerFormat>,
    /// Whether the model is to reason first.
    pub think: ThinkMode,
    /// Reasoning tokens at most; the reasoning is ended for the model when they are spent. `None` is no limit.
    pub thinking_budget: Option<u32>,
    /// How long the model stays resident afterwards; `None` leaves what is in force.
    pub keep_alive: Option<KeepAlive>,
    /// Drop the oldest messages of a chat that does not fit the context window.
    pub truncate: bool,
    /// Discard the older half of a full context and go on, instead of ending the answer.
    pub shift: bool,
    /// Return log-probabilities: of the chosen token, and of this many alternatives.
    pub logprobs: Option<u8>,
    /// Return the rendered prompt and the answer as token ids in the last event.
    pub return_context: bool,
}

/// What the model is to continue.
#[derive(Clone, Debug)]
pub enum InferencePrompt {
    /// A conversation, rendered by the model's chat template.
    Chat {
        /// Oldest first.
        messages: Vec<Message>,
        tools: Vec<ToolDefinition>,
        /// Whether the model may, must or must not call one of them.
        tool_choice: ToolChoice,
        /// Whether one answer may hold more than one call.
        parallel_tool_calls: bool,
        /// Token ids of an earlier answer, put in front of the rendered prompt.
        context: Vec<i32>,
    },
    /// Text that is used as it is.
    Raw {
        /// The whole prompt.
        text: String,
    },
    /// Fill in the middle.
    Infill {
        /// Text before the gap.
        prefix: String,
        /// Text after the gap.
        suffix: String,
    },
}

/// Whether a model may, must or must not call a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// Not at all; it is not shown the tools.
    None,
    /// At least one.
    Required,
    /// This one.
    Function(String),
}

/// Who speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageRole(
    /// Lower case; values other than the usual four are passed to the template.
    pub String,
);

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// Who speaks.
    pub role: MessageRole,
    /// The text; may be empty.
    pub content: String,
    /// Reasoning of an earlier assistant turn.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// Images or audio, decoded from base64.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "media")]
    pub media: Vec<Vec<u8>>,
    /// Calls that an assistant turn made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<super::ToolCall>,
    /// The tool whose result this is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tool_name: String,
    /// The call whose result this is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tool_call_id: String,
}

/// Bytes as base64: a list of numbers would be three times as long.
mod media {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(media: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(media.iter().map(|bytes| STANDARD.encode(bytes)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| STANDARD.decode(text).map_err(D::Error::custom))
            .collect()
    }
}

impl Message {
    /// A turn that holds only text.
    #[must_use]
    pub fn text(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: MessageRole(role.to_ascii_lowercase()),
            content: content.into(),
            ..Self::default()
        }
    }
}

/// A constraint on the text of an answer.
#[derive(Clone, Debug)]
pub enum AnswerFormat {
    /// Any JSON value.
    Json,
    /// JSON that satisfies this schema.
    Schema(Box<RawValue>),
}

/// Whether a model that can reason is to do so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinkMode {
    /// As the model does by default.
    #[default]
    Unset,
    /// Do not reason.
    Off,
    /// Reason.
    On,
    /// Reason with this effort.
    Level(ThinkLevel),
}

/// How much to reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThinkLevel {
    Low,
    Medium,
    High,
    Max,
}
