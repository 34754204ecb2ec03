//! Body of `/v1/messages` and `/v1/messages/count_tokens`.

use super::{
    content,
    tools::{AnthropicToolChoice, DefinedTools},
};
use crate::{
    api::{
        envelope::shim_error,
        error::ApiError,
        options::{MAX_STOPS, RequestOptions},
        tools::OfferedTools,
        values::{self, FormatField, OptionsField},
    },
    go::decode::{DecodeError, FieldPath, JsonNode, entries_of},
    inference::{InferencePrompt, InferenceRequest, KeepAlive, Message, ThinkLevel, ThinkMode},
};

const ROOT: &str = "MessagesRequest";

/// Members that have an effect on Anthropic's servers, and none here.
const WITHOUT_EFFECT: [&str; 3] = ["container", "context_management", "mcp_servers"];

/// Decoded body, except for its messages and tools: errors in them come after those of required fields, as in Ollama.
struct Fields<'a> {
    model: String,
    max_tokens: Option<i64>,
    messages: Vec<JsonNode<'a>>,
    system: JsonNode<'a>,
    stream: bool,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    stop_sequences: Vec<String>,
    tools: Vec<JsonNode<'a>>,
    tool_choice: AnthropicToolChoice,
    thinking: Thinking,
    effort: String,
    format: FormatField,
    keep_alive: Option<KeepAlive>,
    options: OptionsField,
    num_ctx: Option<i64>,
    ignored: Vec<&'static str>,
}

/// `thinking`
#[derive(Default)]
struct Thinking {
    kind: String,
    budget_tokens: Option<i64>,
}

/// Decoded request. It has fields that Ollama's shim drops and an hf: model honors, too (`keep_alive`, `options`,
/// `num_ctx`, a schema for the answer).
#[derive(Debug)]
pub(super) struct MessagesRequest {
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) stop_sequences: Vec<String>,
    pub(super) think: ThinkMode,
    pub(super) tools: OfferedTools,
    /// Estimate of the prompt's tokens.
    pub(super) estimated_tokens: u32,
    /// Names of parts of the request without effect.
    pub(super) ignored: Vec<&'static str>,
    messages: Vec<Message>,
    parallel_tool_calls: bool,
    thinking_budget: Option<u32>,
    max_tokens: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    format: FormatField,
    keep_alive: Option<KeepAlive>,
    options: OptionsField,
    num_ctx: Option<i64>,
}

impl MessagesRequest {
    /// Decodes the body of `/v1/messages`.
    pub(super) fn decode(body: &[u8]) -> Result<Self, ApiError> {
        let fields = Fields::decode(body)?;
        // The order is Ollama's: model, `max_tokens`, messages. It decides which error a client sees first.
        fields.require_model()?;
        if fields.max_tokens.unwrap_or(0) <= 0 {
            return Err(ApiError::bad_request("max_tokens is required and must be positive"));
        }
        fields.finish()
    }

    /// Decodes the body of `/v1/messages/count_tokens`, which needs no `max_tokens`.
    pub(super) fn decode_uncounted(body: &[u8]) -> Result<Self, ApiError> {
        let fields = Fields::decode(body)?;
        fields.require_model()?;
        fields.finish()
    }

    /// Converts to the neutral request, with the tools that the model is shown.
    pub(super) fn into_inference(self, tools: OfferedTools, think: ThinkMode) -> Result<InferenceRequest, ApiError> {
        let RequestOptions {
            mut sampling,
            mut load,
            thinking_budget,
        } = self.options.into_options()?;
        // The members of Anthropic's API go before `options`, which is an extension.
        sampling.num_predict = self.max_tokens.or(sampling.num_predict);
        sampling.temperature = self.temperature.map(values::to_f32).or(sampling.temperature);
        sampling.top_p = self.top_p.map(values::to_f32).or(sampling.top_p);
        sampling.top_k = self.top_k.map(values::top_k).or(sampling.top_k);
        if !self.stop_sequences.is_empty() {
            sampling.stop = Some(self.stop_sequences);
        }
        if let Some(tokens) = self.num_ctx {
            load.context_length = values::context_length(tokens);
        }
        Ok(InferenceRequest {
            prompt: InferencePrompt::Chat {
                messages: self.messages,
                tools: tools.definitions,
                tool_choice: tools.choice,
                parallel_tool_calls: self.parallel_tool_calls,
                context: Vec::new(),
            },
            sampling,
            load,
            format: self.format.into_format()?,
            think,
            thinking_budget: self.thinking_budget.or(thinking_budget),
            keep_alive: self.keep_alive,
            // Anthropic's API has no such parameters; Ollama's shim leaves them at the native defaults.
            truncate: true,
            shift: true,
            logprobs: None,
            return_context: false,
        })
    }
}

impl<'a> Fields<'a> {
    fn decode(body: &'a [u8]) -> Result<Self, ApiError> {
        let entries = entries_of(body, "anthropic.MessagesRequest").map_err(shim_error)?;
        let mut fields = Self {
            model: String::new(),
            max_tokens: None,
            messages: Vec::new(),
            system: JsonNode::Null,
            stream: false,
            temperature: None,
            top_p: None,
            top_k: None,
            stop_sequences: Vec::new(),
            tools: Vec::new(),
            tool_choice: AnthropicToolChoice::default(),
            thinking: Thinking::default(),
            effort: String::new(),
            format: FormatField::Unset,
            keep_alive: None,
            options: OptionsField::default(),
            num_ctx: None,
            ignored: Vec::new(),
        };
        for (key, node) in entries {
            fields.set(&key.to_ascii_lowercase(), node)?;
        }
        Ok(fields)
    }

    fn set(&mut self, key: &str, node: JsonNode<'a>) -> Result<(), DecodeError> {
        match key {
            "model" => node.read_string(&mut self.model, FieldPath(ROOT, "model"))?,
            "max_tokens" => node.read_int(&mut self.max_tokens, FieldPath(ROOT, "max_tokens"))?,
            "messages" => self.messages = node.read_array(FieldPath(ROOT, "messages"), "[]anthropic.MessageParam")?,
            "system" => self.system = node,
            "stream" => node.read_bool(&mut self.stream, FieldPath(ROOT, "stream"))?,
            "temperature" => node.read_float(&mut self.temperature, FieldPath(ROOT, "temperature"))?,
            "top_p" => node.read_float(&mut self.top_p, FieldPath(ROOT, "top_p"))?,
            "top_k" => node.read_int(&mut self.top_k, FieldPath(ROOT, "top_k"))?,
            "stop_sequences" => self.stop_sequences = stop_sequences(node)?,
            "tools" => self.tools = node.read_array(FieldPath(ROOT, "tools"), "[]anthropic.Tool")?,
            "tool_choice" => self.tool_choice = AnthropicToolChoice::read(node)?,
            "thinking" => self.thinking = Thinking::read(node)?,
            "output_config" => {
                for (key, node) in node.read_object(FieldPath(ROOT, "output_config"), "anthropic.OutputConfig")? {
                    match key.to_ascii_lowercase().as_str() {
                        "effort" => node.read_string(&mut self.effort, FieldPath(ROOT, "output_config.effort"))?,
                        "format" => self.format = output_format(node, FieldPath(ROOT, "output_config.format"))?,
                        _ => {}
                    }
                }
            }
            // The name of `output_config.format` in the beta of structured outputs.
            "output_format" => self.format = output_format(node, FieldPath(ROOT, "output_format"))?,
            "keep_alive" => self.keep_alive = values::keep_alive(&node)?,
            "options" => self.options = OptionsField::read(node, ROOT)?,
            "num_ctx" => node.read_int(&mut self.num_ctx, FieldPath(ROOT, "num_ctx"))?,
            other => {
                if let Some(name) = WITHOUT_EFFECT.iter().find(|name| **name == other)
                    && node != JsonNode::Null
                    && !self.ignored.contains(name)
                {
                    self.ignored.push(name);
                }
            }
        }
        Ok(())
    }

    fn require_model(&self) -> Result<(), ApiError> {
        if self.model.is_empty() {
            return Err(ApiError::model_required());
        }
        Ok(())
    }

    /// Decodes messages and tools.
    fn finish(self) -> Result<MessagesRequest, ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::bad_request("messages is required"));
        }
        let think = self.think();
        let mut messages: Vec<Message> = content::system(&self.system).into_iter().collect();
        messages.extend(content::messages(self.messages)?);
        if messages.iter().all(|message| message.role.0 == "system") {
            return Err(ApiError::bad_request(
                "messages hold no content: give at least one of them a text, an image or a tool result",
            ));
        }
        let DefinedTools { definitions, left_out } = DefinedTools::read(self.tools)?;
        let mut ignored = self.ignored;
        ignored.extend(left_out);
        let tool_bytes = definitions.iter().map(|tool| tool.raw.get().len()).sum();
        Ok(MessagesRequest {
            model: self.model,
            stream: self.stream,
            stop_sequences: self.stop_sequences,
            think,
            estimated_tokens: content::estimated_tokens(&messages, tool_bytes),
            tools: OfferedTools::choose(definitions, self.tool_choice.choice()?, None)?,
            ignored,
            messages,
            parallel_tool_calls: self.tool_choice.allows_parallel(),
            thinking_budget: self
                .thinking
                .budget_tokens
                .and_then(|tokens| u32::try_from(tokens).ok())
                // Anthropic defines the budget for thinking that is `enabled`, not for an effort.
                .filter(|tokens| *tokens > 0 && think == ThinkMode::On),
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            format: self.format,
            keep_alive: self.keep_alive,
            options: self.options,
            num_ctx: self.num_ctx,
        })
    }

    /// Returns the reasoning that is asked for. `thinking` goes before an effort; unknown words are ignored, as in
    /// Ollama.
    fn think(&self) -> ThinkMode {
        match self.thinking.kind.as_str() {
            "enabled" => return ThinkMode::On,
            "disabled" => return ThinkMode::Off,
            _ => {}
        }
        match self.effort.trim().to_lowercase().as_str() {
            "low" => ThinkMode::Level(ThinkLevel::Low),
            "medium" => ThinkMode::Level(ThinkLevel::Medium),
            "high" | "xhigh" => ThinkMode::Level(ThinkLevel::High),
            "max" => ThinkMode::Level(ThinkLevel::Max),
            _ => ThinkMode::Unset,
        }
    }
}

impl Thinking {
    fn read(node: JsonNode<'_>) -> Result<Self, DecodeError> {
        let mut thinking = Self::default();
        for (key, node) in node.read_object(FieldPath(ROOT, "thinking"), "anthropic.ThinkingConfig")? {
            match key.to_ascii_lowercase().as_str() {
                "type" => node.read_string(&mut thinking.kind, FieldPath(ROOT, "thinking.type"))?,
                "budget_tokens" => {
                    node.read_int(&mut thinking.budget_tokens, FieldPath(ROOT, "thinking.budget_tokens"))?
                }
                _ => {}
            }
        }
        Ok(thinking)
    }
}

fn stop_sequences(node: JsonNode<'_>) -> Result<Vec<String>, DecodeError> {
    let field = FieldPath(ROOT, "stop_sequences");
    let items = node.read_array(field, "[]string")?;
    if items.len() > MAX_STOPS {
        return Err(DecodeError::new(format!(
            "stop_sequences holds more than {MAX_STOPS} strings"
        )));
    }
    items
        .into_iter()
        .map(|item| {
            let mut text = String::new();
            item.read_string(&mut text, field)?;
            Ok(text)
        })
        // An empty stop string would end every answer at once.
        .filter(|item| !matches!(item, Ok(text) if text.is_empty()))
        .collect()
}

/// Reads Anthropic's structured output: a schema that the answer has to satisfy.
fn output_format(node: JsonNode<'_>, field: FieldPath) -> Result<FormatField, DecodeError> {
    let mut kind = String::new();
    let mut schema = FormatField::Unset;
    for (key, node) in node.read_object(field, "anthropic.OutputFormat")? {
        match key.to_ascii_lowercase().as_str() {
            "type" => node.read_string(&mut kind, field)?,
            "schema" => schema = FormatField::read(&node)?,
            _ => {}
        }
    }
    Ok(match kind.as_str() {
        "json_schema" => schema,
        _ => FormatField::Unset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::AnswerFormat;

    fn decode(fields: &str) -> Result<MessagesRequest, ApiError> {
        MessagesRequest::decode(
            format!(r#"{{"model":"m","max_tokens":9,"messages":[{{"role":"user","content":"x"}}]{fields}}}"#)
                .as_bytes(),
        )
    }

    #[test]
    fn what_is_missing_or_wrong_is_said_in_the_order_of_the_shim() {
        for (body, expected) in [
            ("", "EOF"),
            ("{\"mod", "unexpected EOF"),
            (
                "[]",
                "json: cannot unmarshal array into Go value of type anthropic.MessagesRequest",
            ),
            (
                r#"{"model":"m","max_tokens":"9"}"#,
                "json: cannot unmarshal string into Go struct field MessagesRequest.max_tokens of type int",
            ),
            (
                r#"{"stop_sequences":[1]}"#,
                "json: cannot unmarshal number into Go struct field MessagesRequest.stop_sequences of type string",
            ),
            ("{}", "model is required"),
            (
                r#"{"model":"m","messages":[{"role":"user","content":5}]}"#,
                "max_tokens is required and must be positive",
            ),
            (
                r#"{"model":"m","max_tokens":0}"#,
                "max_tokens is required and must be positive",
            ),
            (r#"{"model":"m","max_tokens":1}"#, "messages is required"),
            (
                r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":""}],"system":"s"}"#,
                "messages hold no content: give at least one of them a text, an image or a tool result",
            ),
            (
                r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image"}]}]}"#,
                "invalid image source",
            ),
        ] {
            let error = MessagesRequest::decode(body.as_bytes()).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.message.as_str()),
                (400, expected),
                "{body}"
            );
        }
        let counted = br#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
        assert!(MessagesRequest::decode_uncounted(counted).is_ok());
        assert_eq!(
            MessagesRequest::decode_uncounted(br#"{"model":"m"}"#)
                .unwrap_err()
                .message,
            "messages is required"
        );
    }

    #[test]
    fn thinking_goes_before_an_effort() {
        for (fields, think, budget) in [
            ("", ThinkMode::Unset, None),
            (
                r#","thinking":{"type":"enabled","budget_tokens":50}"#,
                ThinkMode::On,
                Some(50),
            ),
            (
                r#","thinking":{"type":"enabled","budget_tokens":-1}"#,
                ThinkMode::On,
                None,
            ),
            (
                r#","thinking":{"type":"disabled","budget_tokens":50}"#,
                ThinkMode::Off,
                None,
            ),
            (r#","thinking":{"type":"adaptive"}"#, ThinkMode::Unset, None),
            (
                r#","thinking":{"type":"enabled"},"output_config":{"effort":"low"}"#,
                ThinkMode::On,
                None,
            ),
            (
                r#","output_config":{"effort":" XHigh "}"#,
                ThinkMode::Level(ThinkLevel::High),
                None,
            ),
            (
                r#","output_config":{"effort":"max"}"#,
                ThinkMode::Level(ThinkLevel::Max),
                None,
            ),
            (r#","output_config":{"effort":"none"}"#, ThinkMode::Unset, None),
        ] {
            let request = decode(fields).unwrap();
            assert_eq!((request.think, request.thinking_budget), (think, budget), "{fields}");
        }
    }

    #[test]
    fn nothing_is_sampled_otherwise_than_asked() {
        let request = decode("")
            .unwrap()
            .into_inference(OfferedTools::default(), ThinkMode::Unset)
            .unwrap();
        let sampling = &request.sampling;
        assert_eq!(
            (sampling.num_predict, sampling.temperature, sampling.top_p),
            (Some(9), None, None)
        );
        assert_eq!((sampling.top_k, sampling.stop.clone()), (None, None));

        let request = decode(
            r#","temperature":0.5,"top_p":0.25,"top_k":7,"stop_sequences":["a",""],"num_ctx":99,"keep_alive":-1,"options":{"seed":3,"temperature":2,"thinking_budget":4}"#,
        )
        .unwrap()
        .into_inference(OfferedTools::default(), ThinkMode::On)
        .unwrap();
        let sampling = &request.sampling;
        assert_eq!(
            (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed),
            (Some(0.5), Some(0.25), Some(7), Some(3))
        );
        assert_eq!(sampling.stop, Some(vec!["a".to_owned()]));
        assert_eq!(
            (request.load.context_length, request.keep_alive, request.thinking_budget),
            (Some(99), Some(KeepAlive::Forever), Some(4))
        );
    }

    #[test]
    fn a_schema_for_the_answer_is_a_format() {
        for fields in [
            r#","output_config":{"format":{"type":"json_schema","schema":{"type":"object"}}}"#,
            r#","output_format":{"type":"json_schema","schema":{"type":"object"}}"#,
        ] {
            let request = decode(fields)
                .unwrap()
                .into_inference(OfferedTools::default(), ThinkMode::Unset)
                .unwrap();
            assert!(
                matches!(request.format, Some(AnswerFormat::Schema(schema)) if schema.get() == r#"{"type":"object"}"#)
            );
        }
    }

    #[test]
    fn what_has_no_effect_is_named_once() {
        let request = decode(
            r#","mcp_servers":[],"container":null,"mcp_servers":[],"tools":[{"type":"web_search_20250305","name":"web_search"}],"metadata":{}"#,
        )
        .unwrap();
        assert_eq!(request.ignored, ["mcp_servers", "web_search"]);
    }
}
