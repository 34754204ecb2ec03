//! `POST /api/copy`

use std::time::SystemTime;

use hyper::{Response, StatusCode};

use super::destination::{destination, is_taken};
use crate::{
    api::{ApiHandler, error::ApiError, model::failure_of, reply, routed::RoutedRequest},
    go::{
        decode::{DecodeError, FieldPath, entries_of},
        quote,
    },
    http::body::Body,
    inference::Failure,
    provider::{AliasSettings, CallContext, ModelAlias, NameOwner},
};

#[derive(Debug, Default)]
struct CopyRequest {
    source: String,
    destination: String,
}

impl CopyRequest {
    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        const ROOT: &str = "CopyRequest";
        let mut request = Self::default();
        for (key, node) in entries_of(body, "api.CopyRequest")? {
            match key.to_ascii_lowercase().as_str() {
                "source" => node.read_string(&mut request.source, FieldPath(ROOT, "source"))?,
                "destination" => node.read_string(&mut request.destination, FieldPath(ROOT, "destination"))?,
                _ => {}
            }
        }
        Ok(request)
    }
}

/// Answers `POST /api/copy`: gives a model of a provider another name. Success has no body.
pub(crate) async fn copy(
    api: &ApiHandler,
    call: &CallContext,
    request: RoutedRequest,
) -> Result<Response<Body>, ApiError> {
    let headers = request.headers.clone();
    let (_, request) = request.decode(CopyRequest::decode)?;
    let CopyRequest {
        source,
        destination: requested,
    } = request;
    let NameOwner::Serve { provider, name, .. } = api.owner_of(call, &source, &headers).await else {
        return Err(is_taken(&requested, api));
    };
    let invalid = format!("destination {} is invalid", quote(&requested));
    let to = destination(api, call, &requested, &invalid, &headers).await?;
    let card = provider
        .card(call, &name)
        .await
        .map_err(|failure| not_found(failure, &source))?;
    // A copy of an alias has all of its settings; a copy of any other model adds none to it.
    let copied = api.registry.aliases().get(&name);
    // A copy of a model onto itself changes nothing, not even its date.
    if copied.as_ref().is_some_and(|alias| alias.name == to.to_string()) {
        return Ok(reply::empty());
    }
    let alias = match copied {
        Some(alias) => ModelAlias {
            name: to.to_string(),
            modified_at: SystemTime::now(),
            ..ModelAlias::clone(&alias)
        },
        None => ModelAlias {
            name: to.to_string(),
            model: card.name,
            parent_model: String::new(),
            modified_at: SystemTime::now(),
            settings: AliasSettings::default(),
        },
    };
    api.registry.aliases().put(alias).await.map_err(ApiError::from)?;
    Ok(reply::empty())
}

/// Converts a failure. Ollama quotes the name with double quotes on this route, with single quotes on the others.
fn not_found(failure: Failure, source: &str) -> ApiError {
    match failure {
        Failure::NotFound(_) => ApiError::new(StatusCode::NOT_FOUND, format!("model {} not found", quote(source))),
        other => failure_of(other, source),
    }
}
