//! `input` of `/v1/responses`: a text, or items that together form a conversation.

use std::borrow::Cow;

use crate::{
    api::{openai::content, values},
    go::{
        decode::{DecodeError, JsonNode, entries_of},
        quote,
    },
    inference::{Message, ToolCall},
};

/// Most items in one request.
const MAX_ITEMS: usize = 1 << 16;

/// Item with the members of every type.
#[derive(Debug, Default)]
struct Item<'a> {
    kind: String,
    role: String,
    /// Content of a message, or output of a tool.
    parts: Vec<Part>,
    call_id: String,
    name: String,
    arguments: String,
    encrypted_content: String,
    summary: Option<JsonNode<'a>>,
}

/// Part of a message or of a tool's result.
#[derive(Debug)]
enum Part {
    Text(String),
    /// URL of an image.
    Image(String),
    File,
}

/// Reads the conversation of a request.
pub(super) fn messages(node: JsonNode<'_>) -> Result<Vec<Message>, DecodeError> {
    match node {
        JsonNode::Null => Ok(Vec::new()),
        // A request without input only loads the model.
        JsonNode::String(text) if text.is_empty() => Ok(Vec::new()),
        JsonNode::String(text) => Ok(vec![Message::text("user", text)]),
        JsonNode::Array(items) if items.len() > MAX_ITEMS => {
            Err(DecodeError::new(format!("input holds more than {MAX_ITEMS} items")))
        }
        JsonNode::Array(items) => {
            let items: Vec<Item<'_>> = items
                .into_iter()
                .enumerate()
                .map(|(index, item)| Item::read(item).map_err(|error| at("input", index, &error)))
                .collect::<Result<_, _>>()?;
            Conversation::default().read(items)
        }
        other => Err(DecodeError::new(format!(
            "input must be a string or array: json: cannot unmarshal {} into Go value of type []json.RawMessage",
            other.kind()
        ))),
    }
}

fn at(place: &str, index: usize, error: &DecodeError) -> DecodeError {
    DecodeError::new(format!("{place}[{index}]: {error}"))
}

impl<'a> Item<'a> {
    fn read(node: JsonNode<'a>) -> Result<Self, DecodeError> {
        let JsonNode::Object(entries) = node else {
            return Err(DecodeError::new(format!(
                "json: cannot unmarshal {} into Go value of type openai.ResponsesInputItem",
                node.kind()
            )));
        };
        let mut item = Self::default();
        for (key, node) in entries {
            match (key.to_ascii_lowercase().as_str(), node) {
                (_, JsonNode::Null) => {}
                ("type", node) => item.kind = text(node, "type")?,
                ("role", node) => item.role = text(node, "role")?,
                ("content", node) if item.kind != "reasoning" => item.parts = parts(node, "content")?,
                ("call_id", node) => item.call_id = text(node, "call_id")?,
                ("name", node) => item.name = text(node, "name")?,
                ("arguments", node) => item.arguments = text(node, "arguments")?,
                ("output", node) => item.parts = parts(node, "output")?,
                ("encrypted_content", node) => item.encrypted_content = text(node, "encrypted_content")?,
                ("summary", node) => item.summary = Some(node),
                _ => {}
            }
        }
        if item.kind.is_empty() && !item.role.is_empty() {
            // OpenAI allows a message without a type.
            item.kind = "message".to_owned();
        }
        match item.kind.as_str() {
            "message" | "function_call" | "function_call_output" | "reasoning" | "web_search_call" => Ok(item),
            "" => Err(DecodeError::new("input item missing required 'type' field")),
            other => Err(DecodeError::new(format!("unknown input item type: {}", quote(other)))),
        }
    }

    /// Returns the reasoning in an item. Replies carry it in `encrypted_content`, unencrypted; clients that drop that
    /// field keep the summary, which has the same text.
    fn into_thinking(self) -> String {
        if !self.encrypted_content.is_empty() {
            return self.encrypted_content;
        }
        let Some(JsonNode::Array(parts)) = self.summary else {
            return String::new();
        };
        let texts = parts.into_iter().filter_map(|part| match part {
            JsonNode::Object(entries) => entries.into_iter().find_map(|(key, node)| match node {
                JsonNode::String(text) if key == "text" => Some(text),
                _ => None,
            }),
            _ => None,
        });
        texts.collect::<Vec<Cow<'_, str>>>().join("\n")
    }
}

fn text(node: JsonNode<'_>, key: &str) -> Result<String, DecodeError> {
    match node {
        JsonNode::String(text) => Ok(text.into_owned()),
        other => Err(DecodeError::new(format!(
            "json: cannot unmarshal {} into Go struct field .{key} of type string",
            other.kind()
        ))),
    }
}

/// Conversation while its items are read.
#[derive(Debug, Default)]
struct Conversation {
    messages: Vec<Message>,
    /// Reasoning that belongs to the next message of the assistant.
    thinking: String,
}

impl Conversation {
    fn read(mut self, items: Vec<Item<'_>>) -> Result<Vec<Message>, DecodeError> {
        let mut items = items.into_iter().peekable();
        while let Some(item) = items.next() {
            let answered = items
                .peek()
                .filter(|next| next.kind == "function_call_output")
                .map(|next| next.call_id.clone())
                .unwrap_or_default();
            self.add(item, &answered)?;
        }
        if !self.thinking.is_empty() {
            let thinking = std::mem::take(&mut self.thinking);
            self.messages.push(Message {
                thinking,
                ..Message::text("assistant", "")
            });
        }
        Ok(self.messages)
    }

    /// Adds an item. `answered` is the id of the call whose result is the next item, or empty.
    fn add(&mut self, item: Item<'_>, answered: &str) -> Result<(), DecodeError> {
        match item.kind.as_str() {
            "reasoning" => self.thinking = item.into_thinking(),
            "message" => {
                let (text, media) = join(item.parts)?;
                let message = Message {
                    media,
                    ..Message::text(&item.role, text)
                };
                self.add_message(message, answered);
            }
            "function_call" => self.add_call(item)?,
            "function_call_output" => {
                let (text, media) = join(item.parts)?;
                let tool_name = values::tool_of_call(&self.messages, &item.call_id);
                self.messages.push(Message {
                    media,
                    tool_name,
                    tool_call_id: item.call_id,
                    ..Message::text("tool", text)
                });
            }
            // A search of the web is not repeated: the message behind it has what was found.
            _ => {}
        }
        Ok(())
    }

    fn add_message(&mut self, mut message: Message, answered: &str) {
        if message.role.0 == "assistant" {
            message.thinking = std::mem::take(&mut self.thinking);
            // Some clients put the turn's text between a call and its result. Templates want the result right behind
            // the call, so text and call become one message.
            let calls = self.messages.last_mut().filter(|last| {
                !answered.is_empty()
                    && last.role.0 == "assistant"
                    && last.tool_calls.iter().any(|call| call.id == answered)
            });
            if let Some(turn) = calls {
                if !turn.content.is_empty() && !message.content.is_empty() {
                    turn.content.push('\n');
                }
                turn.content.push_str(&message.content);
                turn.media.append(&mut message.media);
                if !message.thinking.is_empty() {
                    turn.thinking = message.thinking;
                }
                return;
            }
        }
        self.messages.push(message);
    }

    /// Adds a call to the assistant's message before it, or to a new one.
    fn add_call(&mut self, item: Item<'_>) -> Result<(), DecodeError> {
        let call = ToolCall {
            arguments: arguments(&item.arguments)?,
            id: item.call_id,
            name: item.name,
        };
        if self.messages.last().is_none_or(|last| last.role.0 != "assistant") {
            self.messages.push(Message::text("assistant", ""));
        }
        if let Some(turn) = self.messages.last_mut() {
            turn.tool_calls.push(call);
            if !self.thinking.is_empty() {
                turn.thinking = std::mem::take(&mut self.thinking);
            }
        }
        Ok(())
    }
}

/// Reads the arguments of a call, a JSON object in a string; an empty string is no arguments.
fn arguments(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, DecodeError> {
    if text.is_empty() {
        return Ok(serde_json::Map::new());
    }
    // The first decoder is only there for Go's error text.
    entries_of(text.as_bytes(), "api.ToolCallFunctionArguments")
        .and_then(|_| serde_json::from_str(text).map_err(|error| DecodeError::new(error.to_string())))
        .map_err(|error| DecodeError::new(format!("failed to parse function call arguments: {error}")))
}

/// Reads a string, or a list of parts.
fn parts(node: JsonNode<'_>, place: &str) -> Result<Vec<Part>, DecodeError> {
    match node {
        JsonNode::String(text) => Ok(vec![Part::Text(text.into_owned())]),
        JsonNode::Array(items) => items
            .into_iter()
            .enumerate()
            .map(|(index, item)| part(item).map_err(|error| at(place, index, &error)))
            .collect(),
        other => Err(DecodeError::new(format!(
            "{place} must be a string or array: json: cannot unmarshal {} into Go value of type []json.RawMessage",
            other.kind()
        ))),
    }
}

fn part(node: JsonNode<'_>) -> Result<Part, DecodeError> {
    let JsonNode::Object(entries) = node else {
        return Err(DecodeError::new(format!(
            "json: cannot unmarshal {} into Go value of type openai.ResponsesContent",
            node.kind()
        )));
    };
    let (mut kind, mut text, mut url) = (String::new(), String::new(), String::new());
    for (key, node) in entries {
        match (key.to_ascii_lowercase().as_str(), node) {
            ("type", JsonNode::String(word)) => kind = word.into_owned(),
            ("text" | "refusal", JsonNode::String(said)) => text = said.into_owned(),
            ("image_url", JsonNode::String(address)) => url = address.into_owned(),
            _ => {}
        }
    }
    match kind.as_str() {
        "input_text" | "output_text" | "text" | "refusal" => Ok(Part::Text(text)),
        "input_image" => Ok(Part::Image(url)),
        "input_file" => Ok(Part::File),
        other => Err(DecodeError::new(format!("unknown content type: {other}"))),
    }
}

/// Joins the texts of all parts, and decodes their images.
fn join(parts: Vec<Part>) -> Result<(String, Vec<Vec<u8>>), DecodeError> {
    let (mut joined, mut images) = (String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Text(text) => joined.push_str(&text),
            Part::Image(url) if url.is_empty() => {
                return Err(DecodeError::new(
                    "an input_image must carry its image in image_url: files are not kept here",
                ));
            }
            Part::Image(url) => images.push(content::image(&url)?),
            Part::File => return Err(DecodeError::new("file inputs are not currently supported")),
        }
    }
    Ok((joined, images))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<Message>, String> {
        let body = format!("{{\"input\":{json}}}");
        let (_, node) = entries_of(body.as_bytes(), "test").unwrap().remove(0);
        messages(node).map_err(|error| error.to_string())
    }

    /// Returns role, text and calls of each message.
    fn turns(json: &str) -> Vec<(String, String, Vec<String>)> {
        let turn = |message: Message| {
            let calls = message.tool_calls.into_iter().map(|call| call.name).collect();
            (message.role.0, message.content, calls)
        };
        read(json).unwrap().into_iter().map(turn).collect()
    }

    fn turn(role: &str, text: &str, calls: &[&str]) -> (String, String, Vec<String>) {
        let calls = calls.iter().map(|call| (*call).to_owned()).collect();
        (role.to_owned(), text.to_owned(), calls)
    }

    #[test]
    fn a_text_is_a_turn_of_the_user_and_nothing_is_none() {
        assert_eq!(turns(r#""Hi""#), [turn("user", "Hi", &[])]);
        assert!(turns(r#""""#).is_empty() && turns("null").is_empty() && turns("[]").is_empty());
    }

    #[test]
    fn messages_come_in_every_form() {
        let read = read(
            r#"[{"role":"USER","content":"a"},{"type":"message","role":"user","content":[{"type":"input_text","text":"b"},{"type":"input_image","detail":"auto","image_url":"data:image/png;base64,aGk="},{"type":"input_text","text":"c"}]},{"type":"message","role":"assistant","content":[{"type":"output_text","text":"d","annotations":[]}]},{"type":"message","role":"developer"},{"type":"web_search_call","id":"ws"}]"#,
        )
        .unwrap();
        let seen: Vec<(&str, &str)> = read.iter().map(|m| (m.role.0.as_str(), m.content.as_str())).collect();
        assert_eq!(
            seen,
            [("user", "a"), ("user", "bc"), ("assistant", "d"), ("developer", "")]
        );
        assert_eq!(read[1].media, [b"hi"]);
    }

    #[test]
    fn reasoning_and_calls_join_the_turn_that_they_belong_to() {
        let read = read(
            r#"[{"type":"reasoning","encrypted_content":"Hm","summary":[]},{"type":"function_call","call_id":"c1","name":"f","arguments":"{\"b\":1}"},{"type":"function_call","call_id":"c2","name":"g","arguments":""},{"type":"function_call_output","call_id":"c1","output":"r"},{"type":"function_call_output","call_id":"c2","output":[{"type":"input_text","text":"s"}]},{"type":"reasoning","summary":[{"type":"summary_text","text":"So"}]}]"#,
        )
        .unwrap();
        assert_eq!(read.len(), 4);
        assert_eq!((read[0].thinking.as_str(), read[0].tool_calls.len()), ("Hm", 2));
        assert_eq!(read[0].tool_calls[0].arguments["b"], 1);
        let result = |message: &Message| {
            (
                message.content.clone(),
                message.tool_name.clone(),
                message.tool_call_id.clone(),
            )
        };
        assert_eq!(result(&read[1]), ("r".into(), "f".into(), "c1".into()));
        assert_eq!(result(&read[2]), ("s".into(), "g".into(), "c2".into()));
        assert_eq!(
            (read[3].role.0.as_str(), read[3].thinking.as_str()),
            ("assistant", "So")
        );
    }

    #[test]
    fn a_text_between_a_call_and_its_result_joins_the_call() {
        assert_eq!(
            turns(
                r#"[{"role":"assistant","content":"a"},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"role":"assistant","content":"b"},{"type":"function_call_output","call_id":"c","output":"r"},{"role":"assistant","content":"d"}]"#
            ),
            [
                turn("assistant", "a\nb", &["f"]),
                turn("tool", "r", &[]),
                turn("assistant", "d", &[])
            ]
        );
        assert_eq!(
            turns(
                r#"[{"type":"function_call","call_id":"c","name":"f"},{"role":"assistant","content":"b"},{"type":"function_call_output","call_id":"other","output":"r"}]"#
            ),
            [
                turn("assistant", "", &["f"]),
                turn("assistant", "b", &[]),
                turn("tool", "r", &[])
            ]
        );
    }

    #[test]
    fn what_does_not_fit_says_where() {
        for (json, expected) in [
            (
                "5",
                "input must be a string or array: json: cannot unmarshal number into Go value of type []json.RawMessage",
            ),
            ("[{}]", "input[0]: input item missing required 'type' field"),
            (
                r#"[{"role":"user","content":"x"},{"type":"item_reference","id":"x"}]"#,
                r#"input[1]: unknown input item type: "item_reference""#,
            ),
            (
                "[5]",
                "input[0]: json: cannot unmarshal number into Go value of type openai.ResponsesInputItem",
            ),
            (
                r#"[{"role":"user","content":[{"type":"input_text"},{"type":"video"}]}]"#,
                "input[0]: content[1]: unknown content type: video",
            ),
            (
                r#"[{"role":"user","content":[{"type":"input_file","file_id":"x"}]}]"#,
                "file inputs are not currently supported",
            ),
            (
                r#"[{"role":"user","content":[{"type":"input_image","file_id":"x"}]}]"#,
                "an input_image must carry its image in image_url: files are not kept here",
            ),
            (
                r#"[{"role":"user","content":[{"type":"input_image","image_url":"https://x"}]}]"#,
                "image URLs are not currently supported, please use base64 encoded data instead",
            ),
            (
                r#"[{"role":"user","content":5}]"#,
                "input[0]: content must be a string or array: json: cannot unmarshal number into Go value of type []json.RawMessage",
            ),
            (
                r#"[{"type":"function_call","call_id":"c","name":"f","arguments":"{"}]"#,
                "failed to parse function call arguments: unexpected EOF",
            ),
            (
                r#"[{"type":"function_call","call_id":"c","name":"f","arguments":"[]"}]"#,
                "failed to parse function call arguments: json: cannot unmarshal array into Go value of type api.ToolCallFunctionArguments",
            ),
        ] {
            assert_eq!(read(json).unwrap_err(), expected);
        }
    }
}
