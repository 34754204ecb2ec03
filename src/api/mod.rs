//! Wire dialects: from the bytes of a request to the neutral vocabulary, and from neutral events to the bytes of a
//! reply.
//!
//! The server has matched the path to an [`ApiEndpoint`]; [`ApiHandler`] answers it. If the body names a model,
//! `dispatch` peeks at the name and either forwards the bytes to Ollama or hands the request to a handler of its
//! dialect. A handler decodes the body with Go's rules (`go::decode`), finds the model (`model`), makes Ollama's checks
//! in Ollama's order, builds an `InferenceRequest`, and encodes the provider's events (`stream`). Errors are an
//! `ApiError` until `dialect` words them.
//!
//! Each dialect has its folder and knows no other; what they share lies next to them.

mod admin;
mod anthropic;
mod dialect;
mod dispatch;
mod envelope;
mod error;
mod listing;
mod logprobs;
mod missing_model;
mod model;
mod multipart;
mod ollama;
mod openai;
mod options;
mod peek;
mod reply;
mod routed;
mod stream;
#[cfg(test)]
mod tests;
mod tools;
mod values;

use std::{fmt, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use hyper::{Request, Response};

use self::{dialect::Dialect, dispatch::RouteOutcome, envelope::LayeredError, error::ApiError, routed::RoutedRequest};
use crate::{
    config::Config,
    http::body::Body,
    provider::{CallContext, Registry, ollama::Ollama},
};

/// Operation that a request asks for, found by its method and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiEndpoint {
    /// `GET /`
    Root,
    /// `GET /api/version`
    Version,
    /// `GET /api/tags`
    Tags,
    /// `GET /api/ps`
    Ps,
    /// `POST /api/show`
    Show,
    /// `POST /api/chat`
    Chat,
    /// `POST /api/generate`
    Generate,
    /// `POST /api/pull`
    Pull,
    /// `POST /api/push`
    Push,
    /// `POST /api/create`
    Create,
    /// `POST /api/copy`
    Copy,
    /// `DELETE /api/delete`
    Delete,
    /// `POST /api/embed`
    Embed,
    /// `POST /api/embeddings`
    Embeddings,
    /// `POST /api/tokenize`
    Tokenize,
    /// `POST /api/detokenize`
    Detokenize,
    /// `POST /api/apply_template`
    ApplyTemplate,
    /// `POST /v1/chat/completions`
    OpenAiChat,
    /// `POST /v1/completions`
    OpenAiCompletions,
    /// `POST /v1/embeddings`
    OpenAiEmbeddings,
    /// `POST /v1/responses`
    OpenAiResponses,
    /// `POST /v1/audio/transcriptions`
    OpenAiTranscriptions,
    /// `GET /v1/models`
    OpenAiModels,
    /// `GET /v1/models/{id}`, slashes included.
    OpenAiModel { id: String },
    /// `POST /v1/messages`
    AnthropicMessages,
    /// `POST /v1/messages/count_tokens`
    AnthropicCountTokens,
    /// `GET /health`
    Health,
    /// `GET /config`
    Config,
    /// Any other route: Ollama may have it.
    Forward,
}

/// Handler of requests that the server has routed.
pub trait RequestHandler: Send + Sync {
    /// Answers one request. Dropping the future, or later the body, ends the work for it.
    fn handle(&self, endpoint: ApiEndpoint, request: Request<Body>) -> BoxFuture<'_, Response<Body>>;
}

/// JSON document that is built for each request.
pub type StatusDocument = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Handler of every dialect, over the providers.
pub struct ApiHandler {
    pub registry: Registry,
    pub upstream: Arc<Ollama>,
    /// Configuration in force, of which each request takes one snapshot.
    pub config: Arc<ArcSwap<Config>>,
    /// `GET /health`
    pub health: StatusDocument,
    /// `GET /config`
    pub config_status: StatusDocument,
}

impl fmt::Debug for ApiHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl RequestHandler for ApiHandler {
    fn handle(&self, endpoint: ApiEndpoint, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        let call = CallContext {
            // One snapshot for the whole request: a reload meanwhile must not change its rules half-way.
            config: self.config.load_full(),
            arrived: Instant::now(),
        };
        Box::pin(async move { self.answer(&call, endpoint, request).await })
    }
}

impl ApiHandler {
    async fn answer(&self, call: &CallContext, endpoint: ApiEndpoint, request: Request<Body>) -> Response<Body> {
        // The dialect is found first, because `try_answer` consumes endpoint and request.
        let dialect = Dialect::of(&endpoint, request.uri().path());
        self.try_answer(call, endpoint, request)
            .await
            .unwrap_or_else(|error| dialect.error_reply(&error))
    }

    async fn try_answer(
        &self,
        call: &CallContext,
        endpoint: ApiEndpoint,
        request: Request<Body>,
    ) -> Result<Response<Body>, LayeredError> {
        Ok(match endpoint {
            ApiEndpoint::Root => ollama::root(),
            ApiEndpoint::Version => ollama::version(self, call, request.headers()).await,
            ApiEndpoint::Tags => ollama::tags(self, call, request.headers()).await,
            ApiEndpoint::Ps => ollama::ps(self, call, request.headers()).await,
            ApiEndpoint::OpenAiModels => openai::models(self, call, request.headers()).await,
            ApiEndpoint::OpenAiModel { id } => openai::model(self, call, &id, request).await?,
            ApiEndpoint::Health => admin::status(&self.health),
            ApiEndpoint::Config => admin::status(&self.config_status),
            ApiEndpoint::Forward if !call.config.ollama.enabled && !is_api_path(request.uri().path()) => {
                reply::page_not_found()
            }
            ApiEndpoint::Forward => self.upstream.forward(call, request).await.map_err(ApiError::from)?,
            by_name => match self.route(call, &by_name, request).await? {
                RouteOutcome::Forwarded(response) => response,
                RouteOutcome::Serve(request) => self.serve(call, &by_name, request).await?,
            },
        })
    }

    /// Answers a request for a model of one of our providers.
    async fn serve(
        &self,
        call: &CallContext,
        endpoint: &ApiEndpoint,
        request: RoutedRequest,
    ) -> Result<Response<Body>, LayeredError> {
        Ok(match endpoint {
            ApiEndpoint::Chat => ollama::chat(call, request).await?,
            ApiEndpoint::Generate => ollama::generate(call, request).await?,
            ApiEndpoint::Show => ollama::show(call, request).await?,
            ApiEndpoint::Pull => ollama::pull(call, request).await?,
            ApiEndpoint::Create => ollama::create(self, call, request).await?,
            ApiEndpoint::Copy => ollama::copy(self, call, request).await?,
            ApiEndpoint::Delete => ollama::delete(call, request).await?,
            ApiEndpoint::Embed => ollama::embed(call, request).await?,
            ApiEndpoint::Embeddings => ollama::embeddings(call, request).await?,
            ApiEndpoint::Tokenize => ollama::tokenize(call, request).await?,
            ApiEndpoint::Detokenize => ollama::detokenize(call, request).await?,
            ApiEndpoint::ApplyTemplate => ollama::apply_template(call, request).await?,
            ApiEndpoint::AnthropicMessages => anthropic::messages(call, request).await?,
            ApiEndpoint::AnthropicCountTokens => anthropic::count_tokens(call, request).await?,
            ApiEndpoint::OpenAiChat => openai::chat(call, request).await?,
            ApiEndpoint::OpenAiCompletions => openai::completions(call, request).await?,
            ApiEndpoint::OpenAiEmbeddings => openai::embeddings(call, request).await?,
            ApiEndpoint::OpenAiResponses => openai::responses(call, request).await?,
            ApiEndpoint::OpenAiTranscriptions => openai::transcriptions(call, request).await?,
            other => return Err(LayeredError::Shim(not_served(other, &request.model.requested))),
        })
    }
}

/// Returns true for paths that may be routes of Ollama which are not served here: they deserve a sentence, not the bare
/// 404 of a router.
fn is_api_path(path: &str) -> bool {
    path.starts_with("/api/") || path.starts_with("/v1/")
}

/// Returns the error for a route that hf: models have no answer to.
fn not_served(endpoint: &ApiEndpoint, requested: &str) -> ApiError {
    match endpoint {
        ApiEndpoint::Push => ApiError::bad_request(format!(
            "{requested} cannot be pushed: it comes from the Hugging Face Hub; upload it there instead"
        )),
        _ => ApiError::new(
            hyper::StatusCode::NOT_IMPLEMENTED,
            format!("{requested} is not served on this route: it is not implemented for hf: models yet"),
        ),
    }
}
