//! Failures of a provider.
//!
//! The vocabulary is Ollama's: each variant names its HTTP status in Ollama's dialect, and a sentence that is fixed
//! here is Ollama's own. The dialects of OpenAI and Anthropic keep that status and derive the error type of their
//! envelopes from it.

use serde::{Deserialize, Serialize};

/// Failure of a provider to answer, in variants that a dialect distinguishes. The text of each is shown to the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No model has this name; status 404. The text is the name as requested.
    #[error("model '{0}' not found")]
    NotFound(String),
    /// The repository exists, but has no file for the name's selector; status 404. The text lists the available
    /// selectors.
    #[error("{0}")]
    SelectorNotFound(String),
    /// The name is malformed; status 400.
    #[error("{0}")]
    InvalidName(String),
    /// The request cannot be served as it is; status 400.
    #[error("{0}")]
    Invalid(String),
    /// The prompt is longer than the context window; status 400.
    #[error(
        "request ({prompt_tokens} tokens) exceeds the available context size ({context_length} tokens), try increasing it"
    )]
    ContextExceeded {
        /// Tokens in the rendered prompt.
        prompt_tokens: u32,
        /// Tokens in the context window of one sequence.
        context_length: u32,
    },
    /// The queue of waiting requests is full; status 503.
    #[error("server busy, please try again.  maximum pending requests exceeded")]
    Busy,
    /// Access to the repository was refused; status 403.
    #[error("{0}")]
    Forbidden(String),
    /// The model could not be made ready; status 500.
    #[error("{0}")]
    Load(String),
    /// The worker process died or broke the protocol under this request; status 500.
    #[error("{0}")]
    Worker(String),
    /// A dependency of the request (the Hub, the disk) failed; status 500.
    #[error("{0}")]
    Unavailable(String),
    /// Ollama, to which the request was forwarded, answered with this status, or could not be reached.
    #[error("{message}")]
    Upstream { status: u16, message: String },
    /// The client has disconnected; status 499.
    #[error("request canceled")]
    Cancelled,
}

impl Failure {
    /// Returns the failure for a worker that was silent for `timeout`.
    #[must_use]
    pub fn stalled(timeout: std::time::Duration) -> Self {
        let seconds = timeout.as_secs();
        Self::Worker(format!(
            "the model made no progress for {seconds} s (engine.stream_timeout)"
        ))
    }
}
