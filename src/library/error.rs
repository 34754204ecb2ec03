//! Errors of conversions, as errors of the Hub.

use crate::{convert::ConvertError, hub::HubError};

/// An error of an adapter's conversion.
pub(super) fn adapter(repo: &str, error: &ConvertError) -> HubError {
    match conversion(repo, error) {
        HubError::Checkpoint { repo, reason, .. } => HubError::Adapter { repo, reason },
        other => other,
    }
}

/// An error of a conversion.
pub(super) fn conversion(repo: &str, error: &ConvertError) -> HubError {
    match error {
        ConvertError::Io { .. } | ConvertError::Space { .. } | ConvertError::Engine(_) => {
            HubError::Converter(error.to_string())
        }
        ConvertError::Cancelled => HubError::Cancelled,
        _ => HubError::Checkpoint {
            repo: repo.to_owned(),
            reason: error.to_string(),
            alternatives: Vec::new(),
        },
    }
}
