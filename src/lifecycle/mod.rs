//! The models in memory and the processes that hold them.
//!
//! A worker process holds each resident model. One task (`manager`) owns the table of models and the
//! queue of requests, so that decisions that concern several models are atomic; [`Lifecycle`] is its handle. A request
//! acquires a [`Lease`] and keeps it as long as it uses the model; the task loads, evicts, unloads and shares cores
//! around the leases. Its decisions are the pure functions of `policy`.
//!
//! `process` supervises one worker process and speaks [`crate::worker::protocol`] with it. The processes of other roles
//! are started here, too: [`TemplateHelper`] renders chat templates, [`convert`] converts checkpoints.

mod command;
mod conversion;
mod handle;
mod helper;
mod job_stream;
mod lease;
mod manager;
mod model_key;
mod policy;
mod process;
mod quarantine;
mod resident;

pub use command::{AcquireRequest, AdmissionLimits, LifecycleHealth, QuarantinedModel};
pub use conversion::convert;
pub use handle::Lifecycle;
pub use helper::TemplateHelper;
pub use job_stream::JobStream;
pub use lease::Lease;
pub use model_key::ModelKey;
pub use policy::default_parallel;
pub use process::WorkerCommand;
