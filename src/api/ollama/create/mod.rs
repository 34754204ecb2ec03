//! `POST /api/create`: a model created from one of a provider. Its settings are stored as an alias; the weights stay in
//! the Hub's cache.

mod plan;
mod request;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::Response;
use serde::Serialize;

use self::{plan::CreationPlan, request::CreateRequest};
use super::{
    destination::{destination, is_taken},
    pull::push_frame,
};
use crate::{
    api::{
        ApiHandler,
        error::ApiError,
        model::failure_of,
        reply::{self, JSON},
        routed::RoutedRequest,
    },
    http::body::{self, Body},
    inference::PullEvent,
    provider::{CallContext, NameOwner, PullStream},
};

/// Last status of a pull. A creation continues after it, and sends it once at its own end.
const SUCCESS: &str = "success";

#[derive(Serialize)]
struct Status<'a> {
    status: &'a str,
}

/// Answers `POST /api/create`.
pub(crate) async fn create(
    api: &ApiHandler,
    call: &CallContext,
    request: RoutedRequest,
) -> Result<Response<Body>, ApiError> {
    // Cloned, because decoding consumes the request to free its body.
    let headers = request.headers.clone();
    let (_, request) = request.decode(CreateRequest::decode)?;
    let name = destination(api, call, request.name(), "invalid model name", &headers).await?;
    let ignored = request.ignored.clone();
    let streams = request.stream != Some(false);
    // From here on Ollama has begun its stream, so errors have the content type of one.
    let planned = match api.owner_of(call, &request.from, &headers).await {
        NameOwner::Forward if request.names_no_source() => {
            Err(ApiError::bad_request("neither 'from' or 'files' was specified"))
        }
        // The base is a model of Ollama, so it is the new name that led the request here: it is an alias of ours.
        NameOwner::Forward => Err(is_taken(request.name(), api)),
        NameOwner::Serve { name: base, origin, .. } => CreationPlan::new(api, call, name, &base, origin, request),
    };
    let work = match planned {
        Ok(plan) => Creation::begin(plan).await,
        Err(error) => Err(error),
    };
    let answer = match work {
        Ok(work) if streams => Ok(reply::ndjson(frames(work))),
        Ok(work) => last(work).await,
        Err(error) => Err(error),
    };
    let mut response = answer.unwrap_or_else(|error| reply::native_stream_error(&error));
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

/// State of a creation.
enum Creation {
    /// The base model is being downloaded.
    Pulling(PullStream, Box<CreationPlan>),
    /// The base model is on this machine.
    Ready(Box<CreationPlan>),
    /// The alias is stored; these statuses are still to be sent.
    Kept(std::vec::IntoIter<String>),
}

impl Creation {
    /// Takes the steps that can fail before a frame is sent, so that they fail with a status.
    async fn begin(plan: CreationPlan) -> Result<Self, ApiError> {
        if plan.is_there().await? {
            return Ok(Self::Kept(plan.keep().await?.into_iter()));
        }
        plan.check()?;
        let pull = plan.pull().await?;
        Ok(Self::Pulling(pull, Box::new(plan)))
    }

    /// Returns the next frame and the state behind it.
    async fn step(self) -> Result<Option<(Vec<u8>, Self)>, ApiError> {
        let mut out = Vec::new();
        let mut work = self;
        loop {
            work = match work {
                Self::Pulling(mut pull, plan) => match pull.next().await {
                    Some(Ok(PullEvent::Status(SUCCESS))) => Self::Pulling(pull, plan),
                    Some(Ok(event)) => {
                        push_frame(&event, &mut out);
                        return Ok(Some((out, Self::Pulling(pull, plan))));
                    }
                    Some(Err(failure)) => return Err(failure_of(failure, &plan.from)),
                    None => Self::Ready(plan),
                },
                Self::Ready(plan) => Self::Kept(plan.keep().await?.into_iter()),
                Self::Kept(mut statuses) => {
                    let Some(status) = statuses.next() else {
                        return Ok(None);
                    };
                    reply::push_line(&Status { status: &status }, &mut out);
                    return Ok(Some((out, Self::Kept(statuses))));
                }
            };
        }
    }
}

fn frames(work: Creation) -> Body {
    body::stream(stream::unfold(Some(work), async |work| {
        let (frame, rest) = match work?.step().await {
            Ok(step) => step.map(|(frame, rest)| (frame, Some(rest)))?,
            Err(error) => {
                tracing::warn!(%error, "a model could not be made");
                let mut frame = Vec::new();
                reply::native_error_frame(&error, &mut frame);
                (frame, None)
            }
        };
        Some((Ok(Bytes::from(frame)), rest))
    }))
}

/// Waits for the end and returns the last object only.
async fn last(mut work: Creation) -> Result<Response<Body>, ApiError> {
    let mut line = Vec::new();
    while let Some((frame, rest)) = work.step().await? {
        (line, work) = (frame, rest);
    }
    line.pop(); // the line feed
    Ok(reply::bytes(hyper::StatusCode::OK, JSON, line))
}
