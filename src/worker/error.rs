//! Errors inside a worker, before they become a [`Failure`](crate::inference::Failure) or a report to the daemon.

use super::constraint::SchemaError;
use crate::{convert::ConvertError, llama::LlamaError};

/// Failed load or job. Each text is one sentence, fit for the user.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The checkpoint that a model is streamed from cannot be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("encoder-decoder models are not supported")]
    EncoderDecoder,
    #[cfg(not(target_os = "linux"))]
    #[error("a checkpoint cannot be loaded on this platform without a file made of it")]
    NoStreams,
    #[error("a thread could not be started: {0}")]
    Thread(std::io::Error),
    #[error("the template engine panicked")]
    TemplatePanic,
    /// A tool call is required, but nothing marks the beginning of one in the template's format.
    #[error("the format of calls has no mark at their beginning")]
    NoCallMark,
    #[error("no token is left to choose from")]
    NoTokenLeft,
    #[error("llama.cpp returned no logits")]
    NoLogits,
}
