//! Chunks and whole answers of `/v1/completions`. The order of fields is the wire's; that of chunks differs from that
//! of whole answers.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    choices::{ChoiceEvent, UsageTotals},
    chunks::{FINGERPRINT, WireUsage, push_event, usage},
    envelope,
};
use crate::{
    api::{
        error::ApiError,
        reply,
        stream::{CompleteAnswer, FrameEncoder},
    },
    http::sse,
    inference::{Event, FinishReason, TokenLogprob},
};

const OBJECT: &str = "text_completion";

/// Encoder of a reply: the fields that its chunks share, and the progress of its answers.
#[derive(Debug)]
pub(super) struct CompletionChunks {
    id: String,
    /// Unix seconds, the same in every chunk.
    created: i64,
    model: String,
    include_usage: bool,
    /// Number of characters of each text so far.
    lengths: Vec<usize>,
    totals: UsageTotals,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    choices: Vec<Choice>,
    model: &'a str,
    system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<WireUsage>,
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
}

#[derive(Serialize)]
struct Choice {
    text: String,
    index: usize,
    finish_reason: Option<&'static str>,
    /// Reasoning, which OpenAI's route has no field for. There is some only if the request asked for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<WireLogprobs>,
}

/// Log-probabilities in OpenAI's older form: parallel lists.
#[derive(Serialize)]
struct WireLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f64>,
    /// Alternatives; `None`, encoded as `null`, if none were asked for.
    top_logprobs: Option<Vec<Map<String, Value>>>,
    /// Offset of each token in characters of the text.
    text_offset: Vec<usize>,
}

impl CompletionChunks {
    /// Creates the encoder for a number of answers to each of several prompts.
    pub(super) fn new(model: String, include_usage: bool, created: i64, prompts: usize, answers: usize) -> Self {
        let id = format!("cmpl-{}", rand::random_range(0..999));
        Self {
            id,
            created,
            model,
            include_usage,
            lengths: vec![0; prompts * answers],
            totals: UsageTotals::new(answers),
        }
    }

    /// Returns the whole answers as one reply.
    pub(super) fn whole(mut self, answers: Vec<CompleteAnswer>) -> Vec<u8> {
        let mut choices = Vec::with_capacity(answers.len());
        for (index, answer) in answers.into_iter().enumerate() {
            self.totals.add(index, &answer.finish);
            choices.push(Choice {
                text: answer.content,
                index,
                finish_reason: Some(reason(answer.finish.reason)),
                reasoning: answer.thinking,
                logprobs: self.logprobs(index, &answer.logprobs),
            });
        }
        self.encode_whole(choices)
    }

    /// Returns the reply to a request that only loads or unloads.
    pub(super) fn residency(self, reason: &'static str, streams: bool) -> Vec<u8> {
        let choice = Choice {
            text: String::new(),
            index: 0,
            finish_reason: Some(reason),
            reasoning: String::new(),
            logprobs: None,
        };
        if !streams {
            return self.encode_whole(vec![choice]);
        }
        let mut out = Vec::new();
        self.push(choice, &mut out);
        self.end(&mut out);
        out
    }

    fn encode_whole(&self, choices: Vec<Choice>) -> Vec<u8> {
        let mut bytes = reply::encode(&Completion {
            id: &self.id,
            object: OBJECT,
            created: self.created,
            model: &self.model,
            system_fingerprint: FINGERPRINT,
            choices,
            usage: usage(self.totals.usage()),
        });
        bytes.push(b'\n');
        bytes
    }

    fn logprobs(&mut self, index: usize, entries: &[TokenLogprob]) -> Option<WireLogprobs> {
        if entries.is_empty() {
            return None;
        }
        let at = &mut self.lengths[index];
        let mut wire = WireLogprobs {
            tokens: Vec::with_capacity(entries.len()),
            token_logprobs: Vec::with_capacity(entries.len()),
            top_logprobs: entries.iter().any(|entry| !entry.top.is_empty()).then(Vec::new),
            text_offset: Vec::with_capacity(entries.len()),
        };
        for entry in entries {
            wire.text_offset.push(*at);
            *at += characters(&entry.bytes);
            wire.tokens.push(token(&entry.bytes));
            wire.token_logprobs.push(f64::from(entry.logprob));
            if let Some(lists) = &mut wire.top_logprobs {
                let list = entry
                    .top
                    .iter()
                    .map(|top| (token(&top.bytes), f64::from(top.logprob).into()));
                lists.push(list.collect());
            }
        }
        Some(wire)
    }

    /// Appends a chunk of one choice. If usage is asked for, Ollama puts zeros into every chunk but the last.
    fn push(&self, choice: Choice, out: &mut Vec<u8>) {
        let usage = self.include_usage.then(WireUsage::default);
        self.push_chunk(vec![choice], usage, out);
    }

    fn end(&self, out: &mut Vec<u8>) {
        if self.include_usage {
            self.push_chunk(Vec::new(), Some(usage(self.totals.usage())), out);
        }
        out.extend_from_slice(&sse::DONE);
    }

    fn push_chunk(&self, choices: Vec<Choice>, usage: Option<WireUsage>, out: &mut Vec<u8>) {
        let chunk = Chunk {
            id: &self.id,
            object: OBJECT,
            created: self.created,
            choices,
            model: &self.model,
            system_fingerprint: FINGERPRINT,
            usage,
        };
        push_event(&chunk, out);
    }
}

impl FrameEncoder<ChoiceEvent> for CompletionChunks {
    fn event(&mut self, step: ChoiceEvent, out: &mut Vec<u8>) {
        let (index, is_end) = (step.index, step.ends_all());
        let choice = match step.event {
            Event::Delta(delta) => Choice {
                text: delta.content,
                index,
                finish_reason: None,
                reasoning: delta.thinking,
                logprobs: self.logprobs(index, &delta.logprobs),
            },
            Event::Finished(finish) => {
                self.totals.add(index, &finish);
                Choice {
                    text: String::new(),
                    index,
                    finish_reason: Some(reason(finish.reason)),
                    reasoning: String::new(),
                    logprobs: None,
                }
            }
        };
        let says_something = choice.finish_reason.is_some()
            || !choice.text.is_empty()
            || !choice.reasoning.is_empty()
            || choice.logprobs.is_some();
        if says_something {
            self.push(choice, out);
        }
        if is_end {
            self.end(out);
        }
    }

    fn failure(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        // An error object ends the stream; there is no `[DONE]` behind it.
        push_event(&envelope(error), out);
    }
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// Returns a token as a key. One that is no text by itself is spelled out in bytes, as OpenAI does, so that two such
/// tokens have two keys.
fn token(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
            text
        }),
    }
}

/// Returns the number of characters that begin in these bytes: all but UTF-8 continuation bytes.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| (**byte & 0xc0) != 0x80).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::tests::fake::{delta, finish, text, thinking},
        inference::{Delta, TopLogprob},
    };

    fn chunks(include_usage: bool, prompts: usize, answers: usize) -> CompletionChunks {
        CompletionChunks {
            id: "cmpl-7".into(),
            ..CompletionChunks::new("m".into(), include_usage, 9, prompts, answers)
        }
    }

    fn stream(mut chunks: CompletionChunks, steps: Vec<ChoiceEvent>) -> Vec<String> {
        let mut out = Vec::new();
        for step in steps {
            chunks.event(step, &mut out);
        }
        let text = String::from_utf8(out).unwrap();
        text.split_terminator("\n\n").map(str::to_owned).collect()
    }

    fn logprob(bytes: &[u8], logprob: f32, top: &[(&[u8], f32)]) -> TokenLogprob {
        TokenLogprob {
            bytes: bytes.to_vec(),
            logprob,
            top: top
                .iter()
                .map(|(bytes, logprob)| TopLogprob {
                    bytes: bytes.to_vec(),
                    logprob: *logprob,
                })
                .collect(),
        }
    }

    #[test]
    fn a_stream_with_usage_counts_in_its_last_chunk() {
        let steps = vec![
            ChoiceEvent::new(0, text("The"), false),
            ChoiceEvent::new(0, text(""), false),
            ChoiceEvent::new(0, finish(FinishReason::Length, &[]), true),
        ];
        assert_eq!(
            stream(chunks(true, 1, 1), steps),
            [
                r#"data: {"id":"cmpl-7","object":"text_completion","created":9,"choices":[{"text":"The","index":0,"finish_reason":null}],"model":"m","system_fingerprint":"fp_ollama","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}"#,
                r#"data: {"id":"cmpl-7","object":"text_completion","created":9,"choices":[{"text":"","index":0,"finish_reason":"length"}],"model":"m","system_fingerprint":"fp_ollama","usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}"#,
                r#"data: {"id":"cmpl-7","object":"text_completion","created":9,"choices":[],"model":"m","system_fingerprint":"fp_ollama","usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}}"#,
                "data: [DONE]",
            ]
        );
    }

    #[test]
    fn without_usage_no_chunk_has_it() {
        let steps = vec![
            ChoiceEvent::new(1, thinking("Hm"), false),
            ChoiceEvent::new(1, finish(FinishReason::Stop, &[]), false),
            ChoiceEvent::new(0, finish(FinishReason::Stop, &[]), true),
        ];
        let events = stream(chunks(false, 2, 1), steps);
        assert!(
            events[0].contains(r#""choices":[{"text":"","index":1,"finish_reason":null,"reasoning":"Hm"}],"model":"m","system_fingerprint":"fp_ollama"}"#)
        );
        assert!(events[2].contains(r#""index":0,"finish_reason":"stop"}"#));
        assert_eq!((events.len(), events[3].as_str()), (4, "data: [DONE]"));
    }

    #[test]
    fn whole_answers_have_the_golden_form() {
        let answer = || {
            let Event::Finished(finish) = finish(FinishReason::Stop, &[]) else {
                panic!()
            };
            CompleteAnswer {
                content: "Paris".into(),
                thinking: String::new(),
                tool_calls: Vec::new(),
                logprobs: Vec::new(),
                finish,
            }
        };
        let bytes = chunks(true, 2, 1).whole(vec![answer(), answer()]);
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "{\"id\":\"cmpl-7\",\"object\":\"text_completion\",\"created\":9,\"model\":\"m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"text\":\"Paris\",\"index\":0,\"finish_reason\":\"stop\"},{\"text\":\"Paris\",\"index\":1,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":4,\"total_tokens\":24}}\n"
        );
    }

    #[test]
    fn logprobs_have_the_older_form_and_offsets_go_on_over_chunks() {
        let piece = |content: &str, logprobs| {
            let event = delta(Delta {
                content: content.into(),
                logprobs,
                ..Delta::default()
            });
            ChoiceEvent::new(0, event, false)
        };
        let steps = vec![
            piece(
                "é",
                vec![
                    logprob(b"\xc3", -0.5, &[(b"\xc3", -0.5), (b"a", -1.0)]),
                    logprob(b"\xa9", -0.25, &[(b"\xa9", -0.25)]),
                ],
            ),
            piece("b", vec![logprob(b"b", -1.5, &[])]),
        ];
        let events = stream(chunks(false, 1, 1), steps);
        assert!(
            events[0].contains(
                r#""logprobs":{"tokens":["bytes:\\xc3","bytes:\\xa9"],"token_logprobs":[-0.5,-0.25],"top_logprobs":[{"bytes:\\xc3":-0.5,"a":-1},{"bytes:\\xa9":-0.25}],"text_offset":[0,1]}"#
            ),
            "{}",
            events[0]
        );
        assert!(
            events[1].contains(
                r#""logprobs":{"tokens":["b"],"token_logprobs":[-1.5],"top_logprobs":null,"text_offset":[1]}"#
            ),
            "{}",
            events[1]
        );
    }

    #[test]
    fn loading_is_a_reply_of_its_own() {
        let whole = String::from_utf8(chunks(true, 1, 1).residency("load", false)).unwrap();
        assert!(
            whole.ends_with("\"choices\":[{\"text\":\"\",\"index\":0,\"finish_reason\":\"load\"}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0}}\n")
        );
        let streamed = String::from_utf8(chunks(false, 1, 1).residency("unload", true)).unwrap();
        assert!(streamed.contains("\"finish_reason\":\"unload\""));
        assert!(streamed.ends_with("\n\ndata: [DONE]\n\n"));
    }
}
