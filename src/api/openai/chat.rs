//! `POST /v1/chat/completions`

use std::time::SystemTime;

use hyper::{Response, StatusCode};

use super::{choices, chunks::Chunks, request::ChatCompletionRequest};
use crate::{
    api::{
        envelope::{LayeredError, shim_error},
        error::ApiError,
        listing,
        model::ServedModel,
        reply::{self, JSON},
        routed::{RoutedModel, RoutedRequest},
        stream,
        tools::OfferedTools,
    },
    http::body::Body,
    inference::{InferencePrompt, InferenceRequest},
    provider::CallContext,
};

/// Returns the error for a body that names no model.
pub(crate) fn chat_without_model(body: &[u8]) -> LayeredError {
    LayeredError::without_model(decode(body), ApiError::model_required())
}

/// Answers `POST /v1/chat/completions` for a model of a provider.
pub(crate) async fn chat(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, LayeredError> {
    let (routed, (request, tools)) = request.decode(decode).map_err(LayeredError::Shim)?;
    Ok(answer(call, routed, request, tools).await?)
}

fn decode(body: &[u8]) -> Result<(ChatCompletionRequest, OfferedTools), ApiError> {
    let mut request = ChatCompletionRequest::decode(body).map_err(shim_error)?;
    request.check()?;
    let tools = request.take_tools()?;
    Ok((request, tools))
}

async fn answer(
    call: &CallContext,
    routed: RoutedModel,
    mut request: ChatCompletionRequest,
    tools: OfferedTools,
) -> Result<Response<Body>, ApiError> {
    request.check_range()?;
    let model = ServedModel::find(call, routed, request.common.model.clone()).await?;
    model.require_text("chat")?;
    let think = request.common.thinking(&model)?;
    let mut ignored = std::mem::take(&mut request.common.ignored);
    let tools = tools.shown_to(&model, call, &mut ignored)?;
    let (streams, include_usage) = (request.common.stream, request.common.include_usage);
    let (count, only_renders) = (request.common.choices()?, request.only_renders);
    let inference = request.into_inference(tools, think)?;
    model.note_unsupported(&inference, &mut ignored);
    // One time for all chunks: clients use it with the id to tell replies apart.
    let created = listing::unix_seconds(SystemTime::now());
    let chunks = Chunks::new(model.requested.clone(), include_usage, created, count);
    let mut response = if only_renders {
        render(&model, inference, chunks).await?
    } else {
        let pending = choices::start(&model, choices::repeat(inference, count));
        if streams {
            stream::sse_response(pending, chunks).await?
        } else {
            let answers = choices::collect(pending.await?, count).await?;
            reply::bytes(StatusCode::OK, JSON, chunks.whole(answers))
        }
    };
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

/// Returns the rendered prompt (`_debug_render_only`), in one piece even if a stream was asked for.
async fn render(model: &ServedModel, inference: InferenceRequest, chunks: Chunks) -> Result<Response<Body>, ApiError> {
    let images = match &inference.prompt {
        InferencePrompt::Chat { messages, .. } => messages.iter().map(|message| message.media.len()).sum(),
        InferencePrompt::Raw { .. } | InferencePrompt::Infill { .. } => 0,
    };
    let prompt = model
        .inner
        .render(inference)
        .await
        .map_err(|failure| model.failure(failure))?;
    Ok(reply::bytes(StatusCode::OK, JSON, chunks.rendered(prompt, images)))
}
