//! Configuration as plain data: what can be set, where it comes from, and whether it is right.
//!
//! Components receive their own section, never the whole [`Config`]; nothing here acts on a setting.

mod types;

pub use types::{
    Config, EngineConfig, HubConfig, LogConfig, LogFormat, ModelConfig, OllamaConfig, ProviderName, ServerConfig,
    SplitMode, UnsupportedTools,
};
