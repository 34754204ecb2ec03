//! The answer to one request: from the located model to the stream of its events.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt};
use tokio::time::Sleep;

use super::{HuggingFace, drop_oldest_turns, located::LocatedModel, prepare, served::check_prompt};
use crate::{
    inference::{Event, Failure, InferenceRequest},
    lifecycle::{JobStream, Lease},
    provider::{CallContext, EventStream},
    worker::protocol::Job,
};

impl HuggingFace {
    /// Starts an answer and waits for its first event. The stream owns the lease.
    ///
    /// A conversation that does not fit the context window loses its oldest turns and is rendered again, if the request
    /// allows that; only the worker can count the tokens.
    pub(super) async fn answer(
        &self,
        call: &CallContext,
        model: &LocatedModel,
        request: InferenceRequest,
    ) -> Result<EventStream, Failure> {
        let config = &call.config;
        check_prompt(config, model, &request.prompt)?;
        let settings = self.settings(call, model, &request.load).await;
        let lease = self.acquire(call, model, &settings, request.keep_alive).await?;
        // Taken here, because rendering and waiting for a slot are no part of the load.
        let load_duration = call.arrived.elapsed();
        let context_length = settings.window(&model.header.facts, lease.loaded().context_length);
        let stall_timeout = config.engine.stream_timeout;
        let mut messages = settings.conversation(&request.prompt);
        let (stream, first) = loop {
            let prompt = prepare::prepare(&self.helper, config, &model.header, &request, &messages).await?;
            let job = settings.job(config, &request, context_length, prompt);
            match start(&lease, job, stall_timeout).await {
                Err(Failure::ContextExceeded {
                    prompt_tokens,
                    context_length,
                }) if request.truncate && drop_oldest_turns(&mut messages, prompt_tokens, context_length) => {
                    tracing::debug!(
                        left = messages.len(),
                        "the conversation does not fit; its oldest turns were dropped"
                    );
                }
                other => break other?,
            }
        };
        Ok(AnswerStream::new(stream, first, lease, call.arrived, load_duration, stall_timeout).boxed())
    }
}

/// Starts a job and waits for its first event, so that a refusal can still be an HTTP status.
async fn start(lease: &Lease, job: Job, stall_timeout: Duration) -> Result<(JobStream, Event), Failure> {
    let mut stream = lease.generate(job).await?;
    loop {
        match tokio::time::timeout(stall_timeout, stream.next()).await {
            Ok(Some(event)) => return event.map(|event| (stream, event)),
            Ok(None) => return Err(Failure::Worker("the worker gave no answer".into())),
            // A long prefill yields no event, but signs of life.
            Err(_) if stream.last_progress().elapsed() < stall_timeout => {}
            Err(_) => return Err(Failure::stalled(stall_timeout)),
        }
    }
}

/// Events of a job, with the durations that only the daemon knows. The stream owns the lease, so that the model stays
/// resident exactly as long as the client is owed bytes.
#[derive(Debug)]
pub(super) struct AnswerStream {
    // Declared before the lease, so that the job is cancelled before the model may be unloaded.
    stream: JobStream,
    /// Event that was awaited before the stream was handed out.
    first: Option<Event>,
    _lease: Lease,
    arrived: Instant,
    load_duration: Duration,
    stall_timeout: Duration,
    stall_timer: Pin<Box<Sleep>>,
    ended: bool,
}

impl AnswerStream {
    pub(super) fn new(
        stream: JobStream,
        first: Event,
        lease: Lease,
        arrived: Instant,
        load_duration: Duration,
        stall_timeout: Duration,
    ) -> Self {
        let stall_timer = Box::pin(tokio::time::sleep(stall_timeout));
        Self {
            stream,
            first: Some(first),
            _lease: lease,
            arrived,
            load_duration,
            stall_timeout,
            stall_timer,
            ended: false,
        }
    }

    /// Adds the durations to the last event.
    fn stamp(&self, event: Event) -> Event {
        match event {
            Event::Finished(mut finish) => {
                // Ollama leaves out durations of zero, and clients expect the fields.
                let at_least = |duration: Duration| duration.max(Duration::from_nanos(1));
                finish.usage.load_duration = at_least(self.load_duration);
                finish.usage.total_duration = at_least(self.arrived.elapsed());
                finish.usage.prompt_duration = at_least(finish.usage.prompt_duration);
                finish.usage.output_duration = at_least(finish.usage.output_duration);
                Event::Finished(finish)
            }
            delta @ Event::Delta(_) => delta,
        }
    }
}

impl Stream for AnswerStream {
    type Item = Result<Event, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(event) = self.first.take() {
            self.ended = matches!(event, Event::Finished(_));
            return Poll::Ready(Some(Ok(self.stamp(event))));
        }
        match self.stream.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(event))) => {
                self.ended = matches!(event, Event::Finished(_));
                let deadline = tokio::time::Instant::now() + self.stall_timeout;
                self.stall_timer.as_mut().reset(deadline);
                Poll::Ready(Some(Ok(self.stamp(event))))
            }
            Poll::Ready(other) => {
                self.ended = true;
                Poll::Ready(other)
            }
            Poll::Pending => {
                loop {
                    ready!(self.stall_timer.as_mut().poll(context));
                    // The timer is set by events only; signs of life, which the job stream keeps to itself, move the
                    // deadline, too.
                    let deadline = tokio::time::Instant::from_std(self.stream.last_progress() + self.stall_timeout);
                    if deadline <= tokio::time::Instant::now() {
                        break;
                    }
                    self.stall_timer.as_mut().reset(deadline);
                }
                self.ended = true;
                Poll::Ready(Some(Err(Failure::stalled(self.stall_timeout))))
            }
        }
    }
}
