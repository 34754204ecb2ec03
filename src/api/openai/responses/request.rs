//! Body of `/v1/responses`.

use serde_json::Value;

use super::{echo::RequestEcho, input, tools::DeclaredTools};
use crate::{
    api::{
        error::ApiError,
        openai::{
            common::{SharedFields, stops},
            tools::OpenAiToolChoice,
        },
        tools::OfferedTools,
        values::{self, FormatField},
    },
    go::decode::{DecodeError, FieldPath, JsonNode, entries_of},
    inference::{InferencePrompt, InferenceRequest, Message, ThinkMode},
};

const ROOT: &str = "ResponsesRequest";

/// Fields of OpenAI's API without effect.
const WITHOUT_EFFECT: [&str; 2] = ["max_tool_calls", "prompt"];

/// Value of `include` that asks for something which every reply has.
const ALWAYS_INCLUDED: &str = "reasoning.encrypted_content";

/// Body of `POST /v1/responses`.
#[derive(Debug)]
pub(super) struct ResponsesRequest {
    pub(super) common: SharedFields,
    pub(super) echo: RequestEcho,
    messages: Vec<Message>,
    tools: DeclaredTools,
    tool_choice: OpenAiToolChoice,
    format: FormatField,
    /// Name of the field that refers to state on OpenAI's servers, if the request has one.
    refers_to: Option<&'static str>,
    /// True when a conversation that is too long is an error and not shortened.
    forbids_truncation: bool,
}

impl ResponsesRequest {
    /// Decodes a body, with the errors of the shim.
    pub(super) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut request = Self {
            common: SharedFields::default(),
            echo: RequestEcho::default(),
            messages: Vec::new(),
            tools: DeclaredTools::default(),
            tool_choice: OpenAiToolChoice::default(),
            format: FormatField::Unset,
            refers_to: None,
            forbids_truncation: false,
        };
        for (key, node) in entries_of(body, "openai.ResponsesRequest")? {
            let key = key.to_ascii_lowercase();
            if key == "n" {
                // `n` is no field of this route.
                continue;
            }
            if let Some(node) = request.common.read(ROOT, &key, node)? {
                request.set(&key, node)?;
            }
        }
        request.finish();
        Ok(request)
    }

    fn set(&mut self, key: &str, node: JsonNode<'_>) -> Result<(), DecodeError> {
        match key {
            "input" => self.messages = input::messages(node)?,
            "instructions" => node.read_string(&mut self.echo.instructions, FieldPath(ROOT, "instructions"))?,
            "max_output_tokens" => node.read_int(&mut self.common.max_tokens, FieldPath(ROOT, "max_output_tokens"))?,
            "reasoning" => self.read_reasoning(node)?,
            "text" => {
                for (key, node) in node.read_object(FieldPath(ROOT, "text"), "openai.ResponsesText")? {
                    match (key.to_ascii_lowercase().as_str(), node) {
                        (_, JsonNode::Null) => {}
                        ("format", node) => self.read_format(node)?,
                        ("verbosity", _) => self.common.note_ignored("text.verbosity"),
                        _ => {}
                    }
                }
            }
            "tools" => self.tools = DeclaredTools::read(node)?,
            "tool_choice" => {
                self.tool_choice = OpenAiToolChoice::read(&node)?;
                if node != JsonNode::Null {
                    self.echo.tool_choice = values::plain_value(&node)?;
                }
            }
            "parallel_tool_calls" => {
                node.read_bool(
                    &mut self.echo.parallel_tool_calls,
                    FieldPath(ROOT, "parallel_tool_calls"),
                )?;
            }
            "truncation" => {
                let mut word = String::new();
                node.read_string(&mut word, FieldPath(ROOT, "truncation"))?;
                if !word.is_empty() {
                    self.forbids_truncation = word == "disabled";
                    self.echo.truncation = word;
                }
            }
            "stop" => self.common.stop = stops(node, |_| Ok(()))?,
            "previous_response_id" if node != JsonNode::Null => self.refers_to = Some("previous_response_id"),
            "conversation" if node != JsonNode::Null => self.refers_to = Some("conversation"),
            // No response is stored. That is OpenAI's default, so only a client that asks for it explicitly is told.
            "store" if node == JsonNode::Bool(true) => self.common.note_ignored("store"),
            "background" if node == JsonNode::Bool(true) => self.common.note_ignored("background"),
            "include" => {
                for item in node.read_array(FieldPath(ROOT, "include"), "[]string")? {
                    if !matches!(&item, JsonNode::String(word) if word == ALWAYS_INCLUDED) {
                        self.common.note_ignored("include");
                    }
                }
            }
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

    fn read_reasoning(&mut self, node: JsonNode<'_>) -> Result<(), DecodeError> {
        for (key, node) in node.read_object(FieldPath(ROOT, "reasoning"), "openai.ResponsesReasoning")? {
            match key.to_ascii_lowercase().as_str() {
                "effort" => self.common.set_effort(node, FieldPath(ROOT, "reasoning.effort"))?,
                "summary" => node.read_string(&mut self.echo.summary, FieldPath(ROOT, "reasoning.summary"))?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads `text.format`. Ollama reads only schemas; `json_object` is OpenAI's other form.
    fn read_format(&mut self, node: JsonNode<'_>) -> Result<(), DecodeError> {
        let (mut kind, mut name, mut schema, mut strict) = (String::new(), String::new(), None, None);
        for (key, node) in node.read_object(FieldPath(ROOT, "text.format"), "openai.ResponsesTextFormat")? {
            match key.to_ascii_lowercase().as_str() {
                "type" => node.read_string(&mut kind, FieldPath(ROOT, "text.format.type"))?,
                "name" => node.read_string(&mut name, FieldPath(ROOT, "text.format.name"))?,
                "schema" => schema = Some(node).filter(|node| *node != JsonNode::Null),
                "strict" => node.read_optional_bool(&mut strict, FieldPath(ROOT, "text.format.strict"))?,
                _ => {}
            }
        }
        self.format = match (kind.as_str(), &schema) {
            ("json_object", _) => FormatField::Json,
            ("json_schema", Some(schema)) => FormatField::read(schema)?,
            _ => FormatField::Unset,
        };
        let mut echo = serde_json::Map::new();
        echo.insert("type".into(), kind.into());
        if !name.is_empty() {
            echo.insert("name".into(), name.into());
        }
        if let Some(schema) = &schema {
            echo.insert("schema".into(), values::plain_value(schema)?);
        }
        if let Some(strict) = strict {
            echo.insert("strict".into(), strict.into());
        }
        self.echo.format = Value::Object(echo);
        Ok(())
    }

    /// Completes the request when all fields have been read.
    fn finish(&mut self) {
        if !self.echo.instructions.is_empty() {
            self.messages
                .insert(0, Message::text("system", self.echo.instructions.clone()));
        }
        if self.tools.has_others {
            self.common.note_ignored("tools");
        }
        self.echo.tools = std::mem::take(&mut self.tools.echo);
        self.echo.model = self.common.model.clone();
        self.echo.effort = self.common.effort().unwrap_or_default().to_owned();
        self.echo.temperature = self.common.temperature.unwrap_or(1.0);
        self.echo.top_p = self.common.top_p.unwrap_or(1.0);
        self.echo.presence_penalty = self.common.presence_penalty.unwrap_or(0.0);
        self.echo.frequency_penalty = self.common.frequency_penalty.unwrap_or(0.0);
        self.echo.max_output_tokens = self.common.max_tokens;
    }

    /// Makes the checks of the shim on a decoded body.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        // Ollama ignores these fields, so its model answers as if the conversation had just begun. No state is kept
        // here either, but an error that says what to do is better than a wrong answer that looks right.
        if let Some(field) = self.refers_to {
            return Err(ApiError::bad_request(format!(
                "{field} is not supported: no responses are kept here; send the whole conversation as input"
            )));
        }
        self.common.check()
    }

    /// Returns true if there is nothing to answer.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Takes the tools that are left by `tool_choice`.
    pub(super) fn take_tools(&mut self) -> Result<OfferedTools, ApiError> {
        std::mem::take(&mut self.tool_choice).apply(std::mem::take(&mut self.tools.functions))
    }

    /// Converts to the neutral request, with the tools that the model is shown, and the fields that the reply repeats.
    pub(super) fn into_inference(
        self,
        tools: OfferedTools,
        think: ThinkMode,
    ) -> Result<(InferenceRequest, RequestEcho), ApiError> {
        let prompt = InferencePrompt::Chat {
            messages: self.messages,
            tools: tools.definitions,
            tool_choice: tools.choice,
            parallel_tool_calls: self.echo.parallel_tool_calls,
            context: Vec::new(),
        };
        // Unlike on the other routes, Ollama leaves `top_p` to the model here; only the temperature defaults to 1.
        let mut inference = self.common.into_inference(prompt, think, None)?;
        inference.format = self.format.into_format()?;
        inference.truncate = !self.forbids_truncation;
        Ok((inference, self.echo))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{AnswerFormat, ToolChoice};

    fn decode(json: &str) -> ResponsesRequest {
        ResponsesRequest::decode(json.as_bytes()).unwrap()
    }

    fn inference(json: &str) -> InferenceRequest {
        let mut request = decode(json);
        request.check().unwrap();
        let tools = request.take_tools().unwrap();
        request.into_inference(tools, ThinkMode::Unset).unwrap().0
    }

    #[test]
    fn fields_map_to_the_neutral_request() {
        let request = inference(
            r#"{"input":"x","instructions":"Be brief.","max_output_tokens":5,"tools":[{"type":"function","name":"f"}],"tool_choice":{"type":"function","name":"f"},"parallel_tool_calls":false,"truncation":"disabled","seed":3,"n":2}"#,
        );
        let sampling = &request.sampling;
        assert_eq!(
            (
                sampling.temperature,
                sampling.top_p,
                sampling.num_predict,
                sampling.seed
            ),
            (Some(1.0), None, Some(5), Some(3))
        );
        assert!(!request.truncate);
        let InferencePrompt::Chat {
            messages,
            tools,
            tool_choice,
            parallel_tool_calls,
            ..
        } = request.prompt
        else {
            panic!()
        };
        let seen: Vec<(&str, &str)> = messages
            .iter()
            .map(|m| (m.role.0.as_str(), m.content.as_str()))
            .collect();
        assert_eq!(seen, [("system", "Be brief."), ("user", "x")]);
        assert_eq!((tools.len(), tool_choice), (1, ToolChoice::Function("f".into())));
        assert!(!parallel_tool_calls);
        assert!(inference(r#"{"input":"x","truncation":"auto"}"#).truncate);
        assert!(inference(r#"{"input":"x"}"#).truncate);
    }

    #[test]
    fn formats_are_read_by_their_type() {
        let schema = inference(
            r#"{"input":"x","text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object"},"strict":true}}}"#,
        );
        assert!(matches!(schema.format, Some(AnswerFormat::Schema(schema)) if schema.get() == r#"{"type":"object"}"#));
        let json = inference(r#"{"input":"x","text":{"format":{"type":"json_object"}}}"#);
        assert!(matches!(json.format, Some(AnswerFormat::Json)));
        for body in [
            r#"{"input":"x","text":{"format":{"type":"text"}}}"#,
            r#"{"input":"x","text":null}"#,
            r#"{"input":"x","text":{"format":null}}"#,
        ] {
            assert!(inference(body).format.is_none());
        }
    }

    #[test]
    fn what_would_be_answered_wrongly_is_refused() {
        for field in ["previous_response_id", "conversation"] {
            let request = decode(&format!(r#"{{"input":"x","{field}":"x"}}"#));
            assert_eq!(
                request.check().unwrap_err().message,
                format!("{field} is not supported: no responses are kept here; send the whole conversation as input")
            );
            decode(&format!(r#"{{"input":"x","{field}":null}}"#)).check().unwrap();
        }
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let request = decode(
            r#"{"store":true,"background":true,"include":["reasoning.encrypted_content","message.output_text.logprobs"],"max_tool_calls":3,"text":{"verbosity":"low"},"tools":[{"type":"web_search"}]}"#,
        );
        assert_eq!(
            request.common.ignored,
            [
                "store",
                "background",
                "include",
                "max_tool_calls",
                "text.verbosity",
                "tools"
            ]
        );
        let request = decode(
            r#"{"store":false,"background":false,"include":["reasoning.encrypted_content"],"max_tool_calls":null,"metadata":{"a":"b"},"user":"u"}"#,
        );
        assert!(request.common.ignored.is_empty());
    }
}
