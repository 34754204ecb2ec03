//! Leases: the right of one request to use a resident model.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::Notify;

use super::{
    job_stream::JobStream,
    process::{PROCESS_ENDED, WorkerProcess},
    quarantine::{RequestFingerprint, RequestQuarantine},
};
use crate::{
    inference::Failure,
    worker::protocol::{Job, LoadedModel, WorkerQuestion, WorkerReply},
};

/// Error text for a request in quarantine.
const QUARANTINED_REQUEST: &str = "the model's process ended while it worked on this request, so that it is refused \
                                   for a minute; change it, or see the hubllama log for the reason";

/// Right of a request to use a resident model, which is neither evicted nor unloaded while a lease exists.
#[derive(Debug)]
pub struct Lease {
    pub(super) worker: WorkerProcess,
    pub(super) loaded: LoadedModel,
    /// Number of leases on the model, shared with the manager.
    pub(super) count: Arc<AtomicUsize>,
    /// Wakes the manager when the lease is returned.
    pub(super) returned: Arc<Notify>,
    pub(super) quarantine: Arc<RequestQuarantine>,
}

impl Lease {
    /// Returns the properties of the loaded model.
    #[must_use]
    pub fn loaded(&self) -> &LoadedModel {
        &self.loaded
    }

    /// Starts a job on the model. The caller has to keep the lease until the stream has ended.
    ///
    /// # Errors
    /// [`Failure::Worker`] if the worker has died; [`Failure::Invalid`] if the same request is in quarantine.
    pub async fn generate(&self, job: Job) -> Result<JobStream, Failure> {
        // Sampling is left out of the fingerprint: a crash under a prompt repeats with any seed.
        let fingerprint = self.check_quarantine(&(&job.prompt, &job.chat, &job.schema))?;
        JobStream::start(&self.worker, job, fingerprint).await
    }

    fn check_quarantine(&self, request: &impl Serialize) -> Result<RequestFingerprint, Failure> {
        let fingerprint = self.quarantine.fingerprint(request);
        match self.quarantine.is_refused(fingerprint, Instant::now()) {
            true => Err(Failure::Invalid(QUARANTINED_REQUEST.into())),
            false => Ok(fingerprint),
        }
    }

    /// Asks the worker a question that has a single reply.
    ///
    /// # Errors
    /// The failure that the worker reports; [`Failure::Worker`] if it has died or was silent for `stall_timeout`;
    /// [`Failure::Invalid`] if the same question is in quarantine.
    pub async fn ask(&self, question: WorkerQuestion, stall_timeout: Duration) -> Result<WorkerReply, Failure> {
        let fingerprint = self.check_quarantine(&question)?;
        let reply = self.worker.ask_with_fingerprint(question, fingerprint);
        tokio::pin!(reply);
        loop {
            match tokio::time::timeout(stall_timeout, &mut reply).await {
                Ok(Some(reply)) => return reply,
                Ok(None) => return Err(Failure::Worker(PROCESS_ENDED.into())),
                // The worker reports that it is alive during long computations, so that only silence counts.
                Err(_) if self.worker.silence() < stall_timeout => {}
                Err(_) => return Err(Failure::stalled(stall_timeout)),
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Counted down first: the manager reads the count when it wakes.
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.returned.notify_one();
    }
}
