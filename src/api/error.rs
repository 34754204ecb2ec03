//! Error of every dialect: a status and a sentence for the user. `envelope` puts it on the wire.

use hyper::StatusCode;

use crate::{go::decode::DecodeError, inference::Failure, provider::UpstreamError};

/// Status of a request that its client has canceled. It is not registered, but Ollama sends it, as nginx does.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Error as an answer to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Returns Ollama's error for a request without a model.
    pub(crate) fn model_required() -> Self {
        Self::bad_request("model is required")
    }

    /// Returns Ollama's error for an unknown model. Clients look for `not found` in it, and pull the model then.
    pub(crate) fn model_not_found(requested: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("model '{requested}' not found"))
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let status = match &failure {
            Failure::NotFound(_) | Failure::SelectorNotFound(_) => StatusCode::NOT_FOUND,
            Failure::InvalidName(_) | Failure::Invalid(_) | Failure::ContextExceeded { .. } => StatusCode::BAD_REQUEST,
            Failure::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Failure::Forbidden(_) => StatusCode::FORBIDDEN,
            // Ollama answers a failed load with 500, and keeps 503 for a full queue.
            Failure::Load(_) | Failure::Worker(_) | Failure::Unavailable(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Failure::Upstream { status, .. } => StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY),
            Failure::Cancelled => client_closed_request(),
        };
        Self::new(status, failure.to_string())
    }
}

impl From<UpstreamError> for ApiError {
    fn from(error: UpstreamError) -> Self {
        Self::new(error.status(), error.to_string())
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        Self::bad_request(error.to_string())
    }
}

fn client_closed_request() -> StatusCode {
    // Every number from 100 to 999 is a status code here, so the fallback is never taken.
    StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_the_status_that_ollama_gives_it() {
        for (failure, status, message) in [
            (
                Failure::NotFound("hf:o/r:Q9".into()),
                404,
                "model 'hf:o/r:Q9' not found",
            ),
            (
                Failure::SelectorNotFound("no Q9 in o/r; there are Q4".into()),
                404,
                "no Q9 in o/r; there are Q4",
            ),
            (Failure::InvalidName("bad".into()), 400, "bad"),
            (Failure::Invalid("bad".into()), 400, "bad"),
            (
                Failure::ContextExceeded {
                    prompt_tokens: 1210,
                    context_length: 256,
                },
                400,
                "request (1210 tokens) exceeds the available context size (256 tokens), try increasing it",
            ),
            (
                Failure::Busy,
                503,
                "server busy, please try again.  maximum pending requests exceeded",
            ),
            (Failure::Forbidden("gated".into()), 403, "gated"),
            (Failure::Load("no memory".into()), 500, "no memory"),
            (Failure::Worker("died".into()), 500, "died"),
            (Failure::Unavailable("disk full".into()), 500, "disk full"),
            (
                Failure::Upstream {
                    status: 501,
                    message: "no embeddings here".into(),
                },
                501,
                "no embeddings here",
            ),
            (Failure::Cancelled, 499, "request canceled"),
        ] {
            let error = ApiError::from(failure);
            assert_eq!((error.status.as_u16(), error.message.as_str()), (status, message));
        }
    }
}
