//! `GET /v1/models` and `GET /v1/models/{id}`

use hyper::{HeaderMap, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;

use crate::{
    api::{
        ApiHandler,
        envelope::LayeredError,
        error::ApiError,
        listing,
        reply::{self, JSON},
    },
    http::body::Body,
    inference::ModelCard,
    provider::{CallContext, NameOwner},
};

#[derive(Serialize)]
struct WireModel<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    owned_by: &'a str,
}

impl<'a> WireModel<'a> {
    fn of(id: &'a str, card: &'a ModelCard) -> Self {
        let created = listing::unix_seconds(card.modified_at);
        Self {
            id,
            object: "model",
            created,
            owned_by: owner(&card.name),
        }
    }
}

/// Returns the organization of `hf:org/repo…`, or the namespace of a plain name.
fn owner(name: &str) -> &str {
    let owner = match name.strip_prefix("hf:") {
        Some(rest) => rest.split_once('/').map(|(owner, _)| owner),
        None => name
            .rsplit_once('/')
            .map(|(rest, _)| rest.rsplit_once('/').map_or(rest, |(_, namespace)| namespace)),
    };
    owner.unwrap_or("library")
}

/// Answers `GET /v1/models`: Ollama's models and those of providers, newest first.
pub(crate) async fn models(api: &ApiHandler, call: &CallContext, received: &HeaderMap) -> Response<Body> {
    let encode = |name: &str, card: &ModelCard| reply::encode(&WireModel::of(name, card));
    let merged = listing::of_both(api, call, "/v1/models", received, encode).await;
    let mut json = b"{\"object\":\"list\",\"data\":".to_vec();
    // In Ollama an empty list is a nil slice, which Go encodes as `null`.
    if merged.is_empty() {
        json.extend_from_slice(b"null")
    } else {
        json.extend_from_slice(&listing::list(&merged))
    }
    json.extend_from_slice(b"}\n");
    reply::bytes(StatusCode::OK, JSON, json)
}

/// Answers `GET /v1/models/{id}`. Ids of hf: models hold slashes, which clients send encoded or plain.
pub(crate) async fn model(
    api: &ApiHandler,
    call: &CallContext,
    id: &str,
    request: Request<Body>,
) -> Result<Response<Body>, LayeredError> {
    let id = percent_decode_str(id).decode_utf8_lossy();
    match api.registry.owner(&call.config, &id) {
        NameOwner::Forward => Ok(api.upstream.forward(call, request).await.map_err(ApiError::from)?),
        NameOwner::Serve { provider, name, .. } => {
            match listing::find_listed(provider.list(call).await.iter(), &name) {
                Some(card) => Ok(reply::json_line(&WireModel::of(&id, card))),
                None => Err(ApiError::model_not_found(&id).into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_the_organization() {
        assert_eq!(owner("hf:bartowski/SmolLM2-GGUF:Q4_K_M"), "bartowski");
        assert_eq!(owner("hf:o/r:sub/folder/m.gguf"), "o");
        assert_eq!(owner("plain"), "library");
        assert_eq!(owner("mario:latest"), "library");
        assert_eq!(owner("me/mario:v1"), "me");
        assert_eq!(owner("example.com:5000/me/mario:v1"), "me");
    }
}
