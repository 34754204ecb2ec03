//! The error of the network, the cache and names, in variants that a caller acts on and sentences that say what to do.

use std::{io, path::Path, time::Duration};

use super::{name::NameError, resolve::ResolveError};
use crate::{inference::Failure, stdx::task::UnfinishedWork};

/// Hub error: the reason why a name could not be resolved, or a file not be downloaded, found or written. All pulls
/// that wait for one download get a clone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The name breaks the grammar or can never be on the Hub.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No complete model in the cache has the name.
    #[error("model '{0}' not found")]
    NotCached(String),
    /// The repository does not exist, or is private and the token may not see it.
    #[error(
        "model repository {repo} not found at {endpoint}: check the spelling; if it is private, set HF_TOKEN to a \
         token that may read it"
    )]
    RepoNotFound {
        /// `ORG/REPO`.
        repo: String,
        /// Base URL of the Hub.
        endpoint: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("repository {repo} has no revision '{revision}': name a branch, a tag or a commit")]
    RevisionNotFound {
        /// `ORG/REPO`.
        repo: String,
        revision: String,
    },
    /// The commit has no such file.
    #[error("repository {repo} does not have the file {path} any more: pull again")]
    FileNotFound {
        /// `ORG/REPO`.
        repo: String,
        /// Path in the repository.
        path: String,
    },
    /// The terms of the repository have to be accepted first.
    #[error("access to {repo} is gated: accept its terms at {url} and set HF_TOKEN to a token of that account")]
    Gated {
        /// `ORG/REPO`.
        repo: String,
        /// Page with the terms.
        url: String,
    },
    /// The Hub does not accept the token.
    #[error("{endpoint} refused the access token: set HF_TOKEN to a valid one, or unset it for public models")]
    BadToken {
        /// Base URL of the Hub.
        endpoint: String,
    },
    /// The Hub refuses access for another reason.
    #[error("the Hub refuses access to {repo}: {message}; choose another repository or token")]
    Forbidden {
        /// `ORG/REPO`.
        repo: String,
        /// The Hub's reason.
        message: String,
    },
    /// Too many requests.
    #[error("the Hub limits the rate of requests: try again later, or set HF_TOKEN for a higher limit")]
    RateLimited {
        /// Pause that the Hub asked for.
        retry_after: Option<Duration>,
    },
    /// The model is not in the cache, and the Hub is switched off.
    #[error("{0} is not complete in the cache, and the Hub is switched off: unset HF_HUB_OFFLINE to download it")]
    Offline(String),
    /// The question can only be answered by the Hub, and the Hub is switched off.
    #[error("the Hub is switched off: unset HF_HUB_OFFLINE, or hub.offline in the configuration, to ask it")]
    SwitchedOff,
    /// No connection could be made.
    #[error("cannot reach {endpoint}: {reason}; check the network, the proxy settings and HF_ENDPOINT")]
    Unreachable {
        endpoint: String,
        /// Message of the network stack.
        reason: String,
    },
    /// The connection stayed open but no data arrived.
    #[error("no data from {host} for {} s: check the network and pull again, which resumes", .after.as_secs_f32())]
    Stalled { host: String, after: Duration },
    /// The transfer ended early.
    #[error("the transfer of {path} broke off: {reason}; pull again, which resumes")]
    Interrupted {
        /// Path in the repository.
        path: String,
        /// Message of the network stack.
        reason: String,
    },
    /// The server answered with an unexpected HTTP status.
    #[error("{host} answered with status {status}{message}: try again later")]
    Status {
        host: String,
        status: u16,
        /// Text of the answer with a separator in front, or empty.
        message: String,
    },
    /// The answer does not have the form of a Hub's answer.
    #[error("{host} does not behave like a Hub: {problem}; check HF_ENDPOINT and the proxy settings")]
    Protocol { host: String, problem: String },
    /// The address of the Hub is not a URL that can be used.
    #[error("the address of the Hub cannot be used: {0}; set HF_ENDPOINT to one such as https://huggingface.co")]
    Endpoint(String),
    /// The repository exists but has no model for the selector.
    #[error("{}", resolve_text(.repo, .error))]
    Resolve {
        /// `ORG/REPO`.
        repo: String,
        error: ResolveError,
    },
    /// The hash of the content is not the one that the Hub announced.
    #[error(
        "{path} is corrupt: expected hash {expected}, got {actual}; the file was discarded, pull again to fetch it"
    )]
    HashMismatch {
        /// Path in the repository.
        path: String,
        /// Announced hash, hex digits.
        expected: String,
        /// Hash of the received content, hex digits.
        actual: String,
    },
    /// Another process holds the lock of the file and makes no progress.
    #[error("another program holds {lock} and makes no progress with {path}: end it, or wait and pull again")]
    Locked {
        /// Path in the repository.
        path: String,
        /// Path of the lock file.
        lock: String,
    },
    /// The disk is too small.
    #[error("{path} needs {needed} more bytes, but {folder} has only {free} left: free space or move HF_HUB_CACHE")]
    DiskFull {
        /// Path in the repository.
        path: String,
        /// Folder of the cache.
        folder: String,
        /// Bytes that are missing.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}: {reason}; check the permissions and the space of the Hub's cache")]
    Io {
        /// The failed operation as a verb, for example "write".
        action: &'static str,
        path: String,
        /// Message of the operating system.
        reason: String,
    },
    /// The work was cancelled.
    #[error("the download was cancelled")]
    Cancelled,
}

impl HubError {
    /// Wraps an error of a file operation.
    pub(crate) fn io(action: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io {
            action,
            path: path.display().to_string(),
            reason: error.to_string(),
        }
    }

    /// Returns true if the same request is likely to succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Unreachable { .. } | Self::Stalled { .. } | Self::Interrupted { .. } => {
                true
            }
            Self::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

impl From<UnfinishedWork> for HubError {
    fn from(_: UnfinishedWork) -> Self {
        Self::Cancelled
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        let text = error.to_string();
        match error {
            HubError::Name(NameError::Malformed { .. }) => Self::InvalidName(text),
            HubError::Name(NameError::Cloud(name)) | HubError::NotCached(name) => Self::NotFound(name),
            HubError::RepoNotFound { .. }
            | HubError::RevisionNotFound { .. }
            | HubError::FileNotFound { .. }
            | HubError::Resolve { .. } => Self::SelectorNotFound(text),
            HubError::Gated { .. } | HubError::BadToken { .. } | HubError::Forbidden { .. } => Self::Forbidden(text),
            HubError::Cancelled => Self::Cancelled,
            HubError::RateLimited { .. }
            | HubError::Offline(_)
            | HubError::SwitchedOff
            | HubError::Unreachable { .. }
            | HubError::Stalled { .. }
            | HubError::Interrupted { .. }
            | HubError::Status { .. }
            | HubError::Protocol { .. }
            | HubError::Endpoint(_)
            | HubError::HashMismatch { .. }
            | HubError::Locked { .. }
            | HubError::DiskFull { .. }
            | HubError::Io { .. } => Self::Unavailable(text),
        }
    }
}

fn resolve_text(repo: &str, error: &ResolveError) -> String {
    match error {
        ResolveError::NoSuchSelector { selector, available } => {
            format!("{repo} has no '{selector}': choose one of {}", available.join(", "))
        }
        ResolveError::NoGguf { has_safetensors: true } => {
            format!(
                "{repo} has no GGUF files, and its safetensors are not a model with a config.json: choose a repository with GGUF files"
            )
        }
        ResolveError::NoGguf { has_safetensors: false } => {
            format!("{repo} has no GGUF files: choose a repository that has them")
        }
        ResolveError::IncompleteShards {
            label,
            present,
            expected,
        } => {
            format!("{repo} has only {present} of the {expected} parts of '{label}': choose another selector")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures() {
        let gated = HubError::Gated {
            repo: "o/r".into(),
            url: "https://h/o/r".into(),
        };
        let text =
            "access to o/r is gated: accept its terms at https://h/o/r and set HF_TOKEN to a token of that account";
        assert_eq!(Failure::from(gated), Failure::Forbidden(text.into()));
        let missing = HubError::Resolve {
            repo: "o/r".into(),
            error: ResolveError::NoSuchSelector {
                selector: "Q9".into(),
                available: vec!["Q4_0".into(), "F16".into()],
            },
        };
        let text = "o/r has no 'Q9': choose one of Q4_0, F16";
        assert_eq!(Failure::from(missing), Failure::SelectorNotFound(text.into()));
        assert_eq!(
            Failure::from(HubError::NotCached("hf:o/r".into())),
            Failure::NotFound("hf:o/r".into())
        );
    }
}
