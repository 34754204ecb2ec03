//! Who answers a request whose body names a model: the body is read to its end, the name is looked for with a tolerant
//! scanner, and either the very same bytes go upstream or they are parsed here.

use std::{io::Read, sync::Arc};

use hyper::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};

use super::{Api, Endpoint, error::ApiError, listing, multipart, nameless};
use crate::{
    http::{
        body::Body,
        peek::{self, Members, PeekError},
        spool::{SpoolError, Spooled},
    },
    provider::{Call, Kind, Owner, Provider, prefers_ollama},
};

/// Body of a request that is parsed here. Only forwarded ones may be larger: they need not fit in memory.
const MAX_PARSED_BYTES: u64 = 256 << 20;

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
    /// How the name came to be ours.
    pub(crate) kind: Kind,
    /// The name as the client sent it.
    pub(crate) requested: String,
    /// Headers of the request.
    pub(crate) headers: HeaderMap,
    /// The whole body.
    pub(crate) body: Received,
}

/// A body in memory.
pub(crate) struct Received {
    spooled: Spooled,
    read_back: Vec<u8>,
}

impl Received {
    /// Takes the body into memory, if it is not there yet.
    async fn load(spooled: Spooled) -> Result<Self, ApiError> {
        if spooled.as_slice().is_some() {
            return Ok(Self {
                spooled,
                read_back: Vec::new(),
            });
        }
        if spooled.len() > MAX_PARSED_BYTES {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the request body is larger than {MAX_PARSED_BYTES} bytes; send fewer or smaller images"),
            ));
        }
        let mut reader = spooled.reader();
        let read_back = blocking(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        })
        .await?
        .map_err(|error| ApiError::internal(format!("the request body could not be read back: {error}")))?;
        Ok(Self { spooled, read_back })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.spooled.as_slice().unwrap_or(&self.read_back)
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
        let names = peek_names(&spooled, endpoint, &parts.headers).await?;
        let is_nameless = names.is_empty();
        let mut named = None;
        for name in names {
            if let Owner::Serve {
                provider,
                name: served,
                kind,
            } = self.owner_of(call, &name, &parts.headers).await
            {
                named = Some((provider, served, kind, name));
                break;
            }
        }
        if let Some((provider, name, kind, requested)) = named {
            let body = Received::load(spooled).await?;
            return Ok(Route::Serve(Target {
                provider,
                name,
                kind,
                requested,
                headers: parts.headers,
                body,
            }));
        }
        // Upstream words the error for a request that names nobody; only where it is away, ours has to do.
        let own_answer = match spooled.as_slice() {
            Some(bytes) if is_nameless => nameless::answer(endpoint, bytes),
            _ => None,
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
}

/// The names that decide, in the order in which they do; none if the body cannot be read or names nobody.
async fn peek_names(spooled: &Spooled, endpoint: &Endpoint, headers: &HeaderMap) -> Result<Vec<String>, ApiError> {
    if *endpoint == Endpoint::OpenAiTranscriptions {
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let boundary = multipart::boundary(content_type).map(str::to_owned);
        let reader = spooled.reader();
        let name = blocking(move || boundary.and_then(|boundary| multipart::model(reader, &boundary))).await?;
        return Ok(name.into_iter().collect());
    }
    match peek::spooled(spooled).await {
        Ok(members) => Ok(deciding(endpoint, members)),
        Err(PeekError::NotAnObject) => Ok(Vec::new()),
        Err(error @ PeekError::Read(_)) => Err(ApiError::internal(error.to_string())),
    }
}

/// The names of a body that decide who answers an endpoint, those that are blank left out.
fn deciding(endpoint: &Endpoint, members: Members) -> Vec<String> {
    let Members {
        model,
        name,
        from,
        source,
        destination,
        ..
    } = members;
    let not_blank = |name: &String| !name.trim().is_empty();
    let model = model.filter(not_blank);
    let candidates = match endpoint {
        Endpoint::Show | Endpoint::Delete | Endpoint::Pull | Endpoint::Push => vec![model.or(name)],
        Endpoint::Create => vec![model.or(name), from],
        Endpoint::Copy => vec![source, destination],
        _ => vec![model],
    };
    candidates.into_iter().flatten().filter(not_blank).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::internal(format!("the request body could not be read: {error}")))
}

fn spool_error(error: SpoolError) -> ApiError {
    let status = match &error {
        SpoolError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        SpoolError::Body(_) => StatusCode::BAD_REQUEST,
        SpoolError::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.to_string())
}
