//! Chunks and whole answers of `/v1/chat/completions`. Field order is the wire's.

use serde::Serialize;

use super::envelope;
use crate::{
    api::{
        error::ApiError,
        logprobs::{self, Logprob},
        reply,
        stream::{Answer, Encoder},
    },
    http::{go_json, sse},
    inference::{Delta, Event, Finish, FinishReason, ToolCall, Usage},
};

const FINGERPRINT: &str = "fp_ollama";

/// What all chunks of an answer share, and what was sent of it so far.
#[derive(Debug)]
pub(super) struct Chunks {
    id: String,
    /// Unix seconds; the same in every chunk.
    created: i64,
    model: String,
    include_usage: bool,
    /// Whether the role was sent: only the first chunk has it.
    began: bool,
    /// Tool calls are counted over the whole answer.
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
    index: u32,
    delta: WireDelta,
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
    choices: [Choice; 1],
    usage: WireUsage,
}

#[derive(Serialize)]
struct Choice {
    index: u32,
    message: WireMessage,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<WireLogprobs>,
}

#[derive(Serialize)]
struct WireMessage {
    role: &'static str,
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
    /// A JSON object as text.
    arguments: String,
}

#[derive(Serialize)]
struct WireLogprobs {
    content: Vec<Logprob>,
}

#[derive(Serialize)]
struct WireUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
}

impl Chunks {
    pub(super) fn new(model: String, include_usage: bool, created: i64) -> Self {
        // Ids have three digits there; nobody depends on more.
        let id = format!("chatcmpl-{}", rand::random_range(0..999));
        Self {
            id,
            created,
            model,
            include_usage,
            began: false,
            tool_calls: 0,
        }
    }

    /// A whole answer.
    pub(super) fn whole(mut self, answer: Answer) -> Vec<u8> {
        let Answer {
            content,
            thinking,
            tool_calls,
            logprobs,
            finish,
        } = answer;
        let tool_calls = self.number(tool_calls);
        let completion = Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            system_fingerprint: FINGERPRINT,
            choices: [Choice {
                index: 0,
                finish_reason: Some(finish_reason(finish.reason, !tool_calls.is_empty())),
                message: WireMessage {
                    role: "assistant",
                    content,
                    reasoning: thinking,
                    tool_calls,
                },
                logprobs: wire_logprobs(logprobs),
            }],
            usage: usage(&finish.usage),
        };
        let mut bytes = reply::encode(&completion);
        bytes.push(b'\n');
        bytes
    }

    fn number(&mut self, calls: Vec<ToolCall>) -> Vec<WireToolCall> {
        let first = self.tool_calls;
        self.tool_calls += calls.len();
        calls
            .into_iter()
            .zip(first..)
            .map(|(ToolCall { id, name, arguments }, index)| {
                let arguments = reply::encode(&go_json::tool_arguments(arguments));
                let arguments = String::from_utf8_lossy(&arguments).into_owned();
                WireToolCall {
                    id,
                    index,
                    r#type: "function",
                    function: WireFunction { name, arguments },
                }
            })
            .collect()
    }

    /// Thinking never shares a chunk with what follows it.
    fn delta(&mut self, delta: Delta, out: &mut Vec<u8>) {
        let Delta {
            content,
            thinking,
            tool_calls,
            logprobs,
        } = delta;
        let has_more = !content.is_empty() || !tool_calls.is_empty();
        if !thinking.is_empty() && has_more {
            self.push_delta(String::new(), thinking, Vec::new(), None, out);
            let tool_calls = self.number(tool_calls);
            self.push_delta(content, String::new(), tool_calls, wire_logprobs(logprobs), out);
        } else if !thinking.is_empty() || has_more || !logprobs.is_empty() {
            let tool_calls = self.number(tool_calls);
            self.push_delta(content, thinking, tool_calls, wire_logprobs(logprobs), out);
        }
    }

    fn push_delta(
        &mut self,
        content: String,
        reasoning: String,
        tool_calls: Vec<WireToolCall>,
        logprobs: Option<WireLogprobs>,
        out: &mut Vec<u8>,
    ) {
        let role = (!self.began).then_some("assistant");
        self.began = true;
        let delta = WireDelta {
            role,
            content: Some(content),
            reasoning,
            tool_calls,
        };
        self.push(
            vec![ChunkChoice {
                index: 0,
                delta,
                finish_reason: None,
                logprobs,
            }],
            None,
            out,
        );
    }

    fn finish(&self, finish: &Finish, out: &mut Vec<u8>) {
        let finish_reason = Some(finish_reason(finish.reason, self.tool_calls > 0));
        let last = ChunkChoice {
            index: 0,
            delta: WireDelta::default(),
            finish_reason,
            logprobs: None,
        };
        self.push(vec![last], None, out);
        if self.include_usage {
            self.push(Vec::new(), Some(usage(&finish.usage)), out);
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
        out.extend_from_slice(&sse::data(reply::encode(&chunk)));
    }
}

impl Encoder for Chunks {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Delta(delta) => self.delta(delta, out),
            Event::Finished(finish) => self.finish(&finish, out),
        }
    }

    fn failure(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        out.extend_from_slice(&sse::data(reply::encode(&envelope(error))));
    }
}

fn finish_reason(reason: FinishReason, has_calls: bool) -> &'static str {
    match reason {
        FinishReason::Stop if has_calls => "tool_calls",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

fn wire_logprobs(entries: Vec<crate::inference::TokenLogprob>) -> Option<WireLogprobs> {
    (!entries.is_empty()).then(|| WireLogprobs {
        content: logprobs::wire(entries),
    })
}

fn usage(usage: &Usage) -> WireUsage {
    WireUsage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.output_tokens,
        total_tokens: usage.prompt_tokens.saturating_add(usage.output_tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::{calls, delta, finish, text, thinking};

    const HEAD: &str = "{\"id\":\"chatcmpl-7\",\"object\":\"chat.completion.chunk\",\"created\":9,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",";

    fn chunks(include_usage: bool) -> Chunks {
        Chunks {
            id: "chatcmpl-7".into(),
            ..Chunks::new("m".into(), include_usage, 9)
        }
    }

    fn check(include_usage: bool, events: Vec<Event>, expected: &[&str]) {
        let mut chunks = chunks(include_usage);
        let mut out = Vec::new();
        for event in events {
            chunks.event(event, &mut out);
        }
        let expected: String = expected
            .iter()
            .map(|rest| format!("data: {HEAD}{rest}}}\n\n"))
            .collect();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.strip_suffix("data: [DONE]\n\n").unwrap_or(&text), expected);
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
        let answer = Answer {
            content: "It is.".into(),
            thinking: "Hm".into(),
            tool_calls: Vec::new(),
            logprobs: Vec::new(),
            finish,
        };
        assert_eq!(
            String::from_utf8(chunks(false).whole(answer)).unwrap(),
            "{\"id\":\"chatcmpl-7\",\"object\":\"chat.completion\",\"created\":9,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"It is.\",\"reasoning\":\"Hm\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":2,\"total_tokens\":12}}\n"
        );
    }

    // Trap 65
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
