//! Configuration as plain data: what can be set, where it comes from, and whether it is right.
//!
//! Command line, environment, file, default: the first that says something wins. One table, `keys`, knows every key;
//! reading, comparing, showing and the tests over `config.toml.example` all walk it. The live snapshot is
//! [`ConfigStore`]'s. Components receive their own section, never the whole [`Config`]; nothing here acts on a setting.

mod address;
pub mod backups;
mod describe;
mod diff;
mod document;
mod env;
mod keys;
mod load;
mod paths;
mod problem;
mod store;
mod suggest;
mod types;
mod validate;
mod value;
pub mod watch;

#[cfg(test)]
mod tests;

pub use describe::{Report, check_report, describe, redacted};
pub use diff::Diff;
pub use env::Environment;
pub use load::{Inputs, Loaded, load};
pub use problem::{Origin, Problem, Problems, Shadowed};
pub use store::{Change, Commit, ConfigStore, Outcome, Prepare, Reason, ReloadHandle, ReloadRequest, Status};
pub use types::{
    Config, EngineConfig, HubConfig, JsonSchemas, LogConfig, LogFormat, ModelConfig, OllamaConfig, ProviderName,
    Safetensors, ServerConfig, TokenizerMismatch, UnsupportedTools, WeightType, XetUse,
};
