//! `POST /v1/messages` and `POST /v1/messages/count_tokens`

use hyper::{
    Response, StatusCode,
    header::{CACHE_CONTROL, HeaderValue},
};
use serde::Serialize;

use super::{events::MessageWriter, request::MessagesRequest};
use crate::{
    api::{
        envelope::LayeredError,
        error::ApiError,
        model::ServedModel,
        reply::{self, JSON},
        routed::{RoutedModel, RoutedRequest},
        stream,
    },
    http::body::Body,
    inference::InferenceRequest,
    provider::{CallContext, TokenizeRequest},
};

#[derive(Serialize)]
struct TokenCount {
    input_tokens: usize,
}

/// Returns the error for a body of `/v1/messages` that names no model.
pub(crate) fn messages_without_model(body: &[u8]) -> LayeredError {
    without_model(MessagesRequest::decode(body))
}

/// Returns the error for a body of `/v1/messages/count_tokens` that names no model.
pub(crate) fn count_without_model(body: &[u8]) -> LayeredError {
    without_model(MessagesRequest::decode_uncounted(body))
}

fn without_model(decoded: Result<MessagesRequest, ApiError>) -> LayeredError {
    // A body that decodes has a name of blanks. Here, unlike on OpenAI's routes, the shim itself looks for the name.
    LayeredError::Shim(decoded.err().unwrap_or_else(ApiError::model_required))
}

/// Answers `POST /v1/messages` for a model of a provider.
pub(crate) async fn messages(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, LayeredError> {
    let (routed, request) = request.decode(MessagesRequest::decode).map_err(LayeredError::Shim)?;
    Ok(infer(call, routed, request).await?)
}

/// Answers `POST /v1/messages/count_tokens` for a model of a provider.
pub(crate) async fn count_tokens(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, LayeredError> {
    let (routed, request) = request
        .decode(MessagesRequest::decode_uncounted)
        .map_err(LayeredError::Shim)?;
    Ok(count(call, routed, request).await?)
}

/// Request that has passed the checks of its model.
struct CheckedRequest {
    model: ServedModel,
    inference: InferenceRequest,
    /// Names of parts of the request without effect.
    ignored: Vec<&'static str>,
}

async fn check(
    call: &CallContext,
    routed: RoutedModel,
    mut request: MessagesRequest,
) -> Result<CheckedRequest, ApiError> {
    let model = ServedModel::find(call, routed, request.model.clone()).await?;
    model.require_text("chat")?;
    let mut ignored = std::mem::take(&mut request.ignored);
    let tools = std::mem::take(&mut request.tools).shown_to(&model, call, &mut ignored)?;
    // Agents ask every model to think, so on this wire, unlike on the others, a model that cannot is no error.
    let think = model.think_if_able(request.think);
    if think.ignored {
        ignored.push("thinking");
    }
    let inference = request.into_inference(tools, think.think)?;
    model.note_unsupported(&inference, &mut ignored);
    Ok(CheckedRequest {
        model,
        inference,
        ignored,
    })
}

async fn infer(call: &CallContext, routed: RoutedModel, request: MessagesRequest) -> Result<Response<Body>, ApiError> {
    let (streams, estimated_tokens) = (request.stream, request.estimated_tokens);
    // Cloned for the writer, which has to tell these sequences from the stop strings of the model.
    let stop_sequences = request.stop_sequences.clone();
    let CheckedRequest {
        model,
        inference,
        ignored,
    } = check(call, routed, request).await?;
    let pending = model.start(inference);
    let writer = MessageWriter::new(model.requested, stop_sequences, estimated_tokens);
    let mut response = if streams {
        let mut response = stream::sse_response(pending, writer).await?;
        response
            .headers_mut()
            // Ollama's shim sets this header for streams on this route, but not on `/v1/chat/completions`.
            .insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    } else {
        let answer = stream::collect(pending.await?).await?;
        reply::bytes(StatusCode::OK, JSON, writer.whole(answer))
    };
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

async fn count(call: &CallContext, routed: RoutedModel, request: MessagesRequest) -> Result<Response<Body>, ApiError> {
    let CheckedRequest {
        model,
        inference,
        ignored,
    } = check(call, routed, request).await?;
    let text = model
        .inner
        .render(inference)
        .await
        .map_err(|failure| model.failure(failure))?;
    let request = TokenizeRequest {
        text,
        add_special: true,
        parse_special: true,
    };
    let tokens = model
        .inner
        .tokenize(request)
        .await
        .map_err(|failure| model.failure(failure))?;
    // A template may write the first token (BOS) itself. The worker does not add it again then, so it is counted once.
    let doubled = matches!(&tokens[..], [first, second, ..] if first.id == second.id);
    let mut response = reply::json_line(&TokenCount {
        input_tokens: tokens.len() - usize::from(doubled),
    });
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}
