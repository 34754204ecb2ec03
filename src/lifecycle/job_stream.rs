//! The event stream of one job of a worker process.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures_util::Stream;
use tokio::sync::mpsc;

use super::{
    process::{JobEvent, PROCESS_ENDED, WorkerProcess, is_sign_of_life},
    quarantine::RequestFingerprint,
};
use crate::{
    inference::{Event, Failure},
    worker::protocol::{DaemonCommand, Job, STREAM_CREDIT},
};

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
    /// Starts a job and sets its id.
    ///
    /// # Errors
    ///
    /// [`Failure::Worker`] if the process has ended.
    pub(super) async fn start(
        worker: &WorkerProcess,
        mut job: Job,
        fingerprint: RequestFingerprint,
    ) -> Result<Self, Failure> {
        let (id, events) = worker.register_job(fingerprint);
        job.id = id;
        // Created before the job is sent: if this future is dropped while it waits for the queue, the stream removes
        // the entry and cancels the job.
        let stream = Self {
            worker: worker.clone(),
            id,
            events,
            taken: 0,
            finished: false,
            last_progress: Instant::now(),
        };
        worker.send_job(job).await?;
        Ok(stream)
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
        // Signs of life are consumed here: they only keep the stall timers of the callers from ending the answer.
        let item = loop {
            let item =
                ready!(self.events.poll_recv(context)).unwrap_or_else(|| Err(Failure::Worker(PROCESS_ENDED.into())));
            self.last_progress = Instant::now();
            // A sign of life costs no credit, so it is not counted below.
            if !item.as_ref().is_ok_and(is_sign_of_life) {
                break item;
            }
        };
        match &item {
            Ok(Event::Delta(_)) => {
                self.taken += 1;
                // Returned in halves: the worker never waits for credit as long as this side keeps up, and a frame per
                // event is not needed.
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
