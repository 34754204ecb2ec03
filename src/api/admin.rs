//! What the daemon says of itself: health and configuration. The documents are made elsewhere.

use hyper::{Response, StatusCode};

use super::{
    Status,
    reply::{self, JSON},
};
use crate::http::body::Body;

/// A status document, with a line feed for those who read it in a terminal.
pub(crate) fn status(document: &Status) -> Response<Body> {
    let mut bytes = document().to_string().into_bytes();
    bytes.push(b'\n');
    reply::bytes(StatusCode::OK, JSON, bytes)
}
