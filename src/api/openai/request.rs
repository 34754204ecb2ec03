//! Body of `/v1/chat/completions`.

use super::{
    common::{SharedFields, stops},
    content,
    tools::OpenAiToolChoice,
};
use crate::{
    api::{
        error::ApiError,
        tools::OfferedTools,
        values::{self, FormatField},
    },
    go::decode::{DecodeError, FieldPath, JsonNode, entries_of},
    inference::{InferencePrompt, InferenceRequest, Message, ThinkMode, ToolDefinition},
};

const ROOT: &str = "ChatCompletionRequest";

/// Fields of OpenAI's API that would change the answer there and have no effect here.
const WITHOUT_EFFECT: [&str; 6] = [
    "audio",
    "function_call",
    "functions",
    "prediction",
    "verbosity",
    "web_search_options",
];

/// `top_p` of requests that do not set it: Ollama's shim sends 1 then, over the model's own default.
const DEFAULT_TOP_P: Option<f32> = Some(1.0);

/// Body of `POST /v1/chat/completions`.
#[derive(Debug)]
pub(super) struct ChatCompletionRequest {
    pub(super) common: SharedFields,
    messages: Vec<Message>,
    tools: Vec<ToolDefinition>,
    tool_choice: OpenAiToolChoice,
    parallel_tool_calls: bool,
    format: FormatField,
    logprobs: bool,
    top_logprobs: Option<i64>,
    /// True when the rendered prompt is returned instead of an answer (`_debug_render_only`, as on the native route).
    pub(super) only_renders: bool,
}

impl ChatCompletionRequest {
    /// Decodes a body, with the errors of the shim.
    pub(super) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut request = Self {
            common: SharedFields::default(),
            messages: Vec::new(),
            tools: Vec::new(),
            tool_choice: OpenAiToolChoice::default(),
            parallel_tool_calls: true,
            format: FormatField::Unset,
            logprobs: false,
            top_logprobs: None,
            only_renders: false,
        };
        for (key, node) in entries_of(body, "openai.ChatCompletionRequest")? {
            let key = key.to_ascii_lowercase();
            if let Some(node) = request.common.read(ROOT, &key, node)? {
                request.set(&key, node)?;
            }
        }
        Ok(request)
    }

    fn set(&mut self, key: &str, node: JsonNode<'_>) -> Result<(), DecodeError> {
        match key {
            "messages" => self.messages = content::messages(node)?,
            "tools" => self.tools = values::tools(node, FieldPath(ROOT, "tools"))?,
            "tool_choice" => self.tool_choice = OpenAiToolChoice::read(&node)?,
            "parallel_tool_calls" => {
                node.read_bool(&mut self.parallel_tool_calls, FieldPath(ROOT, "parallel_tool_calls"))?
            }
            "reasoning" => {
                for (key, node) in node.read_object(FieldPath(ROOT, "reasoning"), "openai.Reasoning")? {
                    if key.eq_ignore_ascii_case("effort") {
                        self.common.set_effort(node, FieldPath(ROOT, "reasoning.effort"))?;
                    }
                }
            }
            "response_format" => self.format = response_format(node)?,
            // Ollama's shim skips items of the list that are no strings.
            "stop" => self.common.stop = stops(node, |_| Ok(()))?,
            "logprobs" => node.read_bool(&mut self.logprobs, FieldPath(ROOT, "logprobs"))?,
            "top_logprobs" => node.read_int(&mut self.top_logprobs, FieldPath(ROOT, "top_logprobs"))?,
            "_debug_render_only" => node.read_bool(&mut self.only_renders, FieldPath(ROOT, "_debug_render_only"))?,
            _ => {
                if let Some(name) = WITHOUT_EFFECT.iter().find(|name| **name == key)
                    && node != JsonNode::Null
                {
                    self.common.note_ignored(name);
                }
            }
        }
        Ok(())
    }

    /// Makes the checks of the shim on a decoded body.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::bad_request("[] is too short - 'messages'"));
        }
        self.common.check()
    }

    /// Makes the check that the native handler makes before it looks the model up.
    pub(super) fn check_range(&self) -> Result<(), ApiError> {
        values::top_logprobs(self.top_logprobs.unwrap_or(0)).map(drop)
    }

    /// Takes the tools that are left by `tool_choice`.
    pub(super) fn take_tools(&mut self) -> Result<OfferedTools, ApiError> {
        std::mem::take(&mut self.tool_choice).apply(std::mem::take(&mut self.tools))
    }

    /// Converts to the neutral request, with the tools that the model is shown.
    pub(super) fn into_inference(self, tools: OfferedTools, think: ThinkMode) -> Result<InferenceRequest, ApiError> {
        let prompt = InferencePrompt::Chat {
            messages: self.messages,
            tools: tools.definitions,
            tool_choice: tools.choice,
            parallel_tool_calls: self.parallel_tool_calls,
            context: Vec::new(),
        };
        let mut inference = self.common.into_inference(prompt, think, DEFAULT_TOP_P)?;
        let top_logprobs = values::top_logprobs(self.top_logprobs.unwrap_or(0))?;
        inference.logprobs = self.logprobs.then_some(top_logprobs);
        inference.format = self.format.into_format()?;
        Ok(inference)
    }
}

fn response_format(node: JsonNode<'_>) -> Result<FormatField, DecodeError> {
    let mut kind = String::new();
    let mut schema = FormatField::Unset;
    for (key, node) in node.read_object(FieldPath(ROOT, "response_format"), "openai.ResponseFormat")? {
        match key.to_ascii_lowercase().as_str() {
            "type" => node.read_string(&mut kind, FieldPath(ROOT, "response_format.type"))?,
            "json_schema" => {
                for (key, node) in
                    node.read_object(FieldPath(ROOT, "response_format.json_schema"), "openai.JsonSchema")?
                {
                    if key.eq_ignore_ascii_case("schema") {
                        schema = FormatField::read(&node)?;
                    }
                }
            }
            _ => {}
        }
    }
    // Ollama trims and lower-cases the type, and takes an unknown one for no format.
    Ok(match kind.trim().to_ascii_lowercase().as_str() {
        "json_object" => FormatField::Json,
        "json_schema" => schema,
        _ => FormatField::Unset,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{AnswerFormat, KeepAlive, ToolChoice};

    fn decode(json: &str) -> ChatCompletionRequest {
        ChatCompletionRequest::decode(json.as_bytes()).unwrap()
    }

    fn inference(json: &str) -> InferenceRequest {
        let mut request = decode(json);
        let tools = request.take_tools().unwrap();
        request.into_inference(tools, ThinkMode::Unset).unwrap()
    }

    // OpenAI's defaults for both are 1, whatever the model's file says (trap 39).
    #[test]
    fn absent_temperature_and_top_p_are_one_on_this_wire() {
        let sampling = inference("{}").sampling;
        assert_eq!((sampling.temperature, sampling.top_p), (Some(1.0), Some(1.0)));
        assert_eq!(sampling.top_k, None);
    }

    #[test]
    fn fields_map_to_the_neutral_request() {
        let request = inference(
            r#"{"max_tokens":5,"seed":7,"stop":"x","temperature":0,"top_p":0.5,"logprobs":true,"top_logprobs":2,"num_ctx":2048,"keep_alive":-1,"thinking_budget_tokens":9,"logit_bias":{"5":-100,"7":1.5},"options":{"top_k":3,"temperature":2,"repeat_penalty":1.5}}"#,
        );
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
        assert_eq!(sampling.logit_bias, [(5, -100.0), (7, 1.5)]);
        assert_eq!((request.load.context_length, request.logprobs), (Some(2048), Some(2)));
        assert_eq!(request.keep_alive, Some(KeepAlive::Forever));
        assert_eq!(request.thinking_budget, Some(9));
        assert_eq!(inference(r#"{"thinking_budget_tokens":-1}"#).thinking_budget, None);
        let newer = inference(r#"{"max_tokens":5,"max_completion_tokens":6}"#);
        assert_eq!(newer.sampling.num_predict, Some(6));
    }

    #[test]
    fn tools_and_their_choice_map_too() {
        let request = inference(
            r#"{"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required","parallel_tool_calls":false}"#,
        );
        let InferencePrompt::Chat {
            tools,
            tool_choice,
            parallel_tool_calls,
            ..
        } = request.prompt
        else {
            panic!()
        };
        assert_eq!(
            (tools.len(), tool_choice, parallel_tool_calls),
            (1, ToolChoice::Required, false)
        );
    }

    #[test]
    fn response_formats_are_read_by_their_type() {
        let schema = inference(
            r#"{"response_format":{"type":" JSON_schema ","json_schema":{"name":"n","schema":{"type":"object"}}}}"#,
        );
        assert!(matches!(schema.format, Some(AnswerFormat::Schema(schema)) if schema.get() == r#"{"type":"object"}"#));
        let object = inference(r#"{"response_format":{"type":"json_object"}}"#);
        assert!(matches!(object.format, Some(AnswerFormat::Json)));
        assert!(inference(r#"{"response_format":{"type":"text"}}"#).format.is_none());
    }

    #[test]
    fn what_cannot_be_honored_is_refused() {
        for (body, expected) in [
            (r#"{"n":0}"#, "n must be between 1 and 8"),
            (r#"{"n":9}"#, "n must be between 1 and 8"),
            (r#"{"n":-1}"#, "n must be between 1 and 8"),
            (
                r#"{"reasoning_effort":"xyz"}"#,
                r#"invalid reasoning value: "xyz" (must be "minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none")"#,
            ),
            ("{\"messages\":[]}", "[] is too short - 'messages'"),
        ] {
            let mut request = decode(body);
            if !body.contains("messages") {
                request.messages.push(Message::text("user", "x"));
            }
            assert_eq!(request.check().unwrap_err().message, expected);
        }
        for (body, expected) in [
            (
                r#"{"max_tokens":"x"}"#,
                "json: cannot unmarshal string into Go struct field ChatCompletionRequest.max_tokens of type int",
            ),
            (
                r#"{"logit_bias":[]}"#,
                "logit_bias must map token ids to numbers from -100 to 100",
            ),
            (
                r#"{"logit_bias":{"x":1}}"#,
                "logit_bias must map token ids to numbers from -100 to 100",
            ),
            (
                r#"{"logit_bias":{"-1":1}}"#,
                "logit_bias must map token ids to numbers from -100 to 100",
            ),
            (
                r#"{"logit_bias":{"1":100.5}}"#,
                "logit_bias must map token ids to numbers from -100 to 100",
            ),
            (
                r#"{"logit_bias":{"1":"1"}}"#,
                "logit_bias must map token ids to numbers from -100 to 100",
            ),
        ] {
            let error = ChatCompletionRequest::decode(body.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let many: Vec<String> = (0..1025).map(|token| format!("\"{token}\":1")).collect();
        let body = format!("{{\"logit_bias\":{{{}}}}}", many.join(","));
        let error = ChatCompletionRequest::decode(body.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "logit_bias holds more than 1024 tokens");
    }

    #[test]
    fn what_has_no_effect_is_named_and_nothing_else_is() {
        let honored = decode(
            r#"{"n":2,"logit_bias":{"1":2},"tool_choice":"auto","parallel_tool_calls":false,"functions":null,"user":"u"}"#,
        );
        assert!(honored.common.ignored.is_empty());
        let ignored = decode(r#"{"functions":[],"chat_template_kwargs":{"enable_thinking":true,"a":1,"b":2}}"#);
        assert_eq!(ignored.common.ignored, ["functions", "chat_template_kwargs"]);
    }
}
