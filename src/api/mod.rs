//! Wire dialects: what each route means.

use futures_util::future::BoxFuture;
use hyper::{Request, Response};

use crate::http::body::Body;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Root,
    Version,
    Tags,
    Ps,
    Show,
    Chat,
    Generate,
    Pull,
    Push,
    Create,
    Copy,
    Delete,
    Embed,
    Embeddings,
    OpenAiChat,
    OpenAiCompletions,
    OpenAiEmbeddings,
    OpenAiResponses,
    OpenAiTranscriptions,
    OpenAiModels,
    OpenAiModel { id: String },
    AnthropicMessages,
    Health,
    Config,
    Forward,
}

/// Answers requests that the server has routed.
pub trait Handler: Send + Sync {
    /// Answers one request. Dropping the future, or later the body, ends the work for it.
    fn handle(&self, endpoint: Endpoint, request: Request<Body>) -> BoxFuture<'_, Response<Body>>;
}
