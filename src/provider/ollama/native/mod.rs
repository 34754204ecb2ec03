//! Provider of Ollama's models over its native routes, which honor more of a request than its `/v1` routes.
//!
//! Requests for plain names are normally forwarded as bytes. One is served here if `ollama.v1_via_native` is on and the
//! request asks for something that Ollama's `/v1` route leaves out (`api::peek` decides).

mod answer;
mod details;
mod request;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{self, HeaderName},
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::Value;

use self::{
    answer::{NativeAnswerReader, error_text},
    details::{ListedModel, ModelListing, ShownModel},
    request::{EmbedBody, EmbeddingsBody, ShowBody, TextBody, WireOptions},
};
use super::{MAX_LISTING_BYTES, Ollama, UpstreamError, whole};
use crate::{
    http::body::Body,
    inference::{
        EmbedRequest, EmbeddingResult, Failure, InferenceRequest, KeepAlive, LoadOptions, ModelCard, ModelDetails,
        ResidentModel, TextToken, VectorNormalization,
    },
    provider::{
        CallContext, DeleteScope, EventStream, ModelStore, Provider, PullStream, RunnableModel, TokenizeRequest,
    },
};

/// Largest reply to `/api/show` in bytes; it lists every tensor of the model.
const MAX_SHOW_BYTES: usize = 64 << 20;

/// Largest reply with embeddings in bytes.
const MAX_VECTORS_BYTES: usize = 256 << 20;

/// Largest reply in bytes that has an error, or little else.
const MAX_BRIEF_BYTES: usize = 1 << 20;

/// Time limit for `/api/show`: Ollama may have to read the header of a large file first.
const SHOW_TIMEOUT: Duration = Duration::from_secs(60);

/// Headers that describe the client's body or the form of its reply, neither of which is forwarded.
const OF_THE_EXCHANGE: [HeaderName; 6] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::RANGE,
    header::TRAILER,
];

/// Provider of plain names for one request of a client, whose headers are forwarded to Ollama.
pub struct NativeProvider {
    upstream: Arc<Ollama>,
    headers: HeaderMap,
}

impl NativeProvider {
    /// Creates a provider that forwards the headers of the client (`Authorization`, for example), as the pass-through
    /// does.
    #[must_use]
    pub fn new(upstream: Arc<Ollama>, received: &HeaderMap) -> Self {
        let crosses = |name: &HeaderName| !name.as_str().starts_with("content-") && !OF_THE_EXCHANGE.contains(name);
        let headers = received
            .iter()
            .filter(|(name, _)| crosses(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Self { upstream, headers }
    }

    /// Sends a request; resolves at the head of a successful reply.
    async fn post(
        &self,
        call: &CallContext,
        name: &str,
        path: &'static str,
        body: &impl Serialize,
    ) -> Result<Response<Body>, Failure> {
        let json = serde_json::to_vec(body).map_err(|error| Failure::Invalid(error.to_string()))?;
        let response = self
            .upstream
            .post(call, path, &self.headers, json)
            .await
            .map_err(|error| no_answer(path, &error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(call, name, response).await)
    }

    /// Sends a request and reads the whole reply.
    async fn ask<T: DeserializeOwned>(
        &self,
        call: &CallContext,
        name: &str,
        path: &'static str,
        body: &impl Serialize,
        limit: usize,
    ) -> Result<T, Failure> {
        let response = self.post(call, name, path, body).await?;
        let bytes = whole(&call.config.ollama, response.into_body(), limit)
            .await
            .map_err(|error| no_answer(path, &error))?;
        serde_json::from_slice(&bytes).map_err(|error| Failure::Upstream {
            status: StatusCode::BAD_GATEWAY.as_u16(),
            message: format!("Ollama's answer on {path} cannot be read: {error}"),
        })
    }

    async fn details(&self, call: &CallContext, name: &str, verbose: bool) -> Result<ShownModel, Failure> {
        let path = "/api/show";
        let body = ShowBody { model: name, verbose };
        let asked = self.ask(call, name, path, &body, MAX_SHOW_BYTES);
        match tokio::time::timeout(SHOW_TIMEOUT, asked).await {
            Ok(reply) => reply,
            Err(_) => Err(no_answer(
                path,
                &UpstreamError::Unfinished {
                    url: call.config.ollama.url.clone(),
                },
            )),
        }
    }

    /// Fetches a listing; empty if that fails, since a listing never decides about a request.
    async fn listing(&self, call: &CallContext, path: &str) -> Vec<ListedModel> {
        match self.upstream.get(call, path, &self.headers).await {
            Ok((StatusCode::OK, bytes)) => {
                serde_json::from_slice::<ModelListing>(&bytes)
                    .unwrap_or_default()
                    .models
            }
            _ => Vec::new(),
        }
    }

    async fn vectors(&self, call: &CallContext, name: &str, request: EmbedRequest) -> Result<EmbeddingResult, Failure> {
        let EmbedRequest {
            inputs,
            truncate,
            dimensions,
            normalization,
            load,
            keep_alive,
        } = request;
        let keep_alive = || keep_alive.map(Into::into);
        if normalization == VectorNormalization::Unit {
            let body = EmbedBody {
                model: name,
                input: &inputs,
                truncate,
                dimensions,
                keep_alive: keep_alive(),
                options: WireOptions::of_load(&load),
            };
            let reply: Vectors = self.ask(call, name, "/api/embed", &body, MAX_VECTORS_BYTES).await?;
            return Ok(EmbeddingResult {
                vectors: reply.embeddings,
                prompt_tokens: reply.prompt_eval_count,
                load_duration: Duration::from_nanos(reply.load_duration),
                total_duration: Duration::from_nanos(reply.total_duration),
            });
        }
        // Only the old route leaves the scaling to the model, and it takes one text at a time.
        let mut vectors = Vec::with_capacity(inputs.len());
        for prompt in &inputs {
            let body = EmbeddingsBody {
                model: name,
                prompt,
                keep_alive: keep_alive(),
                options: WireOptions::of_load(&load),
            };
            let reply: Vector = self
                .ask(call, name, "/api/embeddings", &body, MAX_LISTING_BYTES)
                .await?;
            vectors.push(reply.embedding);
        }
        Ok(EmbeddingResult {
            vectors,
            total_duration: call.arrived.elapsed(),
            ..EmbeddingResult::default()
        })
    }
}

impl fmt::Debug for NativeProvider {
    /// Formats without the headers, which may hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NativeProvider")
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Vectors {
    #[serde(deserialize_with = "or_default")]
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Vector {
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct Refusal {
    error: Value,
}

/// Deserializes a value; `null`, the form in which Go writes a nil slice or map, becomes the default of its type.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Converts an error of the transport, with the status that the pass-through has for it.
fn no_answer(path: &str, error: &UpstreamError) -> Failure {
    tracing::warn!(
        path,
        error = error as &dyn std::error::Error,
        "Ollama was asked and did not answer"
    );
    Failure::Upstream {
        status: error.status().as_u16(),
        message: error.to_string(),
    }
}

/// Converts a reply without success, with Ollama's own sentence.
async fn refusal(call: &CallContext, name: &str, response: Response<Body>) -> Failure {
    let status = response.status();
    let config = &call.config.ollama;
    // A body that cannot be read says nothing, but the status still does.
    let bytes = whole(config, response.into_body(), MAX_BRIEF_BYTES)
        .await
        .unwrap_or_default();
    let said = serde_json::from_slice::<Refusal>(&bytes)
        .ok()
        .and_then(|refusal| error_text(&refusal.error));
    match said {
        Some(text) if status == StatusCode::NOT_FOUND && text.contains("not found") => {
            Failure::NotFound(name.to_owned())
        }
        Some(message) if status.is_client_error() || status.is_server_error() => Failure::Upstream {
            status: status.as_u16(),
            message,
        },
        _ => Failure::Upstream {
            status: StatusCode::BAD_GATEWAY.as_u16(),
            message: format!("Ollama at {} answered with status {}", config.url, status.as_u16()),
        },
    }
}

/// Returns the failure for a question that Ollama has no route for.
fn unknown_to_ollama(what: &str) -> Failure {
    Failure::Invalid(format!(
        "{what} of a plain name are not known: Ollama has no route that tells them"
    ))
}

#[async_trait]
impl ModelStore for NativeProvider {
    async fn list(&self, call: &CallContext) -> Vec<ModelCard> {
        let entries = self.listing(call, "/api/tags").await;
        entries.into_iter().map(ListedModel::into_card).collect()
    }

    async fn card(&self, call: &CallContext, name: &str) -> Result<ModelCard, Failure> {
        Ok(self.details(call, name, false).await?.into_card(name))
    }

    async fn show(&self, call: &CallContext, name: &str, verbose: bool) -> Result<ModelDetails, Failure> {
        Ok(self.details(call, name, verbose).await?.into_details(name))
    }

    async fn pull(&self, _: &CallContext, name: &str) -> Result<PullStream, Failure> {
        Err(Failure::Invalid(format!(
            "{name} is Ollama's; its own /api/pull gets it"
        )))
    }

    async fn delete(&self, _: &CallContext, name: &str, _: DeleteScope) -> Result<(), Failure> {
        Err(Failure::Invalid(format!(
            "{name} is Ollama's; its own /api/delete removes it"
        )))
    }
}

#[async_trait]
impl Provider for NativeProvider {
    async fn resident(&self, call: &CallContext) -> Vec<ResidentModel> {
        let entries = self.listing(call, "/api/ps").await;
        entries.into_iter().map(ListedModel::into_resident).collect()
    }

    async fn find(self: Arc<Self>, call: &CallContext, name: &str) -> Result<Arc<dyn RunnableModel>, Failure> {
        let card = self.card(call, name).await?;
        Ok(Arc::new(NativeModel {
            ollama: self,
            call: call.clone(),
            name: name.to_owned(),
            card,
        }))
    }
}

/// A model of Ollama, found for one request.
#[derive(Debug)]
struct NativeModel {
    ollama: Arc<NativeProvider>,
    call: CallContext,
    name: String,
    card: ModelCard,
}

#[async_trait]
impl RunnableModel for NativeModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn unsupported_parameters(&self, request: &InferenceRequest) -> Vec<&'static str> {
        request::unsupported_parameters(request)
    }

    async fn load(&self, options: LoadOptions, keep_alive: Option<KeepAlive>) -> Result<(), Failure> {
        let body = TextBody::to_load(&self.name, &options, keep_alive);
        self.ollama
            .ask::<Value>(&self.call, &self.name, "/api/generate", &body, MAX_BRIEF_BYTES)
            .await
            .map(drop)
    }

    async fn unload(&self) -> Result<(), Failure> {
        // Ollama has no route for it: a request without a prompt and with a keep-alive of 0 unloads the model.
        self.load(LoadOptions::default(), Some(KeepAlive::ZERO)).await
    }

    async fn infer(&self, request: InferenceRequest) -> Result<EventStream, Failure> {
        let (path, body) = TextBody::to_infer(&self.name, &request)?;
        let response = self.ollama.post(&self.call, &self.name, path, &body).await?;
        NativeAnswerReader::new(response.into_body()).begin().await
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbeddingResult, Failure> {
        self.ollama.vectors(&self.call, &self.name, request).await
    }

    async fn render(&self, _: InferenceRequest) -> Result<String, Failure> {
        Err(unknown_to_ollama("the rendered prompts"))
    }

    async fn tokenize(&self, _: TokenizeRequest) -> Result<Vec<TextToken>, Failure> {
        Err(unknown_to_ollama("the tokens"))
    }

    async fn detokenize(&self, _: Vec<i32>) -> Result<String, Failure> {
        Err(unknown_to_ollama("the tokens"))
    }
}
