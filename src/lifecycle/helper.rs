//! The helper process: renders chat templates, which strangers wrote, with bounds on time and memory.

use std::{sync::Arc, time::Duration};

use tokio::sync::Mutex;

use super::process::{Worker, WorkerCommand};
use crate::{
    inference::Failure,
    worker::protocol::{RenderJob, RenderedChat},
};

/// A conversation renders in milliseconds; what takes this long is a loop.
const RENDER_TIMEOUT: Duration = Duration::from_secs(10);

/// Renders conversations, one at a time, in a process that is started when first needed and again after it died.
#[derive(Clone, Debug)]
pub struct Helper {
    command: WorkerCommand,
    worker: Arc<Mutex<Option<Worker>>>,
}

impl Helper {
    /// A helper that is not started yet.
    #[must_use]
    pub fn new(command: WorkerCommand) -> Self {
        Self {
            command,
            worker: Arc::default(),
        }
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Failure::Invalid`] with the template's own sentence; [`Failure::Worker`] if the process died or hung over it.
    pub async fn render(&self, job: RenderJob) -> Result<RenderedChat, Failure> {
        let mut guard = self.worker.lock().await;
        let worker = match guard.take().filter(|worker| !worker.ended().is_cancelled()) {
            Some(worker) => worker,
            None => {
                Worker::spawn(&self.command, "helper")
                    .map_err(|error| Failure::Worker(format!("the template helper cannot be started: {error}")))?
                    .0
            }
        };
        // Left out of the guard until it has answered: if this future is dropped in the middle, the process goes too.
        let result = tokio::time::timeout(RENDER_TIMEOUT, worker.render(job)).await;
        match result {
            Ok(Some(result)) => {
                *guard = Some(worker);
                result.map_err(|reason| Failure::Invalid(format!("the model's chat template failed: {reason}")))
            }
            Ok(None) => Err(Failure::Worker(
                "the model's chat template took too much memory to render".into(),
            )),
            Err(_) => {
                worker.kill().await;
                Err(Failure::Worker(
                    "the model's chat template took too long to render".into(),
                ))
            }
        }
    }
}
