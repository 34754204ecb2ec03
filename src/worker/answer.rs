//! A model's text as content, reasoning and tool calls, piece by piece.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use super::{output::TextStream, protocol::ChatSyntax};
use crate::{
    inference::{Delta, ToolCall},
    llama::{ChatParser, ParsedMessage},
};

/// Reads one answer as it is written.
#[derive(Debug)]
pub(super) struct Answer {
    text: TextStream,
    format: AnswerFormat,
}

#[derive(Debug)]
enum AnswerFormat {
    /// All of it is content.
    Plain,
    /// In a chat template's format.
    Chat(ChatAnswer),
}

/// An answer in a chat template's format; parsed anew from the start each time, since the parser keeps no state.
#[derive(Debug)]
struct ChatAnswer {
    parser: ChatParser,
    /// The raw text.
    whole: String,
    /// Bytes of it that the last parse that showed something had seen.
    seen: usize,
    /// What was shown. A parse that takes something back does not shrink it: what was streamed stays.
    content: String,
    thinking: String,
    calls: usize,
}

impl Answer {
    pub(super) fn new(stops: &[String], chat: Option<&ChatSyntax>) -> Result<Self, String> {
        let format = match chat {
            None => AnswerFormat::Plain,
            Some(syntax) => AnswerFormat::Chat(ChatAnswer::new(syntax)?),
        };
        Ok(Self {
            text: TextStream::new(stops),
            format,
        })
    }

    /// Whether a stop string was found.
    pub(super) fn stopped(&self) -> bool {
        self.text.stopped()
    }

    /// The stop string that was found.
    pub(super) fn stopped_by(&self) -> Option<&str> {
        self.text.stopped_by()
    }

    /// Adds the bytes of one token; returns what can be shown now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Delta {
        let text = self.text.push(bytes);
        match &mut self.format {
            AnswerFormat::Plain => Delta {
                content: text,
                ..Delta::default()
            },
            AnswerFormat::Chat(_) if text.is_empty() => Delta::default(),
            AnswerFormat::Chat(chat) => {
                chat.whole.push_str(&text);
                // In the middle of an answer the text may still become one that parses.
                chat.parser
                    .parse(&chat.whole, true)
                    .map(|now| chat.show(&now, false))
                    .unwrap_or_default()
            }
        }
    }

    /// Ends the answer; returns what was held back. `cut` is an answer that a limit ended: its last call is not whole.
    pub(super) fn finish(&mut self, cut: bool) -> Delta {
        let text = self.text.finish();
        match &mut self.format {
            AnswerFormat::Plain => Delta {
                content: text,
                ..Delta::default()
            },
            AnswerFormat::Chat(chat) => {
                chat.whole.push_str(&text);
                match chat.parser.parse(&chat.whole, cut) {
                    Ok(now) => chat.show(&now, !cut),
                    Err(reason) => {
                        tracing::warn!(
                            reason,
                            "the answer is not in its template's format; its rest goes out as text"
                        );
                        let rest = chat.whole.get(chat.seen..).unwrap_or_default().to_owned();
                        Delta {
                            content: rest,
                            ..Delta::default()
                        }
                    }
                }
            }
        }
    }
}

impl ChatAnswer {
    fn new(syntax: &ChatSyntax) -> Result<Self, String> {
        let parser = ChatParser::new(&syntax.rendered, syntax.tools)?;
        // Where the prompt ends in the assistant's own words, they are in the parser's view and were not written now.
        let before = parser.parse("", true).unwrap_or_default();
        Ok(Self {
            parser,
            whole: String::new(),
            seen: 0,
            content: before.content,
            thinking: before.thinking,
            calls: before.tool_calls.len(),
        })
    }

    /// What `now` has beyond what was shown.
    fn show(&mut self, now: &ParsedMessage, end: bool) -> Delta {
        let mut delta = Delta {
            content: grow(&mut self.content, &now.content),
            thinking: grow(&mut self.thinking, &now.thinking),
            ..Delta::default()
        };
        // The last call may still grow; those before it are whole.
        let complete = if end {
            now.tool_calls.len()
        } else {
            now.tool_calls.len().saturating_sub(1)
        };
        while self.calls < complete {
            let call = &now.tool_calls[self.calls];
            self.calls += 1;
            let text = if call.arguments.trim().is_empty() {
                "{}"
            } else {
                &call.arguments
            };
            match serde_json::from_str(text) {
                Ok(arguments) => {
                    delta.tool_calls.push(ToolCall {
                        id: call_id(&call.id),
                        name: call.name.clone(),
                        arguments,
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, tool = call.name, "a tool call's arguments are no JSON object; it goes out as text");
                    delta.content.push_str(&format!("{}{text}", call.name));
                }
            }
        }
        if delta != Delta::default() {
            self.seen = self.whole.len();
        }
        delta
    }
}

/// Extends `shown` to `now` and returns what is new; nothing if `now` took something back.
fn grow(shown: &mut String, now: &str) -> String {
    match now.strip_prefix(shown.as_str()) {
        Some(rest) => {
            let rest = rest.to_owned();
            shown.push_str(&rest);
            rest
        }
        None => String::new(),
    }
}

/// The model's own id, or one in Ollama's form: `call_` and eight of `[a-z0-9]`.
fn call_id(given: &str) -> String {
    if !given.is_empty() {
        return given.to_owned();
    }
    // std's per-instance random keys: unique enough for ids, and no generator to carry around.
    let mut random = RandomState::new().build_hasher().finish();
    let mut id = String::from("call_");
    for _ in 0..8 {
        id.push(char::from(
            b"abcdefghijklmnopqrstuvwxyz0123456789"[(random % 36) as usize],
        ));
        random /= 36;
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::ChatTemplate;

    const HERMES: &str = "{% if tools %}<tools>{{ tools | tojson }}</tools> For each function call return \
        <tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n{% endif %}\
        {% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>\n\
        {\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}\
        {% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn syntax() -> ChatSyntax {
        let template = ChatTemplate::new(HERMES, "", "").expect("compiles");
        let input = r#"{"messages":[{"role":"user","content":"Hi"}],"tools":[{"type":"function","function":{"name":"f",
            "description":"d","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}]}"#;
        ChatSyntax {
            rendered: template.apply(input).expect("renders"),
            tools: true,
        }
    }

    fn read(pieces: &[&str]) -> Delta {
        let mut answer = Answer::new(&[], Some(&syntax())).expect("a parser");
        let mut all = Delta::default();
        let mut add = |delta: Delta| {
            all.content.push_str(&delta.content);
            all.tool_calls.extend(delta.tool_calls);
        };
        for piece in pieces {
            add(answer.push(piece.as_bytes()));
        }
        add(answer.finish(false));
        all
    }

    // Trap 66
    #[test]
    fn a_call_cut_into_pieces_is_one_call() {
        let text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
        for size in [1, 3, 7, text.len()] {
            let pieces: Vec<&str> = text
                .as_bytes()
                .chunks(size)
                .map(|piece| std::str::from_utf8(piece).unwrap())
                .collect();
            let all = read(&pieces);
            assert_eq!(all.content, "");
            assert_eq!(all.tool_calls.len(), 1);
            assert_eq!(all.tool_calls[0].arguments["city"], "Paris");
            assert!(all.tool_calls[0].id.len() > 4);
        }
    }

    #[test]
    fn text_in_no_format_gets_through_once() {
        for text in [
            "The weather is nice. {\"a\":1}",
            "foo < bar <b>",
            "<tool_call> is a tag",
            "plain",
        ] {
            let whole = read(&[text]);
            let pieces: Vec<&str> = text
                .as_bytes()
                .chunks(1)
                .map(|piece| std::str::from_utf8(piece).unwrap())
                .collect();
            assert_eq!(whole.content.trim(), text, "whole");
            assert_eq!(read(&pieces).content.trim(), text, "cut");
        }
    }
}
