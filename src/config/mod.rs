//! Configuration as plain data: every setting, the sources it can come from, and the checks it has to pass.
//!
//! Four sources are laid over one another; a later one wins: defaults, the TOML file, environment variables, the
//! command line. The table in `keys` lists every key once. Reading, comparing, describing and the tests over
//! `config.toml.example` walk that table, so a key cannot be known to one of them and missing in another.
//!
//! * [`load()`] reads all sources and returns a [`LoadedConfig`], or every problem at once ([`ConfigProblems`]).
//! * [`ConfigStore`] holds the snapshot in force and replaces it as a whole on a reload.
//! * [`watch`] notices changed files and asks for a reload through a [`ReloadHandle`].
//!
//! The daemon owns the store. Other components receive their own section, such as [`HubConfig`]; nothing in this module
//! acts on a setting.

mod address;
mod backups;
mod describe;
mod diff;
mod document;
mod env;
mod keys;
mod load;
mod paths;
mod problem;
mod reload;
mod store;
mod suggest;
mod types;
mod validate;
mod value;
pub mod watch;

#[cfg(test)]
mod tests;

pub use describe::{CheckReport, check_report};
pub use load::{ConfigInputs, LoadedConfig, load};
pub use problem::{ConfigProblem, ConfigProblems};
pub use reload::{ReloadHandle, ReloadReason, ReloadRequest};
pub use store::{ConfigStore, ReloadOutcome};
pub use types::{
    Config, EngineConfig, HubConfig, JsonSchemas, LogConfig, LogFormat, ModelConfig, OllamaConfig, ProviderName,
    SafetensorsMode, ServerConfig, TokenizerMismatch, UnsupportedTools, XetUse,
};
