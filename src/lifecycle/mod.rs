//! Which models are in memory, and the processes that hold them.
//!
//! One task owns the state ([`Lifecycle`] is its handle), so that what spans several models changes at once. It never
//! blocks: loads and stops run beside it and report back. What it decides is in `policy`, pure and tested alone.

mod conversion;
mod helper;
mod manager;
mod policy;
mod process;
mod suspects;

pub use conversion::convert;
pub use helper::Helper;
pub use manager::{Lease, Lifecycle, LifecycleHealth, Limits, Quarantined, Resident, Wanted};
pub use policy::default_parallel;
pub use process::{JobStream, WorkerCommand};
