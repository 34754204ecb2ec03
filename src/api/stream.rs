//! Response bodies: neutral events encoded to frames, or joined to a whole answer.
//!
//! A body owns the event stream, and with it the lease on the model: dropping the body ends the work in the worker.

use std::{
    future::{Future, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt, TryFutureExt, TryStreamExt,
    stream::{self, BoxStream},
};
use hyper::Response;
use tokio::time::Instant;

use super::{error::ApiError, reply};
use crate::{
    http::{
        body::{self, Body},
        sse,
    },
    inference::{AnswerSummary, Event, TokenLogprob, ToolCall},
    provider::EventStream,
};

/// Most events that are written at once if they are ready already. An event never waits for another.
const MAX_EVENTS_PER_WRITE: usize = 64;

/// Silence after which a stream of server-sent events gets a comment. Proxies and clients close silent connections,
/// many of them after 30 seconds, and a long prompt takes longer.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Stream of steps: the events of one answer, or of several at once.
pub(crate) type StepStream<T = Event> = BoxStream<'static, Result<T, ApiError>>;

/// Item of a stream that is encoded.
pub(crate) trait StreamStep: Send + 'static {
    /// Returns true if nothing comes after the step.
    fn is_last(&self) -> bool;
}

impl StreamStep for Event {
    fn is_last(&self) -> bool {
        matches!(self, Self::Finished(_))
    }
}

/// Encoder of steps for one wire.
pub(crate) trait FrameEncoder<T = Event>: Send + 'static {
    /// Appends the frames of one step; may append nothing.
    fn event(&mut self, event: T, out: &mut Vec<u8>);

    /// Appends the frame of an error that ends the stream.
    fn failure(&mut self, error: &ApiError, out: &mut Vec<u8>);
}

/// Returns a body that writes each event as soon as it is ready.
pub(crate) fn body<E: FrameEncoder>(events: EventStream, encoder: E) -> Body {
    let steps = events.map_err(ApiError::from).boxed();
    // NDJSON gets no keep-alive: it has no comments, and clients decode every line, even a blank one, as JSON.
    body::stream(frames(steps, encoder, None).map(Ok))
}

/// Returns a response of server-sent events. `pending` resolves at the first step.
///
/// The headers are sent with a comment if `pending` takes longer than [`KEEP_ALIVE_INTERVAL`], and a later error is the
/// stream's last event. Comments also fill later silences.
///
/// # Errors
/// Returns the error of `pending`, which keeps its status, as long as nothing has been sent.
pub(crate) async fn sse_response<T, E>(
    pending: impl Future<Output = Result<StepStream<T>, ApiError>> + Send + 'static,
    encoder: E,
) -> Result<Response<Body>, ApiError>
where
    T: StreamStep,
    E: FrameEncoder<T>,
{
    let mut pending = Box::pin(pending);
    let frames = match tokio::time::timeout(KEEP_ALIVE_INTERVAL, &mut pending).await {
        Ok(steps) => frames(steps?, encoder, Some(KEEP_ALIVE_INTERVAL)).boxed(),
        Err(_) => {
            let steps = pending.try_flatten_stream().boxed();
            stream::once(ready(sse::KEEP_ALIVE))
                .chain(frames(steps, encoder, Some(KEEP_ALIVE_INTERVAL)))
                .boxed()
        }
    };
    Ok(reply::events(body::stream(frames.map(Ok))))
}

/// Returns the bytes of each write. If `silence` is set, a comment fills each silence of that length.
fn frames<T, E>(steps: StepStream<T>, encoder: E, silence: Option<Duration>) -> impl Stream<Item = Bytes> + Send
where
    T: StreamStep,
    E: FrameEncoder<T>,
{
    let state = Some((steps.ready_chunks(MAX_EVENTS_PER_WRITE), encoder));
    stream::unfold(state, move |state| async move {
        let (mut steps, mut encoder) = state?;
        // The silence is measured from the last write and not from the last event: events without frames write nothing.
        let comment_at = silence.map(|silence| Instant::now() + silence);
        let mut out = Vec::new();
        loop {
            let next = match comment_at {
                None => steps.next().await,
                Some(at) => match tokio::time::timeout_at(at, steps.next()).await {
                    Ok(next) => next,
                    Err(_) => return Some((sse::KEEP_ALIVE, Some((steps, encoder)))),
                },
            };
            let ended = match next {
                Some(batch) => encode_batch(batch, &mut encoder, &mut out),
                None => {
                    // Clients must not take an answer for complete that has only been cut off.
                    encoder.failure(&unfinished(), &mut out);
                    true
                }
            };
            if ended {
                return Some((Bytes::from(out), None));
            }
            if !out.is_empty() {
                return Some((Bytes::from(out), Some((steps, encoder))));
            }
        }
    })
}

/// Encodes steps that are ready; returns true if the last one is among them.
fn encode_batch<T: StreamStep, E: FrameEncoder<T>>(
    batch: Vec<Result<T, ApiError>>,
    encoder: &mut E,
    out: &mut Vec<u8>,
) -> bool {
    for item in batch {
        match item {
            Ok(step) => {
                let ended = step.is_last();
                encoder.event(step, out);
                if ended {
                    return true;
                }
            }
            Err(error) => {
                // The status has been sent, so besides the last frame this line is the only trace of the error.
                tracing::warn!(error = %error, "an answer broke off");
                encoder.failure(&error, out);
                return true;
            }
        }
    }
    false
}

/// Answer in one piece.
#[derive(Debug, PartialEq)]
pub(crate) struct CompleteAnswer {
    pub(crate) content: String,
    pub(crate) thinking: String,
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) finish: AnswerSummary,
}

/// Answer that is being joined from events. Its length is bounded by the token limit of the request.
#[derive(Debug, Default)]
pub(crate) struct AnswerBuilder {
    content: String,
    thinking: String,
    tool_calls: Vec<ToolCall>,
    logprobs: Vec<TokenLogprob>,
    finish: Option<AnswerSummary>,
}

impl AnswerBuilder {
    pub(crate) fn add(&mut self, event: Event) {
        match event {
            Event::Delta(delta) => {
                self.content.push_str(&delta.content);
                self.thinking.push_str(&delta.thinking);
                self.tool_calls.extend(delta.tool_calls);
                self.logprobs.extend(delta.logprobs);
            }
            Event::Finished(finish) => self.finish = Some(finish),
        }
    }

    /// Returns the answer; fails if its last event is missing.
    pub(crate) fn join(self) -> Result<CompleteAnswer, ApiError> {
        Ok(CompleteAnswer {
            content: self.content,
            thinking: self.thinking,
            tool_calls: self.tool_calls,
            logprobs: self.logprobs,
            finish: self.finish.ok_or_else(unfinished)?,
        })
    }
}

/// Waits for the whole answer.
pub(crate) async fn collect<S, E>(mut events: S) -> Result<CompleteAnswer, ApiError>
where
    S: Stream<Item = Result<Event, E>> + Unpin,
    E: Into<ApiError>,
{
    let mut pieces = AnswerBuilder::default();
    while let Some(event) = events.next().await {
        let event = event.map_err(Into::into)?;
        let ended = event.is_last();
        pieces.add(event);
        if ended {
            break;
        }
    }
    pieces.join()
}

/// Returns the error for an answer without its last event.
pub(crate) fn unfinished() -> ApiError {
    ApiError::internal("the answer ended without its last event; try again")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;
    use crate::{
        api::tests::fake::{finish, text},
        inference::FinishReason,
    };

    /// Encoder that writes a letter for each event.
    struct Letters;

    impl FrameEncoder for Letters {
        fn event(&mut self, event: Event, out: &mut Vec<u8>) {
            match event {
                Event::Delta(delta) => out.extend_from_slice(delta.content.as_bytes()),
                Event::Finished(_) => out.push(b'.'),
            }
        }

        fn failure(&mut self, error: &ApiError, out: &mut Vec<u8>) {
            out.extend_from_slice(format!("!{error}").as_bytes());
        }
    }

    fn after<T: Send + 'static>(seconds: u64, value: T) -> impl Future<Output = T> + Send + 'static {
        tokio::time::sleep(Duration::from_secs(seconds)).map(move |()| value)
    }

    /// Stream of events, each with the seconds that it takes.
    fn steps(events: Vec<(u64, Result<Event, ApiError>)>) -> StepStream {
        stream::iter(events)
            .then(|(seconds, event)| after(seconds, event))
            .boxed()
    }

    /// Writes of a response, each with its second.
    async fn writes(response: Response<Body>) -> Vec<(u64, String)> {
        let began = Instant::now();
        let mut body = response.into_body();
        let mut writes = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            writes.push((began.elapsed().as_secs(), String::from_utf8(data.to_vec()).unwrap()));
        }
        writes
    }

    const COMMENT: &str = ": keep-alive\n\n";

    fn write(at: u64, text: &str) -> (u64, String) {
        (at, text.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_answer_has_no_comment() {
        let events = steps(vec![(14, Ok(text("a"))), (14, Ok(finish(FinishReason::Stop, &[])))]);
        let response = sse_response(after(14, Ok(events)), Letters).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(writes(response).await, [write(14, "a"), write(28, ".")]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_failure_keeps_its_status() {
        let pending = after(14, Err::<StepStream, _>(ApiError::bad_request("too long")));
        let error = sse_response(pending, Letters).await.unwrap_err();
        assert_eq!(error, ApiError::bad_request("too long"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_prompt_gets_headers_and_comments_before_its_first_event() {
        let began = Instant::now();
        let events = steps(vec![(0, Ok(text("a"))), (1, Ok(finish(FinishReason::Stop, &[])))]);
        let response = sse_response(after(50, Ok(events)), Letters).await.unwrap();
        assert_eq!((response.status().as_u16(), began.elapsed().as_secs()), (200, 15));
        assert_eq!(
            writes(response).await,
            [
                write(0, COMMENT),
                write(15, COMMENT),
                write(30, COMMENT),
                write(35, "a"),
                write(36, ".")
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_failure_is_the_last_event() {
        let pending = after(20, Err::<StepStream, _>(ApiError::internal("no memory")));
        let response = sse_response(pending, Letters).await.unwrap();
        assert_eq!(writes(response).await, [write(0, COMMENT), write(5, "!no memory")]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_between_events_is_filled_also_where_events_say_nothing() {
        let quiet = |seconds| (seconds, Ok(text("")));
        let events = steps(vec![
            (1, Ok(text("a"))),
            quiet(10),
            quiet(10),
            (30, Err(ApiError::internal("died"))),
        ]);
        let response = sse_response(ready(Ok(events)), Letters).await.unwrap();
        assert_eq!(
            writes(response).await,
            [
                write(1, "a"),
                write(16, COMMENT),
                write(31, COMMENT),
                write(46, COMMENT),
                write(51, "!died")
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn other_streams_have_no_comments() {
        let events = stream::iter([text("a"), finish(FinishReason::Stop, &[])]).then(|event| after(100, Ok(event)));
        let response = Response::new(body(Box::pin(events), Letters));
        assert_eq!(writes(response).await, [write(100, "a"), write(200, ".")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_a_last_event_ends_in_an_error() {
        let response = sse_response(ready(Ok(steps(vec![(0, Ok(text("a")))]))), Letters)
            .await
            .unwrap();
        let writes = writes(response).await;
        assert_eq!(
            writes.last().unwrap().1,
            "!the answer ended without its last event; try again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_drops_the_body_ends_the_wait() {
        let held = std::sync::Arc::new(());
        let holder = held.clone();
        let pending = async move {
            let _holder = holder;
            std::future::pending::<Result<StepStream, ApiError>>().await
        };
        let response = sse_response(pending, Letters).await.unwrap();
        assert_eq!(std::sync::Arc::strong_count(&held), 2);
        drop(response);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
