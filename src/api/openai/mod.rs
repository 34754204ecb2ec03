//! The OpenAI dialect (`/v1/*`): chat completions and the list of models, as Ollama's shim speaks it.

mod chat;
mod chunks;
mod content;
mod models;
mod request;

pub(crate) use chat::{chat, nameless_chat};
pub(crate) use models::{model, models};

use hyper::{Response, StatusCode};
use serde::Serialize;

use super::{
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
    let kind = match error.status {
        StatusCode::BAD_REQUEST => "invalid_request_error",
        StatusCode::NOT_FOUND => "not_found_error",
        _ => "api_error",
    };
    Envelope {
        error: Inner {
            message: &error.message,
            r#type: kind,
            param: None,
            code: None,
        },
    }
}
