//! The Anthropic dialect's error shape. The messages route itself is forwarded for plain names and refused for ours.

use hyper::{Response, StatusCode};
use serde::Serialize;

use super::{
    error::ApiError,
    reply::{self, JSON_UTF8},
};
use crate::http::body::Body;

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

/// An error as Anthropic's clients expect it.
pub(crate) fn error(error: &ApiError) -> Response<Body> {
    let kind = match error.status {
        StatusCode::BAD_REQUEST => "invalid_request_error",
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        _ => "api_error",
    };
    let envelope = Envelope {
        r#type: "error",
        error: Inner {
            r#type: kind,
            message: &error.message,
        },
        request_id: format!("req_{:024x}", rand::random::<u128>() >> 32),
    };
    reply::bytes(error.status, JSON_UTF8, reply::encode(&envelope))
}
