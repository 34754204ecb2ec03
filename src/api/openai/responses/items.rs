//! Output items of a response: neutral deltas become reasoning, messages and function calls, one after the other.

use serde::Serialize;
use serde_json::{Value, json};

use super::super::chunks::arguments_text;
use crate::inference::{Delta, ToolCall};

/// Range of the random numbers in ids, the same as in Ollama.
const ID_RANGE: std::ops::Range<u32> = 0..999_999;

/// Item of the output. The order of fields is the wire's; the type decides which of them are set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct OutputItem {
    id: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Vec<Content>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Vec<Summary>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_content: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Content {
    r#type: &'static str,
    text: String,
    // Ollama sends both lists, always empty.
    annotations: [(); 0],
    logprobs: [(); 0],
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Summary {
    r#type: &'static str,
    text: String,
}

/// Receiver of events: their name and data.
pub(super) type Emit<'a> = dyn FnMut(&'static str, Value) + 'a;

/// Items of one response while they grow.
#[derive(Debug)]
pub(super) struct OutputItems {
    ids: Ids,
    done: Vec<OutputItem>,
    open: Option<Open>,
    /// Whitespace that no text has followed yet. Templates leave some around reasoning and calls, which must not become
    /// a message.
    blanks: String,
}

/// Incomplete item.
#[derive(Debug)]
enum Open {
    Thoughts { id: String, text: String },
    Message { id: String, text: String },
}

/// Generator of item ids. As in Ollama, those of a whole response are derived from its id, those of a streamed one are
/// random.
#[derive(Debug)]
struct Ids {
    response: String,
    streamed: bool,
    first_message: Option<String>,
}

impl OutputItems {
    pub(super) fn new(response: String, streamed: bool) -> Self {
        let first_message = Some(format!("msg_{}", random()));
        Self {
            ids: Ids {
                response,
                streamed,
                first_message,
            },
            done: Vec::new(),
            open: None,
            blanks: String::new(),
        }
    }

    pub(super) fn response_id(&self) -> &str {
        &self.ids.response
    }

    /// Returns the complete items.
    pub(super) fn done(&self) -> &[OutputItem] {
        &self.done
    }

    pub(super) fn add(&mut self, delta: Delta, emit: &mut Emit<'_>) {
        if !delta.thinking.is_empty() {
            self.think(&delta.thinking, emit);
        }
        if !delta.content.is_empty() {
            self.say(&delta.content, emit);
        }
        if !delta.tool_calls.is_empty() {
            self.close(emit);
            for (index, call) in delta.tool_calls.into_iter().enumerate() {
                self.call(index, call, emit);
            }
        }
    }

    pub(super) fn finish(&mut self, emit: &mut Emit<'_>) {
        let says_nothing_else = self.open.is_none() && !self.done.iter().any(|item| item.r#type != "reasoning");
        if says_nothing_else && !self.blanks.is_empty() {
            self.open_message(emit);
        }
        self.close(emit);
    }

    /// Completes a response in one piece. An answer without text is an empty message there, as in Ollama; a stream has
    /// none.
    pub(super) fn finish_whole(&mut self) {
        self.finish(&mut |_, _| {});
        if self.done.iter().all(|item| item.r#type == "reasoning") {
            let id = self.ids.message(self.done.len());
            self.done.push(message(id, String::new()));
        }
    }

    fn think(&mut self, piece: &str, emit: &mut Emit<'_>) {
        let index = match &mut self.open {
            Some(Open::Thoughts { text, .. }) => {
                text.push_str(piece);
                self.done.len()
            }
            _ => {
                self.close(emit);
                let index = self.done.len();
                let id = self.ids.thoughts(index);
                emit(
                    "response.output_item.added",
                    json!({
                        "item": {"id": id, "summary": [], "type": "reasoning"},
                        "output_index": index,
                    }),
                );
                self.open = Some(Open::Thoughts {
                    id,
                    text: piece.to_owned(),
                });
                index
            }
        };
        if let Some(Open::Thoughts { id, .. }) = &self.open {
            emit(
                "response.reasoning_summary_text.delta",
                json!({"delta": piece, "item_id": id, "output_index": index, "summary_index": 0}),
            );
        }
    }

    fn say(&mut self, piece: &str, emit: &mut Emit<'_>) {
        if !matches!(self.open, Some(Open::Message { .. })) {
            // Kept even if it is blank: text that follows must not lose the whitespace before it.
            self.blanks.push_str(piece);
            if piece.trim().is_empty() {
                return;
            }
            self.open_message(emit);
            return;
        }
        self.go_on(piece, emit);
    }

    /// Begins a message with the whitespace that was held back.
    fn open_message(&mut self, emit: &mut Emit<'_>) {
        let held = std::mem::take(&mut self.blanks);
        self.close(emit);
        let index = self.done.len();
        let id = self.ids.message(index);
        emit(
            "response.output_item.added",
            json!({
                "item": {"content": [], "id": id, "role": "assistant", "status": "in_progress", "type": "message"},
                "output_index": index,
            }),
        );
        emit(
            "response.content_part.added",
            json!({"content_index": 0, "item_id": id, "output_index": index, "part": content(String::new())}),
        );
        self.open = Some(Open::Message {
            id,
            text: String::new(),
        });
        self.go_on(&held, emit);
    }

    fn go_on(&mut self, piece: &str, emit: &mut Emit<'_>) {
        let index = self.done.len();
        if let Some(Open::Message { id, text }) = &mut self.open {
            text.push_str(piece);
            emit(
                "response.output_text.delta",
                json!({"content_index": 0, "delta": piece, "item_id": id, "logprobs": [], "output_index": index}),
            );
        }
    }

    fn call(&mut self, index_in_piece: usize, call: ToolCall, emit: &mut Emit<'_>) {
        let index = self.done.len();
        let calls = self.done.iter().filter(|item| item.r#type == "function_call").count();
        let id = self.ids.call(index_in_piece, calls);
        let arguments = arguments_text(call.arguments);
        let mut item = OutputItem {
            id: id.clone(),
            r#type: "function_call",
            status: Some("in_progress"),
            call_id: Some(call.id),
            name: Some(call.name),
            arguments: Some(String::new()),
            ..OutputItem::default()
        };
        emit(
            "response.output_item.added",
            json!({"item": item, "output_index": index}),
        );
        emit(
            "response.function_call_arguments.delta",
            json!({"delta": arguments, "item_id": id, "output_index": index}),
        );
        emit(
            "response.function_call_arguments.done",
            json!({"arguments": arguments, "item_id": id, "output_index": index}),
        );
        item.status = Some("completed");
        item.arguments = Some(arguments);
        self.complete(item, emit);
    }

    /// Completes the open item. Whitespace that nothing has followed is dropped.
    fn close(&mut self, emit: &mut Emit<'_>) {
        self.blanks.clear();
        let index = self.done.len();
        match self.open.take() {
            None => {}
            Some(Open::Thoughts { id, text }) => {
                emit(
                    "response.reasoning_summary_text.done",
                    json!({"item_id": id, "output_index": index, "summary_index": 0, "text": text}),
                );
                self.complete(thoughts(id, text), emit);
            }
            Some(Open::Message { id, text }) => {
                emit(
                    "response.output_text.done",
                    json!({"content_index": 0, "item_id": id, "logprobs": [], "output_index": index, "text": text}),
                );
                emit(
                    "response.content_part.done",
                    json!({"content_index": 0, "item_id": id, "output_index": index, "part": content(text.clone())}),
                );
                self.complete(message(id, text), emit);
            }
        }
    }

    fn complete(&mut self, item: OutputItem, emit: &mut Emit<'_>) {
        emit(
            "response.output_item.done",
            json!({"item": item, "output_index": self.done.len()}),
        );
        self.done.push(item);
    }
}

impl Ids {
    fn thoughts(&self, index: usize) -> String {
        match (self.streamed, index) {
            (true, _) => format!("rs_{}", random()),
            (false, 0) => format!("rs_{}", self.response),
            (false, _) => format!("rs_{}_{index}", self.response),
        }
    }

    fn message(&mut self, index: usize) -> String {
        self.first_message.take().unwrap_or_else(|| {
            let number = self.response.trim_start_matches("resp_");
            format!("msg_{number}_{index}")
        })
    }

    fn call(&self, index_in_piece: usize, calls: usize) -> String {
        if self.streamed {
            format!("fc_{}_{index_in_piece}", random())
        } else {
            format!("fc_{}_{calls}", self.response)
        }
    }
}

/// Returns a random number for an id.
pub(super) fn random() -> u32 {
    rand::random_range(ID_RANGE)
}

fn content(text: String) -> Content {
    Content {
        r#type: "output_text",
        text,
        annotations: [],
        logprobs: [],
    }
}

fn message(id: String, text: String) -> OutputItem {
    OutputItem {
        id,
        r#type: "message",
        status: Some("completed"),
        role: Some("assistant"),
        content: Some(vec![content(text)]),
        ..OutputItem::default()
    }
}

/// Returns a reasoning item. The text stands unencrypted in `encrypted_content`, too: the client sends it back with the
/// next turn, so that no state is kept here.
fn thoughts(id: String, text: String) -> OutputItem {
    OutputItem {
        id,
        r#type: "reasoning",
        summary: Some(vec![Summary {
            r#type: "summary_text",
            text: text.clone(),
        }]),
        encrypted_content: Some(text),
        ..OutputItem::default()
    }
}
