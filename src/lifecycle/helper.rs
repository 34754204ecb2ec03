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
        if let Some(worker) = guard.take().filter(|worker| !worker.ended().is_cancelled()) {
            let answer = ask(&mut guard, worker, job.clone()).await;
            // It may have been dead before it was asked, for a reason that is not this conversation's.
            if !matches!(answer, Err(Silence::Died)) {
                return verdict(answer);
            }
        }
        let (worker, _) = Worker::spawn(&self.command, "helper")
            .map_err(|error| Failure::Worker(format!("the template helper cannot be started: {error}")))?;
        verdict(ask(&mut guard, worker, job).await)
    }
}

/// Why there is no answer.
enum Silence {
    Died,
    Hung,
}

/// Asks a process, and keeps it for the next one if it answers.
///
/// Until then it is not in `kept`: if this future is dropped in the middle, the process goes too.
async fn ask(
    kept: &mut Option<Worker>,
    worker: Worker,
    job: RenderJob,
) -> Result<Result<RenderedChat, String>, Silence> {
    match tokio::time::timeout(RENDER_TIMEOUT, worker.render(job)).await {
        Ok(Some(result)) => {
            *kept = Some(worker);
            Ok(result)
        }
        Ok(None) => Err(Silence::Died),
        Err(_) => {
            worker.kill().await;
            Err(Silence::Hung)
        }
    }
}

fn verdict(answer: Result<Result<RenderedChat, String>, Silence>) -> Result<RenderedChat, Failure> {
    let failed = |what: &str| Failure::Worker(format!("the model's chat template took too {what} to render"));
    answer
        .map_err(|silence| match silence {
            Silence::Died => failed("much memory"),
            Silence::Hung => failed("long"),
        })?
        .map_err(|reason| Failure::Invalid(format!("the model's chat template failed: {reason}")))
}
