//! Bodies of `/api/chat` and `/api/generate`.
//!
//! The bodies are decoded from a [`JsonNode`] and not with serde, since Ollama's clients rely on how Go reads JSON;
//! see [`crate::go::decode`].

use crate::{
    api::{
        error::ApiError,
        options::RequestOptions,
        values::{self, FormatField, OptionsField},
    },
    go::decode::{DecodeError, FieldPath, JsonNode, entries_of},
    inference::{
        InferencePrompt, InferenceRequest, KeepAlive, Message, MessageRole, ThinkMode, ToolCall, ToolDefinition,
    },
};

/// Most token ids in one list.
const MAX_CONTEXT: usize = 1 << 20;

/// Ollama's sentence for `arguments` that are no object. OpenAI's API has a string of JSON there, which Ollama refuses.
const NO_ARGUMENTS: &str = "Value looks like object, but can't find closing '}' symbol";

/// Fields of both routes.
#[derive(Debug, Default)]
pub(crate) struct NativeFields {
    pub(crate) model: String,
    pub(crate) stream: Option<bool>,
    pub(crate) format: FormatField,
    pub(crate) keep_alive: Option<KeepAlive>,
    options: OptionsField,
    pub(crate) think: ThinkMode,
    truncate: Option<bool>,
    shift: Option<bool>,
    logprobs: bool,
    top_logprobs: Option<i64>,
    pub(crate) debug_render_only: bool,
}

/// Body of `POST /api/generate`.
#[derive(Debug, Default)]
pub(crate) struct GenerateRequest {
    pub(crate) common: NativeFields,
    pub(crate) prompt: String,
    pub(crate) suffix: String,
    pub(crate) system: String,
    pub(crate) template: String,
    pub(crate) context: Vec<i32>,
    pub(crate) raw: bool,
    pub(crate) images: Vec<Vec<u8>>,
}

/// Body of `POST /api/chat`.
#[derive(Debug, Default)]
pub(crate) struct ChatRequest {
    pub(crate) common: NativeFields,
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Vec<ToolDefinition>,
}

impl NativeFields {
    /// Reads a field of both routes; returns the node of any other.
    fn read<'a>(
        &mut self,
        root: &'static str,
        key: &str,
        node: JsonNode<'a>,
    ) -> Result<Option<JsonNode<'a>>, DecodeError> {
        match key {
            "model" => node.read_string(&mut self.model, FieldPath(root, "model"))?,
            "stream" => node.read_optional_bool(&mut self.stream, FieldPath(root, "stream"))?,
            "format" => self.format = FormatField::read(&node)?,
            "keep_alive" => self.keep_alive = values::keep_alive(&node)?,
            "options" => self.options = OptionsField::read(node, root)?,
            "think" => self.think = values::think(&node)?,
            "truncate" => node.read_optional_bool(&mut self.truncate, FieldPath(root, "truncate"))?,
            "shift" => node.read_optional_bool(&mut self.shift, FieldPath(root, "shift"))?,
            "logprobs" => node.read_bool(&mut self.logprobs, FieldPath(root, "logprobs"))?,
            "top_logprobs" => node.read_int(&mut self.top_logprobs, FieldPath(root, "top_logprobs"))?,
            "_debug_render_only" => {
                node.read_bool(&mut self.debug_render_only, FieldPath(root, "_debug_render_only"))?;
            }
            _ => return Ok(Some(node)),
        }
        Ok(None)
    }

    /// Makes the check that Ollama makes before it looks the model up.
    pub(crate) fn check_range(&self) -> Result<(), ApiError> {
        values::top_logprobs(self.top_logprobs.unwrap_or(0)).map(drop)
    }

    /// Returns true unless the client asks for an answer in one piece: streaming is the default here.
    pub(crate) fn streams(&self) -> bool {
        self.stream != Some(false)
    }

    /// Returns true if the request, should it have nothing to answer, unloads the model.
    pub(crate) fn unloads(&self) -> bool {
        self.keep_alive.is_some_and(KeepAlive::is_zero)
    }

    /// Takes the options, or the error in them.
    pub(crate) fn take_options(&mut self) -> Result<RequestOptions, ApiError> {
        std::mem::take(&mut self.options).into_options()
    }

    /// Converts to the neutral request.
    pub(crate) fn into_inference(
        self,
        prompt: InferencePrompt,
        options: RequestOptions,
        think: ThinkMode,
        return_context: bool,
    ) -> Result<InferenceRequest, ApiError> {
        let top_logprobs = values::top_logprobs(self.top_logprobs.unwrap_or(0))?;
        Ok(InferenceRequest {
            prompt,
            sampling: options.sampling,
            load: options.load,
            format: self.format.into_format()?,
            think,
            thinking_budget: options.thinking_budget,
            keep_alive: self.keep_alive,
            // Ollama's defaults: a conversation that is too long loses its oldest messages, and an answer may outgrow
            // the context.
            truncate: self.truncate.unwrap_or(true),
            shift: self.shift.unwrap_or(true),
            logprobs: self.logprobs.then_some(top_logprobs),
            return_context,
        })
    }
}

impl GenerateRequest {
    pub(crate) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        const ROOT: &str = "GenerateRequest";
        let mut request = Self::default();
        for (key, node) in entries_of(body, "api.GenerateRequest")? {
            let key = key.to_ascii_lowercase();
            let Some(node) = request.common.read(ROOT, &key, node)? else {
                continue;
            };
            match key.as_str() {
                "prompt" => node.read_string(&mut request.prompt, FieldPath(ROOT, "prompt"))?,
                "suffix" => node.read_string(&mut request.suffix, FieldPath(ROOT, "suffix"))?,
                "system" => node.read_string(&mut request.system, FieldPath(ROOT, "system"))?,
                "template" => node.read_string(&mut request.template, FieldPath(ROOT, "template"))?,
                "context" => request.context = token_ids(node, FieldPath(ROOT, "context"))?,
                "raw" => node.read_bool(&mut request.raw, FieldPath(ROOT, "raw"))?,
                "images" => request.images = values::media(node, FieldPath(ROOT, "images"))?,
                _ => {}
            }
        }
        Ok(request)
    }
}

impl ChatRequest {
    pub(crate) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        const ROOT: &str = "ChatRequest";
        let mut request = Self::default();
        for (key, node) in entries_of(body, "api.ChatRequest")? {
            let key = key.to_ascii_lowercase();
            let Some(node) = request.common.read(ROOT, &key, node)? else {
                continue;
            };
            match key.as_str() {
                "messages" => request.messages = messages(ROOT, node)?,
                "tools" => request.tools = values::tools(node, FieldPath(ROOT, "tools"))?,
                _ => {}
            }
        }
        Ok(request)
    }
}

/// Reads a list of token ids.
pub(super) fn token_ids(node: JsonNode<'_>, field: FieldPath) -> Result<Vec<i32>, DecodeError> {
    let items = node.read_array(field, "[]int")?;
    if items.len() > MAX_CONTEXT {
        return Err(DecodeError::new(format!(
            "{} holds more than {MAX_CONTEXT} tokens",
            field.1
        )));
    }
    items
        .into_iter()
        .map(|item| {
            let mut id = None;
            item.read_int(&mut id, field)?;
            // Go decodes `null` in a list of numbers as 0.
            i32::try_from(id.unwrap_or(0))
                .map_err(|_| DecodeError::new(format!("{} holds a number that is no token", field.1)))
        })
        .collect()
}

/// Reads the messages of a conversation. `root` is the name of the request's struct in Go.
pub(super) fn messages(root: &'static str, node: JsonNode<'_>) -> Result<Vec<Message>, DecodeError> {
    let items = node.read_array(FieldPath(root, "messages"), "[]api.Message")?;
    values::check_message_count(items.len())?;
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| message(root, index, item))
        .collect()
}

fn message(root: &'static str, index: usize, node: JsonNode<'_>) -> Result<Message, DecodeError> {
    let mut message = Message::text("", "");
    for (key, node) in node.read_object(FieldPath(root, "messages"), "api.Message")? {
        match key.to_ascii_lowercase().as_str() {
            "role" => {
                let mut role = String::new();
                node.read_string(&mut role, FieldPath(root, "messages.role"))?;
                // Ollama passes unknown roles on to the template, so the role is not checked.
                message.role = MessageRole(role.to_lowercase());
            }
            "content" => node.read_string(&mut message.content, FieldPath(root, "messages.content"))?,
            "thinking" => node.read_string(&mut message.thinking, FieldPath(root, "messages.thinking"))?,
            "images" => message.media = values::media(node, FieldPath(root, "messages.images"))?,
            "tool_calls" => message.tool_calls = tool_calls(root, index, node)?,
            "tool_name" => node.read_string(&mut message.tool_name, FieldPath(root, "messages.tool_name"))?,
            "tool_call_id" => node.read_string(&mut message.tool_call_id, FieldPath(root, "messages.tool_call_id"))?,
            _ => {}
        }
    }
    Ok(message)
}

fn tool_calls(root: &'static str, message: usize, node: JsonNode<'_>) -> Result<Vec<ToolCall>, DecodeError> {
    let field = FieldPath(root, "messages.tool_calls");
    let items = node.read_array(field, "[]api.ToolCall")?;
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| tool_call(root, message, index, item))
        .collect()
}

fn tool_call(root: &'static str, message: usize, index: usize, node: JsonNode<'_>) -> Result<ToolCall, DecodeError> {
    let function = FieldPath(root, "messages.tool_calls.function");
    let mut call = ToolCall {
        id: String::new(),
        name: String::new(),
        arguments: serde_json::Map::new(),
    };
    for (key, node) in node.read_object(FieldPath(root, "messages.tool_calls"), "api.ToolCall")? {
        match key.to_ascii_lowercase().as_str() {
            "id" => node.read_string(&mut call.id, FieldPath(root, "messages.tool_calls.id"))?,
            "function" => {
                for (key, node) in node.read_object(function, "api.ToolCallFunction")? {
                    match key.to_ascii_lowercase().as_str() {
                        "name" => {
                            node.read_string(&mut call.name, FieldPath(root, "messages.tool_calls.function.name"))?;
                        }
                        "arguments" => match values::plain_value(&node)? {
                            serde_json::Value::Object(arguments) => call.arguments = arguments,
                            // Arguments that are `null` are none, as for a nil map in Go.
                            serde_json::Value::Null => {}
                            _ => return Err(DecodeError::new(NO_ARGUMENTS)),
                        },
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if call.id.is_empty() {
        // Older versions of Ollama gave calls no id. It is counted, not random: the rendered prompt has to be the same
        // on every turn, or the prefix cache is of no use.
        call.id = format!("call_{message}_{index}");
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat_error(body: &str) -> String {
        ChatRequest::decode(body.as_bytes()).unwrap_err().to_string()
    }

    fn generate_error(body: &str) -> String {
        GenerateRequest::decode(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn wrong_types_are_answered_in_the_words_of_go() {
        for (body, expected) in [
            (
                "[]",
                "json: cannot unmarshal array into Go value of type api.ChatRequest",
            ),
            (
                r#"{"stream":"yes"}"#,
                "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#,
                "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
            ),
            (
                r#"{"messages":{"role":"user"}}"#,
                "json: cannot unmarshal object into Go struct field ChatRequest.messages of type []api.Message",
            ),
            (
                r#"{"top_logprobs":1.5}"#,
                "json: cannot unmarshal number 1.5 into Go struct field ChatRequest.top_logprobs of type int",
            ),
            (
                r#"{"messages":[{"images":["data:x"]}]}"#,
                "illegal base64 data at input byte 4",
            ),
        ] {
            assert_eq!(chat_error(body), expected);
        }
        for (body, expected) in [
            (
                r#"{"prompt":5}"#,
                "json: cannot unmarshal number into Go struct field GenerateRequest.prompt of type string",
            ),
            (r#"{"keep_alive":"soon"}"#, "time: invalid duration \"soon\""),
            (r#"{"images":["%%%"]}"#, "illegal base64 data at input byte 0"),
        ] {
            assert_eq!(generate_error(body), expected);
        }
        let arguments = chat_error(r#"{"messages":[{"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}]}"#);
        assert_eq!(arguments, NO_ARGUMENTS);
    }

    #[test]
    fn keys_come_in_any_case_and_the_last_duplicate_wins() {
        let request = GenerateRequest::decode(
            br#"{"MODEL":"a","model":"b","model":null,"Prompt":"x","extra":{},"RAW":true} trailing"#,
        )
        .unwrap();
        assert_eq!(
            (request.common.model.as_str(), request.prompt.as_str(), request.raw),
            ("b", "x", true)
        );
    }

    #[test]
    fn a_message_is_read_whole() {
        let request = ChatRequest::decode(
            br#"{"messages":[{"role":"ASSISTANT","content":null,"thinking":"t","tool_calls":[{"function":{"index":0,"name":"f","arguments":{"b":1,"a":2}}}]},{"role":"tool","content":"r","tool_name":"f","tool_call_id":"c","images":["aGk="]}]}"#,
        )
        .unwrap();
        let [assistant, tool] = &request.messages[..] else {
            panic!()
        };
        assert_eq!(
            (assistant.role.0.as_str(), assistant.content.as_str()),
            ("assistant", "")
        );
        assert_eq!(assistant.tool_calls[0].id, "call_0_0");
        assert_eq!(assistant.tool_calls[0].arguments.keys().collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!((tool.tool_name.as_str(), tool.tool_call_id.as_str()), ("f", "c"));
        assert_eq!(tool.media, [b"hi"]);
    }

    #[test]
    fn a_body_of_null_is_an_empty_request() {
        let request = ChatRequest::decode(b"null").unwrap();
        assert!(request.common.model.is_empty() && request.common.streams());
    }
}
