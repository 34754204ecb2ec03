//! `POST /api/chat`

use hyper::{Response, StatusCode};

use super::{
    frames::{Frames, Route},
    request::ChatRequest,
};
use crate::{
    api::{
        dispatch::RoutedRequest,
        error::ApiError,
        model::{CheckedTools, Model},
        options::Options,
        reply::{self, JSON_UTF8},
        stream,
    },
    http::body::Body,
    inference::{Failure, InferencePrompt, InferenceRequest, KeepAlive, LoadOptions, ThinkMode, ToolChoice},
    provider::CallContext,
};

/// The checks that need no model.
pub(crate) fn check(body: &[u8]) -> Result<(), ApiError> {
    ChatRequest::decode(body)?.common.check_range()
}

/// Answers for a model of ours.
pub(crate) async fn chat(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, mut request) = request.decode(ChatRequest::decode)?;
    request.common.check_range()?;
    let model = Model::find(call, routed, request.common.model.clone()).await?;
    if request.messages.is_empty() && request.common.unloads() {
        return unload(call, &model, Route::Chat).await;
    }
    let checked = Checked::new(call, &model, &mut request)?;
    if request.messages.is_empty() {
        return load(
            call,
            &model,
            checked.options.load,
            request.common.keep_alive,
            Route::Chat,
        )
        .await;
    }
    let (streams, only_renders) = (request.common.streams(), request.common.debug_render_only);
    let ignored = checked.ignored();
    let inference = checked.into_inference(request)?;
    let mut response = if only_renders {
        render(call, &model, inference, Route::Chat).await?
    } else {
        answer(call, &model, inference, Route::Chat, streams).await?
    };
    reply::mark_ignored(response.headers_mut(), ignored);
    Ok(response)
}

/// What the checks of the model leave of a chat.
pub(super) struct Checked {
    think: ThinkMode,
    tools: CheckedTools,
    options: Options,
}

impl Checked {
    pub(super) fn new(call: &CallContext, model: &Model, request: &mut ChatRequest) -> Result<Self, ApiError> {
        model.require_text("chat")?;
        Ok(Self {
            think: model.think(request.common.think)?,
            tools: model.tools(call, std::mem::take(&mut request.tools), false)?,
            options: request.common.take_options()?,
        })
    }

    /// What was asked for and has no effect.
    pub(super) fn ignored(&self) -> &'static [&'static str] {
        match self.tools.ignored {
            true => &["tools"],
            false => &[],
        }
    }

    pub(super) fn into_inference(self, request: ChatRequest) -> Result<InferenceRequest, ApiError> {
        let prompt = InferencePrompt::Chat {
            messages: request.messages,
            tools: self.tools.tools,
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            context: Vec::new(),
        };
        request.common.into_inference(prompt, self.options, self.think, false)
    }
}

/// Makes a model resident.
pub(super) async fn load(
    call: &CallContext,
    model: &Model,
    options: LoadOptions,
    keep_alive: Option<KeepAlive>,
    route: Route,
) -> Result<Response<Body>, ApiError> {
    model
        .provider
        .load(call, &model.name, options, keep_alive)
        .await
        .map_err(|error| model.failure(error))?;
    Ok(residency(model, route, "load"))
}

/// Unloads a model; fine if it is not loaded.
pub(super) async fn unload(call: &CallContext, model: &Model, route: Route) -> Result<Response<Body>, ApiError> {
    model
        .provider
        .unload(call, &model.name)
        .await
        .map_err(|error| model.failure(error))?;
    Ok(residency(model, route, "unload"))
}

/// One object even where a stream was asked for.
fn residency(model: &Model, route: Route, reason: &'static str) -> Response<Body> {
    let bytes = Frames::new(route, model.requested.clone()).residency(reason);
    reply::bytes(StatusCode::OK, JSON_UTF8, bytes)
}

/// Runs a request and puts the answer on the wire.
pub(super) async fn answer(
    call: &CallContext,
    model: &Model,
    request: InferenceRequest,
    route: Route,
    streams: bool,
) -> Result<Response<Body>, ApiError> {
    let frames = Frames::new(route, model.requested.clone());
    let events = match model.provider.infer(call, &model.name, request).await {
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

/// Shows the prompt that the model would be given.
pub(super) async fn render(
    call: &CallContext,
    model: &Model,
    request: InferenceRequest,
    route: Route,
) -> Result<Response<Body>, ApiError> {
    let images = match &request.prompt {
        InferencePrompt::Chat { messages, .. } => messages.iter().map(|message| message.media.len()).sum(),
        InferencePrompt::Raw { .. } | InferencePrompt::Infill { .. } => 0,
    };
    let prompt = model
        .provider
        .render(call, &model.name, request)
        .await
        .map_err(|failure| model.failure(failure))?;
    let bytes = Frames::new(route, model.requested.clone()).rendered(prompt, images);
    Ok(reply::bytes(StatusCode::OK, JSON_UTF8, bytes))
}

/// Failures that Ollama's streaming code reports, with its own content type; scheduling reports the others.
fn is_of_the_engine(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Invalid(_) | Failure::ContextExceeded { .. } | Failure::Worker(_)
    )
}
