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
    /// In a chat template's format; parsed anew from the start each time, since the parser keeps no state.
    Chat {
        parser: ChatParser,
        whole: String,
        sent: ParsedMessage,
        calls: usize,
    },
}

impl Answer {
    pub(super) fn new(stops: &[String], chat: Option<&ChatSyntax>) -> Result<Self, String> {
        let format = match chat {
            None => AnswerFormat::Plain,
            Some(syntax) => AnswerFormat::Chat {
                parser: ChatParser::new(&syntax.rendered, syntax.tools)?,
                whole: String::new(),
                sent: ParsedMessage::default(),
                calls: 0,
            },
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

    /// Adds the bytes of one token; returns what can be shown now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Delta {
        let text = self.text.push(bytes);
        self.advance(text, false)
    }

    /// Ends the answer; returns what was held back.
    pub(super) fn finish(&mut self) -> Delta {
        let text = self.text.finish();
        self.advance(text, true)
    }

    fn advance(&mut self, text: String, end: bool) -> Delta {
        let AnswerFormat::Chat {
            parser,
            whole,
            sent,
            calls,
        } = &mut self.format
        else {
            return Delta {
                content: text,
                ..Delta::default()
            };
        };
        whole.push_str(&text);
        if text.is_empty() && !end {
            return Delta::default();
        }
        match parser.parse(whole, !end) {
            Ok(now) => {
                let delta = Delta {
                    content: grown(&sent.content, &now.content),
                    thinking: grown(&sent.thinking, &now.thinking),
                    tool_calls: complete_calls(&now, calls, end),
                    logprobs: Vec::new(),
                };
                *sent = now;
                delta
            }
            // In the middle of an answer the text may still become one that parses.
            Err(_) if !end => Delta::default(),
            Err(reason) => {
                tracing::warn!(
                    reason,
                    "the answer is not in its template's format; its rest goes out as text"
                );
                let shown = sent.content.len() + sent.thinking.len();
                let rest = if shown == 0 && *calls == 0 {
                    whole.clone()
                } else {
                    unshown(whole, sent)
                };
                self.format = AnswerFormat::Plain;
                Delta {
                    content: rest,
                    ..Delta::default()
                }
            }
        }
    }
}

/// What `now` has that `before` had not; nothing if it took something back (what was streamed stays).
fn grown(before: &str, now: &str) -> String {
    now.strip_prefix(before).unwrap_or_default().to_owned()
}

/// The part of the raw text after what was last shown of it.
fn unshown(whole: &str, sent: &ParsedMessage) -> String {
    let last = if sent.content.is_empty() {
        &sent.thinking
    } else {
        &sent.content
    };
    whole
        .rfind(last.as_str())
        .map_or_else(|| whole.to_owned(), |at| whole[at + last.len()..].to_owned())
}

/// Calls that became complete: all but the last one, and that too at the end.
fn complete_calls(now: &ParsedMessage, sent: &mut usize, end: bool) -> Vec<ToolCall> {
    let complete = if end {
        now.tool_calls.len()
    } else {
        now.tool_calls.len().saturating_sub(1)
    };
    let mut out = Vec::new();
    while *sent < complete {
        let call = &now.tool_calls[*sent];
        *sent += 1;
        match serde_json::from_str(if call.arguments.trim().is_empty() {
            "{}"
        } else {
            &call.arguments
        }) {
            Ok(arguments) => out.push(ToolCall {
                id: call_id(&call.id),
                name: call.name.clone(),
                arguments,
            }),
            Err(error) => tracing::warn!(%error, tool = call.name, "a tool call's arguments are no JSON object"),
        }
    }
    out
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
