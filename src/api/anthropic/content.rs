//! Messages of `/v1/messages`: blocks of text, images, thinking, tool calls and their results.

use crate::{
    api::values,
    go::decode::{DecodeError, FieldPath, JsonNode, decode_base64},
    inference::{Message, MessageRole, ToolCall},
};

const ROOT: &str = "MessagesRequest";

/// Most images in one message.
const MAX_IMAGES: usize = 256;

/// Number of bytes that the estimate of a prompt's length adds for the braces and keys of each call.
const FRAME_BYTES: usize = 40;

/// Returns the system prompt, if there is one: a text, or blocks whose texts are joined.
pub(super) fn system(node: &JsonNode<'_>) -> Option<Message> {
    let text = match node {
        JsonNode::String(text) => text.clone().into_owned(),
        // Ollama, too, puts nothing between the blocks.
        JsonNode::Array(blocks) => blocks.iter().filter_map(text_of_block).collect(),
        _ => String::new(),
    };
    (!text.is_empty()).then(|| Message::text("system", text))
}

/// Reads the messages of a request.
pub(super) fn messages(items: Vec<JsonNode<'_>>) -> Result<Vec<Message>, DecodeError> {
    values::check_message_count(items.len())?;
    let mut messages = Vec::with_capacity(items.len());
    for item in items {
        Turn::read(item)?.append(&mut messages);
    }
    Ok(messages)
}

/// Returns Ollama's estimate of the tokens of a conversation, a quarter of its bytes: the first event of a stream has
/// the count, and is sent before the prompt is tokenized.
pub(super) fn estimated_tokens(messages: &[Message], tool_bytes: usize) -> u32 {
    let of_message = |message: &Message| {
        let calls: usize = message
            .tool_calls
            .iter()
            .map(|call| {
                let arguments = serde_json::to_string(&call.arguments).map_or(0, |text| text.len());
                FRAME_BYTES + call.id.len() + call.name.len() + arguments
            })
            .sum();
        message.role.0.len() + message.content.len() + message.thinking.len() + message.tool_call_id.len() + calls
    };
    let bytes = messages.iter().map(of_message).sum::<usize>() + tool_bytes;
    u32::try_from(bytes / 4).unwrap_or(u32::MAX).max(1)
}

/// Message of the request, which may become several.
struct Turn {
    /// Message without the results of tools in it.
    own: Message,
    /// Results of tools in it, each a separate message.
    results: Vec<Message>,
}

impl Turn {
    fn read(node: JsonNode<'_>) -> Result<Self, DecodeError> {
        let mut own = Message::text("", "");
        let mut content = None;
        for (key, node) in node.read_object(FieldPath(ROOT, "messages"), "anthropic.MessageParam")? {
            match key.to_ascii_lowercase().as_str() {
                "role" => {
                    let mut role = String::new();
                    node.read_string(&mut role, FieldPath(ROOT, "messages.role"))?;
                    own.role = MessageRole(role.to_lowercase());
                }
                "content" => content = Some(node),
                _ => {}
            }
        }
        let mut turn = Self {
            own,
            results: Vec::new(),
        };
        match content {
            // Ollama decodes the raw content, and this is Go's error for an empty one.
            None => return Err(DecodeError::new("unexpected end of JSON input")),
            Some(JsonNode::Null) => {}
            Some(JsonNode::String(text)) => turn.own.content = text.into_owned(),
            Some(JsonNode::Array(blocks)) => {
                for block in blocks {
                    turn.add(Block::read(block)?)?;
                }
            }
            Some(other) => {
                return Err(DecodeError::new(format!(
                    "json: cannot unmarshal {} into Go value of type []anthropic.ContentBlock",
                    other.kind()
                )));
            }
        }
        let images = turn.results.iter().map(|result| result.media.len()).sum::<usize>() + turn.own.media.len();
        if images > MAX_IMAGES {
            return Err(DecodeError::new(format!(
                "a message holds more than {MAX_IMAGES} images"
            )));
        }
        Ok(turn)
    }

    /// Adds a block; one of an unknown type is skipped.
    fn add(&mut self, block: Block<'_>) -> Result<(), DecodeError> {
        match block.kind.as_str() {
            "text" => self.own.content.push_str(&block.text),
            // The signature of the block is not read: replies from here have none, and only Anthropic can verify its
            // own.
            "thinking" => self.own.thinking.push_str(&block.thinking),
            "image" => {
                if !matches!(block.source, JsonNode::Object(_)) {
                    return Err(DecodeError::new("invalid image source"));
                }
                self.own.media.push(image(&block.source)?);
            }
            "tool_use" => {
                for (value, name) in [(&block.id, "id"), (&block.name, "name")] {
                    if value.is_empty() {
                        return Err(DecodeError::new(format!(
                            "tool_use block missing required '{name}' field"
                        )));
                    }
                }
                self.own.tool_calls.push(block.into_call()?);
            }
            // Unlike in `tool_use`, Ollama requires neither id nor name in this block.
            "server_tool_use" => self.own.tool_calls.push(block.into_call()?),
            "tool_result" => {
                let (content, media) = result_content(&block.content)?;
                self.results.push(Message {
                    media,
                    tool_call_id: block.tool_use_id,
                    ..Message::text("tool", content)
                });
            }
            "web_search_tool_result" => self.results.push(Message {
                tool_call_id: block.tool_use_id,
                ..Message::text("tool", search_result(&block.content))
            }),
            _ => {}
        }
        Ok(())
    }

    /// Appends the messages. Results of tools stand before the text of a user, which refers to them, and behind that of
    /// any other role.
    fn append(self, messages: &mut Vec<Message>) {
        let Self { own, results } = self;
        let results_first = own.role.0 == "user";
        let says_something =
            !(own.content.is_empty() && own.media.is_empty() && own.tool_calls.is_empty() && own.thinking.is_empty());
        let own = says_something.then_some(own);
        let (first, last) = match results_first {
            true => (None, own),
            false => (own, None),
        };
        messages.extend(first);
        for mut result in results {
            result.tool_name = values::tool_of_call(messages, &result.tool_call_id);
            messages.push(result);
        }
        messages.extend(last);
    }
}

/// Members of a block of any type.
struct Block<'a> {
    kind: String,
    text: String,
    thinking: String,
    source: JsonNode<'a>,
    id: String,
    name: String,
    input: JsonNode<'a>,
    tool_use_id: String,
    content: JsonNode<'a>,
}

impl<'a> Block<'a> {
    fn read(node: JsonNode<'a>) -> Result<Self, DecodeError> {
        let mut block = Self {
            kind: String::new(),
            text: String::new(),
            thinking: String::new(),
            source: JsonNode::Null,
            id: String::new(),
            name: String::new(),
            input: JsonNode::Null,
            tool_use_id: String::new(),
            content: JsonNode::Null,
        };
        for (key, node) in node.read_object(FieldPath(ROOT, "messages.content"), "anthropic.ContentBlock")? {
            match key.to_ascii_lowercase().as_str() {
                "type" => node.read_string(&mut block.kind, FieldPath(ROOT, "messages.content.type"))?,
                "text" => node.read_string(&mut block.text, FieldPath(ROOT, "messages.content.text"))?,
                "thinking" => node.read_string(&mut block.thinking, FieldPath(ROOT, "messages.content.thinking"))?,
                "id" => node.read_string(&mut block.id, FieldPath(ROOT, "messages.content.id"))?,
                "name" => node.read_string(&mut block.name, FieldPath(ROOT, "messages.content.name"))?,
                "tool_use_id" => {
                    node.read_string(&mut block.tool_use_id, FieldPath(ROOT, "messages.content.tool_use_id"))?;
                }
                "source" => block.source = node,
                "input" => block.input = node,
                "content" => block.content = node,
                _ => {}
            }
        }
        Ok(block)
    }

    fn into_call(self) -> Result<ToolCall, DecodeError> {
        let arguments = match values::plain_value(&self.input)? {
            serde_json::Value::Object(arguments) => arguments,
            serde_json::Value::Null => serde_json::Map::new(),
            _ => {
                return Err(DecodeError::new(format!(
                    "{} block's 'input' is not an object",
                    self.kind
                )));
            }
        };
        Ok(ToolCall {
            id: self.id,
            name: self.name,
            arguments,
        })
    }
}

/// Returns a text in a free-form object; empty if there is none.
fn text<'n>(node: &'n JsonNode<'_>, name: &str) -> &'n str {
    node.text_member(name).unwrap_or_default()
}

fn text_of_block<'n>(block: &'n JsonNode<'_>) -> Option<&'n str> {
    (text(block, "type") == "text").then(|| text(block, "text"))
}

/// Decodes an image.
fn image(source: &JsonNode<'_>) -> Result<Vec<u8>, DecodeError> {
    match text(source, "type") {
        "base64" => decode_base64(text(source, "data"))
            .map_err(|error| DecodeError::new(format!("invalid base64 image data: {error}"))),
        other => Err(DecodeError::new(format!(
            "invalid image source type: {other}. Only base64 images are supported."
        ))),
    }
}

/// Returns text and images of a tool's result.
fn result_content(node: &JsonNode<'_>) -> Result<(String, Vec<Vec<u8>>), DecodeError> {
    let blocks = match node {
        JsonNode::String(text) => return Ok((text.clone().into_owned(), Vec::new())),
        JsonNode::Array(blocks) => blocks,
        _ => return Ok(Default::default()),
    };
    let (mut content, mut media) = (String::new(), Vec::new());
    for block in blocks {
        match text(block, "type") {
            "text" => content.push_str(text(block, "text")),
            "image" => {
                let Some(source @ JsonNode::Object(_)) = block.member("source") else {
                    return Err(DecodeError::new("invalid tool_result image source"));
                };
                media.push(image(source)?);
            }
            _ => {}
        }
    }
    Ok((content, media))
}

/// Returns the result of Anthropic's web search as text for the model.
fn search_result(node: &JsonNode<'_>) -> String {
    const ERROR: &str = "web_search_tool_result_error";
    let failed = |error: &JsonNode<'_>| match text(error, "error_code") {
        "" => ERROR.to_owned(),
        code => format!("{ERROR}: {code}"),
    };
    match node {
        JsonNode::String(text) => text.clone().into_owned(),
        error if text(error, "type") == ERROR => failed(error),
        JsonNode::Array(items) => {
            let mut lines = String::new();
            for item in items {
                match text(item, "type") {
                    "web_search_result" => {
                        lines.push_str(&format!("- {}: {}\n", text(item, "title"), text(item, "url")));
                    }
                    ERROR => return failed(item),
                    _ => {}
                }
            }
            lines
        }
        other => other.to_json(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::decode::entries_of;

    fn read(json: &str) -> Result<Vec<Message>, DecodeError> {
        let body = format!("{{\"messages\":{json}}}");
        let (_, node) = entries_of(body.as_bytes(), "test")?.remove(0);
        let JsonNode::Array(items) = node else { panic!("{json}") };
        messages(items)
    }

    /// Returns role, content and tool name of each message.
    fn outline(messages: &[Message]) -> Vec<(&str, &str, &str)> {
        messages
            .iter()
            .map(|message| {
                (
                    message.role.0.as_str(),
                    message.content.as_str(),
                    message.tool_name.as_str(),
                )
            })
            .collect()
    }

    #[test]
    fn results_of_tools_stand_before_the_text_of_the_user() {
        let messages = read(
            r#"[{"role":"USER","content":"hi"},
                {"role":"assistant","content":[{"type":"thinking","thinking":"Hm","signature":"s"},{"type":"redacted_thinking","data":"x"},{"type":"text","text":"a"},{"type":"text","text":"b"},{"type":"tool_use","id":"t1","name":"f","input":{"b":1,"a":2}},{"type":"tool_use","id":"t2","name":"g"}]},
                {"role":"user","content":[{"type":"text","text":"go on"},{"type":"tool_result","tool_use_id":"t1","content":"r1"},{"type":"tool_result","tool_use_id":"t2","content":[{"type":"text","text":"r"},{"type":"text","text":"2"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"aGk="}}],"is_error":true}]}]"#,
        )
        .unwrap();
        assert_eq!(
            outline(&messages),
            [
                ("user", "hi", ""),
                ("assistant", "ab", ""),
                ("tool", "r1", "f"),
                ("tool", "r2", "g"),
                ("user", "go on", "")
            ]
        );
        assert_eq!(messages[1].thinking, "Hm");
        let [first, second] = &messages[1].tool_calls[..] else {
            panic!()
        };
        assert_eq!((first.id.as_str(), second.arguments.len()), ("t1", 0));
        assert_eq!(first.arguments.keys().collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(
            (messages[3].tool_call_id.as_str(), &messages[3].media),
            ("t2", &vec![b"hi".to_vec()])
        );
    }

    #[test]
    fn a_search_by_anthropic_is_a_call_and_its_result() {
        let messages = read(
            r#"[{"role":"assistant","content":[{"type":"server_tool_use","id":"s1","name":"web_search","input":{"query":"q"}},{"type":"web_search_tool_result","tool_use_id":"s1","content":[{"type":"web_search_result","title":"T","url":"U"},{"type":"other"}]},{"type":"text","text":"so"}]},
                {"role":"user","content":[{"type":"web_search_tool_result","tool_use_id":"s1","content":{"type":"web_search_tool_result_error","error_code":"unavailable"}}]}]"#,
        )
        .unwrap();
        assert_eq!(
            outline(&messages),
            [
                ("assistant", "so", ""),
                ("tool", "- T: U\n", "web_search"),
                ("tool", "web_search_tool_result_error: unavailable", "web_search")
            ]
        );
    }

    #[test]
    fn images_are_decoded_and_messages_that_say_nothing_dropped() {
        let messages = read(
            r#"[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":"aGk="}}]},{"role":"user","content":[]},{"role":"assistant","content":""},{"role":"user","content":null},{"role":"user","content":[{"type":"document"}]}]"#,
        )
        .unwrap();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].media, [b"hi"]);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_the_words_of_the_shim() {
        let block = |block: &str| format!("[{{\"role\":\"user\",\"content\":[{block}]}}]");
        for (json, expected) in [
            (
                block(r#"{"type":"image","source":{"type":"url","url":"http://x"}}"#),
                "invalid image source type: url. Only base64 images are supported.",
            ),
            (block(r#"{"type":"image"}"#), "invalid image source"),
            (
                block(r#"{"type":"image","source":{"type":"base64","data":"%%"}}"#),
                "invalid base64 image data: illegal base64 data at input byte 0",
            ),
            (
                block(r#"{"type":"tool_use","name":"f"}"#),
                "tool_use block missing required 'id' field",
            ),
            (
                block(r#"{"type":"tool_use","id":"t"}"#),
                "tool_use block missing required 'name' field",
            ),
            (
                block(r#"{"type":"tool_use","id":"t","name":"f","input":"{}"}"#),
                "tool_use block's 'input' is not an object",
            ),
            (
                block(r#"{"type":"tool_result","content":[{"type":"image"}]}"#),
                "invalid tool_result image source",
            ),
            (
                block(r#"{"type":"text","text":1}"#),
                "json: cannot unmarshal number into Go struct field MessagesRequest.messages.content.text of type string",
            ),
            (
                r#"[{"role":"user","content":5}]"#.into(),
                "json: cannot unmarshal number into Go value of type []anthropic.ContentBlock",
            ),
            (r#"[{"role":"user"}]"#.into(), "unexpected end of JSON input"),
        ] {
            assert_eq!(read(&json).unwrap_err().to_string(), expected, "{json}");
        }
    }

    #[test]
    fn a_system_prompt_is_a_text_or_blocks() {
        let body = br#"{"a":"s","b":[{"type":"text","text":"x","cache_control":{}},{"type":"image"},{"type":"text","text":"y"}],"c":"","d":5}"#;
        let texts: Vec<Option<String>> = entries_of(body, "test")
            .unwrap()
            .iter()
            .map(|(_, node)| system(node).map(|message| message.content))
            .collect();
        assert_eq!(texts, [Some("s".into()), Some("xy".into()), None, None]);
    }
}
