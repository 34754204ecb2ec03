//! Chunks and whole answers of `/v1/chat/completions`. The order of fields is the wire's.

use serde::Serialize;

use super::{
    choices::{ChoiceEvent, UsageTotals},
    envelope,
};
use crate::{
    api::{
        error::ApiError,
        logprobs::{self, LogprobEntry},
        reply,
        stream::{CompleteAnswer, FrameEncoder},
    },
    go::encode,
    http::sse,
    inference::{AnswerSummary, AnswerUsage, Delta, Event, FinishReason, TokenLogprob, ToolCall},
};

pub(super) const FINGERPRINT: &str = "fp_ollama";

/// Encoder of a reply: the fields that its chunks share, and the progress of its answers.
#[derive(Debug)]
pub(super) struct Chunks {
    id: String,
    /// Unix seconds, the same in every chunk.
    created: i64,
    model: String,
    include_usage: bool,
    choices: Vec<Sent>,
    totals: UsageTotals,
}

/// Progress of one answer.
#[derive(Clone, Debug, Default)]
struct Sent {
    /// True when a chunk has been sent: only the first has the role.
    began: bool,
    /// Number of tool calls so far, over the whole answer.
    tool_calls: usize,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<WireUsage>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: WireDelta,
    // `null` until the last chunk and never left out: OpenAI's schema requires the member.
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<WireLogprobs>,
}

#[derive(Default, Serialize)]
struct WireDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WireToolCall>,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<Choice>,
    usage: WireUsage,
    #[serde(rename = "_debug_info", skip_serializing_if = "Option::is_none")]
    debug_info: Option<DebugInfo>,
}

/// Prompt that the model would be given.
#[derive(Serialize)]
struct DebugInfo {
    rendered_template: String,
    #[serde(skip_serializing_if = "is_zero")]
    image_count: usize,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: WireMessage,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<WireLogprobs>,
}

#[derive(Serialize)]
struct WireMessage {
    role: &'static str,
    // Without text this is an empty string, even next to calls, as in Ollama; OpenAI sends `null` there.
    content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WireToolCall>,
}

#[derive(Serialize)]
struct WireToolCall {
    id: String,
    index: usize,
    r#type: &'static str,
    function: WireFunction,
}

#[derive(Serialize)]
struct WireFunction {
    name: String,
    /// JSON object as text, which OpenAI's wire has instead of an object.
    arguments: String,
}

#[derive(Serialize)]
struct WireLogprobs {
    content: Vec<LogprobEntry>,
}

/// Token counts of a reply.
#[derive(Default, Serialize)]
pub(super) struct WireUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
}

impl Chunks {
    /// Creates the encoder for `count` answers to one prompt.
    pub(super) fn new(model: String, include_usage: bool, created: i64, count: usize) -> Self {
        // Ollama's ids have up to three digits, and clients do not depend on unique ones.
        let id = format!("chatcmpl-{}", rand::random_range(0..999));
        Self {
            id,
            created,
            model,
            include_usage,
            choices: vec![Sent::default(); count],
            totals: UsageTotals::new(count),
        }
    }

    /// Returns the whole answers as one reply.
    pub(super) fn whole(mut self, answers: Vec<CompleteAnswer>) -> Vec<u8> {
        let mut choices = Vec::with_capacity(answers.len());
        for (index, answer) in answers.into_iter().enumerate() {
            self.totals.add(index, &answer.finish);
            let tool_calls = self.choices[index].number(answer.tool_calls);
            choices.push(Choice {
                index,
                finish_reason: Some(finish_reason(answer.finish.reason, !tool_calls.is_empty())),
                message: WireMessage {
                    role: "assistant",
                    content: answer.content,
                    reasoning: answer.thinking,
                    tool_calls,
                },
                logprobs: wire_logprobs(answer.logprobs),
            });
        }
        self.encode_whole(choices, None)
    }

    /// Returns a rendered prompt instead of an answer.
    pub(super) fn rendered(self, prompt: String, images: usize) -> Vec<u8> {
        let choice = Choice {
            index: 0,
            message: WireMessage {
                role: "",
                content: String::new(),
                reasoning: String::new(),
                tool_calls: Vec::new(),
            },
            finish_reason: None,
            logprobs: None,
        };
        let debug_info = DebugInfo {
            rendered_template: prompt,
            image_count: images,
        };
        self.encode_whole(vec![choice], Some(debug_info))
    }

    fn encode_whole(&self, choices: Vec<Choice>, debug_info: Option<DebugInfo>) -> Vec<u8> {
        let mut bytes = reply::encode(&Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            system_fingerprint: FINGERPRINT,
            choices,
            usage: usage(self.totals.usage()),
            debug_info,
        });
        bytes.push(b'\n');
        bytes
    }

    /// Encodes a delta. Reasoning never shares a chunk with the text behind it: clients show one or the other.
    fn delta(&mut self, index: usize, delta: Delta, out: &mut Vec<u8>) {
        let Delta {
            content,
            thinking,
            tool_calls,
            logprobs,
        } = delta;
        let tool_calls = self.choices[index].number(tool_calls);
        let mut piece = Piece {
            content,
            reasoning: thinking,
            tool_calls,
            logprobs: wire_logprobs(logprobs),
        };
        let has_more = !piece.content.is_empty() || !piece.tool_calls.is_empty();
        if !piece.reasoning.is_empty() && has_more {
            let reasoning = std::mem::take(&mut piece.reasoning);
            self.push_piece(
                index,
                Piece {
                    reasoning,
                    ..Piece::default()
                },
                out,
            );
        }
        if has_more || !piece.reasoning.is_empty() || piece.logprobs.is_some() {
            self.push_piece(index, piece, out);
        }
    }

    fn push_piece(&mut self, index: usize, piece: Piece, out: &mut Vec<u8>) {
        let sent = &mut self.choices[index];
        let role = (!sent.began).then_some("assistant");
        sent.began = true;
        let delta = WireDelta {
            role,
            // An empty text stays: in Ollama the field is an interface that holds a string, which `omitempty` keeps.
            content: Some(piece.content),
            reasoning: piece.reasoning,
            tool_calls: piece.tool_calls,
        };
        let choice = ChunkChoice {
            index,
            delta,
            finish_reason: None,
            logprobs: piece.logprobs,
        };
        self.push(vec![choice], None, out);
    }

    fn finish(&mut self, index: usize, finish: &AnswerSummary, out: &mut Vec<u8>) {
        self.totals.add(index, finish);
        let last = ChunkChoice {
            index,
            delta: WireDelta::default(),
            finish_reason: Some(finish_reason(finish.reason, self.choices[index].tool_calls > 0)),
            logprobs: None,
        };
        self.push(vec![last], None, out);
    }

    fn end(&self, out: &mut Vec<u8>) {
        if self.include_usage {
            // OpenAI's form of usage in a stream: an extra chunk without choices, sent only on request.
            self.push(Vec::new(), Some(usage(self.totals.usage())), out);
        }
        out.extend_from_slice(&sse::DONE);
    }

    fn push(&self, choices: Vec<ChunkChoice>, usage: Option<WireUsage>, out: &mut Vec<u8>) {
        let chunk = Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
        };
        push_event(&chunk, out);
    }
}

/// Delta in the types of the wire.
#[derive(Default)]
struct Piece {
    content: String,
    reasoning: String,
    tool_calls: Vec<WireToolCall>,
    logprobs: Option<WireLogprobs>,
}

impl Sent {
    fn number(&mut self, calls: Vec<ToolCall>) -> Vec<WireToolCall> {
        let first = self.tool_calls;
        self.tool_calls += calls.len();
        calls
            .into_iter()
            .zip(first..)
            .map(|(ToolCall { id, name, arguments }, index)| WireToolCall {
                id,
                index,
                r#type: "function",
                function: WireFunction {
                    name,
                    arguments: arguments_text(arguments),
                },
            })
            .collect()
    }
}

/// Returns the arguments of a call as this dialect has them: a JSON object in a string.
pub(super) fn arguments_text(arguments: serde_json::Map<String, serde_json::Value>) -> String {
    let bytes = reply::encode(&encode::tool_arguments(arguments));
    String::from_utf8_lossy(&bytes).into_owned()
}

impl FrameEncoder<ChoiceEvent> for Chunks {
    fn event(&mut self, step: ChoiceEvent, out: &mut Vec<u8>) {
        let is_end = step.ends_all();
        match step.event {
            Event::Delta(delta) => self.delta(step.index, delta, out),
            Event::Finished(finish) => self.finish(step.index, &finish, out),
        }
        if is_end {
            self.end(out);
        }
    }

    fn failure(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        // Ollama sends an empty chunk for an error inside of a stream. SDKs look for an error object, and need no
        // `[DONE]` behind it.
        push_event(&envelope(error), out);
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Appends an event without a name, the only kind that chunks of this dialect come in.
pub(super) fn push_event(data: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(&sse::data(reply::encode(data)));
}

fn finish_reason(reason: FinishReason, has_calls: bool) -> &'static str {
    match reason {
        FinishReason::Stop if has_calls => "tool_calls",
        FinishReason::Stop => "stop",
        // An answer that was cut off stays `length` even if it has calls.
        FinishReason::Length => "length",
    }
}

fn wire_logprobs(entries: Vec<TokenLogprob>) -> Option<WireLogprobs> {
    (!entries.is_empty()).then(|| WireLogprobs {
        content: logprobs::wire(entries),
    })
}

pub(super) fn usage(usage: &AnswerUsage) -> WireUsage {
    WireUsage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.output_tokens,
        total_tokens: usage.prompt_tokens.saturating_add(usage.output_tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::fake::{calls, delta, finish, text, thinking};

    const HEAD: &str = "{\"id\":\"chatcmpl-7\",\"object\":\"chat.completion.chunk\",\"created\":9,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",";

    fn chunks(include_usage: bool) -> Chunks {
        Chunks {
            id: "chatcmpl-7".into(),
            ..Chunks::new("m".into(), include_usage, 9, 1)
        }
    }

    /// Steps of a single answer.
    fn steps(events: Vec<Event>) -> Vec<ChoiceEvent> {
        let step = |event: Event| {
            let is_last = matches!(event, Event::Finished(_));
            ChoiceEvent::new(0, event, is_last)
        };
        events.into_iter().map(step).collect()
    }

    fn check(include_usage: bool, events: Vec<Event>, expected: &[&str]) {
        check_steps(chunks(include_usage), steps(events), expected);
    }

    fn check_steps(mut chunks: Chunks, steps: Vec<ChoiceEvent>, expected: &[&str]) {
        let mut out = Vec::new();
        for step in steps {
            chunks.event(step, &mut out);
        }
        let expected: String = expected
            .iter()
            .map(|rest| format!("data: {HEAD}{rest}}}\n\n"))
            .collect();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.strip_suffix("data: [DONE]\n\n").unwrap_or(&text), expected);
    }

    #[test]
    fn answers_side_by_side_have_their_own_roles_calls_and_reasons_and_one_end() {
        let chunks = Chunks {
            choices: vec![Sent::default(); 2],
            totals: UsageTotals::new(2),
            ..chunks(true)
        };
        let step = |index, event| ChoiceEvent::new(index, event, false);
        check_steps(
            chunks,
            vec![
                step(1, text("a")),
                step(0, text("b")),
                step(1, calls(&[("c1", "f", "{}")])),
                step(1, finish(FinishReason::Stop, &[])),
                step(0, text("c")),
                ChoiceEvent::new(0, finish(FinishReason::Length, &[]), true),
            ],
            &[
                r#""choices":[{"index":1,"delta":{"role":"assistant","content":"a"},"finish_reason":null}]"#,
                r#""choices":[{"index":0,"delta":{"role":"assistant","content":"b"},"finish_reason":null}]"#,
                r#""choices":[{"index":1,"delta":{"content":"","tool_calls":[{"id":"c1","index":0,"type":"function","function":{"name":"f","arguments":"{}"}}]},"finish_reason":null}]"#,
                r#""choices":[{"index":1,"delta":{},"finish_reason":"tool_calls"}]"#,
                r#""choices":[{"index":0,"delta":{"content":"c"},"finish_reason":null}]"#,
                r#""choices":[{"index":0,"delta":{},"finish_reason":"length"}]"#,
                r#""choices":[],"usage":{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14}"#,
            ],
        );
    }

    #[test]
    fn a_stream_has_the_golden_form() {
        check(
            true,
            vec![text("Hi"), text(" you"), finish(FinishReason::Stop, &[])],
            &[
                r#""choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":null}]"#,
                r#""choices":[{"index":0,"delta":{"content":" you"},"finish_reason":null}]"#,
                r#""choices":[{"index":0,"delta":{},"finish_reason":"stop"}]"#,
                r#""choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}"#,
            ],
        );
    }

    #[test]
    fn without_include_usage_there_is_no_usage_chunk() {
        check(
            false,
            vec![finish(FinishReason::Length, &[])],
            &[r#""choices":[{"index":0,"delta":{},"finish_reason":"length"}]"#],
        );
    }

    #[test]
    fn thinking_and_content_in_one_event_are_two_chunks() {
        let both = delta(Delta {
            thinking: "Hm".into(),
            content: "x".into(),
            ..Delta::default()
        });
        check(
            false,
            vec![thinking("A"), both],
            &[
                r#""choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"A"},"finish_reason":null}]"#,
                r#""choices":[{"index":0,"delta":{"content":"","reasoning":"Hm"},"finish_reason":null}]"#,
                r#""choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]"#,
            ],
        );
    }

    #[test]
    fn tool_calls_have_their_arguments_as_text_and_change_the_reason() {
        check(
            false,
            vec![
                calls(&[("c1", "f", r#"{"city":"<Paris>"}"#)]),
                calls(&[("c2", "g", "{}")]),
                finish(FinishReason::Stop, &[]),
            ],
            &[
                r#""choices":[{"index":0,"delta":{"role":"assistant","content":"","tool_calls":[{"id":"c1","index":0,"type":"function","function":{"name":"f","arguments":"{\"city\":\"\\u003cParis\\u003e\"}"}}]},"finish_reason":null}]"#,
                r#""choices":[{"index":0,"delta":{"content":"","tool_calls":[{"id":"c2","index":1,"type":"function","function":{"name":"g","arguments":"{}"}}]},"finish_reason":null}]"#,
                r#""choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]"#,
            ],
        );
    }

    #[test]
    fn a_whole_answer_has_the_golden_form() {
        let Event::Finished(finish) = finish(FinishReason::Stop, &[]) else {
            panic!()
        };
        let answer = CompleteAnswer {
            content: "It is.".into(),
            thinking: "Hm".into(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
            finish,
        };
        assert_eq!(
            String::from_utf8(chunks(false).whole(vec![answer])).unwrap(),
            "{\"id\":\"chatcmpl-7\",\"object\":\"chat.completion\",\"created\":9,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"It is.\",\"reasoning\":\"Hm\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":2,\"total_tokens\":12}}\n"
        );
    }

    // The prompt is shown in one piece, so that a failure is a status and not a broken stream (trap 65).
    #[test]
    fn a_rendered_prompt_is_shown_as_debug_information() {
        assert_eq!(
            String::from_utf8(chunks(false).rendered("<p>".into(), 0)).unwrap(),
            "{\"id\":\"chatcmpl-7\",\"object\":\"chat.completion\",\"created\":9,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0},\"_debug_info\":{\"rendered_template\":\"\\u003cp\\u003e\"}}\n"
        );
    }

    #[test]
    fn an_error_in_the_stream_is_an_event_of_its_own() {
        let mut out = Vec::new();
        chunks(false).failure(&ApiError::internal("the worker died"), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "data: {\"error\":{\"message\":\"the worker died\",\"type\":\"api_error\",\"param\":null,\"code\":null}}\n\n"
        );
    }
}
