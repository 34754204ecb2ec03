//! The error of operations on the models of this machine.

use crate::{convert::ConvertError, hub::HubError, inference::Failure, stdx::task::UnfinishedWork};

/// Library error: the reason why a model could not be located, pulled, converted, imported or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// The network, the cache or a name.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The adapter cannot be applied at all, or not to this base model.
    #[error("the adapter {repo} cannot be used: {error}")]
    Adapter {
        /// `ORG/ADAPTER`.
        repo: String,
        error: Box<ConvertError>,
    },
    /// The checkpoint cannot become a GGUF file, on this machine or any other.
    #[error("{repo} cannot be served from its safetensors: {error}{}", alternatives_text(.alternatives))]
    Checkpoint {
        /// `ORG/REPO`.
        repo: String,
        error: Box<ConvertError>,
        /// Repositories with GGUF files of the same model, as `ORG/REPO`.
        alternatives: Vec<String>,
    },
    /// The conversion failed for a reason that lies in this machine or this program.
    #[error("the safetensors could not be converted: {0}")]
    Conversion(Box<ConvertError>),
    /// The file cannot become a model of the cache.
    #[error("cannot import {path}: {reason}; name a .gguf file")]
    Import { path: String, reason: String },
}

impl LibraryError {
    /// Wraps the error of an adapter's conversion.
    pub(super) fn adapter(repo: &str, error: ConvertError) -> Self {
        match Self::conversion(repo, error) {
            Self::Checkpoint { repo, error, .. } => Self::Adapter { repo, error },
            other => other,
        }
    }

    /// Wraps the error of a checkpoint's conversion.
    pub(super) fn conversion(repo: &str, error: ConvertError) -> Self {
        match error {
            ConvertError::Cancelled => HubError::Cancelled.into(),
            error if error.is_local() => Self::Conversion(error.into()),
            error => Self::Checkpoint {
                repo: repo.to_owned(),
                error: error.into(),
                alternatives: Vec::new(),
            },
        }
    }

    /// Returns true if no complete model in the cache has the name.
    #[must_use]
    pub fn is_not_cached(&self) -> bool {
        matches!(self, Self::Hub(HubError::NotCached(_)))
    }

    /// Returns true if the Hub gave no usable answer, so that a cached model serves the user better than the error.
    pub(super) fn is_hub_failure(&self) -> bool {
        match self {
            Self::Hub(HubError::Offline(_) | HubError::Protocol { .. }) => true,
            Self::Hub(error) => error.is_transient(),
            _ => false,
        }
    }
}

impl From<UnfinishedWork> for LibraryError {
    fn from(error: UnfinishedWork) -> Self {
        Self::Hub(error.into())
    }
}

impl From<LibraryError> for Failure {
    fn from(error: LibraryError) -> Self {
        let text = error.to_string();
        match error {
            LibraryError::Hub(error) => error.into(),
            LibraryError::Adapter { .. } | LibraryError::Checkpoint { .. } | LibraryError::Import { .. } => {
                Self::Invalid(text)
            }
            LibraryError::Conversion(_) => Self::Unavailable(text),
        }
    }
}

fn alternatives_text(repositories: &[String]) -> String {
    if repositories.is_empty() {
        return String::new();
    }
    let names: Vec<String> = repositories.iter().map(|repo| format!("hf:{repo}")).collect();
    format!("; repositories with GGUF files of it: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fault_decides_the_failure() {
        let refused = LibraryError::conversion("o/r", ConvertError::Architecture("Odd".into()));
        assert!(matches!(Failure::from(refused), Failure::Invalid(text) if text.starts_with("o/r cannot be served")));
        let died = LibraryError::conversion("o/r", ConvertError::Engine("the converter died".into()));
        let text = "the safetensors could not be converted: the converter died";
        assert_eq!(Failure::from(died), Failure::Unavailable(text.into()));
        let refused = LibraryError::adapter("o/a", ConvertError::Adapter("it has no factors".into()));
        let text = "the adapter o/a cannot be used: it has no factors";
        assert_eq!(Failure::from(refused), Failure::Invalid(text.into()));
        assert_eq!(
            LibraryError::conversion("o/r", ConvertError::Cancelled),
            HubError::Cancelled.into()
        );
    }
}
