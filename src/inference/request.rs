//! A request for text, independent of the wire format that it came in.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ToolDefinition;

use super::{KeepAlive, LoadOptions, SamplingOptions};

/// Request for generated text, independent of the wire format.
#[derive(Clone, Debug)]
pub struct InferenceRequest {
    pub prompt: InferencePrompt,
    pub sampling: SamplingOptions,
    pub load: LoadOptions,
    /// Constraint on the answer.
    pub format: Option<AnswerFormat>,
    pub think: ThinkMode,
    /// Limit of reasoning tokens, after which the reasoning is ended for the model; `None` is no limit.
    pub thinking_budget: Option<u32>,
    /// New keep-alive of the model; `None` leaves it unchanged.
    pub keep_alive: Option<KeepAlive>,
    /// If set, the oldest messages of a chat that does not fit the context are dropped.
    pub truncate: bool,
    /// If set, the older half of a full context is discarded; otherwise a full context ends the answer.
    pub shift: bool,
    /// Number of alternatives whose log probabilities are returned with that of each token; `None` returns none.
    pub logprobs: Option<u8>,
    /// If set, the last event holds the rendered prompt and the answer as token ids.
    pub return_context: bool,
}

/// Text that the model continues.
#[derive(Clone, Debug)]
pub enum InferencePrompt {
    /// A conversation, rendered by the model's chat template.
    Chat {
        /// Messages, the oldest first.
        messages: Vec<Message>,
        tools: Vec<ToolDefinition>,
        tool_choice: ToolChoice,
        /// If set, one answer may hold more than one call.
        parallel_tool_calls: bool,
        /// Token ids of an earlier answer, put in front of the rendered prompt.
        context: Vec<i32>,
    },
    /// A prompt that is used without a template.
    Raw { text: String },
    /// A gap to fill (fill-in-the-middle).
    Infill {
        /// Text before the gap.
        prefix: String,
        /// Text after the gap.
        suffix: String,
    },
}

/// Constraint on the tool calls of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No call: the model does not see the tools.
    None,
    /// At least one call.
    Required,
    /// A call of the tool with this name.
    Function(String),
}

/// Author of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageRole(
    /// Name in lowercase; values other than the usual four are passed to the template.
    pub String,
);

/// Turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    pub role: MessageRole,
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
    /// Name of the tool whose result this message is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tool_name: String,
    /// Id of the call whose result this message is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tool_call_id: String,
}

/// Serialization of bytes as base64; a list of numbers would be three times as long.
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
    /// Returns a message that holds only text.
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

/// Reasoning of a model that supports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinkMode {
    /// The model's default.
    #[default]
    Unset,
    /// Do not reason.
    Off,
    /// Reason.
    On,
    /// Reason with this effort.
    Level(ThinkLevel),
}

/// Reasoning effort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThinkLevel {
    Low,
    Medium,
    High,
    Max,
}
