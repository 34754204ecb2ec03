//! `GET /` and `GET /api/version`

use hyper::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use crate::{
    api::{
        ApiHandler,
        reply::{self, JSON_UTF8},
    },
    http::body::Body,
    provider::CallContext,
};

#[derive(Serialize)]
struct Version<'a> {
    version: &'a str,
}

/// Answers `GET /`, the heartbeat of every client. It depends on nothing, so that it is answered at once.
pub(crate) fn root() -> Response<Body> {
    reply::bytes(
        StatusCode::OK,
        "text/plain; charset=utf-8",
        b"Ollama is running".to_vec(),
    )
}

/// Answers `GET /api/version` with Ollama's version, by which clients decide what they may ask; with
/// `ollama.fallback_version` while Ollama is away.
pub(crate) async fn version(api: &ApiHandler, call: &CallContext, received: &HeaderMap) -> Response<Body> {
    if let Ok((StatusCode::OK, bytes)) = api.upstream.get(call, "/api/version", received).await {
        // Ollama's version is passed on without a suffix: Open WebUI parses it as a list of numbers.
        return reply::bytes(StatusCode::OK, JSON_UTF8, bytes.to_vec());
    }
    reply::native(&Version {
        version: &call.config.ollama.fallback_version,
    })
}
