//! Reader of Ollama's native streams: frames become events.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use futures_util::stream;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::or_default;
use crate::{
    http::{
        body::Body,
        ndjson::{LineError, LineReader},
    },
    inference::{AnswerSummary, AnswerUsage, Delta, Event, Failure, FinishReason, TokenLogprob, ToolCall, TopLogprob},
    provider::EventStream,
};

/// Largest frame in bytes. Ollama's own Go client reads at most 8 MiB.
const MAX_FRAME_BYTES: usize = 16 << 20;

/// Status of an error inside a stream, where Ollama sends none.
const BROKEN: u16 = 500;

/// Reader of the events of one answer. Dropping it closes the connection to Ollama.
pub(super) struct NativeAnswerReader {
    lines: LineReader,
    /// Events of a frame that have not been polled yet.
    ready: VecDeque<Event>,
    /// Ids of tool calls so far.
    ids: HashSet<String>,
    finished: bool,
}

/// Frame of `/api/chat` or `/api/generate`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Frame {
    error: Option<Value>,
    #[serde(deserialize_with = "or_default")]
    message: WireMessage,
    #[serde(deserialize_with = "or_default")]
    response: String,
    #[serde(deserialize_with = "or_default")]
    thinking: String,
    #[serde(deserialize_with = "or_default")]
    tool_calls: Vec<WireToolCall>,
    #[serde(deserialize_with = "or_default")]
    logprobs: Vec<WireLogprob>,
    #[serde(deserialize_with = "or_default")]
    done: bool,
    #[serde(deserialize_with = "or_default")]
    done_reason: String,
    #[serde(deserialize_with = "or_default")]
    context: Vec<i32>,
    #[serde(flatten)]
    metrics: Metrics,
}

/// Counts of an answer, and durations in nanoseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metrics {
    #[serde(deserialize_with = "or_default")]
    total_duration: u64,
    #[serde(deserialize_with = "or_default")]
    load_duration: u64,
    #[serde(deserialize_with = "or_default")]
    prompt_eval_count: u32,
    #[serde(deserialize_with = "or_default")]
    prompt_eval_duration: u64,
    #[serde(deserialize_with = "or_default")]
    eval_count: u32,
    #[serde(deserialize_with = "or_default")]
    eval_duration: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireMessage {
    #[serde(deserialize_with = "or_default")]
    content: String,
    #[serde(deserialize_with = "or_default")]
    thinking: String,
    #[serde(deserialize_with = "or_default")]
    tool_calls: Vec<WireToolCall>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireToolCall {
    #[serde(deserialize_with = "or_default")]
    id: String,
    function: WireFunction,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireFunction {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    arguments: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireLogprob {
    #[serde(flatten)]
    token: WireToken,
    #[serde(deserialize_with = "or_default")]
    top_logprobs: Vec<WireToken>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireToken {
    #[serde(deserialize_with = "or_default")]
    token: String,
    #[serde(deserialize_with = "or_default")]
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

impl NativeAnswerReader {
    pub(super) fn new(body: Body) -> Self {
        Self {
            lines: LineReader::new(body, MAX_FRAME_BYTES),
            ready: VecDeque::new(),
            ids: HashSet::new(),
            finished: false,
        }
    }

    /// Waits for the first event, and returns it with those that follow: a failure before it is still a status.
    pub(super) async fn begin(mut self) -> Result<EventStream, Failure> {
        let first = self.next().await?;
        self.ready.push_front(first);
        Ok(Box::pin(stream::unfold(Some(self), async |answer| {
            let mut answer = answer?;
            if answer.finished && answer.ready.is_empty() {
                return None;
            }
            match answer.next().await {
                Ok(event) => Some((Ok(event), Some(answer))),
                Err(failure) => Some((Err(failure), None)),
            }
        })))
    }

    async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            match self.lines.next().await {
                Ok(Some(line)) => self.frame(&line)?,
                // Ollama does so when a model repeats one token over and over.
                Ok(None) => return Err(broken("Ollama ended the answer without its last frame; try again")),
                Err(error @ LineError::TooLong { .. }) => return Err(broken(format!("Ollama's answer: {error}"))),
                Err(LineError::Body(_)) => {
                    return Err(broken(
                        "the connection to Ollama broke off within the answer; try again",
                    ));
                }
            }
        }
    }

    fn frame(&mut self, line: &[u8]) -> Result<(), Failure> {
        let frame: Frame = serde_json::from_slice(line)
            .map_err(|error| broken(format!("Ollama's answer holds a frame that cannot be read: {error}")))?;
        if let Some(error) = frame.error.as_ref().and_then(error_text) {
            return Err(broken(error));
        }
        let WireMessage {
            mut content,
            mut thinking,
            mut tool_calls,
        } = frame.message;
        content.push_str(&frame.response);
        thinking.push_str(&frame.thinking);
        tool_calls.extend(frame.tool_calls);
        let delta = Delta {
            content,
            thinking,
            tool_calls: tool_calls.into_iter().map(|call| self.call(call)).collect(),
            logprobs: frame.logprobs.into_iter().map(TokenLogprob::from).collect(),
        };
        if delta != Delta::default() {
            self.ready.push_back(Event::Delta(delta));
        }
        if frame.done {
            self.finished = true;
            self.ready.push_back(Event::Finished(AnswerSummary {
                reason: match frame.done_reason.as_str() {
                    "length" => FinishReason::Length,
                    _ => FinishReason::Stop,
                },
                // Ollama does not say which stop string ended the answer.
                stop_string: None,
                usage: frame.metrics.into(),
                context: frame.context,
            }));
        }
        Ok(())
    }

    fn call(&mut self, call: WireToolCall) -> ToolCall {
        let WireToolCall {
            mut id,
            function: WireFunction { name, arguments },
        } = call;
        // Older versions of Ollama send no id.
        while id.is_empty() || !self.ids.insert(id.clone()) {
            id = format!("call_{:08x}", rand::random::<u32>());
        }
        ToolCall { id, name, arguments }
    }
}

fn broken(message: impl Into<String>) -> Failure {
    Failure::Upstream {
        status: BROKEN,
        message: message.into(),
    }
}

/// Returns the sentence in the `error` member of a reply.
pub(super) fn error_text(error: &Value) -> Option<String> {
    match error {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(match other.get("message") {
            Some(Value::String(text)) => text.clone(),
            _ => other.to_string(),
        }),
    }
}

impl From<Metrics> for AnswerUsage {
    fn from(metrics: Metrics) -> Self {
        Self {
            prompt_tokens: metrics.prompt_eval_count,
            // Ollama reports neither these nor the reasoning tokens.
            cached_tokens: 0,
            prompt_duration: Duration::from_nanos(metrics.prompt_eval_duration),
            output_tokens: metrics.eval_count,
            reasoning_tokens: 0,
            output_duration: Duration::from_nanos(metrics.eval_duration),
            load_duration: Duration::from_nanos(metrics.load_duration),
            total_duration: Duration::from_nanos(metrics.total_duration),
        }
    }
}

impl From<WireLogprob> for TokenLogprob {
    fn from(WireLogprob { token, top_logprobs }: WireLogprob) -> Self {
        let TopLogprob { bytes, logprob } = token.into();
        Self {
            bytes,
            logprob,
            top: top_logprobs.into_iter().map(TopLogprob::from).collect(),
        }
    }
}

impl From<WireToken> for TopLogprob {
    fn from(WireToken { token, logprob, bytes }: WireToken) -> Self {
        Self {
            bytes: bytes.unwrap_or_else(|| token.into_bytes()),
            logprob,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::StreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::http::body;

    /// Returns the events of a body that comes in these pieces.
    async fn events(pieces: Vec<Bytes>) -> Result<Vec<Result<Event, Failure>>, Failure> {
        let body = body::stream(stream::iter(pieces.into_iter().map(Ok)));
        Ok(NativeAnswerReader::new(body).begin().await?.collect().await)
    }

    async fn all(text: &str) -> Vec<Event> {
        let events = events(vec![Bytes::from(text.to_owned())]).await.unwrap();
        events.into_iter().map(Result::unwrap).collect()
    }

    fn delta(content: &str, thinking: &str) -> Event {
        Event::Delta(Delta {
            content: content.into(),
            thinking: thinking.into(),
            ..Delta::default()
        })
    }

    const LAST: &str = "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":40,\"load_duration\":1,\"prompt_eval_count\":10,\"prompt_eval_duration\":20,\"eval_count\":2,\"eval_duration\":10}\n";

    fn finish(reason: FinishReason, context: &[i32]) -> Event {
        Event::Finished(AnswerSummary {
            reason,
            stop_string: None,
            usage: AnswerUsage {
                prompt_tokens: 10,
                cached_tokens: 0,
                prompt_duration: Duration::from_nanos(20),
                output_tokens: 2,
                reasoning_tokens: 0,
                output_duration: Duration::from_nanos(10),
                load_duration: Duration::from_nanos(1),
                total_duration: Duration::from_nanos(40),
            },
            context: context.to_vec(),
        })
    }

    #[tokio::test]
    async fn a_chat_is_thinking_then_text_then_its_end() {
        let text = format!(
            "{}{}{}{LAST}",
            "{\"message\":{\"role\":\"assistant\",\"content\":\"\",\"thinking\":\"Hm\"},\"done\":false}\n",
            "{\"message\":{\"role\":\"assistant\",\"content\":\"Hi \\u003cyou\\u003e\",\"tool_calls\":null},\"done\":false}\n",
            "{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false}\n",
        );
        assert_eq!(
            all(&text).await,
            [delta("", "Hm"), delta("Hi <you>", ""), finish(FinishReason::Stop, &[])],
            "a frame that holds nothing is no event"
        );
    }

    #[tokio::test]
    async fn a_generation_ends_with_its_context() {
        let last = LAST.replace(
            "\"done_reason\":\"stop\"",
            "\"done_reason\":\"length\",\"response\":\"b\",\"context\":[1,2]",
        );
        let text = format!("{{\"response\":\"a\",\"thinking\":\"T\",\"done\":false}}\n{last}");
        assert_eq!(
            all(&text).await,
            [delta("a", "T"), delta("b", ""), finish(FinishReason::Length, &[1, 2])]
        );
    }

    #[tokio::test]
    async fn tool_calls_keep_their_ids_and_get_one_where_there_is_none() {
        let text = format!(
            "{}{}{LAST}",
            "{\"message\":{\"content\":\"\",\"tool_calls\":[{\"id\":\"c1\",\"function\":{\"index\":0,\"name\":\"f\",\"arguments\":{\"b\":1,\"a\":{\"z\":1}}}}]},\"done\":false}\n",
            "{\"message\":{\"content\":\"\",\"tool_calls\":[{\"function\":{\"name\":\"g\",\"arguments\":null}},{\"id\":\"c1\",\"function\":{\"name\":\"f\"}}]},\"done\":false}\n",
        );
        let calls: Vec<ToolCall> = all(&text)
            .await
            .into_iter()
            .filter_map(|event| match event {
                Event::Delta(delta) => Some(delta.tool_calls),
                Event::Finished(_) => None,
            })
            .flatten()
            .collect();
        let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!((names, calls[0].id.as_str()), (vec!["f", "g", "f"], "c1"));
        assert_eq!(
            serde_json::to_string(&calls[0].arguments).unwrap(),
            r#"{"b":1,"a":{"z":1}}"#
        );
        let ids: HashSet<&str> = calls.iter().map(|call| call.id.as_str()).collect();
        assert!(ids.len() == 3 && !ids.contains(""), "{ids:?}");
    }

    #[tokio::test]
    async fn logprobs_come_with_their_bytes() {
        let text = format!(
            "{}{LAST}",
            "{\"message\":{\"content\":\"é\"},\"logprobs\":[{\"token\":\"\u{fffd}\",\"logprob\":-0.5,\"bytes\":[195],\"top_logprobs\":[{\"token\":\"x\",\"logprob\":-1}]}]}\n"
        );
        let Event::Delta(delta) = all(&text).await.remove(0) else {
            panic!()
        };
        let expected = TokenLogprob {
            bytes: vec![195],
            logprob: -0.5,
            top: vec![TopLogprob {
                bytes: b"x".to_vec(),
                logprob: -1.0,
            }],
        };
        assert_eq!(delta.logprobs, [expected]);
    }

    #[tokio::test]
    async fn an_error_before_the_first_event_is_no_answer_and_one_behind_it_ends_it() {
        let error = "{\"error\":\"model runner has unexpectedly stopped\"}\n";
        let failure = broken("model runner has unexpectedly stopped");
        assert_eq!(events(vec![error.into()]).await.unwrap_err(), failure);
        let frame = "{\"message\":{\"content\":\"a\"},\"error\":null}\n";
        let seen = events(vec![frame.into(), error.into(), frame.into()]).await.unwrap();
        assert_eq!(seen, [Ok(delta("a", "")), Err(failure)]);
        let nested = "{\"error\":{\"message\":\"no\",\"code\":5}}\n";
        assert_eq!(events(vec![nested.into()]).await.unwrap_err(), broken("no"));
    }

    #[tokio::test]
    async fn what_ends_too_early_or_cannot_be_read_is_a_failure() {
        let frame = "{\"message\":{\"content\":\"a\"}}\n";
        for rest in ["", "<html>", "{\"message\":{\"content\":5}}"] {
            let seen = events(vec![frame.into(), rest.into()]).await.unwrap();
            assert_eq!(seen.len(), 2, "{rest}");
            assert!(seen[0].is_ok() && seen[1].is_err(), "{rest}: {seen:?}");
        }
        assert!(events(Vec::new()).await.is_err());
    }

    proptest! {
        #[test]
        fn the_way_a_stream_is_cut_changes_nothing(sizes in prop::collection::vec(1usize..60, 1..8)) {
            let text = format!(
                "{}{}{LAST}",
                "{\"message\":{\"content\":\"\",\"thinking\":\"ö\"}}\n\n",
                "{\"message\":{\"content\":\"a\u{2028}b\",\"tool_calls\":[{\"id\":\"c\",\"function\":{\"name\":\"f\"}}]}}\r\n",
            );
            let (mut pieces, mut rest) = (Vec::new(), Bytes::from(text.clone()));
            for size in sizes.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                pieces.push(rest.split_to(size.min(rest.len())));
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (cut, whole) = runtime.block_on(async { (events(pieces).await.unwrap(), all(&text).await) });
            let cut: Vec<Event> = cut.into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(cut, whole);
        }
    }
}
