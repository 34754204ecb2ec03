//! The Hugging Face Hub and its cache: repository names and which files they stand for, the network client, verified
//! downloads, and the layout of the cache that huggingface_hub, llama.cpp and other programs share.
//!
//! [`crate::library`] is built on top of it and decides what is downloaded, listed and removed.

pub(crate) mod adopt;
mod api;
mod backoff;
pub(crate) mod cache;
pub(crate) mod client;
pub(crate) mod disk;
pub(crate) mod download;
mod endpoints;
mod error;
mod fetch;
pub(crate) mod ledger;
pub mod name;
pub(crate) mod partial;
pub(crate) mod pool;
mod refusal;
pub mod resolve;
pub(crate) mod search;
pub(crate) mod target;
pub(crate) mod tasks;
mod throttle;
mod transfer;
mod wire;
mod xet;

pub use cache::{CachedModel, find_snapshot};
pub use client::HubReachability;
pub use error::HubError;
pub use name::{HfName, NameError, Selector};
pub use resolve::ResolveError;
pub use search::SearchHit;
