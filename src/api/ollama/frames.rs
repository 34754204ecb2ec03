//! Frames and whole answers of `/api/chat` and `/api/generate`. The order of fields is the wire's.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    api::{
        error::ApiError,
        logprobs::{self, LogprobEntry},
        reply,
        stream::{CompleteAnswer, FrameEncoder},
    },
    go::encode,
    inference::{AnswerSummary, Event, FinishReason, ToolCall},
    stdx::timestamp,
};

/// Route that a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextRoute {
    /// `/api/chat`: the text is in `message`.
    Chat,
    /// `/api/generate`: the text is in `response`.
    Generate,
}

/// Encoder of the frames of one answer.
#[derive(Debug)]
pub(crate) struct NativeFrames {
    route: TextRoute,
    /// Name as the client sent it.
    model: String,
    /// Number of tool calls so far, over the whole answer: each has its index.
    tool_calls: usize,
}

#[derive(Serialize)]
struct ChatFrame<'a> {
    model: &'a str,
    created_at: String,
    message: WireMessage,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(rename = "_debug_info", skip_serializing_if = "Option::is_none")]
    debug_info: Option<DebugInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<LogprobEntry>,
    #[serde(skip_serializing_if = "is_zero")]
    total_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    load_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    eval_duration: u64,
}

#[derive(Serialize)]
struct GenerateFrame<'a> {
    model: &'a str,
    created_at: String,
    response: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    context: Vec<i32>,
    #[serde(skip_serializing_if = "is_zero")]
    total_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    load_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    eval_duration: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WireToolCall>,
    #[serde(rename = "_debug_info", skip_serializing_if = "Option::is_none")]
    debug_info: Option<DebugInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<LogprobEntry>,
}

/// Prompt that the model would be given.
#[derive(Serialize)]
struct DebugInfo {
    rendered_template: String,
    #[serde(skip_serializing_if = "is_zero")]
    image_count: u64,
}

#[derive(Serialize)]
struct WireMessage {
    role: &'static str,
    // Ollama sends the content even if it is empty.
    content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WireToolCall>,
}

#[derive(Serialize)]
struct WireToolCall {
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    function: WireFunction,
}

#[derive(Serialize)]
struct WireFunction {
    index: usize,
    name: String,
    arguments: Map<String, Value>,
}

/// Content of a frame, before it takes the shape of its route.
#[derive(Default)]
struct Frame {
    content: String,
    thinking: String,
    tool_calls: Vec<WireToolCall>,
    logprobs: Vec<LogprobEntry>,
    done_reason: Option<&'static str>,
    debug_info: Option<DebugInfo>,
    metrics: Metrics,
    context: Vec<i32>,
}

/// Counts, and durations in nanoseconds. Zeros are left out on the wire.
#[derive(Default)]
struct Metrics {
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u64,
    prompt_eval_duration: u64,
    eval_count: u64,
    eval_duration: u64,
}

impl NativeFrames {
    pub(crate) fn new(route: TextRoute, model: String) -> Self {
        Self {
            route,
            model,
            tool_calls: 0,
        }
    }

    /// Returns the reply to a request that only loads or unloads.
    pub(crate) fn residency(self, reason: &'static str) -> Vec<u8> {
        self.encode(Frame {
            // No metrics: zeros are left out, and Ollama sends none in these replies.
            done_reason: Some(reason),
            ..Frame::default()
        })
    }

    /// Returns the reply to a request that only asks for its rendered prompt.
    pub(crate) fn rendered(self, prompt: String, images: usize) -> Vec<u8> {
        self.encode(Frame {
            debug_info: Some(DebugInfo {
                rendered_template: prompt,
                image_count: images as u64,
            }),
            ..Frame::default()
        })
    }

    /// Returns a whole answer.
    pub(crate) fn whole(mut self, answer: CompleteAnswer) -> Vec<u8> {
        let CompleteAnswer {
            content,
            thinking,
            tool_calls,
            logprobs,
            finish,
        } = answer;
        let tool_calls = self.number(tool_calls);
        let last = Frame {
            content,
            thinking,
            tool_calls,
            logprobs: logprobs::wire(logprobs),
            ..last_frame(finish)
        };
        self.encode(last)
    }

    fn number(&mut self, calls: Vec<ToolCall>) -> Vec<WireToolCall> {
        let first = self.tool_calls;
        self.tool_calls += calls.len();
        calls
            .into_iter()
            .zip(first..)
            .map(|(ToolCall { id, name, arguments }, index)| WireToolCall {
                id,
                function: WireFunction {
                    index,
                    name,
                    arguments: encode::tool_arguments(arguments),
                },
            })
            .collect()
    }

    fn encode(&self, frame: Frame) -> Vec<u8> {
        let Frame {
            content,
            thinking,
            tool_calls,
            logprobs,
            done_reason,
            debug_info,
            metrics,
            context,
        } = frame;
        let Metrics {
            total_duration,
            load_duration,
            prompt_eval_count,
            prompt_eval_duration,
            eval_count,
            eval_duration,
        } = metrics;
        // Every frame has its own time, as in Ollama. Strict clients want `Z` and refuse `+00:00`.
        let created_at = timestamp::rfc3339_utc(SystemTime::now());
        let done = done_reason.is_some();
        match self.route {
            TextRoute::Chat => reply::encode(&ChatFrame {
                model: &self.model,
                created_at,
                message: WireMessage {
                    // Ollama leaves the role empty when it only shows the prompt.
                    role: if debug_info.is_some() { "" } else { "assistant" },
                    content,
                    thinking,
                    tool_calls,
                },
                done,
                done_reason,
                debug_info,
                logprobs,
                total_duration,
                load_duration,
                prompt_eval_count,
                prompt_eval_duration,
                eval_count,
                eval_duration,
            }),
            TextRoute::Generate => reply::encode(&GenerateFrame {
                model: &self.model,
                created_at,
                response: content,
                thinking,
                done,
                done_reason,
                context,
                total_duration,
                load_duration,
                prompt_eval_count,
                prompt_eval_duration,
                eval_count,
                eval_duration,
                tool_calls,
                debug_info,
                logprobs,
            }),
        }
    }
}

impl FrameEncoder for NativeFrames {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        let frame = match event {
            Event::Delta(delta) => Frame {
                content: delta.content,
                thinking: delta.thinking,
                tool_calls: self.number(delta.tool_calls),
                logprobs: logprobs::wire(delta.logprobs),
                ..Frame::default()
            },
            Event::Finished(finish) => last_frame(finish),
        };
        if frame.says_something() {
            out.extend_from_slice(&self.encode(frame));
            out.push(b'\n');
        }
    }

    fn failure(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        // No other frame may have a member `error`: clients test for the key and not for its value.
        reply::native_error_frame(error, out);
    }
}

impl Frame {
    fn says_something(&self) -> bool {
        // Ollama leaves out frames that say nothing. Log-probabilities alone count: the text of a token may still be
        // held back.
        self.done_reason.is_some()
            || !(self.content.is_empty()
                && self.thinking.is_empty()
                && self.tool_calls.is_empty()
                && self.logprobs.is_empty())
    }
}

fn last_frame(finish: AnswerSummary) -> Frame {
    let AnswerSummary {
        reason, usage, context, ..
    } = finish;
    Frame {
        // A tool call ends an answer with `stop` on this wire; `tool_calls` is OpenAI's.
        done_reason: Some(match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }),
        metrics: Metrics {
            total_duration: nanoseconds(usage.total_duration),
            load_duration: nanoseconds(usage.load_duration),
            prompt_eval_count: u64::from(usage.prompt_tokens),
            prompt_eval_duration: nanoseconds(usage.prompt_duration),
            eval_count: u64::from(usage.output_tokens),
            eval_duration: nanoseconds(usage.output_duration),
        },
        context,
        ..Frame::default()
    }
}

/// Returns a duration in nanoseconds, at least 1: a zero would be left out, and clients divide by it.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::tests::fake::{calls, delta, finish, mask, text, thinking},
        inference::{Delta, TokenLogprob, TopLogprob},
    };

    fn encode(route: TextRoute, events: Vec<Event>) -> String {
        let mut frames = NativeFrames::new(route, "hf:o/r".into());
        let mut out = Vec::new();
        for event in events {
            frames.event(event, &mut out);
        }
        mask(&out)
    }

    #[test]
    fn a_chat_frame_has_the_golden_form() {
        assert_eq!(
            encode(TextRoute::Chat, vec![text("Hi")]),
            "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"message\":{\"role\":\"assistant\",\"content\":\"Hi\"},\"done\":false}\n"
        );
        assert_eq!(
            encode(TextRoute::Chat, vec![thinking("Hm")]),
            "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"message\":{\"role\":\"assistant\",\"content\":\"\",\"thinking\":\"Hm\"},\"done\":false}\n"
        );
        assert_eq!(encode(TextRoute::Chat, vec![text("")]), "");
    }

    // Durations are whole nanoseconds and never 0, and the last frame has its reason and counts (traps 10, 11).
    #[test]
    fn the_last_frame_of_a_chat_has_all_metrics() {
        assert_eq!(
            encode(TextRoute::Chat, vec![finish(FinishReason::Stop, &[])]),
            "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":40,\"load_duration\":1,\"prompt_eval_count\":10,\"prompt_eval_duration\":20,\"eval_count\":2,\"eval_duration\":10}\n"
        );
    }

    #[test]
    fn the_last_frame_of_generate_has_the_context() {
        assert_eq!(
            encode(
                TextRoute::Generate,
                vec![text("x"), finish(FinishReason::Length, &[1, 2])]
            ),
            "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"response\":\"x\",\"done\":false}\n{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"response\":\"\",\"done\":true,\"done_reason\":\"length\",\"context\":[1,2],\"total_duration\":40,\"load_duration\":1,\"prompt_eval_count\":10,\"prompt_eval_duration\":20,\"eval_count\":2,\"eval_duration\":10}\n"
        );
    }

    // Arguments are an object on this wire, not a string (trap 7).
    #[test]
    fn tool_calls_are_numbered_over_the_whole_answer() {
        let frames = encode(
            TextRoute::Chat,
            vec![
                calls(&[("c1", "f", r#"{"b":1,"a":"<x>","o":{"z":1,"y":2}}"#)]),
                calls(&[("c2", "g", "{}")]),
            ],
        );
        assert_eq!(
            frames,
            "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"message\":{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"c1\",\"function\":{\"index\":0,\"name\":\"f\",\"arguments\":{\"b\":1,\"a\":\"\\u003cx\\u003e\",\"o\":{\"y\":2,\"z\":1}}}}]},\"done\":false}\n{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"message\":{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"c2\",\"function\":{\"index\":1,\"name\":\"g\",\"arguments\":{}}}]},\"done\":false}\n"
        );
    }

    #[test]
    fn logprobs_carry_bytes_and_alternatives() {
        let logprob = TokenLogprob {
            bytes: b"I".to_vec(),
            logprob: -2.228_43,
            top: vec![TopLogprob {
                bytes: vec![0xf0],
                logprob: -3.5,
            }],
        };
        let event = delta(Delta {
            content: "I".into(),
            logprobs: vec![logprob],
            ..Delta::default()
        });
        assert_eq!(
            encode(TextRoute::Generate, vec![event]),
            "{\"model\":\"hf:o/r\",\"created_at\":\"T\",\"response\":\"I\",\"done\":false,\"logprobs\":[{\"token\":\"I\",\"logprob\":-2.2284300327301025,\"bytes\":[73],\"top_logprobs\":[{\"token\":\"\u{fffd}\",\"logprob\":-3.5,\"bytes\":[240]}]}]}\n"
        );
    }

    #[test]
    fn a_rendered_prompt_is_shown_as_debug_information() {
        let chat = NativeFrames::new(TextRoute::Chat, "m".into()).rendered("<p>".into(), 0);
        assert_eq!(
            mask(&chat),
            r#"{"model":"m","created_at":"T","message":{"role":"","content":""},"done":false,"_debug_info":{"rendered_template":"\u003cp\u003e"}}"#
        );
        let generate = NativeFrames::new(TextRoute::Generate, "m".into()).rendered("p".into(), 2);
        assert_eq!(
            mask(&generate),
            r#"{"model":"m","created_at":"T","response":"","done":false,"_debug_info":{"rendered_template":"p","image_count":2}}"#
        );
    }

    #[test]
    fn load_replies_hold_no_metrics() {
        let chat = NativeFrames::new(TextRoute::Chat, "m".into()).residency("load");
        assert_eq!(
            mask(&chat),
            r#"{"model":"m","created_at":"T","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}"#
        );
        let generate = NativeFrames::new(TextRoute::Generate, "m".into()).residency("unload");
        assert_eq!(
            mask(&generate),
            r#"{"model":"m","created_at":"T","response":"","done":true,"done_reason":"unload"}"#
        );
    }
}
