//! Building blocks of responses that look like the Hub's.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{Response, header::HeaderValue};
use serde_json::{Value, json};

use super::Entry;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) fn describe(response: &mut Response<Body>, commit: &str, entry: &Entry) {
    let mut set = |name: &'static str, value: String| {
        response
            .headers_mut()
            .insert(name, HeaderValue::try_from(value).expect("hex digits"));
    };
    set("x-repo-commit", commit.to_owned());
    set("etag", format!("\"{}\"", entry.oid));
    if entry.lfs {
        set("x-linked-etag", format!("\"{}\"", entry.sha256));
        set("x-linked-size", entry.size.to_string());
    }
}

/// Takes one occurrence of a counted fault, and returns its status.
pub(super) fn take(fault: &mut Option<(u16, u32)>) -> Option<u16> {
    let (status, count) = fault.as_mut().filter(|(_, count)| *count > 0)?;
    *count -= 1;
    Some(*status)
}

pub(super) fn json_response(value: &Value) -> Response<Body> {
    Response::builder()
        .header("content-type", "application/json")
        .body(full(value.to_string()))
        .expect("a valid response")
}

pub(super) fn error(status: u16, code: &str, message: &str) -> Response<Body> {
    let mut response = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    if !code.is_empty() {
        response = response.header("x-error-code", code);
    }
    if !message.is_empty() {
        response = response.header("x-error-message", message);
    }
    response
        .body(full(json!({"error": message}).to_string()))
        .expect("a valid response")
}

pub(super) fn page(status: u16, html: &str) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "text/html")
        .body(full(html.to_owned()))
        .expect("a valid response")
}

pub(super) fn redirect(status: u16, location: &str) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("location", location)
        .body(empty())
        .expect("a valid response")
}

pub(super) fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
