//! The commands that the handle sends to the lifecycle task, and the state that the task publishes.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{lease::Lease, model_key::ModelKey};
use crate::{
    inference::{Failure, KeepAlive, ModelCard, ResidentModel},
    worker::protocol::LoadSpec,
};

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

impl std::fmt::Debug for LifecycleCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LifecycleCommand")
    }
}
