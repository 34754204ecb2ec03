//! The handle of the lifecycle task.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{
    command::{AcquireRequest, LifecycleCommand, LifecycleHealth},
    lease::Lease,
    manager::Manager,
    model_key::ModelKey,
    process::WorkerCommand,
};
use crate::inference::{Failure, ResidentModel};

/// Commands that may wait for the task.
const COMMAND_QUEUE: usize = 256;

/// Handle of the lifecycle task. All clones control the same task.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    commands: mpsc::Sender<LifecycleCommand>,
    health: watch::Receiver<LifecycleHealth>,
    changed: Arc<Notify>,
}

/// Wakes the task when a request ends, even if its client went away: the request's place in the queue may be free now,
/// or the load that it waited for may have no other taker.
struct WakeOnDrop(Arc<Notify>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        // `notify_one` keeps the notification if the task is busy; `notify_waiters` would lose it.
        self.0.notify_one();
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
        // Declared before `receiver`, so that it is dropped after it: when the task wakes, it sees the reply channel
        // closed.
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
        // A task that has stopped has unloaded everything.
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

    /// Stops all worker processes and the task. Returns when the processes of ready models are gone; those that are
    /// loading or stopping have been killed, but may take a moment longer.
    pub async fn stop(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(LifecycleCommand::Stop(sender)).await.is_ok() {
            let _ = receiver.await;
        }
    }
}
