//! `POST /v1/completions`

use std::time::SystemTime;

use hyper::{Response, StatusCode};

use super::{
    choices, common::SharedFields, completion_chunks::CompletionChunks, completion_request::CompletionRequest,
};
use crate::{
    api::{
        envelope::{LayeredError, shim_error},
        error::ApiError,
        listing,
        model::ServedModel,
        reply::{self, JSON},
        routed::{RoutedModel, RoutedRequest},
        stream,
    },
    http::body::{self, Body},
    inference::{InferenceRequest, ThinkMode},
    provider::CallContext,
};

/// Returns the error for a body that names no model.
pub(crate) fn completions_without_model(body: &[u8]) -> LayeredError {
    LayeredError::without_model(decode(body), ApiError::model_not_found(""))
}

/// Answers `POST /v1/completions` for a model of a provider.
pub(crate) async fn completions(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, LayeredError> {
    let (routed, request) = request.decode(decode).map_err(LayeredError::Shim)?;
    Ok(answer(call, routed, request).await?)
}

fn decode(body: &[u8]) -> Result<CompletionRequest, ApiError> {
    let request = CompletionRequest::decode(body).map_err(shim_error)?;
    request.check()?;
    Ok(request)
}

async fn answer(
    call: &CallContext,
    routed: RoutedModel,
    mut request: CompletionRequest,
) -> Result<Response<Body>, ApiError> {
    request.check_range()?;
    let model = ServedModel::find(call, routed, request.common.model.clone()).await?;
    // The order of the checks is that of Ollama's native route, which stands behind its shim.
    if request.is_empty() && request.common.unloads() {
        return residency(model, request.common).await;
    }
    // OpenAI's route has no field for reasoning, so a model only reasons here if the request mentions it.
    let think = if request.common.speaks_of_thinking() {
        request.common.thinking(&model)?
    } else {
        ThinkMode::Off
    };
    model.require_text("generate")?;
    if !request.suffix.is_empty() {
        model.require_insert()?;
    }
    if request.is_empty() {
        return residency(model, request.common).await;
    }
    let (streams, include_usage) = (request.common.stream, request.common.include_usage);
    let mut ignored = std::mem::take(&mut request.common.ignored);
    let answers = request.common.choices()?;
    let requests = request.into_inferences(think)?;
    for request in &requests {
        model.note_unsupported(request, &mut ignored);
    }
    let prompts = requests.len();
    let requests: Vec<InferenceRequest> = requests
        .into_iter()
        .flat_map(|request| choices::repeat(request, answers))
        .collect();
    let count = requests.len();
    let pending = choices::start(&model, requests);
    let chunks = chunks(model, include_usage, prompts, answers);
    let mut response = if streams {
        stream::sse_response(pending, chunks).await?
    } else {
        let answers = choices::collect(pending.await?, count).await?;
        reply::bytes(StatusCode::OK, JSON, chunks.whole(answers))
    };
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

fn chunks(model: ServedModel, include_usage: bool, prompts: usize, answers: usize) -> CompletionChunks {
    let created = listing::unix_seconds(SystemTime::now());
    CompletionChunks::new(model.requested, include_usage, created, prompts, answers)
}

/// Loads or unloads the model, as an empty prompt asks for in Ollama.
async fn residency(model: ServedModel, common: SharedFields) -> Result<Response<Body>, ApiError> {
    let (streams, include_usage) = (common.stream, common.include_usage);
    let reason = common.settle(&model).await?;
    let bytes = chunks(model, include_usage, 1, 1).residency(reason, streams);
    Ok(if streams {
        reply::events(body::full(bytes))
    } else {
        reply::bytes(StatusCode::OK, JSON, bytes)
    })
}
