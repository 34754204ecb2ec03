//! `POST /v1/responses`, OpenAI's stateless form: each request has the whole conversation.

mod echo;
mod events;
mod input;
mod items;
mod request;
#[cfg(test)]
mod tests;
mod tools;

use futures_util::{StreamExt, future::BoxFuture, stream};
use hyper::{
    Response, StatusCode,
    header::{CACHE_CONTROL, HeaderValue},
};

use self::{
    echo::{RequestEcho, ResponseState},
    events::{ResponseEvents, now},
    items::{OutputItems, random},
    request::ResponsesRequest,
};
use crate::{
    api::{
        envelope::{LayeredError, shim_error},
        error::ApiError,
        model::ServedModel,
        reply::{self, JSON},
        routed::{RoutedModel, RoutedRequest},
        stream::{StepStream, sse_response, unfinished},
        tools::OfferedTools,
    },
    http::body::Body,
    inference::{AnswerSummary, AnswerUsage, Event, FinishReason, ThinkMode},
    provider::CallContext,
};

/// Returns the error for a body that names no model.
pub(crate) fn responses_without_model(body: &[u8]) -> LayeredError {
    LayeredError::without_model(decode(body), ApiError::model_required())
}

/// Answers `POST /v1/responses` for a model of a provider.
pub(crate) async fn responses(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, LayeredError> {
    let (routed, (request, tools)) = request.decode(decode).map_err(LayeredError::Shim)?;
    Ok(answer(call, routed, request, tools).await?)
}

fn decode(body: &[u8]) -> Result<(ResponsesRequest, OfferedTools), ApiError> {
    let mut request = ResponsesRequest::decode(body).map_err(shim_error)?;
    request.check()?;
    let tools = request.take_tools()?;
    Ok((request, tools))
}

async fn answer(
    call: &CallContext,
    routed: RoutedModel,
    mut request: ResponsesRequest,
    tools: OfferedTools,
) -> Result<Response<Body>, ApiError> {
    let model = ServedModel::find(call, routed, request.common.model.clone()).await?;
    let streams = request.common.stream;
    let mut ignored = std::mem::take(&mut request.common.ignored);
    let is_empty = request.is_empty();
    let unloads = is_empty && request.common.unloads();
    let (pending, echo) = if unloads {
        settled(&model, request).await?
    } else {
        model.require_text("chat")?;
        let think = request.common.thinking(&model)?;
        let tools = tools.shown_to(&model, call, &mut ignored)?;
        // A request without input loads the model, but only if it could be answered otherwise.
        if is_empty {
            settled(&model, request).await?
        } else {
            started(&model, request, tools, think, &mut ignored)?
        }
    };
    let id = format!("resp_{}", random());
    let mut response = if streams {
        let mut response = sse_response(pending, ResponseEvents::new(echo, id)).await?;
        let headers = response.headers_mut();
        // Ollama's shim sends this header on streams of this route and of `/v1/messages`, but not of chat completions.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    } else {
        reply::bytes(StatusCode::OK, JSON, whole(pending.await?, &echo, id).await?)
    };
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

type Pending = BoxFuture<'static, Result<StepStream, ApiError>>;

fn started(
    model: &ServedModel,
    request: ResponsesRequest,
    tools: OfferedTools,
    think: ThinkMode,
    ignored: &mut Vec<&'static str>,
) -> Result<(Pending, RequestEcho), ApiError> {
    let (inference, echo) = request.into_inference(tools, think)?;
    model.note_unsupported(&inference, ignored);
    Ok((model.start(inference), echo))
}

/// Loads or unloads the model, as a request without input asks for; its answer is empty.
async fn settled(model: &ServedModel, request: ResponsesRequest) -> Result<(Pending, RequestEcho), ApiError> {
    let ResponsesRequest { common, echo, .. } = request;
    common.settle(model).await?;
    let end = Event::Finished(AnswerSummary {
        reason: FinishReason::Stop,
        stop_string: None,
        usage: AnswerUsage::default(),
        context: Vec::new(),
    });
    let steps: StepStream = stream::iter([Ok(end)]).boxed();
    Ok((Box::pin(std::future::ready(Ok(steps))), echo))
}

/// Waits for the whole answer and encodes it.
async fn whole(mut steps: StepStream, echo: &RequestEcho, id: String) -> Result<Vec<u8>, ApiError> {
    let (mut items, created_at) = (OutputItems::new(id, false), now());
    while let Some(step) = steps.next().await {
        match step? {
            Event::Delta(delta) => items.add(delta, &mut |_, _| {}),
            Event::Finished(finish) => {
                items.finish_whole();
                return Ok(echo.whole(&ResponseState {
                    id: items.response_id(),
                    created_at,
                    completed_at: Some(now()),
                    status: "completed",
                    output: items.done(),
                    error: None,
                    usage: Some(&finish.usage),
                }));
            }
        }
    }
    Err(unfinished())
}
