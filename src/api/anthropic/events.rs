//! Events of a stream, and whole messages. The order of fields is the wire's.

use std::collections::HashSet;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Inner, new_id};
use crate::{
    api::{
        error::ApiError,
        reply,
        stream::{CompleteAnswer, FrameEncoder},
    },
    go::encode,
    http::sse,
    inference::{AnswerSummary, AnswerUsage, Delta, Event, FinishReason, ToolCall},
};

/// Encoder of one message, streamed or whole.
#[derive(Debug)]
pub(super) struct MessageWriter {
    id: String,
    /// Name as the client sent it.
    model: String,
    /// Stop strings of the request. The client is told which of them ended the message, but not about stop strings of
    /// the model itself.
    stop_sequences: Vec<String>,
    /// Estimate of the prompt's tokens for the first event, which is sent before they are counted.
    estimated_tokens: u32,
    began: bool,
    /// Block that further text is added to.
    open: Option<Kind>,
    /// Index of the open block, or of the next one.
    index: usize,
    calls: Calls,
}

/// Kind of a block that comes in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
}

/// Ids of the calls so far. Clients match results by them, and drop a call whose id they have seen before.
#[derive(Debug, Default)]
struct Calls(HashSet<String>);

impl Calls {
    /// Returns the id of a call, or a new one if it is empty or taken.
    fn unique(&mut self, id: String) -> String {
        let unique = match id.is_empty() || self.0.contains(&id) {
            true => new_id("toolu"),
            false => id,
        };
        self.0.insert(unique.clone());
        unique
    }

    fn were_made(&self) -> bool {
        !self.0.is_empty()
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StreamEvent<'a> {
    MessageStart { message: Message<'a> },
    ContentBlockStart { index: usize, content_block: Block },
    ContentBlockDelta { index: usize, delta: Piece<'a> },
    ContentBlockStop { index: usize },
    MessageDelta { delta: Stop<'a>, usage: WireUsage },
    MessageStop,
    Error { error: Inner<'a> },
}

impl StreamEvent<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Error { .. } => "error",
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&sse::event(self.name(), reply::encode(self)));
    }
}

#[derive(Serialize)]
struct Message<'a> {
    id: &'a str,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    /// Blocks; `None`, encoded as `null` like Go's nil slice, if there are none.
    content: Option<Vec<Block>>,
    #[serde(flatten)]
    stop: Stop<'a>,
    usage: WireUsage,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Thinking {
        thinking: String,
    },
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        input: Map<String, Value>,
    },
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum Piece<'a> {
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "input_json_delta")]
    Input { partial_json: String },
}

#[derive(Default, Serialize)]
struct Stop<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_sequence: Option<&'a str>,
}

#[derive(Serialize)]
struct WireUsage {
    input_tokens: u32,
    output_tokens: u32,
}

impl From<AnswerUsage> for WireUsage {
    fn from(usage: AnswerUsage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            output_tokens: usage.output_tokens,
        }
    }
}

impl MessageWriter {
    pub(super) fn new(model: String, stop_sequences: Vec<String>, estimated_tokens: u32) -> Self {
        Self {
            id: new_id("msg"),
            model,
            stop_sequences,
            estimated_tokens,
            began: false,
            open: None,
            index: 0,
            calls: Calls::default(),
        }
    }

    /// Returns a whole message.
    pub(super) fn whole(mut self, answer: CompleteAnswer) -> Vec<u8> {
        let CompleteAnswer {
            content: text,
            thinking,
            tool_calls,
            finish,
            ..
        } = answer;
        let mut content = Vec::with_capacity(tool_calls.len() + 2);
        if !thinking.is_empty() {
            content.push(Block::Thinking { thinking });
        }
        if !text.is_empty() {
            content.push(Block::Text { text });
        }
        for ToolCall { id, name, arguments } in tool_calls {
            content.push(Block::ToolUse {
                id: self.calls.unique(id),
                name,
                input: encode::tool_arguments(arguments),
            });
        }
        let message = Message {
            content: (!content.is_empty()).then_some(content),
            stop: self.stop(&finish),
            usage: finish.usage.into(),
            ..self.message()
        };
        let mut bytes = reply::encode(&message);
        bytes.push(b'\n');
        bytes
    }

    fn message(&self) -> Message<'_> {
        Message {
            id: &self.id,
            r#type: "message",
            role: "assistant",
            model: &self.model,
            // At the start of a stream the list is empty. Ollama sends `null` only for a whole message without content.
            content: Some(Vec::new()),
            stop: Stop::default(),
            usage: WireUsage {
                input_tokens: self.estimated_tokens,
                output_tokens: 0,
            },
        }
    }

    fn stop<'a>(&self, finish: &'a AnswerSummary) -> Stop<'a> {
        let sequence = finish
            .stop_string
            .as_deref()
            .filter(|text| self.stop_sequences.iter().any(|sequence| sequence == text));
        match (self.calls.were_made(), finish.reason, sequence) {
            // Calls go first, as in Ollama: clients run tools only for this reason.
            (true, ..) => Stop {
                stop_reason: Some("tool_use"),
                stop_sequence: None,
            },
            (_, FinishReason::Length, _) => Stop {
                stop_reason: Some("max_tokens"),
                stop_sequence: None,
            },
            (_, FinishReason::Stop, Some(_)) => Stop {
                stop_reason: Some("stop_sequence"),
                stop_sequence: sequence,
            },
            (_, FinishReason::Stop, None) => Stop {
                stop_reason: Some("end_turn"),
                stop_sequence: None,
            },
        }
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !self.began {
            self.began = true;
            StreamEvent::MessageStart {
                message: self.message(),
            }
            .write(out);
        }
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            StreamEvent::ContentBlockStop { index: self.index }.write(out);
            self.index += 1;
        }
    }

    /// Appends text to the open block, or to a new one if that is of another kind.
    fn write_text(&mut self, kind: Kind, text: &str, out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        if self.open != Some(kind) {
            self.close(out);
            self.open = Some(kind);
            let empty = String::new();
            StreamEvent::ContentBlockStart {
                index: self.index,
                content_block: match kind {
                    Kind::Thinking => Block::Thinking { thinking: empty },
                    Kind::Text => Block::Text { text: empty },
                },
            }
            .write(out);
        }
        StreamEvent::ContentBlockDelta {
            index: self.index,
            delta: match kind {
                Kind::Thinking => Piece::Thinking { thinking: text },
                Kind::Text => Piece::Text { text },
            },
        }
        .write(out);
    }

    /// Writes a call as a complete block, its arguments in one piece: providers send whole calls.
    fn write_call(&mut self, call: ToolCall, out: &mut Vec<u8>) {
        self.close(out);
        let index = self.index;
        let input = encode::tool_arguments(call.arguments);
        let partial_json = String::from_utf8_lossy(&reply::encode(&input)).into_owned();
        StreamEvent::ContentBlockStart {
            index,
            content_block: Block::ToolUse {
                id: self.calls.unique(call.id),
                name: call.name,
                // Anthropic's protocol starts a call with an empty object, which the deltas replace.
                input: Map::new(),
            },
        }
        .write(out);
        StreamEvent::ContentBlockDelta {
            index,
            delta: Piece::Input { partial_json },
        }
        .write(out);
        StreamEvent::ContentBlockStop { index }.write(out);
        self.index += 1;
    }
}

impl FrameEncoder for MessageWriter {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        self.begin(out);
        match event {
            Event::Delta(Delta {
                content,
                thinking,
                tool_calls,
                ..
            }) => {
                self.write_text(Kind::Thinking, &thinking, out);
                self.write_text(Kind::Text, &content, out);
                for call in tool_calls {
                    self.write_call(call, out);
                }
            }
            Event::Finished(finish) => {
                self.close(out);
                StreamEvent::MessageDelta {
                    delta: self.stop(&finish),
                    usage: finish.usage.into(),
                }
                .write(out);
                StreamEvent::MessageStop.write(out);
            }
        }
    }

    fn failure(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        // Ollama encodes an error inside of a stream as an empty message. Anthropic's API has this event for it.
        StreamEvent::Error {
            error: Inner::new(error),
        }
        .write(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::fake::{calls, delta, finish, text, thinking};

    fn writer() -> MessageWriter {
        MessageWriter {
            id: "msg_7".into(),
            ..MessageWriter::new("m".into(), vec!["4".into()], 2)
        }
    }

    /// Returns name and data of each event.
    fn stream(events: Vec<Event>) -> Vec<(String, String)> {
        let mut writer = writer();
        let mut out = Vec::new();
        for event in events {
            writer.event(event, &mut out);
        }
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with("\n\n"), "{text}");
        text.split_terminator("\n\n")
            .map(|event| {
                let (name, data) = event.split_once('\n').unwrap();
                let (name, data) = (
                    name.strip_prefix("event: ").unwrap(),
                    data.strip_prefix("data: ").unwrap(),
                );
                let kind = format!("{{\"type\":\"{name}\"");
                assert!(data.starts_with(&kind), "the type is the event's name: {data}");
                (name.to_owned(), data[kind.len()..].trim_start_matches(',').to_owned())
            })
            .collect()
    }

    /// Checks the events between `message_start` and `message_delta`, and the reason of the end.
    fn check(events: Vec<Event>, expected: &[(&str, &str)], stop: &str) {
        let all = stream(events);
        let all: Vec<(&str, &str)> = all.iter().map(|(name, data)| (name.as_str(), data.as_str())).collect();
        let message_delta = format!("\"delta\":{{{stop}}},\"usage\":{{\"input_tokens\":10,\"output_tokens\":2}}}}");
        let (first, rest) = all.split_first().unwrap();
        assert_eq!(
            *first,
            (
                "message_start",
                r#""message":{"id":"msg_7","type":"message","role":"assistant","model":"m","content":[],"usage":{"input_tokens":2,"output_tokens":0}}}"#
            )
        );
        let (between, last) = rest.split_at(rest.len() - 2);
        assert_eq!(between, expected);
        assert_eq!(last, [("message_delta", message_delta.as_str()), ("message_stop", "}")]);
    }

    fn stopped(reason: FinishReason, by: Option<&str>) -> Event {
        let Event::Finished(finish) = finish(reason, &[]) else {
            panic!()
        };
        Event::Finished(AnswerSummary {
            stop_string: by.map(str::to_owned),
            ..finish
        })
    }

    #[test]
    fn text_is_one_block_in_pieces() {
        check(
            vec![text("Hi"), text(""), text(" <you>"), finish(FinishReason::Stop, &[])],
            &[
                (
                    "content_block_start",
                    r#""index":0,"content_block":{"type":"text","text":""}}"#,
                ),
                (
                    "content_block_delta",
                    r#""index":0,"delta":{"type":"text_delta","text":"Hi"}}"#,
                ),
                (
                    "content_block_delta",
                    r#""index":0,"delta":{"type":"text_delta","text":" \u003cyou\u003e"}}"#,
                ),
                ("content_block_stop", r#""index":0}"#),
            ],
            r#""stop_reason":"end_turn""#,
        );
    }

    #[test]
    fn thinking_text_and_calls_are_blocks_one_after_the_other() {
        let both = delta(Delta {
            thinking: "m".into(),
            content: "x".into(),
            ..Delta::default()
        });
        check(
            vec![
                thinking("H"),
                both,
                calls(&[("c1", "f", r#"{"b":1.0,"a":"<"}"#), ("c2", "g", "{}")]),
                text("y"),
                finish(FinishReason::Stop, &[]),
            ],
            &[
                (
                    "content_block_start",
                    r#""index":0,"content_block":{"type":"thinking","thinking":""}}"#,
                ),
                (
                    "content_block_delta",
                    r#""index":0,"delta":{"type":"thinking_delta","thinking":"H"}}"#,
                ),
                (
                    "content_block_delta",
                    r#""index":0,"delta":{"type":"thinking_delta","thinking":"m"}}"#,
                ),
                ("content_block_stop", r#""index":0}"#),
                (
                    "content_block_start",
                    r#""index":1,"content_block":{"type":"text","text":""}}"#,
                ),
                (
                    "content_block_delta",
                    r#""index":1,"delta":{"type":"text_delta","text":"x"}}"#,
                ),
                ("content_block_stop", r#""index":1}"#),
                (
                    "content_block_start",
                    r#""index":2,"content_block":{"type":"tool_use","id":"c1","name":"f","input":{}}}"#,
                ),
                (
                    "content_block_delta",
                    r#""index":2,"delta":{"type":"input_json_delta","partial_json":"{\"b\":1,\"a\":\"\\u003c\"}"}}"#,
                ),
                ("content_block_stop", r#""index":2}"#),
                (
                    "content_block_start",
                    r#""index":3,"content_block":{"type":"tool_use","id":"c2","name":"g","input":{}}}"#,
                ),
                (
                    "content_block_delta",
                    r#""index":3,"delta":{"type":"input_json_delta","partial_json":"{}"}}"#,
                ),
                ("content_block_stop", r#""index":3}"#),
                (
                    "content_block_start",
                    r#""index":4,"content_block":{"type":"text","text":""}}"#,
                ),
                (
                    "content_block_delta",
                    r#""index":4,"delta":{"type":"text_delta","text":"y"}}"#,
                ),
                ("content_block_stop", r#""index":4}"#),
            ],
            r#""stop_reason":"tool_use""#,
        );
    }

    #[test]
    fn an_answer_of_nothing_has_no_block() {
        check(
            vec![finish(FinishReason::Length, &[])],
            &[],
            r#""stop_reason":"max_tokens""#,
        );
    }

    #[test]
    fn only_a_stop_sequence_of_the_request_is_told_of() {
        for (event, expected) in [
            (
                stopped(FinishReason::Stop, Some("4")),
                r#""stop_reason":"stop_sequence","stop_sequence":"4""#,
            ),
            (
                stopped(FinishReason::Stop, Some("<|im_end|>")),
                r#""stop_reason":"end_turn""#,
            ),
            (stopped(FinishReason::Length, None), r#""stop_reason":"max_tokens""#),
        ] {
            check(vec![event], &[], expected);
        }
    }

    #[test]
    fn calls_without_an_id_of_their_own_get_one() {
        let events = stream(vec![calls(&[("c", "f", "{}"), ("c", "f", "{}"), ("", "f", "{}")])]);
        let ids: HashSet<String> = events
            .iter()
            .filter(|(name, _)| name == "content_block_start")
            .map(|(_, data)| {
                let start = data.find("\"id\":\"").unwrap() + 6;
                data[start..].split('"').next().unwrap().to_owned()
            })
            .collect();
        assert_eq!(ids.len(), 3);
        assert!(ids.contains("c") && !ids.contains(""), "{ids:?}");
    }

    #[test]
    fn a_whole_message_has_the_recorded_form() {
        let Event::Finished(finish) = stopped(FinishReason::Stop, Some("4")) else {
            panic!()
        };
        let answer = |content: &str, tool_calls| CompleteAnswer {
            content: content.into(),
            thinking: "Hm".into(),
            tool_calls,
            logprobs: Vec::new(),
            finish: finish.clone(),
        };
        let head = r#"{"id":"msg_7","type":"message","role":"assistant","model":"m","content":"#;
        let usage = "\"usage\":{\"input_tokens\":10,\"output_tokens\":2}}\n";
        let call = ToolCall {
            id: "c".into(),
            name: "f".into(),
            arguments: serde_json::from_str(r#"{"city":"Paris"}"#).unwrap(),
        };
        for (answer, expected) in [
            (
                answer("1 2", Vec::new()),
                r#"[{"type":"thinking","thinking":"Hm"},{"type":"text","text":"1 2"}],"stop_reason":"stop_sequence","stop_sequence":"4","#,
            ),
            (
                answer("", vec![call]),
                r#"[{"type":"thinking","thinking":"Hm"},{"type":"tool_use","id":"c","name":"f","input":{"city":"Paris"}}],"stop_reason":"tool_use","#,
            ),
            (
                CompleteAnswer {
                    thinking: String::new(),
                    ..answer("", Vec::new())
                },
                r#"null,"stop_reason":"stop_sequence","stop_sequence":"4","#,
            ),
        ] {
            assert_eq!(
                String::from_utf8(writer().whole(answer)).unwrap(),
                format!("{head}{expected}{usage}")
            );
        }
    }

    #[test]
    fn an_error_in_the_stream_is_an_event_of_its_own() {
        let mut out = Vec::new();
        writer().failure(&ApiError::internal("the worker died"), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"the worker died\"}}\n\n"
        );
    }
}
