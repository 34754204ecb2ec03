//! `GET /api/tags`

use hyper::{HeaderMap, Response, StatusCode};

use super::details::TagsEntry;
use crate::{
    api::{
        ApiHandler,
        listing::{self, ListEntry},
        reply::{self, JSON_UTF8},
    },
    http::body::Body,
    inference::ModelCard,
    provider::CallContext,
};

/// Answers `GET /api/tags`: the models of Ollama and of providers, newest first.
pub(crate) async fn tags(api: &ApiHandler, call: &CallContext, received: &HeaderMap) -> Response<Body> {
    let encode = |name: &str, card: &ModelCard| reply::encode(&TagsEntry::of(name, card));
    models(&listing::of_both(api, call, "/api/tags", received, encode).await)
}

/// Returns the reply of a native listing. It has a list even if that is empty: clients iterate over it without a check.
pub(super) fn models(entries: &[ListEntry]) -> Response<Body> {
    let mut json = b"{\"models\":".to_vec();
    json.extend_from_slice(&listing::list(entries));
    json.push(b'}');
    reply::bytes(StatusCode::OK, JSON_UTF8, json)
}
