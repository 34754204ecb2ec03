//! Who answers a request whose body names a model: the body is read to its end, the name is looked for with a tolerant
//! scanner, and either the very same bytes go upstream or they are parsed here.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{HeaderMap, Request, Response, StatusCode};

use super::{
    Api, Endpoint,
    error::ApiError,
    in_dialect_of, listing, nameless,
    peeked::{self, Coding, Peeked},
};
use crate::{
    http::{
        body::Body,
        spool::{SpoolError, Spooled},
    },
    provider::{Call, Kind, Native, Owner, Provider, prefers_ollama},
};

/// Where a request goes.
pub(crate) enum Route {
    /// It was forwarded.
    Answered(Response<Body>),
    /// One of our providers serves it.
    Serve(Target),
}

/// A request for one of our providers.
pub(crate) struct Target {
    /// Who serves it.
    pub(crate) provider: Arc<dyn Provider>,
    /// The name to ask the provider for.
    pub(crate) name: String,
    /// Whether the name is an alias of the configuration.
    pub(crate) is_configured: bool,
    /// The name as the client sent it.
    pub(crate) requested: String,
    /// Headers of the request.
    pub(crate) headers: HeaderMap,
    /// The whole body.
    pub(crate) body: Received,
}

/// Who of us answers, and for what.
struct Found {
    provider: Arc<dyn Provider>,
    name: String,
    is_configured: bool,
    requested: String,
}

/// A body in memory, unpacked.
pub(crate) struct Received(Bytes);

impl Received {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Api {
    /// Reads the body, finds the name, and forwards what is not ours.
    pub(crate) async fn route(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        request: Request<Body>,
    ) -> Result<Route, ApiError> {
        let (parts, body) = request.into_parts();
        let limits = &call.config.server;
        let spooled = Spooled::read(body, limits.body_memory_bytes, limits.max_body_bytes)
            .await
            .map_err(spool_error)?;
        let peeked = peeked::peek(&spooled, endpoint, &parts).await?;
        if let Some(found) = self.owner(call, &peeked, &parts.headers).await {
            let body = Received(peeked::text(&spooled, peeked.coding).await?);
            let Found {
                provider,
                name,
                is_configured,
                requested,
            } = found;
            return Ok(Route::Serve(Target {
                provider,
                name,
                is_configured,
                requested,
                headers: parts.headers,
                body,
            }));
        }
        // Upstream words the error for a request that names nobody; only where it is away, ours has to do.
        let own_answer = match peeked.names.is_empty() {
            true => own_answer(endpoint, &parts.headers, &spooled, peeked.coding).await,
            false => None,
        };
        let response = self
            .upstream
            .forward(call, Request::from_parts(parts, spooled.into_body()))
            .await;
        Ok(Route::Answered(match own_answer {
            Some(answer) if response.status() == StatusCode::BAD_GATEWAY || !call.config.ollama.enabled => answer,
            _ => response,
        }))
    }

    /// Who answers a name; Ollama, where it has the same plain name and goes first.
    pub(crate) async fn owner_of(&self, call: &Call, name: &str, received: &HeaderMap) -> Owner {
        match self.registry.owner(&call.config, name) {
            Owner::Serve { kind, .. }
                if kind.is_plain()
                    && prefers_ollama(&call.config)
                    && listing::upstream_has(self, call, name, received).await =>
            {
                Owner::Forward
            }
            owner => owner,
        }
    }

    /// Who of us answers; `None` is upstream, with the bytes that came.
    async fn owner(&self, call: &Call, peeked: &Peeked, headers: &HeaderMap) -> Option<Found> {
        for name in &peeked.names {
            if let Owner::Serve {
                provider,
                name: served,
                kind,
            } = self.owner_of(call, name, headers).await
            {
                return Some(Found {
                    provider,
                    name: served,
                    is_configured: kind == Kind::Configured,
                    requested: name.clone(),
                });
            }
        }
        let ollama = &call.config.ollama;
        if !(ollama.enabled && ollama.honest_v1 && peeked.asks_more) {
            return None;
        }
        let name = peeked.names.first()?;
        let native = Native::new(Arc::clone(&self.upstream), headers);
        Some(Found {
            provider: Arc::new(native),
            name: name.clone(),
            is_configured: false,
            requested: name.clone(),
        })
    }
}

/// Our words for a body that names nobody, where it is no longer than what is kept in memory.
async fn own_answer(
    endpoint: &Endpoint,
    headers: &HeaderMap,
    spooled: &Spooled,
    coding: Coding,
) -> Option<Response<Body>> {
    spooled.in_memory()?;
    match peeked::text(spooled, coding).await {
        Ok(bytes) => nameless::answer(endpoint, headers, &bytes),
        Err(error) => Some(in_dialect_of(endpoint, &error)),
    }
}

fn spool_error(error: SpoolError) -> ApiError {
    let status = match &error {
        SpoolError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        SpoolError::Body(_) => StatusCode::BAD_REQUEST,
        SpoolError::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.to_string())
}
