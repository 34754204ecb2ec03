//! The body of `/v1/chat/completions`.

use serde_json::value::RawValue;

use super::content;
use crate::{
    api::{
        decode::{DecodeError, Field, Node, entries_of, quote},
        error::ApiError,
        options::Options,
        values::{self, FormatField},
    },
    inference::{InferenceRequest, KeepAlive, Message, Prompt, Think, ThinkLevel},
};

const ROOT: &str = "ChatCompletionRequest";

/// Strings that can end an answer.
const MAX_STOPS: usize = 256;

/// A request as it came. What Ollama's shim ignores but an hf: model can honour (`num_ctx`, `keep_alive`, `options`,
/// `top_k`, `min_p`, `max_completion_tokens`) is read too.
#[derive(Debug, Default)]
pub(super) struct ChatCompletionRequest {
    pub(super) model: String,
    pub(super) messages: Vec<Message>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) tools: Vec<Box<RawValue>>,
    pub(super) tool_choice: ToolChoice,
    effort: Option<String>,
    format: FormatField,
    keep_alive: Option<KeepAlive>,
    options: Option<Result<Options, ApiError>>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    num_ctx: Option<i64>,
    seed: Option<i64>,
    top_k: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    stop: Option<Vec<String>>,
    logprobs: bool,
    top_logprobs: Option<i64>,
    count: Option<i64>,
    has_logit_bias: bool,
}

/// Whether the model may, must or must not call a tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// At least one, or a certain one.
    Required,
}

impl ChatCompletionRequest {
    /// Reads a body. The errors are those of the shim.
    pub(super) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut request = Self::default();
        for (key, node) in entries_of(body, "openai.ChatCompletionRequest")? {
            request.set(&key.to_ascii_lowercase(), node)?;
        }
        Ok(request)
    }

    fn set(&mut self, key: &str, node: Node<'_>) -> Result<(), DecodeError> {
        match key {
            "model" => node.read_string(&mut self.model, Field(ROOT, "model")),
            "messages" => {
                self.messages = content::messages(node)?;
                Ok(())
            }
            "stream" => node.read_bool(&mut self.stream, Field(ROOT, "stream")),
            "stream_options" => {
                for (key, node) in node.read_object(Field(ROOT, "stream_options"), "openai.StreamOptions")? {
                    if key.eq_ignore_ascii_case("include_usage") {
                        node.read_bool(&mut self.include_usage, Field(ROOT, "stream_options.include_usage"))?;
                    }
                }
                Ok(())
            }
            "tools" => {
                self.tools = values::tools(node, Field(ROOT, "tools"))?;
                Ok(())
            }
            "tool_choice" => {
                self.tool_choice = tool_choice(&node);
                Ok(())
            }
            "reasoning" => {
                for (key, node) in node.read_object(Field(ROOT, "reasoning"), "openai.Reasoning")? {
                    if key.eq_ignore_ascii_case("effort") {
                        self.set_effort(node, Field(ROOT, "reasoning.effort"))?;
                    }
                }
                Ok(())
            }
            "reasoning_effort" => self.set_effort(node, Field(ROOT, "reasoning_effort")),
            "response_format" => {
                self.format = response_format(node)?;
                Ok(())
            }
            "keep_alive" => {
                self.keep_alive = values::keep_alive(&node)?;
                Ok(())
            }
            "options" => {
                let entries = node.read_object(Field(ROOT, "options"), "map[string]interface {}")?;
                self.options = Some(Options::read(entries));
                Ok(())
            }
            "max_tokens" => node.read_int(&mut self.max_tokens, Field(ROOT, "max_tokens")),
            "max_completion_tokens" => {
                node.read_int(&mut self.max_completion_tokens, Field(ROOT, "max_completion_tokens"))
            }
            "num_ctx" => node.read_int(&mut self.num_ctx, Field(ROOT, "num_ctx")),
            "seed" => node.read_int(&mut self.seed, Field(ROOT, "seed")),
            "top_k" => node.read_int(&mut self.top_k, Field(ROOT, "top_k")),
            "temperature" => node.read_float(&mut self.temperature, Field(ROOT, "temperature")),
            "top_p" => node.read_float(&mut self.top_p, Field(ROOT, "top_p")),
            "min_p" => node.read_float(&mut self.min_p, Field(ROOT, "min_p")),
            "frequency_penalty" => node.read_float(&mut self.frequency_penalty, Field(ROOT, "frequency_penalty")),
            "presence_penalty" => node.read_float(&mut self.presence_penalty, Field(ROOT, "presence_penalty")),
            "stop" => {
                self.stop = stops(node)?;
                Ok(())
            }
            "logprobs" => node.read_bool(&mut self.logprobs, Field(ROOT, "logprobs")),
            "top_logprobs" => node.read_int(&mut self.top_logprobs, Field(ROOT, "top_logprobs")),
            "n" => node.read_int(&mut self.count, Field(ROOT, "n")),
            "logit_bias" => {
                self.has_logit_bias = matches!(&node, Node::Object(entries) if !entries.is_empty());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn set_effort(&mut self, node: Node<'_>, field: Field) -> Result<(), DecodeError> {
        let mut effort = String::new();
        node.read_string(&mut effort, field)?;
        if !effort.is_empty() {
            self.effort = Some(effort);
        }
        Ok(())
    }

    /// The checks of the shim on a body that could be read.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::bad_request("[] is too short - 'messages'"));
        }
        self.think().map(drop)
    }

    /// The check of the native handler that comes before the model is looked up.
    pub(super) fn check_range(&self) -> Result<(), ApiError> {
        values::top_logprobs(self.top_logprobs.unwrap_or(0)).map(drop)
    }

    /// Whether the model is to reason.
    pub(super) fn think(&self) -> Result<Think, ApiError> {
        let Some(effort) = &self.effort else {
            return Ok(Think::Unset);
        };
        Ok(match effort.as_str() {
            "none" => Think::Off,
            "minimal" | "low" => Think::Level(ThinkLevel::Low),
            "medium" => Think::Level(ThinkLevel::Medium),
            "high" => Think::Level(ThinkLevel::High),
            "max" | "xhigh" | "ultra" => Think::Level(ThinkLevel::Max),
            other => {
                return Err(ApiError::bad_request(format!(
                    "invalid reasoning value: {} (must be \"minimal\", \"low\", \"medium\", \"high\", \"xhigh\", \"ultra\", \"max\", or \"none\")",
                    quote(other)
                )));
            }
        })
    }

    /// What was asked for and has no effect.
    pub(super) fn ignored(&self) -> Vec<&'static str> {
        let mut ignored = Vec::new();
        if self.count.is_some_and(|count| count > 1) {
            ignored.push("n");
        }
        if self.has_logit_bias {
            ignored.push("logit_bias");
        }
        if self.tool_choice == ToolChoice::Required {
            ignored.push("tool_choice");
        }
        ignored
    }

    /// The neutral request, with the tools that are left after the check of the model.
    pub(super) fn into_inference(self, tools: Vec<Box<RawValue>>, think: Think) -> Result<InferenceRequest, ApiError> {
        let Options {
            mut sampling,
            mut load,
            thinking_budget,
        } = self.options.unwrap_or_else(|| Ok(Options::default()))?;
        if let Some(tokens) = self.max_completion_tokens.or(self.max_tokens) {
            sampling.num_predict = Some(tokens);
        }
        if let Some(tokens) = self.num_ctx {
            load.num_ctx = u32::try_from(tokens).ok().filter(|tokens| *tokens > 0);
        }
        sampling.seed = self.seed.or(sampling.seed);
        sampling.top_k = self
            .top_k
            .map(|count| i32::try_from(count).unwrap_or(i32::MAX))
            .or(sampling.top_k);
        sampling.min_p = self.min_p.map(narrow).or(sampling.min_p);
        sampling.frequency_penalty = self.frequency_penalty.map(narrow).or(sampling.frequency_penalty);
        sampling.presence_penalty = self.presence_penalty.map(narrow).or(sampling.presence_penalty);
        sampling.stop = self.stop.or(sampling.stop);
        // This wire has defaults of its own, and they go before the model's.
        sampling.temperature = Some(self.temperature.map(narrow).or(sampling.temperature).unwrap_or(1.0));
        sampling.top_p = Some(self.top_p.map(narrow).or(sampling.top_p).unwrap_or(1.0));
        let top_logprobs = values::top_logprobs(self.top_logprobs.unwrap_or(0))?;
        Ok(InferenceRequest {
            prompt: Prompt::Chat {
                messages: self.messages,
                tools,
                tool_choice: crate::inference::ToolChoice::Auto,
                parallel_tool_calls: true,
                context: Vec::new(),
            },
            sampling,
            load,
            format: self.format.into_format()?,
            think,
            thinking_budget,
            keep_alive: self.keep_alive,
            truncate: true,
            shift: true,
            logprobs: self.logprobs.then_some(top_logprobs),
            return_context: false,
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "samplers count in 32 bits")]
fn narrow(number: f64) -> f32 {
    number as f32
}

fn tool_choice(node: &Node<'_>) -> ToolChoice {
    match node {
        Node::String(word) if word == "none" => ToolChoice::None,
        Node::String(word) if word == "required" => ToolChoice::Required,
        Node::Object(_) => ToolChoice::Required,
        _ => ToolChoice::Auto,
    }
}

fn response_format(node: Node<'_>) -> Result<FormatField, DecodeError> {
    let mut kind = String::new();
    let mut schema = FormatField::Unset;
    for (key, node) in node.read_object(Field(ROOT, "response_format"), "openai.ResponseFormat")? {
        match key.to_ascii_lowercase().as_str() {
            "type" => node.read_string(&mut kind, Field(ROOT, "response_format.type"))?,
            "json_schema" => {
                for (key, node) in node.read_object(Field(ROOT, "response_format.json_schema"), "openai.JsonSchema")? {
                    if key.eq_ignore_ascii_case("schema") {
                        schema = FormatField::read(&node)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(match kind.trim().to_ascii_lowercase().as_str() {
        "json_object" => FormatField::Json,
        "json_schema" => schema,
        _ => FormatField::Unset,
    })
}

/// A string or a list; what is no string in a list is passed over.
fn stops(node: Node<'_>) -> Result<Option<Vec<String>>, DecodeError> {
    match node {
        Node::String(text) => Ok(Some(vec![text.into_owned()])),
        Node::Array(items) if items.len() > MAX_STOPS => {
            Err(DecodeError::new(format!("stop holds more than {MAX_STOPS} strings")))
        }
        Node::Array(items) => Ok(Some(
            items
                .into_iter()
                .filter_map(|item| match item {
                    Node::String(text) => Some(text.into_owned()),
                    _ => None,
                })
                .collect(),
        )),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::Format;

    fn decode(json: &str) -> ChatCompletionRequest {
        ChatCompletionRequest::decode(json.as_bytes()).unwrap()
    }

    // Trap 39
    #[test]
    fn absent_temperature_and_top_p_are_one_on_this_wire() {
        let request = decode("{}").into_inference(Vec::new(), Think::Unset).unwrap();
        assert_eq!(
            (request.sampling.temperature, request.sampling.top_p),
            (Some(1.0), Some(1.0))
        );
        assert_eq!(request.sampling.top_k, None);
    }

    #[test]
    fn fields_map_to_the_neutral_request() {
        let request = decode(
            r#"{"max_tokens":5,"seed":7,"stop":"x","temperature":0,"top_p":0.5,"logprobs":true,"top_logprobs":2,"num_ctx":2048,"keep_alive":-1,"options":{"top_k":3,"temperature":2,"repeat_penalty":1.5}}"#,
        )
        .into_inference(Vec::new(), Think::Unset)
        .unwrap();
        let sampling = request.sampling;
        assert_eq!(
            (sampling.num_predict, sampling.seed, sampling.top_k),
            (Some(5), Some(7), Some(3))
        );
        assert_eq!(
            (sampling.temperature, sampling.top_p, sampling.repeat_penalty),
            (Some(0.0), Some(0.5), Some(1.5))
        );
        assert_eq!(sampling.stop, Some(vec!["x".to_owned()]));
        assert_eq!((request.load.num_ctx, request.logprobs), (Some(2048), Some(2)));
        assert_eq!(request.keep_alive, Some(KeepAlive::Forever));
    }

    #[test]
    fn response_formats_are_read_by_their_type() {
        let schema = decode(
            r#"{"response_format":{"type":" JSON_schema ","json_schema":{"name":"n","schema":{"type":"object"}}}}"#,
        );
        let format = schema.into_inference(Vec::new(), Think::Unset).unwrap().format;
        assert!(matches!(format, Some(Format::Schema(schema)) if schema.get() == r#"{"type":"object"}"#));
        let object = decode(r#"{"response_format":{"type":"json_object"}}"#);
        assert!(matches!(
            object.into_inference(Vec::new(), Think::Unset).unwrap().format,
            Some(Format::Json)
        ));
        let text = decode(r#"{"response_format":{"type":"text"}}"#);
        assert!(text.into_inference(Vec::new(), Think::Unset).unwrap().format.is_none());
    }

    #[test]
    fn efforts_map_to_levels_and_others_are_refused() {
        for (effort, think) in [
            ("none", Think::Off),
            ("minimal", Think::Level(ThinkLevel::Low)),
            ("high", Think::Level(ThinkLevel::High)),
            ("ultra", Think::Level(ThinkLevel::Max)),
        ] {
            assert_eq!(
                decode(&format!(r#"{{"reasoning_effort":"{effort}"}}"#))
                    .think()
                    .unwrap(),
                think
            );
            assert_eq!(
                decode(&format!(r#"{{"reasoning":{{"effort":"{effort}"}}}}"#))
                    .think()
                    .unwrap(),
                think
            );
        }
        assert_eq!(
            decode(r#"{"reasoning_effort":"xyz"}"#).think().unwrap_err().message,
            r#"invalid reasoning value: "xyz" (must be "minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none")"#
        );
    }

    #[test]
    fn wrong_types_are_answered_in_the_words_of_go() {
        assert_eq!(
            ChatCompletionRequest::decode(br#"{"max_tokens":"x"}"#)
                .unwrap_err()
                .to_string(),
            "json: cannot unmarshal string into Go struct field ChatCompletionRequest.max_tokens of type int"
        );
        assert_eq!(
            decode("{}").check().unwrap_err().message,
            "[] is too short - 'messages'"
        );
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let request = decode(r#"{"n":2,"logit_bias":{"1":2},"tool_choice":{"type":"function"}}"#);
        assert_eq!(request.ignored(), ["n", "logit_bias", "tool_choice"]);
        assert!(
            decode(r#"{"n":1,"logit_bias":{},"tool_choice":"auto"}"#)
                .ignored()
                .is_empty()
        );
    }
}
