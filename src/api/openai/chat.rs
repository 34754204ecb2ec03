//! `POST /v1/chat/completions`

use std::time::SystemTime;

use hyper::{Response, StatusCode};

use super::{
    chunks::Chunks,
    handler_error,
    request::{ChatCompletionRequest, ToolChoice},
    shim_error,
};
use crate::{
    api::{
        decode::DecodeError,
        dispatch::Target,
        error::ApiError,
        listing,
        model::Model,
        reply::{self, JSON},
        stream,
    },
    http::body::Body,
    provider::Call,
};

/// The reply to a body that names no model, while no upstream is there to word it.
pub(crate) fn nameless_chat(body: &[u8]) -> Response<Body> {
    match decode(body) {
        Err(error) => shim_error(&error),
        Ok(_) => handler_error(&ApiError::bad_request("model is required")),
    }
}

/// Answers for a model of ours.
pub(crate) async fn chat(call: &Call, target: Target) -> Response<Body> {
    let request = match decode(target.body.bytes()) {
        Ok(request) => request,
        Err(error) => return shim_error(&error),
    };
    answer(call, target, request)
        .await
        .unwrap_or_else(|error| handler_error(&error))
}

fn decode(body: &[u8]) -> Result<ChatCompletionRequest, ApiError> {
    let request = ChatCompletionRequest::decode(body).map_err(|error| match error {
        // The shim does not go through the code that words it for the native routes.
        DecodeError::Empty => ApiError::bad_request("EOF"),
        other => other.into(),
    })?;
    request.check()?;
    Ok(request)
}

async fn answer(call: &Call, target: Target, mut request: ChatCompletionRequest) -> Result<Response<Body>, ApiError> {
    let Target {
        provider, name, body, ..
    } = target;
    drop(body);
    request.check_range()?;
    let model = Model::find(call, provider, name, request.model.clone()).await?;
    model.require_text("chat")?;
    let think = model.think(request.think()?)?;
    let offered = std::mem::take(&mut request.tools);
    let checked = match request.tool_choice {
        ToolChoice::None => model.tools(call, Vec::new(), false)?,
        choice => model.tools(call, offered, choice == ToolChoice::Required)?,
    };
    let mut ignored = request.ignored();
    if checked.ignored {
        ignored.push("tools");
    }
    let (streams, include_usage) = (request.stream, request.include_usage);
    let inference = request.into_inference(checked.tools, think)?;
    model.note_dropped(&inference, &mut ignored);
    let events = model
        .provider
        .infer(call, &model.name, inference)
        .await
        .map_err(|failure| model.failure(failure))?;
    let chunks = Chunks::new(model.requested, include_usage, listing::unix_seconds(SystemTime::now()));
    let mut response = if streams {
        reply::events(stream::body(events, chunks))
    } else {
        let answer = stream::collect(events).await?;
        reply::bytes(StatusCode::OK, JSON, chunks.whole(answer))
    };
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}
