//! Progress of a conversion, as the converter process reports it to the daemon and the command line.

use serde::{Deserialize, Serialize};

/// Stage of a conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversionStage {
    /// Configuration, headers and tokenizer are read and the tokenizer is compared with llama.cpp's. Bytes are not
    /// counted.
    #[default]
    Planning,
    /// Weights are converted and written.
    Writing,
    /// The file is flushed to disk.
    Syncing,
}

/// Progress of a conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversionProgress {
    pub stage: ConversionStage,
    /// Bytes written.
    pub done: u64,
    /// Bytes of the whole file; 0 while planning.
    pub total: u64,
}
