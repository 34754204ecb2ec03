//! Pulls: from a name to a model that is complete on this machine.
//!
//! [`PullProgress::start`] spawns a [`PullJob`], which asks the Hub for a [`plan`](PullPlan), downloads the missing
//! files, converts a checkpoint, and reports each step through [`PullEvents`] in the order in which Ollama reports its
//! own.

mod adapters;
mod base;
mod convert;
mod download;
mod events;
mod plan;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::{sync::mpsc, task::AbortHandle, time::timeout};

use super::{Library, blocking, error::LibraryError};
use crate::{
    config::HubConfig,
    hub::{HfName, HubError, ledger::PullRecord},
    inference::PullEvent,
};

pub(super) use adapters::plan as plan_adapter;
pub(super) use plan::{PullPlan, blob_hashes};

use events::PullEvents;

/// Longest wait for the Hub's answer when there is a cached model to fall back to.
const SHORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Events that are buffered for a slow reader. The downloads do not wait for the reader, only the job that reports
/// them.
const QUEUE: usize = 16;

/// Pull progress: the events of one pull, as a stream. Dropping it cancels the pull, unless another pull waits for the
/// same downloads; the bytes that arrived stay for the next pull.
#[derive(Debug)]
pub struct PullProgress {
    events: mpsc::Receiver<Result<PullEvent, LibraryError>>,
    task: AbortHandle,
}

impl PullProgress {
    pub(super) fn start(library: Library, config: Arc<HubConfig>, name: HfName) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let job = PullJob::new(library, config, name, PullEvents::new(sender.clone()));
        let task = tokio::spawn(async move {
            if let Err(error) = job.run().await {
                // Fails if the reader is gone, which needs no report.
                let _ = sender.send(Err(error)).await;
            }
        });
        Self {
            events,
            task: task.abort_handle(),
        }
    }
}

/// Pull job: one pull from its name to its links in the cache.
struct PullJob {
    library: Library,
    config: Arc<HubConfig>,
    name: HfName,
    /// The name without its adapters.
    base: HfName,
    events: PullEvents,
}

impl PullJob {
    fn new(library: Library, config: Arc<HubConfig>, name: HfName, events: PullEvents) -> Self {
        let base = HfName {
            adapters: Vec::new(),
            ..name.clone()
        };
        Self {
            library,
            config,
            name,
            base,
            events,
        }
    }

    async fn run(&self) -> Result<(), LibraryError> {
        self.events.status("pulling manifest").await?;
        let adapters = self.plan_adapters().await?;
        self.pull_base().await?;
        if !adapters.is_empty() {
            self.pull_adapters(adapters).await?;
        }
        self.events.status("success").await
    }

    /// Records in the ledger where a model was pulled from.
    async fn record(&self, key: String, record: PullRecord) -> Result<(), LibraryError> {
        let library = self.library.clone();
        blocking(move || Ok(library.0.ledger.pulled(&key, record)?)).await
    }
}

impl Stream for PullProgress {
    type Item = Result<PullEvent, LibraryError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

impl Drop for PullProgress {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks the Hub something once, without retries and for at most [`SHORT_TIMEOUT`], for callers that can do without the
/// answer.
///
/// # Errors
/// The error of `ask`, or [`HubError::Stalled`] when the time is over.
async fn with_short_timeout<T, E: From<HubError>, F: Future<Output = Result<T, E>>>(
    config: &Arc<HubConfig>,
    ask: impl FnOnce(Arc<HubConfig>) -> F,
) -> Result<T, E> {
    let without_retries = HubConfig {
        retry_attempts: 0,
        ..(**config).clone()
    };
    let after = config.connect_timeout.min(SHORT_TIMEOUT);
    match timeout(after, ask(Arc::new(without_retries))).await {
        Ok(result) => result,
        Err(_) => Err(HubError::Stalled {
            host: config.endpoint.clone(),
            after,
        }
        .into()),
    }
}
