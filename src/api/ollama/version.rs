//! `GET /` and `GET /api/version`

use hyper::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use crate::{
    api::{
        Api,
        reply::{self, JSON_UTF8},
    },
    http::body::Body,
    provider::CallContext,
};

#[derive(Serialize)]
struct Version<'a> {
    version: &'a str,
}

/// The heartbeat of every client: answered at once, whatever else is going on.
pub(crate) fn root() -> Response<Body> {
    reply::bytes(
        StatusCode::OK,
        "text/plain; charset=utf-8",
        b"Ollama is running".to_vec(),
    )
}

/// Upstream's version, since clients decide by it what they may ask; a fixed one while upstream is away.
pub(crate) async fn version(api: &Api, call: &CallContext, received: &HeaderMap) -> Response<Body> {
    if let Ok((StatusCode::OK, bytes)) = api.upstream.get(call, "/api/version", received).await {
        return reply::bytes(StatusCode::OK, JSON_UTF8, bytes.to_vec());
    }
    reply::native(&Version {
        version: &call.config.ollama.fallback_version,
    })
}
