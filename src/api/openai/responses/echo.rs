//! Response object of `/v1/responses`: fields repeated from the request, and the result. The order of fields is the
//! wire's.

use serde::Serialize;
use serde_json::{Map, Value};

use super::items::OutputItem;
use crate::{go::encode, inference::AnswerUsage};

/// Fields that a reply repeats from its request.
#[derive(Clone, Debug)]
pub(super) struct RequestEcho {
    pub(super) model: String,
    pub(super) instructions: String,
    pub(super) tools: Vec<Value>,
    pub(super) tool_choice: Value,
    pub(super) truncation: String,
    pub(super) parallel_tool_calls: bool,
    /// `text.format`
    pub(super) format: Value,
    pub(super) top_p: f64,
    pub(super) presence_penalty: f64,
    pub(super) frequency_penalty: f64,
    pub(super) temperature: f64,
    /// `reasoning.effort`; empty if not set.
    pub(super) effort: String,
    /// `reasoning.summary`; empty if not set.
    pub(super) summary: String,
    pub(super) max_output_tokens: Option<i64>,
}

/// State of a response at an event.
#[derive(Clone, Debug, Default)]
pub(super) struct ResponseState<'a> {
    pub(super) id: &'a str,
    /// Unix seconds.
    pub(super) created_at: i64,
    /// Unix seconds; `None` until the response is complete.
    pub(super) completed_at: Option<i64>,
    pub(super) status: &'static str,
    pub(super) output: &'a [OutputItem],
    pub(super) error: Option<ResponseFailure<'a>>,
    pub(super) usage: Option<&'a AnswerUsage>,
}

/// Reason why a response failed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ResponseFailure<'a> {
    pub(super) code: &'static str,
    pub(super) message: &'a str,
}

#[derive(Serialize)]
struct Object<'a> {
    // Members of type `Option<()>` are always `null`: OpenAI's object has them, and nothing here sets them.
    id: &'a str,
    object: &'static str,
    created_at: i64,
    completed_at: Option<i64>,
    status: &'static str,
    incomplete_details: Option<()>,
    model: &'a str,
    previous_response_id: Option<()>,
    instructions: Option<&'a str>,
    output: &'a [OutputItem],
    error: Option<ResponseFailure<'a>>,
    tools: &'a [Value],
    tool_choice: &'a Value,
    truncation: &'a str,
    parallel_tool_calls: bool,
    text: Text<'a>,
    top_p: f64,
    presence_penalty: f64,
    frequency_penalty: f64,
    top_logprobs: u32,
    temperature: f64,
    reasoning: Option<Map<String, Value>>,
    usage: Option<WireUsage>,
    max_output_tokens: Option<i64>,
    max_tool_calls: Option<()>,
    store: bool,
    background: bool,
    service_tier: &'static str,
    metadata: Map<String, Value>,
    safety_identifier: Option<()>,
    prompt_cache_key: Option<()>,
}

#[derive(Serialize)]
struct Text<'a> {
    format: &'a Value,
}

#[derive(Serialize)]
struct WireUsage {
    input_tokens: u32,
    output_tokens: u32,
    total_tokens: u32,
    input_tokens_details: InputDetails,
    output_tokens_details: OutputDetails,
}

#[derive(Serialize)]
struct InputDetails {
    cached_tokens: u32,
}

#[derive(Serialize)]
struct OutputDetails {
    /// Number of output tokens inside of the reasoning; always 0 in Ollama.
    reasoning_tokens: u32,
}

impl Default for RequestEcho {
    fn default() -> Self {
        Self {
            model: String::new(),
            instructions: String::new(),
            tools: Vec::new(),
            tool_choice: "auto".into(),
            truncation: "disabled".to_owned(),
            parallel_tool_calls: true,
            format: serde_json::json!({"type": "text"}),
            top_p: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            temperature: 1.0,
            effort: String::new(),
            summary: String::new(),
            max_output_tokens: None,
        }
    }
}

impl RequestEcho {
    /// Returns the object of a reply in one piece.
    pub(super) fn whole(&self, state: &ResponseState<'_>) -> Vec<u8> {
        let reasoning = self.reasoning(|text| (!text.is_empty()).then(|| text.into()));
        let mut bytes = crate::api::reply::encode(&self.object(state, &self.tools, reasoning));
        bytes.push(b'\n');
        bytes
    }

    /// Returns the object inside an event. In Ollama it is a map there, not the struct of the whole reply: empty fields
    /// are `null`, and namespaces have no members.
    pub(super) fn streamed(&self, state: &ResponseState<'_>) -> Value {
        let tools: Vec<Value> = self.tools.iter().cloned().map(without_members).collect();
        let reasoning = self.reasoning(|text| {
            Some(match text {
                "" => Value::Null,
                text => text.into(),
            })
        });
        // All keys are strings, so this does not fail.
        serde_json::to_value(self.object(state, &tools, reasoning)).unwrap_or_default()
    }

    fn reasoning(&self, member: impl Fn(&str) -> Option<Value>) -> Option<Map<String, Value>> {
        if self.effort.is_empty() && self.summary.is_empty() {
            return None;
        }
        let members = [("effort", &self.effort), ("summary", &self.summary)];
        let members = members
            .into_iter()
            .filter_map(|(key, text)| Some((key.to_owned(), member(text)?)));
        Some(members.collect())
    }

    fn object<'a>(
        &'a self,
        state: &ResponseState<'a>,
        tools: &'a [Value],
        reasoning: Option<Map<String, Value>>,
    ) -> Object<'a> {
        Object {
            id: state.id,
            object: "response",
            created_at: state.created_at,
            completed_at: state.completed_at,
            status: state.status,
            // Ollama calls an answer complete even if the token limit ended it.
            incomplete_details: None,
            model: &self.model,
            previous_response_id: None,
            instructions: Some(self.instructions.as_str()).filter(|text| !text.is_empty()),
            output: state.output,
            error: state.error,
            tools,
            tool_choice: &self.tool_choice,
            truncation: &self.truncation,
            parallel_tool_calls: self.parallel_tool_calls,
            text: Text { format: &self.format },
            top_p: self.top_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            top_logprobs: 0,
            temperature: self.temperature,
            reasoning,
            usage: state.usage.map(WireUsage::from),
            max_output_tokens: self.max_output_tokens,
            max_tool_calls: None,
            store: false,
            background: false,
            service_tier: "default",
            metadata: Map::new(),
            safety_identifier: None,
            prompt_cache_key: None,
        }
    }
}

impl From<&AnswerUsage> for WireUsage {
    fn from(usage: &AnswerUsage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            output_tokens: usage.output_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.output_tokens),
            input_tokens_details: InputDetails {
                cached_tokens: usage.cached_tokens,
            },
            output_tokens_details: OutputDetails {
                reasoning_tokens: usage.reasoning_tokens,
            },
        }
    }
}

fn without_members(mut tool: Value) -> Value {
    if let Value::Object(tool) = &mut tool {
        tool.remove("tools");
    }
    tool
}

/// Encodes the data of an event with sorted keys, as Go writes maps.
pub(super) fn sorted(data: Value) -> Vec<u8> {
    crate::api::reply::encode(&encode::sorted(data))
}
