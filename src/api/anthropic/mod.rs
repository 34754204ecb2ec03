//! The Anthropic dialect (`/v1/messages`): messages and the count of their tokens, as Ollama's shim speaks it, with what
//! that shim drops (`tool_choice`, the thinking budget, which stop sequence it was) honoured.

mod content;
mod events;
mod messages;
mod request;
#[cfg(test)]
mod tests;
mod tools;

pub(crate) use messages::{count_tokens, messages, nameless, nameless_count};

use hyper::{Response, StatusCode};
use serde::Serialize;

use super::{
    error::ApiError,
    reply::{self, JSON, JSON_UTF8},
};
use crate::http::body::Body;

/// Anthropic's own status for a server that has too much to do.
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

/// An error that Ollama's shim finds by itself: no line feed.
pub(crate) fn error(error: &ApiError) -> Response<Body> {
    reply::bytes(error.status, JSON_UTF8, reply::encode(&envelope(error)))
}

/// An error that the native handler behind the shim finds: with a line feed, and another content type.
fn handler_error(error: &ApiError) -> Response<Body> {
    let mut bytes = reply::encode(&envelope(error));
    bytes.push(b'\n');
    reply::bytes(error.status, JSON, bytes)
}

/// A whole answer; every one ends with a line feed on this wire.
fn answer<T: Serialize>(value: &T) -> Response<Body> {
    let mut bytes = reply::encode(value);
    bytes.push(b'\n');
    reply::bytes(StatusCode::OK, JSON, bytes)
}

fn envelope(error: &ApiError) -> Envelope<'_> {
    Envelope {
        r#type: "error",
        error: Inner::new(error),
        request_id: id("req"),
    }
}

/// A new id: 24 hex digits behind a word.
fn id(word: &str) -> String {
    format!("{word}_{:024x}", rand::random::<u128>() >> 32)
}
