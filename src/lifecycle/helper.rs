//! Helper processes that render chat templates. A template comes with the model and is untrusted code: it runs outside
//! the daemon, with bounds on time and memory.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Mutex, Semaphore};

use super::process::{WorkerCommand, WorkerProcess};
use crate::{
    inference::Failure,
    worker::protocol::{RenderJob, RenderedChat, WorkerQuestion, WorkerReply},
};

/// Time after which a render is aborted. A conversation renders in milliseconds, so that this long means a loop.
const RENDER_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of helper processes. With two, one hostile template does not block all other chats.
const MAX_HELPERS: usize = 2;
/// Renders that may wait for a helper. They are short, so that a longer queue is a fault.
const MAX_WAITING: usize = 256;

/// Pool of helper processes. They are started when first needed and replaced after they died.
#[derive(Clone, Debug)]
pub struct TemplateHelper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    command: WorkerCommand,
    /// Permits of renders that run, one for each helper.
    running: Semaphore,
    /// Permits of renders that run or wait.
    admitted: Semaphore,
    idle: Mutex<Vec<WorkerProcess>>,
}

impl TemplateHelper {
    /// Creates the pool without starting a process.
    #[must_use]
    pub fn new(command: WorkerCommand) -> Self {
        let shared = Shared {
            command,
            running: Semaphore::new(MAX_HELPERS),
            admitted: Semaphore::new(MAX_HELPERS + MAX_WAITING),
            idle: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Renders a conversation in a helper process.
    ///
    /// # Errors
    /// [`Failure::Invalid`] with the template engine's message; [`Failure::Worker`] if the process died or took too
    /// long; [`Failure::Busy`] if too many renders wait.
    pub async fn render(&self, job: RenderJob) -> Result<RenderedChat, Failure> {
        let shared = Arc::clone(&self.shared);
        // Spawned, so that the render goes on when the client leaves: otherwise the process would be in an unknown
        // state and the next render would have to start a new one.
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
            // The process may have been killed while it was idle, for which this conversation is not to blame: try once
            // more.
            if let Some(result) = self.ask(worker, job.clone()).await {
                return result;
            }
        }
        let (worker, _) = WorkerProcess::spawn(&self.command, "helper")
            .map_err(|error| Failure::Worker(format!("the template helper cannot be started: {error}")))?;
        let died = || Failure::Worker("the model's chat template took too much memory to render".into());
        self.ask(worker, job).await.unwrap_or_else(|| Err(died()))
    }

    /// Renders in the given process and returns it to the pool if it replies. Returns `None` if the process died.
    async fn ask(&self, worker: WorkerProcess, job: RenderJob) -> Option<Result<RenderedChat, Failure>> {
        match tokio::time::timeout(RENDER_TIMEOUT, worker.ask(WorkerQuestion::Render(job))).await {
            Ok(Some(result)) => {
                // Put back while the permit is still held, so that the next render finds this process instead of
                // starting one more.
                self.idle.lock().await.push(worker);
                Some(result.and_then(|reply| match reply {
                    WorkerReply::Rendered(rendered) => Ok(*rendered),
                    _ => Err(Failure::Worker("the template helper answered something else".into())),
                }))
            }
            Ok(None) => None,
            Err(_) => {
                // A template that loops would loop in another process as well, so the render is not repeated.
                worker.kill().await;
                Some(Err(Failure::Worker(
                    "the model's chat template took too long to render".into(),
                )))
            }
        }
    }
}
