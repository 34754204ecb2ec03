//! The OpenAI dialect (`/v1/*`) as Ollama's shim speaks it, and what that shim drops in silence.

mod chat;
mod choices;
mod chunks;
mod common;
mod completion_chunks;
mod completion_request;
mod completions;
mod content;
mod embeddings;
mod models;
mod request;
mod responses;
#[cfg(test)]
mod tests;
mod tools;
mod transcriptions;

pub(crate) use chat::{chat, nameless_chat};
pub(crate) use completions::{completions, nameless_completions};
pub(crate) use embeddings::{embeddings, nameless_embeddings};
pub(crate) use models::{model, models};
pub(crate) use responses::{nameless_responses, responses};
pub(crate) use transcriptions::{nameless_transcriptions, transcriptions};

use hyper::{Response, StatusCode};
use serde::Serialize;

use super::{
    decode::DecodeError,
    error::ApiError,
    reply::{self, JSON, JSON_UTF8},
};
use crate::http::body::Body;

#[derive(Serialize)]
struct Envelope<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

/// An error that Ollama's shim finds by itself: no line feed.
pub(crate) fn shim_error(error: &ApiError) -> Response<Body> {
    reply::bytes(error.status, JSON_UTF8, reply::encode(&envelope(error)))
}

/// An error that the shim finds in a body: it does not go through the code that words an empty one for native routes.
fn shim(error: DecodeError) -> ApiError {
    match error {
        DecodeError::Empty => bad("EOF"),
        other => other.into(),
    }
}

/// A request that cannot be served as it is.
fn bad(message: impl Into<String>) -> ApiError {
    ApiError::bad_request(message)
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

/// The word for a kind of error.
fn kind(error: &ApiError) -> &'static str {
    match error.status {
        StatusCode::BAD_REQUEST => "invalid_request_error",
        StatusCode::NOT_FOUND => "not_found_error",
        _ => "api_error",
    }
}

fn envelope(error: &ApiError) -> Envelope<'_> {
    Envelope {
        error: Inner {
            message: &error.message,
            r#type: kind(error),
            param: None,
            code: None,
        },
    }
}
