//! OpenAI dialect (`/v1/*`) as Ollama's shim speaks it.
//!
//! The shim silently drops a good part of OpenAI's request fields (`n`, `logit_bias`, `tool_choice` …). An hf: model
//! honors them, and a field without effect is named in a header of the reply. Each route has its file; a request is
//! decoded (`request`, `completion_request`, `responses::request` over `common`), becomes one or more neutral requests
//! (`choices`), and their events are encoded by `chunks`, `completion_chunks` or `responses::events`.

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

pub(crate) use chat::{chat, chat_without_model};
pub(crate) use completions::{completions, completions_without_model};
pub(crate) use embeddings::{embeddings, embeddings_without_model};
pub(crate) use models::{model, models};
pub(crate) use responses::{responses, responses_without_model};
pub(crate) use transcriptions::{transcriptions, transcriptions_without_model};

use hyper::{Response, StatusCode};
use serde::Serialize;

use super::{envelope::LayeredError, error::ApiError};
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

/// Returns the reply that says an error to a client of this dialect.
pub(crate) fn error_reply(error: &LayeredError) -> Response<Body> {
    error.respond(&envelope(error.error()))
}

/// Returns the error's type, as Ollama's `openai.NewError` derives it from the status.
fn error_type(error: &ApiError) -> &'static str {
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
            r#type: error_type(error),
            param: None,
            code: None,
        },
    }
}
