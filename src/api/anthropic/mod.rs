//! Anthropic dialect (`/v1/messages`): messages and the count of their tokens, as Ollama's shim speaks it.
//!
//! The parameters and results that the shim drops (`tool_choice`, the thinking budget, the stop sequence that ended the
//! answer) are honored for hf: models.

mod content;
mod events;
mod messages;
mod request;
#[cfg(test)]
mod tests;
mod tools;

pub(crate) use messages::{count_tokens, count_without_model, messages, messages_without_model};

use hyper::{Response, StatusCode};
use serde::Serialize;

use super::{envelope::LayeredError, error::ApiError};
use crate::http::body::Body;

/// Status of an overloaded server in Anthropic's API.
const OVERLOADED: u16 = 529;

#[derive(Serialize)]
struct Envelope<'a> {
    r#type: &'static str,
    error: Inner<'a>,
    request_id: String,
}

#[derive(Serialize)]
struct Inner<'a> {
    r#type: &'static str,
    message: &'a str,
}

impl<'a> Inner<'a> {
    fn new(error: &'a ApiError) -> Self {
        let kind = match error.status {
            StatusCode::BAD_REQUEST => "invalid_request_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            other if other.as_u16() == OVERLOADED => "overloaded_error",
            _ => "api_error",
        };
        Self {
            r#type: kind,
            message: &error.message,
        }
    }
}

/// Returns the reply that says an error to a client of this dialect.
pub(crate) fn error_reply(error: &LayeredError) -> Response<Body> {
    error.respond(&envelope(error.error()))
}

fn envelope(error: &ApiError) -> Envelope<'_> {
    Envelope {
        r#type: "error",
        error: Inner::new(error),
        request_id: new_id("req"),
    }
}

/// Returns a new random id: a prefix, an underscore and 24 hex digits.
fn new_id(prefix: &str) -> String {
    format!("{prefix}_{:024x}", rand::random::<u128>() >> 32)
}
