//! Why there is no answer. Which status that is belongs to the dialects.

use serde::{Deserialize, Serialize};

/// Why a provider could not answer, in variants a dialect acts on. The text of each is fit for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// Nothing answers to that name; the text is the name as it was requested.
    #[error("model '{0}' not found")]
    NotFound(String),
    /// The name is well formed and its repository is there, but what it selects is not. Status 404; the text lists what is there.
    #[error("{0}")]
    SelectorNotFound(String),
    /// The name breaks the grammar. Status 400.
    #[error("{0}")]
    InvalidName(String),
    /// The request cannot be served by any means; status 400.
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
    /// Too many requests wait already; status 503.
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
    /// Something that the request depends on (the Hub, the disk) failed; status 500.
    #[error("{0}")]
    Unavailable(String),
    /// Another server, which was asked for the answer, refused with this status and these words.
    #[error("{message}")]
    Upstream {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The request was given up by its client; status 499.
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
