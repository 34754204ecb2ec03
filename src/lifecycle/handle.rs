//! The handle of the lifecycle task, and what is sent to it.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{lease::Lease, manager::Manager, model_key::ModelKey, process::WorkerCommand};
use crate::{
    inference::{Failure, KeepAlive, ModelCard, ResidentModel},
    worker::protocol::LoadSpec,
};

/// Commands that may wait for the task.
const COMMAND_QUEUE: usize = 256;

/// A request for a resident model.
#[derive(Clone, Debug)]
pub struct AcquireRequest {
    /// Listing entry of the model, shown for the resident.
    pub card: ModelCard,
    /// Load settings. The files in it are the model's identity. A resident with a smaller context length is reloaded;
    /// all other differences are ignored while the model is resident.
    pub spec: LoadSpec,
    /// New keep-alive of the resident; `None` leaves it unchanged.
    pub keep_alive: Option<KeepAlive>,
    /// Keep-alive of a model that this request loads.
    pub default_keep_alive: KeepAlive,
    /// Limits from the request's configuration snapshot.
    pub limits: AdmissionLimits,
}

/// Limits that a request is admitted under.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    /// Models in memory at once.
    pub max_loaded: usize,
    /// Requests that may wait for a load, and requests that may wait for their turn on each model.
    pub max_queue: usize,
    /// Time without progress after which a load is aborted.
    pub load_timeout: Duration,
    /// Compute threads shared by all models.
    pub threads: u32,
}

/// A model that is refused for a while because its last loads ended with a dead process.
#[derive(Clone, Debug)]
pub struct QuarantinedModel {
    pub key: ModelKey,
    /// Consecutive loads that died.
    pub deaths: u32,
    /// Reason of the last death.
    pub reason: String,
}

/// Fill levels of the task, for `/health`.
#[derive(Clone, Debug, Default)]
pub struct LifecycleHealth {
    /// Models that are ready.
    pub resident: usize,
    /// Models that are loading or stopping.
    pub in_transition: usize,
    /// Requests that wait for a model.
    pub waiting: usize,
    /// Requests that hold a lease: answers in progress, and requests that wait for a slot of their model.
    pub answering: usize,
    pub quarantined: Vec<QuarantinedModel>,
}

/// A command to the lifecycle task.
pub(super) enum LifecycleCommand {
    Acquire(Box<AcquireRequest>, oneshot::Sender<Result<Lease, Failure>>),
    Unload(ModelKey),
    ListResidents(oneshot::Sender<Vec<ResidentModel>>),
    Stop(oneshot::Sender<()>),
}

/// Handle of the lifecycle task. All clones control the same task.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    commands: mpsc::Sender<LifecycleCommand>,
    health: watch::Receiver<LifecycleHealth>,
    changed: Arc<Notify>,
}

/// Wakes the task when a request ends, even if its client went away: the request's place in the queue may be free now, or
/// the load that it waited for may have no other taker.
struct WakeOnDrop(Arc<Notify>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl std::fmt::Debug for LifecycleCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LifecycleCommand")
    }
}

impl Lifecycle {
    /// Starts the task on the current Tokio runtime.
    #[must_use]
    pub fn start(command: WorkerCommand) -> Self {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let (publish, health) = watch::channel(LifecycleHealth::default());
        let changed = Arc::new(Notify::new());
        tokio::spawn(Manager::new(command, publish, Arc::clone(&changed)).run(receiver));
        Self {
            commands,
            health,
            changed,
        }
    }

    /// Returns the fill levels of the last change.
    #[must_use]
    pub fn health(&self) -> LifecycleHealth {
        self.health.borrow().clone()
    }

    /// Waits until the model is resident. Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    /// [`Failure::Busy`] if the queue is full; [`Failure::Load`] with the reason if the model cannot be loaded.
    pub async fn acquire(&self, request: AcquireRequest) -> Result<Lease, Failure> {
        // Declared before `receiver`, so that it is dropped after it: when the task wakes, it sees the reply channel closed.
        let _wake = WakeOnDrop(Arc::clone(&self.changed));
        let (sender, receiver) = oneshot::channel();
        let stopped = || Failure::Unavailable("hubllama is stopping".into());
        self.commands
            .send(LifecycleCommand::Acquire(Box::new(request), sender))
            .await
            .map_err(|_| stopped())?;
        receiver.await.map_err(|_| stopped())?
    }

    /// Unloads a model as soon as it is idle. Does nothing if it is not resident.
    pub async fn unload(&self, key: ModelKey) {
        let _ = self.commands.send(LifecycleCommand::Unload(key)).await;
    }

    /// Returns the models in memory; an empty list once the task has stopped.
    pub async fn residents(&self) -> Vec<ResidentModel> {
        let (sender, receiver) = oneshot::channel();
        if self
            .commands
            .send(LifecycleCommand::ListResidents(sender))
            .await
            .is_err()
        {
            return Vec::new();
        }
        receiver.await.unwrap_or_default()
    }

    /// Stops every worker process and the task. Returns when all processes are gone.
    pub async fn stop(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(LifecycleCommand::Stop(sender)).await.is_ok() {
            let _ = receiver.await;
        }
    }
}
