//! `GET /health` and `GET /config`. The daemon builds the documents.

use hyper::{Response, StatusCode};

use super::{
    StatusDocument,
    reply::{self, JSON},
};
use crate::http::body::Body;

/// Returns a status document, with a line feed for terminals.
pub(crate) fn status(document: &StatusDocument) -> Response<Body> {
    let mut bytes = document().to_string().into_bytes();
    bytes.push(b'\n');
    reply::bytes(StatusCode::OK, JSON, bytes)
}
