//! `POST /api/chat`, and the steps that it shares with `/api/generate`.

use hyper::{Response, StatusCode};

use super::{
    frames::{NativeFrames, TextRoute},
    request::ChatRequest,
};
use crate::{
    api::{
        error::ApiError,
        model::ServedModel,
        options::RequestOptions,
        reply::{self, JSON_UTF8},
        routed::RoutedRequest,
        stream,
        tools::OfferedTools,
    },
    http::body::Body,
    inference::{Failure, InferencePrompt, InferenceRequest, KeepAlive, LoadOptions, ThinkMode},
    provider::CallContext,
};

/// Makes the checks that need no model.
pub(crate) fn check(body: &[u8]) -> Result<(), ApiError> {
    ChatRequest::decode(body)?.common.check_range()
}

/// Answers `POST /api/chat` for a model of a provider.
pub(crate) async fn chat(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, mut request) = request.decode(ChatRequest::decode)?;
    request.common.check_range()?;
    let model = ServedModel::find(call, routed, request.common.model.clone()).await?;
    // Clients free memory with an empty chat and `keep_alive` 0, whatever the model can do: no check of the model comes
    // before.
    if request.messages.is_empty() && request.common.unloads() {
        return unload(&model, TextRoute::Chat).await;
    }
    let mut checked = CheckedChat::new(call, &model, &mut request)?;
    // A chat without messages preloads the model. The checks come first, as in Ollama.
    if request.messages.is_empty() {
        return load(&model, checked.options.load, request.common.keep_alive, TextRoute::Chat).await;
    }
    let (streams, only_renders) = (request.common.streams(), request.common.debug_render_only);
    let ignored = checked.take_ignored();
    let inference = checked.into_inference(request)?;
    let mut response = if only_renders {
        render(&model, inference, TextRoute::Chat).await?
    } else {
        answer(&model, inference, TextRoute::Chat, streams).await?
    };
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

/// Parts of a chat request that have passed the checks of the model.
pub(super) struct CheckedChat {
    think: ThinkMode,
    tools: OfferedTools,
    ignored: Vec<&'static str>,
    options: RequestOptions,
}

impl CheckedChat {
    pub(super) fn new(call: &CallContext, model: &ServedModel, request: &mut ChatRequest) -> Result<Self, ApiError> {
        model.require_text("chat")?;
        let think = model.think(request.common.think)?;
        let mut ignored = Vec::new();
        let offered = OfferedTools::optional(std::mem::take(&mut request.tools));
        Ok(Self {
            think,
            tools: offered.shown_to(model, call, &mut ignored)?,
            ignored,
            options: request.common.take_options()?,
        })
    }

    /// Takes the names of the parts of the request that have no effect.
    pub(super) fn take_ignored(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.ignored)
    }

    pub(super) fn into_inference(self, request: ChatRequest) -> Result<InferenceRequest, ApiError> {
        let prompt = InferencePrompt::Chat {
            messages: request.messages,
            tools: self.tools.definitions,
            tool_choice: self.tools.choice,
            // The native API has no such parameter.
            parallel_tool_calls: true,
            context: Vec::new(),
        };
        request.common.into_inference(prompt, self.options, self.think, false)
    }
}

/// Loads a model, as a request without messages or prompt asks for.
pub(super) async fn load(
    model: &ServedModel,
    options: LoadOptions,
    keep_alive: Option<KeepAlive>,
    route: TextRoute,
) -> Result<Response<Body>, ApiError> {
    model
        .inner
        .load(options, keep_alive)
        .await
        .map_err(|error| model.failure(error))?;
    Ok(residency(model, route, "load"))
}

/// Unloads a model; succeeds if it is not loaded.
pub(super) async fn unload(model: &ServedModel, route: TextRoute) -> Result<Response<Body>, ApiError> {
    model.inner.unload().await.map_err(|error| model.failure(error))?;
    Ok(residency(model, route, "unload"))
}

/// Returns the reply to a load or unload: one object even if a stream was asked for, as in Ollama.
fn residency(model: &ServedModel, route: TextRoute, reason: &'static str) -> Response<Body> {
    let bytes = NativeFrames::new(route, model.requested.clone()).residency(reason);
    reply::bytes(StatusCode::OK, JSON_UTF8, bytes)
}

/// Runs a request and returns its answer, streamed or whole.
pub(super) async fn answer(
    model: &ServedModel,
    request: InferenceRequest,
    route: TextRoute,
    streams: bool,
) -> Result<Response<Body>, ApiError> {
    let frames = NativeFrames::new(route, model.requested.clone());
    let events = match model.inner.infer(request).await {
        Ok(events) => events,
        Err(failure) if streams && is_of_the_engine(&failure) => {
            return Ok(reply::native_stream_error(&model.failure(failure)));
        }
        Err(failure) => return Err(model.failure(failure)),
    };
    if streams {
        return Ok(reply::ndjson(stream::body(events, frames)));
    }
    let answer = stream::collect(events).await?;
    Ok(reply::bytes(StatusCode::OK, JSON_UTF8, frames.whole(answer)))
}

/// Returns the rendered prompt instead of an answer (`_debug_render_only`).
pub(super) async fn render(
    model: &ServedModel,
    request: InferenceRequest,
    route: TextRoute,
) -> Result<Response<Body>, ApiError> {
    let images = match &request.prompt {
        InferencePrompt::Chat { messages, .. } => messages.iter().map(|message| message.media.len()).sum(),
        InferencePrompt::Raw { .. } | InferencePrompt::Infill { .. } => 0,
    };
    let prompt = model
        .inner
        .render(request)
        .await
        .map_err(|failure| model.failure(failure))?;
    let bytes = NativeFrames::new(route, model.requested.clone()).rendered(prompt, images);
    Ok(reply::bytes(StatusCode::OK, JSON_UTF8, bytes))
}

/// Returns true for failures that Ollama reports from its streaming code, which has another content type. Its scheduler
/// reports the others, before a stream begins.
fn is_of_the_engine(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Invalid(_) | Failure::ContextExceeded { .. } | Failure::Worker(_)
    )
}
