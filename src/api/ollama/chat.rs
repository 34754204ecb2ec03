//! `POST /api/chat`

use hyper::{Response, StatusCode};

use super::{
    frames::{Frames, Route},
    request::ChatRequest,
};
use crate::{
    api::{
        dispatch::Target,
        error::ApiError,
        model::Model,
        reply::{self, JSON_UTF8},
        stream,
    },
    http::body::Body,
    inference::{Failure, InferenceRequest, KeepAlive, LoadOptions, Prompt, ToolChoice},
    provider::Call,
};

/// The checks that need no model.
pub(crate) fn check(body: &[u8]) -> Result<(), ApiError> {
    ChatRequest::decode(body)?.common.check_range()
}

/// Answers for a model of ours.
pub(crate) async fn chat(call: &Call, target: Target) -> Result<Response<Body>, ApiError> {
    let Target {
        provider, name, body, ..
    } = target;
    let mut request = ChatRequest::decode(body.bytes())?;
    drop(body);
    request.common.check_range()?;
    let model = Model::find(call, provider, name, request.common.model.clone()).await?;
    if request.messages.is_empty() && request.common.unloads() {
        return unload(call, &model, Route::Chat).await;
    }
    model.require_text("chat")?;
    let think = model.think(request.common.think)?;
    let tools = model.tools(call, request.tools, false)?;
    let options = request.common.take_options()?;
    if request.messages.is_empty() {
        return load(call, &model, options.load, request.common.keep_alive, Route::Chat).await;
    }
    let streams = request.common.streams();
    let prompt = Prompt::Chat {
        messages: request.messages,
        tools: tools.tools,
        tool_choice: ToolChoice::Auto,
        parallel_tool_calls: true,
        context: Vec::new(),
    };
    let inference = request.common.into_inference(prompt, options, think, false)?;
    let mut response = answer(call, &model, inference, Route::Chat, streams).await?;
    if tools.ignored {
        reply::mark_ignored(response.headers_mut(), &["tools"]);
    }
    Ok(response)
}

/// Makes a model resident.
pub(super) async fn load(
    call: &Call,
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
pub(super) async fn unload(call: &Call, model: &Model, route: Route) -> Result<Response<Body>, ApiError> {
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
    call: &Call,
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

/// Failures that Ollama's streaming code reports, with its own content type; scheduling reports the others.
fn is_of_the_engine(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Invalid(_) | Failure::ContextExceeded { .. } | Failure::Worker(_)
    )
}
