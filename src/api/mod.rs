//! Wire dialects: bytes of a request to the neutral vocabulary, neutral events to bytes of a reply.
//!
//! Each dialect has its folder and knows no other. What all of them need (Go's way of reading JSON, options, the checks
//! of a model, streaming) lies beside them. Routing by path and everything of HTTP is the server's; models are the
//! providers'.

mod admin;
#[cfg(test)]
mod alias_tests;
mod anthropic;
mod decode;
mod dispatch;
mod error;
#[cfg(test)]
mod fake;
mod listing;
mod logprobs;
mod model;
mod multipart;
mod nameless;
mod ollama;
mod openai;
mod options;
mod peeked;
#[cfg(test)]
mod recorded;
mod reply;
mod stream;
#[cfg(test)]
mod tests;
mod values;

use std::{fmt, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use hyper::{Request, Response};

use self::{
    dispatch::{Route, Target},
    error::ApiError,
};
use crate::{
    config::Config,
    http::body::Body,
    provider::{Call, Registry, ollama::Ollama},
};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
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
    OpenAiModel {
        /// The rest of the path.
        id: String,
    },
    /// `POST /v1/messages`
    AnthropicMessages,
    /// `POST /v1/messages/count_tokens`
    AnthropicCountTokens,
    /// `GET /health`
    Health,
    /// `GET /config`
    Config,
    /// Everything that is Ollama's alone.
    Forward,
}

/// Answers requests that the server has routed.
pub trait Handler: Send + Sync {
    /// Answers one request. Dropping the future, or later the body, ends the work for it.
    fn handle(&self, endpoint: Endpoint, request: Request<Body>) -> BoxFuture<'_, Response<Body>>;
}

/// A JSON document that is made when somebody asks for it.
pub type Status = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Every dialect over the providers.
pub struct Api {
    /// Who answers a name.
    pub registry: Registry,
    /// The real Ollama.
    pub upstream: Arc<Ollama>,
    /// The configuration in force; each request takes one snapshot.
    pub config: Arc<ArcSwap<Config>>,
    /// `GET /health`
    pub health: Status,
    /// `GET /config`
    pub config_status: Status,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl Handler for Api {
    fn handle(&self, endpoint: Endpoint, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        let call = Call {
            config: self.config.load_full(),
            arrived: Instant::now(),
        };
        Box::pin(async move { self.answer(&call, endpoint, request).await })
    }
}

impl Api {
    async fn answer(&self, call: &Call, endpoint: Endpoint, request: Request<Body>) -> Response<Body> {
        match endpoint {
            Endpoint::Root => ollama::root(),
            Endpoint::Version => ollama::version(self, call, request.headers()).await,
            Endpoint::Tags => ollama::tags(self, call, request.headers()).await,
            Endpoint::Ps => ollama::ps(self, call, request.headers()).await,
            Endpoint::OpenAiModels => openai::models(self, call, request.headers()).await,
            Endpoint::OpenAiModel { id } => openai::model(self, call, &id, request).await,
            Endpoint::Health => admin::status(&self.health),
            Endpoint::Config => admin::status(&self.config_status),
            Endpoint::Forward if !call.config.ollama.enabled && !is_of_an_api(request.uri().path()) => {
                reply::page_not_found()
            }
            Endpoint::Forward => self.upstream.forward(call, request).await,
            by_name => self.answer_by_name(call, &by_name, request).await,
        }
    }

    /// Endpoints whose body names the model that decides who answers.
    async fn answer_by_name(&self, call: &Call, endpoint: &Endpoint, request: Request<Body>) -> Response<Body> {
        match self.route(call, endpoint, request).await {
            Ok(Route::Answered(response)) => response,
            Ok(Route::Serve(target)) => match endpoint {
                Endpoint::Create => native(ollama::create(self, call, target).await),
                Endpoint::Copy => native(ollama::copy(self, call, target).await),
                _ => serve(call, endpoint, target).await,
            },
            Err(error) => in_dialect_of(endpoint, &error),
        }
    }
}

/// Whether a path could be a route of Ollama's that is only not served here, which deserves a sentence.
fn is_of_an_api(path: &str) -> bool {
    path.starts_with("/api/") || path.starts_with("/v1/")
}

/// Answers for a model of ours.
async fn serve(call: &Call, endpoint: &Endpoint, target: Target) -> Response<Body> {
    let answer = match endpoint {
        Endpoint::Chat => ollama::chat(call, target).await,
        Endpoint::Generate => ollama::generate(call, target).await,
        Endpoint::Show => ollama::show(call, target).await,
        Endpoint::Pull => ollama::pull(call, target).await,
        Endpoint::Delete => ollama::delete(call, target).await,
        Endpoint::Embed => ollama::embed(call, target).await,
        Endpoint::Embeddings => ollama::embeddings(call, target).await,
        Endpoint::Tokenize => ollama::tokenize(call, target).await,
        Endpoint::Detokenize => ollama::detokenize(call, target).await,
        Endpoint::ApplyTemplate => ollama::apply_template(call, target).await,
        Endpoint::AnthropicMessages => return anthropic::messages(call, target).await,
        Endpoint::AnthropicCountTokens => return anthropic::count_tokens(call, target).await,
        Endpoint::OpenAiChat => return openai::chat(call, target).await,
        Endpoint::OpenAiCompletions => return openai::completions(call, target).await,
        Endpoint::OpenAiEmbeddings => return openai::embeddings(call, target).await,
        Endpoint::OpenAiResponses => return openai::responses(call, target).await,
        Endpoint::OpenAiTranscriptions => return openai::transcriptions(call, target).await,
        other => Err(not_served(other, &target.requested)),
    };
    answer.unwrap_or_else(|error| in_dialect_of(endpoint, &error))
}

/// An answer or an error of the native dialect.
fn native(answer: Result<Response<Body>, ApiError>) -> Response<Body> {
    answer.unwrap_or_else(|error| reply::native_error(&error))
}

/// What an hf: model does not do.
fn not_served(endpoint: &Endpoint, requested: &str) -> ApiError {
    match endpoint {
        Endpoint::Push => ApiError::bad_request(format!(
            "{requested} cannot be pushed: it comes from the Hugging Face Hub; upload it there instead"
        )),
        _ => ApiError::new(
            hyper::StatusCode::NOT_IMPLEMENTED,
            format!("{requested} is not served on this route: it is not implemented for hf: models yet"),
        ),
    }
}

fn in_dialect_of(endpoint: &Endpoint, error: &ApiError) -> Response<Body> {
    match endpoint {
        Endpoint::OpenAiChat
        | Endpoint::OpenAiCompletions
        | Endpoint::OpenAiEmbeddings
        | Endpoint::OpenAiResponses
        | Endpoint::OpenAiTranscriptions
        | Endpoint::OpenAiModels
        | Endpoint::OpenAiModel { .. } => openai::shim_error(error),
        Endpoint::AnthropicMessages | Endpoint::AnthropicCountTokens => anthropic::error(error),
        _ => reply::native_error(error),
    }
}
