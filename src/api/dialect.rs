//! The wire dialects, and the choice of the one that an error is worded in.
//!
//! The file is separate from `envelope` because it uses every dialect, and every dialect uses the envelope.

use hyper::Response;

use super::{ApiEndpoint, anthropic, envelope::LayeredError, openai, reply};
use crate::http::body::Body;

/// Dialect that a reply is worded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Ollama,
    OpenAi,
    Anthropic,
}

impl Dialect {
    /// Returns the dialect of a request. Routes that are not served here have only a path to tell.
    pub(crate) fn of(endpoint: &ApiEndpoint, path: &str) -> Self {
        match endpoint {
            ApiEndpoint::OpenAiChat
            | ApiEndpoint::OpenAiCompletions
            | ApiEndpoint::OpenAiEmbeddings
            | ApiEndpoint::OpenAiResponses
            | ApiEndpoint::OpenAiTranscriptions
            | ApiEndpoint::OpenAiModels
            | ApiEndpoint::OpenAiModel { .. } => Self::OpenAi,
            ApiEndpoint::AnthropicMessages | ApiEndpoint::AnthropicCountTokens => Self::Anthropic,
            ApiEndpoint::Forward if path.starts_with("/v1/messages/") => Self::Anthropic,
            ApiEndpoint::Forward if path.starts_with("/v1/") => Self::OpenAi,
            _ => Self::Ollama,
        }
    }

    /// Returns the reply that says an error to a client of this dialect.
    pub(crate) fn error_reply(self, error: &LayeredError) -> Response<Body> {
        match self {
            Self::Ollama => reply::native_error(error.error()),
            Self::OpenAi => openai::error_reply(error),
            Self::Anthropic => anthropic::error_reply(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::{super::error::ApiError, *};
    use crate::provider::UpstreamError;

    #[tokio::test]
    async fn errors_of_a_forward_have_the_shape_of_their_dialect() {
        let error = LayeredError::from(ApiError::from(UpstreamError::Disabled));
        for (endpoint, path, content_type, start) in [
            (
                ApiEndpoint::Chat,
                "/api/chat",
                "application/json; charset=utf-8",
                r#"{"error":"not found: "#,
            ),
            (
                ApiEndpoint::OpenAiChat,
                "/v1/chat/completions",
                "application/json",
                r#"{"error":{"message":"not found: "#,
            ),
            (
                ApiEndpoint::Forward,
                "/v1/files",
                "application/json",
                r#"{"error":{"message":"not found: "#,
            ),
            (
                ApiEndpoint::AnthropicMessages,
                "/v1/messages",
                "application/json",
                r#"{"type":"error","error":{"type":"not_found_error","message":""#,
            ),
            (
                ApiEndpoint::Forward,
                "/v1/messages/batches",
                "application/json",
                r#"{"type":"error","error":{"type":"not_found_error","message":""#,
            ),
        ] {
            let response = Dialect::of(&endpoint, path).error_reply(&error);
            assert_eq!(response.status(), 404);
            assert_eq!(response.headers()["content-type"], content_type);
            let text = response.into_body().collect().await.unwrap().to_bytes();
            assert!(text.starts_with(start.as_bytes()), "{text:?}");
        }
    }
}
