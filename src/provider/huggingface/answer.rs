//! The event stream of one answer: it owns the lease, so the model stays exactly as long as bytes are owed.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt};
use tokio::time::Sleep;

use crate::{
    inference::{Event, Failure},
    lifecycle::{JobStream, Lease},
    worker::protocol::Job,
};

/// Events of a job, with the times that only the daemon knows filled in.
#[derive(Debug)]
pub(super) struct Answering {
    // Before the lease: the job is cancelled before the model may be unloaded.
    stream: JobStream,
    first: Option<Event>,
    _lease: Lease,
    arrived: Instant,
    load_duration: Duration,
    stall_timeout: Duration,
    stalled: Pin<Box<Sleep>>,
    ended: bool,
}

impl Answering {
    pub(super) fn new(
        stream: JobStream,
        first: Event,
        lease: Lease,
        arrived: Instant,
        load_duration: Duration,
        stall_timeout: Duration,
    ) -> Self {
        let stalled = Box::pin(tokio::time::sleep(stall_timeout));
        Self {
            stream,
            first: Some(first),
            _lease: lease,
            arrived,
            load_duration,
            stall_timeout,
            stalled,
            ended: false,
        }
    }

    fn stamp(&self, event: Event) -> Event {
        match event {
            Event::Finished(mut finish) => {
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

impl Stream for Answering {
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
                self.stalled.as_mut().reset(deadline);
                Poll::Ready(Some(Ok(self.stamp(event))))
            }
            Poll::Ready(other) => {
                self.ended = true;
                Poll::Ready(other)
            }
            Poll::Pending => {
                loop {
                    ready!(self.stalled.as_mut().poll(context));
                    // The worker may have given signs of life that are no events.
                    let deadline = tokio::time::Instant::from_std(self.stream.last_progress() + self.stall_timeout);
                    if deadline <= tokio::time::Instant::now() {
                        break;
                    }
                    self.stalled.as_mut().reset(deadline);
                }
                self.ended = true;
                Poll::Ready(Some(Err(Failure::stalled(self.stall_timeout))))
            }
        }
    }
}

/// Starts a job and waits for its first event, so that a refusal is still a status.
pub(super) async fn start(lease: &Lease, job: Job, stall_timeout: Duration) -> Result<(JobStream, Event), Failure> {
    let mut stream = lease.generate(job).await?;
    loop {
        match tokio::time::timeout(stall_timeout, stream.next()).await {
            Ok(Some(event)) => return event.map(|event| (stream, event)),
            Ok(None) => return Err(Failure::Worker("the worker gave no answer".into())),
            Err(_) if stream.last_progress().elapsed() < stall_timeout => {}
            Err(_) => return Err(Failure::stalled(stall_timeout)),
        }
    }
}
