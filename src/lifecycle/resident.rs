//! The state of one model that is loading, resident or stopping, and the load itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    command::AcquireRequest,
    policy::{self, EvictionCandidate},
    process::{LoadReport, WorkerCommand, WorkerProcess},
};
use crate::{
    inference::{KeepAlive, ResidentModel},
    worker::protocol::{LoadSpec, LoadedModel},
};

/// A model in the manager's table.
pub(super) struct ResidentEntry {
    /// Number of the load. It tells reports about an earlier process of the same model from reports about this one.
    pub(super) load_id: u64,
    /// Request that started the load.
    pub(super) request: AcquireRequest,
    pub(super) state: ResidentState,
    /// True when the model was asked to unload while it was loading.
    pub(super) unload_when_ready: bool,
}

pub(super) enum ResidentState {
    Loading {
        cancel: CancellationToken,
    },
    Ready(ReadyModel),
    /// The process is ending. The entry is removed when it is gone, so that its memory is free before the next load.
    Stopping,
}

/// A loaded model that can give leases.
pub(super) struct ReadyModel {
    pub(super) worker: WorkerProcess,
    pub(super) loaded: LoadedModel,
    pub(super) leases: Arc<AtomicUsize>,
    pub(super) keep_alive: KeepAlive,
    /// Start of the current idle period; `None` while there are leases.
    pub(super) idle_since: Option<Instant>,
    /// Compute threads that the worker was last granted.
    pub(super) threads: u32,
    /// True when the model gives no new leases and is unloaded once it is idle.
    pub(super) draining: bool,
}

impl ResidentEntry {
    pub(super) fn ready(&self) -> Option<&ReadyModel> {
        match &self.state {
            ResidentState::Ready(ready) => Some(ready),
            _ => None,
        }
    }

    pub(super) fn ready_mut(&mut self) -> Option<&mut ReadyModel> {
        match &mut self.state {
            ResidentState::Ready(ready) => Some(ready),
            _ => None,
        }
    }

    /// Returns the entry for `/api/ps`; `None` unless the model is ready.
    pub(super) fn describe(&self, now: Instant, wall_clock: SystemTime) -> Option<ResidentModel> {
        let ready = self.ready()?;
        // For a model in use: the time at which it would be unloaded if its last request ended now.
        let expires = policy::expires(ready.idle_since.unwrap_or(now), ready.keep_alive);
        Some(ResidentModel {
            card: self.request.card.clone(),
            size_bytes: ready.loaded.size_bytes,
            device_bytes: ready.loaded.device_bytes,
            expires_at: expires.and_then(|at| wall_clock.checked_add(at.saturating_duration_since(now))),
            context_length: ready.loaded.context_length,
        })
    }
}

impl ReadyModel {
    pub(super) fn lease_count(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.lease_count() > 0
    }

    /// Starts or ends the idle period according to the number of leases.
    pub(super) fn update_idle_since(&mut self, now: Instant) {
        self.idle_since = match self.is_in_use() {
            true => None,
            false => Some(self.idle_since.unwrap_or(now)),
        };
    }

    /// Returns true if the model is idle and its time is over or it is draining.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.idle_since.is_some_and(|since| {
            self.draining || policy::expires(since, self.keep_alive).is_some_and(|expires| expires <= now)
        })
    }

    pub(super) fn candidate(&self) -> EvictionCandidate {
        EvictionCandidate {
            leases: self.lease_count(),
            keep_alive: self.keep_alive,
            idle_since: self.idle_since,
        }
    }
}

/// Reason why a load failed.
pub(super) enum LoadError {
    /// llama.cpp refused the file.
    Refused(String),
    /// The process died, made no progress, or could not be started.
    Died(String),
    /// No request waited for the model any more.
    Cancelled,
}

/// Starts a worker and waits until its model is loaded. Aborts after `timeout` without progress, or when `cancel` is
/// triggered. On an error the process is gone, with its memory, when this returns.
pub(super) async fn load(
    command: &WorkerCommand,
    spec: LoadSpec,
    timeout: Duration,
    cancel: &CancellationToken,
) -> Result<(WorkerProcess, LoadedModel), LoadError> {
    let (worker, reports) = WorkerProcess::spawn(command, "model")
        .map_err(|error| LoadError::Died(format!("the worker cannot be started: {error}")))?;
    let result = tokio::select! {
        result = wait_until_loaded(&worker, spec, reports, timeout) => result,
        () = cancel.cancelled() => Err(LoadError::Cancelled),
    };
    match result {
        Ok(loaded) => Ok((worker, loaded)),
        Err(error) => {
            worker.kill().await;
            Err(error)
        }
    }
}

async fn wait_until_loaded(
    worker: &WorkerProcess,
    spec: LoadSpec,
    mut reports: mpsc::Receiver<LoadReport>,
    timeout: Duration,
) -> Result<LoadedModel, LoadError> {
    let died = LoadError::Died;
    worker.load(spec).await.map_err(|failure| died(failure.to_string()))?;
    loop {
        // The limit is for each report and not for the load: a large file may take long, as long as it advances.
        match tokio::time::timeout(timeout, reports.recv()).await {
            Ok(Some(LoadReport::Progress(fraction))) => tracing::debug!(fraction, "loading"),
            Ok(Some(LoadReport::Loaded(loaded))) => return Ok(loaded),
            Ok(Some(LoadReport::Failed(reason))) => return Err(LoadError::Refused(reason)),
            Ok(None) => return Err(died("the worker process died while loading".into())),
            Err(_) => return Err(died(format!("no progress for {} s", timeout.as_secs()))),
        }
    }
}
