//! Neutral events to the frames of a response body, and to one whole answer.
//!
//! The body owns the event stream, and with it the lease on the model: whoever drops the body ends the work.

use bytes::Bytes;
use futures_util::StreamExt;

use super::error::ApiError;
use crate::{
    http::body::{self, Body},
    inference::{Event, Failure, Finish, TokenLogprob, ToolCall},
    provider::EventStream,
};

/// Events that are written at once where that many are ready already. Nothing ever waits for a second one.
const MAX_EVENTS_PER_WRITE: usize = 64;

/// Puts events on a wire.
pub(crate) trait Encoder: Send + 'static {
    /// Appends the frames of one event; may append nothing.
    fn event(&mut self, event: Event, out: &mut Vec<u8>);

    /// Appends the frame of an error that ends the stream.
    fn failure(&mut self, error: &ApiError, out: &mut Vec<u8>);
}

/// A response body that writes each event as soon as it is there.
pub(crate) fn body<E: Encoder>(events: EventStream, encoder: E) -> Body {
    let state = Some((events.ready_chunks(MAX_EVENTS_PER_WRITE), encoder));
    body::stream(futures_util::stream::unfold(state, async |state| {
        let (mut events, mut encoder) = state?;
        let mut out = Vec::new();
        loop {
            let ended = match events.next().await {
                Some(batch) => encode_batch(batch, &mut encoder, &mut out),
                None => {
                    encoder.failure(&unfinished(), &mut out);
                    true
                }
            };
            if ended {
                return Some((Ok(Bytes::from(out)), None));
            }
            if !out.is_empty() {
                return Some((Ok(Bytes::from(out)), Some((events, encoder))));
            }
        }
    }))
}

/// Encodes what is ready; says whether that was the end.
fn encode_batch<E: Encoder>(batch: Vec<Result<Event, Failure>>, encoder: &mut E, out: &mut Vec<u8>) -> bool {
    for item in batch {
        match item {
            Ok(event) => {
                let ended = matches!(event, Event::Finished(_));
                encoder.event(event, out);
                if ended {
                    return true;
                }
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "an answer broke off");
                encoder.failure(&failure.into(), out);
                return true;
            }
        }
    }
    false
}

/// An answer in one piece.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) content: String,
    pub(crate) thinking: String,
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) finish: Finish,
}

/// Waits for the whole answer. Its length is bounded by the token limit of the request.
pub(crate) async fn collect(mut events: EventStream) -> Result<Answer, ApiError> {
    let (mut content, mut thinking) = (String::new(), String::new());
    let (mut tool_calls, mut logprobs) = (Vec::new(), Vec::new());
    while let Some(event) = events.next().await {
        match event? {
            Event::Delta(delta) => {
                content.push_str(&delta.content);
                thinking.push_str(&delta.thinking);
                tool_calls.extend(delta.tool_calls);
                logprobs.extend(delta.logprobs);
            }
            Event::Finished(finish) => {
                return Ok(Answer {
                    content,
                    thinking,
                    tool_calls,
                    logprobs,
                    finish,
                });
            }
        }
    }
    Err(unfinished())
}

fn unfinished() -> ApiError {
    ApiError::internal("the answer ended without its last event; try again")
}
