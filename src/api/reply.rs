//! Replies of hubllama's own, in the byte forms of each dialect. Forwarded replies never come through this module.

use hyper::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};
use serde::Serialize;

use super::error::ApiError;
use crate::{
    go,
    http::{
        body::{self, Body},
        ndjson, sse,
    },
};

/// Content type of a native answer in one piece, written by gin.
pub(crate) const JSON_UTF8: &str = "application/json; charset=utf-8";

/// Content type that Ollama's streaming code and its shims set themselves.
pub(crate) const JSON: &str = "application/json";

/// Header that names the parts of a request which had no effect.
const IGNORED: HeaderName = HeaderName::from_static("x-hubllama-ignored");

/// Encodes a value as Go's JSON.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    go::encode::to_vec(value).unwrap_or_else(|error| {
        // Only a map with keys that are no strings fails, and no reply has one.
        tracing::error!(error = %error, "a reply could not be encoded");
        b"{\"error\":\"the reply could not be encoded\"}".to_vec()
    })
}

pub(crate) fn bytes(status: StatusCode, content_type: &'static str, bytes: Vec<u8>) -> Response<Body> {
    with_type(status, content_type, body::full(bytes))
}

/// Returns a native answer in one piece, without a line feed at its end.
pub(crate) fn native<T: Serialize + ?Sized>(value: &T) -> Response<Body> {
    bytes(StatusCode::OK, JSON_UTF8, encode(value))
}

/// Returns a whole answer of a `/v1` route, which ends with a line feed.
pub(crate) fn json_line<T: Serialize + ?Sized>(value: &T) -> Response<Body> {
    let mut line = encode(value);
    line.push(b'\n');
    bytes(StatusCode::OK, JSON, line)
}

/// Returns a native stream.
pub(crate) fn ndjson(body: Body) -> Response<Body> {
    with_type(StatusCode::OK, ndjson::CONTENT_TYPE, body)
}

/// Returns a stream of server-sent events.
pub(crate) fn events(body: Body) -> Response<Body> {
    with_type(StatusCode::OK, sse::CONTENT_TYPE, body)
}

/// Returns status 200 without a body.
pub(crate) fn empty() -> Response<Body> {
    // Ollama sends nothing on these routes, not even `{}`.
    Response::new(body::full(Vec::new()))
}

/// Returns the reply of Ollama's router (gin) to an unknown path.
pub(crate) fn page_not_found() -> Response<Body> {
    // gin adds neither a charset nor a line feed here.
    bytes(StatusCode::NOT_FOUND, "text/plain", b"404 page not found".to_vec())
}

/// Returns a native error.
pub(crate) fn native_error(error: &ApiError) -> Response<Body> {
    bytes(error.status, JSON_UTF8, encode(&NativeError { error: &error.message }))
}

/// Returns a native error that came up where a stream would have begun: only its content type differs.
pub(crate) fn native_stream_error(error: &ApiError) -> Response<Body> {
    bytes(error.status, JSON, encode(&NativeError { error: &error.message }))
}

/// Appends the frame that ends a native stream which broke off.
pub(crate) fn native_error_frame(error: &ApiError, out: &mut Vec<u8>) {
    push_line(&NativeError { error: &error.message }, out);
}

/// Appends one line of a native stream.
pub(crate) fn push_line<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    out.extend_from_slice(&encode(value));
    // The last line ends with a line feed, too: some clients drop a line that is not ended, others wait for its end.
    out.push(b'\n');
}

/// Names the parts of a request that had no effect in a header, so that nothing is dropped silently.
pub(crate) fn mark_ignored(headers: &mut HeaderMap, parts: &[&str]) {
    // The names are ASCII constants, so they always make a header.
    if let Ok(value) = HeaderValue::from_str(&parts.join(", "))
        && !parts.is_empty()
    {
        headers.insert(IGNORED, value);
    }
}

fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[derive(Serialize)]
struct NativeError<'a> {
    error: &'a str,
}
