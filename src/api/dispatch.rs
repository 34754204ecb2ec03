//! Routing by the model that a body names: to a provider here, or, as the bytes that came, to Ollama.
//!
//! [`ApiHandler::route`] reads the body to its end (a duplicate `model` key at the end would decide), peeks at it for
//! the name, and asks the registry who answers. Only the body of a request that is served here is parsed, by its
//! dialect's handler.

use std::sync::Arc;

use hyper::{HeaderMap, Request, Response, StatusCode};

use super::{
    ApiEndpoint, ApiHandler,
    envelope::LayeredError,
    error::ApiError,
    listing, missing_model,
    peek::{self, BodyCoding, PeekedBody},
    routed::{RoutedModel, RoutedRequest},
};
use crate::{
    http::{
        body::Body,
        spool::{SpoolError, SpooledBody},
    },
    provider::{CallContext, NameOrigin, NameOwner, NativeProvider, prefers_ollama},
};

/// Destination of a request.
pub(crate) enum RouteOutcome {
    /// Ollama, which has answered it.
    Forwarded(Response<Body>),
    /// A provider of ours, which is still to answer.
    Serve(RoutedRequest),
}

impl ApiHandler {
    /// Reads the body, finds the name, and forwards the request if Ollama answers it.
    pub(crate) async fn route(
        &self,
        call: &CallContext,
        endpoint: &ApiEndpoint,
        request: Request<Body>,
    ) -> Result<RouteOutcome, LayeredError> {
        let (parts, body) = request.into_parts();
        let limits = &call.config.server;
        let spooled = SpooledBody::read(body, limits.body_memory_bytes, limits.max_body_bytes)
            .await
            .map_err(|error| LayeredError::Shim(spool_error(error)))?;
        let peeked = peek::peek(&spooled, endpoint, &parts)
            .await
            .map_err(LayeredError::Shim)?;
        if let Some(model) = self.model_of(call, &peeked, &parts.headers).await {
            let body = peek::text(&spooled, peeked.coding).await.map_err(LayeredError::Shim)?;
            return Ok(RouteOutcome::Serve(RoutedRequest {
                model,
                headers: parts.headers,
                body,
            }));
        }
        // Ollama words the error for a request that names no model; ours is sent only while it is away.
        // It is worded now, because forwarding consumes the body.
        let own_error = match peeked.names.is_empty() {
            true => error_without_model(endpoint, &parts.headers, &spooled, peeked.coding).await,
            false => None,
        };
        let forwarded = self
            .upstream
            .forward(call, Request::from_parts(parts, spooled.into_body()))
            .await;
        let is_away = match &forwarded {
            Ok(response) => response.status() == StatusCode::BAD_GATEWAY,
            Err(error) => error.status() == StatusCode::BAD_GATEWAY,
        };
        match own_error {
            Some(error) if is_away || !call.config.ollama.enabled => Err(error),
            _ => Ok(RouteOutcome::Forwarded(forwarded.map_err(ApiError::from)?)),
        }
    }

    /// Returns the owner of a name: Ollama if it has the same plain name and goes first.
    pub(crate) async fn owner_of(&self, call: &CallContext, name: &str, received: &HeaderMap) -> NameOwner {
        match self.registry.owner(&call.config, name) {
            // The conditions are ordered by their cost: the last one fetches Ollama's list of models.
            NameOwner::Serve { origin, .. }
                if origin.is_plain()
                    && prefers_ollama(&call.config)
                    && listing::upstream_has(self, call, name, received).await =>
            {
                NameOwner::Forward
            }
            owner => owner,
        }
    }

    /// Returns the model that one of our providers serves; `None` if the request is Ollama's, with the bytes that came.
    async fn model_of(&self, call: &CallContext, peeked: &PeekedBody, headers: &HeaderMap) -> Option<RoutedModel> {
        // A copy or a creation has two names, and one that is ours makes the request ours.
        for requested in &peeked.names {
            if let NameOwner::Serve { provider, name, origin } = self.owner_of(call, requested, headers).await {
                return Some(RoutedModel {
                    provider,
                    name,
                    is_configured: origin == NameOrigin::Configured,
                    requested: requested.clone(),
                });
            }
        }
        let ollama = &call.config.ollama;
        if !(ollama.enabled && ollama.v1_via_native && peeked.asks_more) {
            return None;
        }
        let name = peeked.names.first()?;
        Some(RoutedModel {
            provider: Arc::new(NativeProvider::new(Arc::clone(&self.upstream), headers)),
            name: name.clone(),
            is_configured: false,
            requested: name.clone(),
        })
    }
}

/// Returns our error for a body that names no model, if the body is no longer than what is kept in memory.
async fn error_without_model(
    endpoint: &ApiEndpoint,
    headers: &HeaderMap,
    spooled: &SpooledBody,
    coding: BodyCoding,
) -> Option<LayeredError> {
    // A longer body is hardly a mistyped request, and is not worth the memory.
    spooled.in_memory()?;
    match peek::text(spooled, coding).await {
        Ok(bytes) => missing_model::error(endpoint, headers, &bytes),
        Err(error) => Some(LayeredError::Shim(error)),
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
