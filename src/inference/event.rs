//! The answer to a request, step by step.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Step of an answer. A stream of events is any number of [`Event::Delta`] followed by exactly one
/// [`Event::Finished`]; a stream that ends otherwise ends in a [`crate::inference::Failure`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// More of the answer.
    Delta(Delta),
    /// The answer is complete.
    Finished(AnswerSummary),
}

/// A piece of an answer. Text is whole UTF-8: code points split over tokens are joined before they get here. Empty
/// fields are not serialized, since a delta crosses the socket for nearly every token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delta {
    /// Visible text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content: String,
    /// Reasoning text; always precedes the content it belongs to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// Tool calls that became complete; each is sent exactly once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Log probabilities of the tokens that this piece was made from; empty unless the request asked for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
}

/// A complete call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique in the conversation, never empty.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as a JSON object.
    pub arguments: serde_json::Map<String, serde_json::Value>,
}

/// Natural logarithm of a chosen token's probability, with the most probable alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's bytes; they need not be valid UTF-8 on their own.
    pub bytes: Vec<u8>,
    /// ln p.
    pub logprob: f32,
    /// The most probable tokens at this place, best first; empty unless asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TopLogprob>,
}

/// An alternative to the token that was sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability.
    pub logprob: f32,
}

/// Reason for the end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End-of-generation token, stop string or finished tool call.
    Stop,
    /// Token limit, or a full context without shift.
    Length,
}

/// Summary at the end of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerSummary {
    pub reason: FinishReason,
    /// Stop string of the request that ended the answer; it is not part of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_string: Option<String>,
    pub usage: AnswerUsage,
    /// Rendered prompt and answer as token ids, if the request asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub context: Vec<i32>,
}

/// Counts and times of one answer. Durations are at least one nanosecond when the phase took place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerUsage {
    /// Prompt tokens, those found in the KV cache included.
    pub prompt_tokens: u32,
    /// Prompt tokens that were found in the KV cache.
    pub cached_tokens: u32,
    /// Time from the first prompt token decoded to the first token sampled.
    pub prompt_duration: Duration,
    /// Tokens sampled.
    pub output_tokens: u32,
    /// Reasoning tokens among the sampled ones.
    pub reasoning_tokens: u32,
    /// Time from the first token sampled to the last.
    pub output_duration: Duration,
    /// Time from the request's arrival until its model was ready.
    pub load_duration: Duration,
    /// Time from the request's arrival to the end of the answer.
    pub total_duration: Duration,
}
