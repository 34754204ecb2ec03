//! Messages of `/v1/chat/completions`: text, content parts, images as data URIs, tool calls and their results.

use crate::{
    api::values,
    go::decode::{DecodeError, FieldPath, JsonNode, decode_base64},
    inference::{Message, MessageRole, ToolCall},
};

const ROOT: &str = "ChatCompletionRequest";

/// Image types that Ollama accepts in a data URI; the empty one stands for no type.
const IMAGE_TYPES: [&str; 5] = ["image/jpeg", "image/jpg", "image/png", "image/webp", ""];

/// Reads the messages of a request.
pub(super) fn messages(node: JsonNode<'_>) -> Result<Vec<Message>, DecodeError> {
    let items = node.read_array(FieldPath(ROOT, "messages"), "[]openai.Message")?;
    values::check_message_count(items.len())?;
    let mut messages = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let mut message = message(index, item)?;
        if message.tool_name.is_empty() && !message.tool_call_id.is_empty() {
            message.tool_name = values::tool_of_call(&messages, &message.tool_call_id);
        }
        messages.push(message);
    }
    Ok(messages)
}

fn message(index: usize, node: JsonNode<'_>) -> Result<Message, DecodeError> {
    let mut message = Message::text("", "");
    let mut content = JsonNode::Null;
    for (key, node) in node.read_object(FieldPath(ROOT, "messages"), "openai.Message")? {
        match key.to_ascii_lowercase().as_str() {
            "role" => {
                let mut role = String::new();
                node.read_string(&mut role, FieldPath(ROOT, "messages.role"))?;
                message.role = MessageRole(role.to_lowercase());
            }
            "content" => content = node,
            // Ollama's name, and the one of DeepSeek and llama-server: clients send back what a server gave them.
            "reasoning" | "reasoning_content" => {
                node.read_string(&mut message.thinking, FieldPath(ROOT, "messages.reasoning"))?;
            }
            "tool_calls" => message.tool_calls = tool_calls(index, node)?,
            "name" => node.read_string(&mut message.tool_name, FieldPath(ROOT, "messages.name"))?,
            "tool_call_id" => node.read_string(&mut message.tool_call_id, FieldPath(ROOT, "messages.tool_call_id"))?,
            _ => {}
        }
    }
    if message.role.0 != "tool" {
        // Outside results of tools, `name` is that of the speaker.
        message.tool_name.clear();
    }
    match content {
        JsonNode::String(text) => message.content = text.into_owned(),
        JsonNode::Array(parts) => read_parts(parts, &mut message)?,
        // OpenAI's replies with calls have `content: null`, and clients send them back.
        JsonNode::Null if !message.tool_calls.is_empty() => {}
        other => {
            return Err(DecodeError::new(format!(
                "invalid message content type: {}",
                other.go_type()
            )));
        }
    }
    Ok(message)
}

/// Joins content parts to one message: texts with line feeds between them, images in order. Ollama makes a message of
/// each part, which breaks templates that want user and assistant to alternate.
fn read_parts(parts: Vec<JsonNode<'_>>, message: &mut Message) -> Result<(), DecodeError> {
    for part in parts {
        let JsonNode::Object(members) = part else {
            return Err(bad_part());
        };
        let (mut kind, mut payload) = (String::new(), None);
        for (key, node) in members {
            // A content part is a plain map in Ollama's shim, so its keys are case-sensitive, unlike those of a struct.
            match (key.as_ref(), node) {
                ("type", JsonNode::String(text)) => kind = text.into_owned(),
                ("text" | "image_url" | "input_audio", node) => payload = Some(node),
                _ => {}
            }
        }
        match (kind.as_str(), payload) {
            ("text", Some(JsonNode::String(text))) => {
                if !message.content.is_empty() {
                    message.content.push('\n');
                }
                message.content.push_str(&text);
            }
            // Ollama accepts a bare string, too, although OpenAI has only the object.
            ("image_url", Some(JsonNode::String(url))) => message.media.push(image(&url)?),
            ("image_url", Some(image_url @ JsonNode::Object(_))) => {
                let url = image_url.text_member("url").ok_or_else(bad_part)?;
                message.media.push(image(url)?);
            }
            ("input_audio", Some(audio @ JsonNode::Object(_))) => {
                let data = audio.text_member("data").ok_or_else(bad_part)?;
                message.media.push(decode_base64(data).map_err(|_| bad_part())?);
            }
            _ => return Err(bad_part()),
        }
    }
    Ok(())
}

fn bad_part() -> DecodeError {
    DecodeError::new("invalid message format")
}

/// Returns the bytes in a data URI.
pub(super) fn image(url: &str) -> Result<Vec<u8>, DecodeError> {
    // As in Ollama nothing is fetched: a client could reach addresses that only this machine can.
    if url.starts_with("http://") || url.starts_with("https://") {
        return Err(DecodeError::new(
            "image URLs are not currently supported, please use base64 encoded data instead",
        ));
    }
    let bad = || DecodeError::new("invalid image input");
    let (kind, data) = url
        .strip_prefix("data:")
        .and_then(|rest| rest.split_once(";base64,"))
        .ok_or_else(bad)?;
    if !IMAGE_TYPES.contains(&kind) {
        return Err(bad());
    }
    decode_base64(data).map_err(|_| bad())
}

fn tool_calls(message: usize, node: JsonNode<'_>) -> Result<Vec<ToolCall>, DecodeError> {
    let items = node.read_array(FieldPath(ROOT, "messages.tool_calls"), "[]openai.ToolCall")?;
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| tool_call(message, index, item))
        .collect()
}

fn tool_call(message: usize, index: usize, node: JsonNode<'_>) -> Result<ToolCall, DecodeError> {
    let mut call = ToolCall {
        id: String::new(),
        name: String::new(),
        arguments: serde_json::Map::new(),
    };
    for (key, node) in node.read_object(FieldPath(ROOT, "messages.tool_calls"), "openai.ToolCall")? {
        match key.to_ascii_lowercase().as_str() {
            "id" => node.read_string(&mut call.id, FieldPath(ROOT, "messages.tool_calls.id"))?,
            "function" => {
                for (key, node) in node.read_object(FieldPath(ROOT, "messages.tool_calls.function"), "struct")? {
                    match key.to_ascii_lowercase().as_str() {
                        "name" => {
                            node.read_string(&mut call.name, FieldPath(ROOT, "messages.tool_calls.function.name"))?
                        }
                        "arguments" => call.arguments = arguments(&node)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if call.id.is_empty() {
        // Counted, not random: the rendered prompt has to be the same on every turn, or the prefix cache is of no use.
        call.id = format!("call_{message}_{index}");
    }
    Ok(call)
}

/// Reads the arguments of a call: a JSON object in a string, or, as some clients send it, the object itself.
fn arguments(node: &JsonNode<'_>) -> Result<serde_json::Map<String, serde_json::Value>, DecodeError> {
    let bad = || DecodeError::new("invalid tool call arguments");
    match node {
        JsonNode::String(text) => serde_json::from_str(text).map_err(|_| bad()),
        JsonNode::Object(_) => match values::plain_value(node)? {
            serde_json::Value::Object(arguments) => Ok(arguments),
            _ => Err(bad()),
        },
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::decode::entries_of;

    fn read(json: &str) -> Result<Vec<Message>, DecodeError> {
        let body = format!("{{\"messages\":{json}}}");
        let (_, node) = entries_of(body.as_bytes(), "test")?.remove(0);
        messages(node)
    }

    #[test]
    fn parts_become_one_message() {
        let messages = read(
            r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:image/png;base64,aGk="}},{"type":"image_url","image_url":"data:;base64,aGo="},{"type":"text","text":"b"}]}]"#,
        )
        .unwrap();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].content, "a\nb");
        assert_eq!(messages[0].media, [b"hi", b"hj"]);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_the_words_of_the_shim() {
        for (json, expected) in [
            (
                r#"[{"role":"user","content":[{"type":"video"}]}]"#,
                "invalid message format",
            ),
            (r#"[{"role":"user","content":["x"]}]"#, "invalid message format"),
            (r#"[{"role":"user"}]"#, "invalid message content type: <nil>"),
            (
                r#"[{"role":"user","content":5}]"#,
                "invalid message content type: float64",
            ),
            (
                r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x/y.png"}}]}]"#,
                "image URLs are not currently supported, please use base64 encoded data instead",
            ),
            (
                r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/gif;base64,aGk="}}]}]"#,
                "invalid image input",
            ),
            (
                r#"[{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":"{"}}]}]"#,
                "invalid tool call arguments",
            ),
        ] {
            assert_eq!(read(json).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_tool_result_finds_the_name_of_its_tool() {
        let messages = read(
            r#"[{"role":"assistant","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"b\":1}"}}]},{"role":"tool","tool_call_id":"c1","content":"r"},{"role":"tool","tool_call_id":"c2","name":"g","content":"r"}]"#,
        )
        .unwrap();
        assert_eq!(messages[0].tool_calls[0].arguments["b"], 1);
        assert_eq!(
            (messages[1].tool_name.as_str(), messages[2].tool_name.as_str()),
            ("f", "g")
        );
    }
}
