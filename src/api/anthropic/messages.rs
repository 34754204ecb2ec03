//! `POST /v1/messages` and `POST /v1/messages/count_tokens`

use std::sync::Arc;

use hyper::{
    Response, StatusCode,
    header::{CACHE_CONTROL, HeaderValue},
};
use serde::Serialize;

use super::{answer, error, events::MessageWriter, handler_error, request::MessagesRequest};
use crate::{
    api::{
        dispatch::Target,
        error::ApiError,
        model::Model,
        reply::{self, JSON},
        stream,
    },
    http::body::Body,
    inference::{InferenceRequest, ToolChoice},
    provider::{Call, Provider, TokenizeRequest},
};

#[derive(Serialize)]
struct TokenCount {
    input_tokens: usize,
}

/// The reply to a body that names no model, while no upstream is there to word it.
pub(crate) fn nameless(body: &[u8]) -> Response<Body> {
    refuse(MessagesRequest::decode(body))
}

/// The same for a count.
pub(crate) fn nameless_count(body: &[u8]) -> Response<Body> {
    refuse(MessagesRequest::decode_uncounted(body))
}

fn refuse(decoded: Result<MessagesRequest, ApiError>) -> Response<Body> {
    // A name of blanks is no name either.
    error(&decoded.err().unwrap_or_else(ApiError::model_required))
}

/// Answers for a model of ours.
pub(crate) async fn messages(call: &Call, target: Target) -> Response<Body> {
    let Target {
        provider, name, body, ..
    } = target;
    let request = match MessagesRequest::decode(body.bytes()) {
        Ok(request) => request,
        Err(bad) => return error(&bad),
    };
    drop(body);
    infer(call, provider, name, request)
        .await
        .unwrap_or_else(|error| handler_error(&error))
}

/// Counts the tokens of a prompt of a model of ours.
pub(crate) async fn count_tokens(call: &Call, target: Target) -> Response<Body> {
    let Target {
        provider, name, body, ..
    } = target;
    let request = match MessagesRequest::decode_uncounted(body.bytes()) {
        Ok(request) => request,
        Err(bad) => return error(&bad),
    };
    drop(body);
    count(call, provider, name, request)
        .await
        .unwrap_or_else(|error| handler_error(&error))
}

/// A request after the checks of its model.
struct Checked {
    model: Model,
    inference: InferenceRequest,
    /// What was asked for and has no effect.
    ignored: Vec<&'static str>,
}

async fn check(
    call: &Call,
    provider: Arc<dyn Provider>,
    name: String,
    mut request: MessagesRequest,
) -> Result<Checked, ApiError> {
    let model = Model::find(call, provider, name, request.model.clone()).await?;
    model.require_text("chat")?;
    let mut ignored = std::mem::take(&mut request.ignored);
    let offered = std::mem::take(&mut request.tools);
    let tools = match &request.tool_choice {
        ToolChoice::None => model.tools(call, Vec::new(), false)?,
        choice => model.tools(call, offered, *choice != ToolChoice::Auto)?,
    };
    if tools.ignored {
        ignored.push("tools");
    }
    // Agents ask every model to think: here, and only here, one that cannot is not an error.
    let think = model.think_if_able(request.think);
    if think.ignored {
        ignored.push("thinking");
    }
    let inference = request.into_inference(tools.tools, think.think)?;
    model.note_dropped(&inference, &mut ignored);
    Ok(Checked {
        model,
        inference,
        ignored,
    })
}

async fn infer(
    call: &Call,
    provider: Arc<dyn Provider>,
    name: String,
    request: MessagesRequest,
) -> Result<Response<Body>, ApiError> {
    let (streams, estimated_tokens) = (request.stream, request.estimated_tokens);
    let stop_sequences = request.stop_sequences.clone();
    let Checked {
        model,
        inference,
        ignored,
    } = check(call, provider, name, request).await?;
    let pending = model.start(call, inference);
    let writer = MessageWriter::new(model.requested, stop_sequences, estimated_tokens);
    let mut response = if streams {
        let mut response = stream::sse_response(pending, writer).await?;
        response
            .headers_mut()
            .insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    } else {
        let answer = stream::collect(pending.await?).await?;
        reply::bytes(StatusCode::OK, JSON, writer.whole(answer))
    };
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

async fn count(
    call: &Call,
    provider: Arc<dyn Provider>,
    name: String,
    request: MessagesRequest,
) -> Result<Response<Body>, ApiError> {
    let Checked {
        model,
        inference,
        ignored,
    } = check(call, provider, name, request).await?;
    let text = model
        .provider
        .render(call, &model.name, inference)
        .await
        .map_err(|failure| model.failure(failure))?;
    let request = TokenizeRequest {
        text,
        add_special: true,
        parse_special: true,
    };
    let tokens = model
        .provider
        .tokenize(call, &model.name, request)
        .await
        .map_err(|failure| model.failure(failure))?;
    // A template that writes the first token (BOS) itself does not get it twice when it is asked for an answer.
    let doubled = matches!(&tokens[..], [first, second, ..] if first.id == second.id);
    let mut response = answer(&TokenCount {
        input_tokens: tokens.len() - usize::from(doubled),
    });
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}
