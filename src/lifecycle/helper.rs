//! The helper processes: they render chat templates, which strangers wrote, with bounds on time and memory.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Mutex, Semaphore};

use super::process::{Worker, WorkerCommand};
use crate::{
    inference::Failure,
    worker::protocol::{RenderJob, RenderedChat, WorkerQuestion, WorkerReply},
};

/// A conversation renders in milliseconds; what takes this long is a loop.
const RENDER_TIMEOUT: Duration = Duration::from_secs(10);
/// Helper processes at most: one hostile template does not hold up everybody's chat.
const HELPERS: usize = 2;
/// Renders that wait for a helper; a render is short, so a longer queue is a fault.
const MAX_WAITING: usize = 256;

/// Renders conversations in processes that are started when first needed and again after they died.
#[derive(Clone, Debug)]
pub struct Helper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    command: WorkerCommand,
    /// As many as helpers may run.
    running: Semaphore,
    /// As many as may run or wait.
    admitted: Semaphore,
    idle: Mutex<Vec<Worker>>,
}

impl Helper {
    /// Helpers that are not started yet.
    #[must_use]
    pub fn new(command: WorkerCommand) -> Self {
        let shared = Shared {
            command,
            running: Semaphore::new(HELPERS),
            admitted: Semaphore::new(HELPERS + MAX_WAITING),
            idle: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Failure::Invalid`] with the template's own sentence; [`Failure::Worker`] if the process died or hung over it;
    /// [`Failure::Busy`] if too many wait.
    pub async fn render(&self, job: RenderJob) -> Result<RenderedChat, Failure> {
        let shared = Arc::clone(&self.shared);
        // A task of its own: a client that leaves in the middle does not cost the next one a new process.
        let render = tokio::spawn(async move { shared.render(job).await });
        render
            .await
            .unwrap_or_else(|error| Err(Failure::Worker(format!("the template helper failed: {error}"))))
    }
}

impl Shared {
    async fn render(&self, job: RenderJob) -> Result<RenderedChat, Failure> {
        let _admitted = self.admitted.try_acquire().map_err(|_| Failure::Busy)?;
        let _running = self.running.acquire().await.map_err(|_| Failure::Busy)?;
        let idle = self
            .idle
            .lock()
            .await
            .pop()
            .filter(|worker| !worker.ended().is_cancelled());
        if let Some(worker) = idle {
            // It may have been killed while it was idle, which is not this conversation's fault.
            if let Some(result) = self.ask(worker, job.clone()).await {
                return result;
            }
        }
        let (worker, _) = Worker::spawn(&self.command, "helper")
            .map_err(|error| Failure::Worker(format!("the template helper cannot be started: {error}")))?;
        let died = || Failure::Worker("the model's chat template took too much memory to render".into());
        self.ask(worker, job).await.unwrap_or_else(|| Err(died()))
    }

    /// Asks a process, and keeps it for the next one if it answers. `None` if it died.
    async fn ask(&self, worker: Worker, job: RenderJob) -> Option<Result<RenderedChat, Failure>> {
        match tokio::time::timeout(RENDER_TIMEOUT, worker.ask(WorkerQuestion::Render(job))).await {
            Ok(Some(result)) => {
                self.idle.lock().await.push(worker);
                Some(result.and_then(|reply| match reply {
                    WorkerReply::Rendered(rendered) => Ok(*rendered),
                    _ => Err(Failure::Worker("the template helper answered something else".into())),
                }))
            }
            Ok(None) => None,
            Err(_) => {
                worker.kill().await;
                Some(Err(Failure::Worker(
                    "the model's chat template took too long to render".into(),
                )))
            }
        }
    }
}
