//! The event stream of one job of a worker process.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures_util::Stream;
use tokio::sync::mpsc;

use super::process::{PROCESS_ENDED, WorkerProcess};
use crate::{
    inference::{Delta, Event, Failure},
    worker::protocol::{DaemonCommand, STREAM_CREDIT},
};

/// One event of a job, or the failure that ends it.
pub(super) type JobEvent = Result<Event, Failure>;

/// Returns true if an event carries nothing: a worker sends an empty delta to say that it is computing.
pub(super) fn is_sign_of_life(event: &Event) -> bool {
    matches!(event, Event::Delta(delta) if *delta == Delta::default())
}

/// Events of one job. Dropping the stream cancels the job.
#[derive(Debug)]
pub struct JobStream {
    worker: WorkerProcess,
    id: u64,
    events: mpsc::Receiver<JobEvent>,
    /// Events taken since credit was last returned to the worker.
    taken: u32,
    finished: bool,
    last_progress: Instant,
}

impl JobStream {
    pub(super) fn new(worker: WorkerProcess, id: u64, events: mpsc::Receiver<JobEvent>) -> Self {
        Self {
            worker,
            id,
            events,
            taken: 0,
            finished: false,
            last_progress: Instant::now(),
        }
    }

    /// Returns the time of the last event or sign of life that was taken from the worker.
    #[must_use]
    pub fn last_progress(&self) -> Instant {
        self.last_progress
    }
}

impl Stream for JobStream {
    type Item = Result<Event, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let item = loop {
            let item =
                ready!(self.events.poll_recv(context)).unwrap_or_else(|| Err(Failure::Worker(PROCESS_ENDED.into())));
            self.last_progress = Instant::now();
            if !item.as_ref().is_ok_and(is_sign_of_life) {
                break item;
            }
        };
        match &item {
            Ok(Event::Delta(_)) => {
                self.taken += 1;
                // Returned in halves: the worker never waits for credit as long as this side keeps up, and a frame per event is
                // not needed.
                if self.taken >= STREAM_CREDIT / 2 {
                    let events = std::mem::take(&mut self.taken);
                    self.worker
                        .send_detached(&DaemonCommand::Credit { id: self.id, events });
                }
            }
            Ok(Event::Finished(_)) | Err(_) => self.finished = true,
        }
        Poll::Ready(Some(item))
    }
}

impl Drop for JobStream {
    fn drop(&mut self) {
        if !self.finished {
            self.worker.cancel_job(self.id);
        }
    }
}
