//! How far a conversion is.

use serde::{Deserialize, Serialize};

/// What is done at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversionStage {
    /// Configuration, headers and tokenizer are read and tried; nothing is counted.
    #[default]
    Planning,
    /// The file is written.
    Writing,
    /// What was written is made durable.
    Syncing,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversionProgress {
    /// What is done at the moment.
    pub stage: ConversionStage,
    /// Bytes of the file that are written.
    pub done: u64,
    /// Bytes of the whole file; 0 before they are known.
    pub total: u64,
}
