//! `POST /api/pull`

use bytes::Bytes;
use futures_util::StreamExt;
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::{
    api::{
        error::ApiError,
        model::failure_of,
        reply::{self, JSON},
        routed::{RoutedModel, RoutedRequest},
    },
    go::decode::{DecodeError, FieldPath, entries_of},
    http::body::{self, Body},
    inference::PullEvent,
    provider::{CallContext, PullStream},
};

/// Number of hex digits of a digest in a status line.
const SHORT_DIGEST: usize = 12;

#[derive(Serialize)]
struct Progress<'a> {
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    #[serde(skip_serializing_if = "is_zero")]
    completed: u64,
}

/// Answers `POST /api/pull` for a model of a provider. The download is canceled when the client goes away.
pub(crate) async fn pull(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, streams) = request.decode(wants_stream)?;
    let RoutedModel {
        provider,
        name,
        requested,
        ..
    } = routed;
    let progress = provider
        .pull(call, &name)
        .await
        .map_err(|failure| failure_of(failure, &requested))?;
    if streams {
        Ok(reply::ndjson(frames(progress, requested)))
    } else {
        last(progress, &requested).await
    }
}

fn wants_stream(body: &[u8]) -> Result<bool, DecodeError> {
    let mut stream = None;
    for (key, node) in entries_of(body, "api.PullRequest")? {
        if key.eq_ignore_ascii_case("stream") {
            node.read_optional_bool(&mut stream, FieldPath("PullRequest", "stream"))?;
        }
    }
    // Absent and `null` mean true, as on all native routes that stream.
    Ok(stream != Some(false))
}

fn frames(progress: PullStream, requested: String) -> Body {
    body::stream(futures_util::stream::unfold(Some(progress), move |state| {
        let requested = requested.clone();
        async move {
            let mut progress = state?;
            let mut out = Vec::new();
            let rest = match progress.next().await? {
                Ok(event) => {
                    push_frame(&event, &mut out);
                    Some(progress)
                }
                Err(failure) => {
                    tracing::warn!(model.name = %requested, error = %failure, "a pull broke off");
                    reply::native_error_frame(&failure_of(failure, &requested), &mut out);
                    None
                }
            };
            Some((Ok(Bytes::from(out)), rest))
        }
    }))
}

/// Waits for the end and returns the last object only, as Ollama does without a stream.
async fn last(mut progress: PullStream, requested: &str) -> Result<Response<Body>, ApiError> {
    let mut line = Vec::new();
    while let Some(event) = progress.next().await {
        match event {
            Ok(event) => {
                line.clear();
                push_frame(&event, &mut line);
            }
            // By now Ollama has begun its stream, so the error has the content type of one.
            Err(failure) => return Ok(reply::native_stream_error(&failure_of(failure, requested))),
        }
    }
    line.pop(); // the line feed
    Ok(reply::bytes(StatusCode::OK, JSON, line))
}

pub(super) fn push_frame(event: &PullEvent, out: &mut Vec<u8>) {
    match event {
        PullEvent::Status(status) => {
            reply::push_line(
                &Progress {
                    status,
                    digest: None,
                    total: 0,
                    completed: 0,
                },
                out,
            );
        }
        PullEvent::File {
            digest,
            total,
            completed,
        } => {
            // The `ollama` command groups progress bars by `digest` and shows `status` next to them.
            let short = digest.get(..SHORT_DIGEST).unwrap_or(digest);
            let progress = Progress {
                status: &format!("pulling {short}"),
                digest: Some(format!("sha256:{digest}")),
                total: *total,
                completed: *completed,
            };
            reply::push_line(&progress, out);
        }
        PullEvent::Converting {
            digest,
            total,
            completed,
        } => {
            let progress = Progress {
                // Ollama has no such step, but its command shows any status with a digest as a progress bar.
                status: "converting model",
                digest: Some(format!("sha256:{digest}")),
                total: *total,
                completed: *completed,
            };
            reply::push_line(&progress, out);
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::BodyExt;

    use super::*;
    use crate::inference::Failure;

    fn events() -> Vec<Result<PullEvent, Failure>> {
        let digest = "0123456789abcdef".repeat(4);
        vec![
            Ok(PullEvent::Status("pulling manifest")),
            Ok(PullEvent::File {
                digest: digest.clone(),
                total: 100,
                completed: 0,
            }),
            Ok(PullEvent::File {
                digest,
                total: 100,
                completed: 100,
            }),
            Ok(PullEvent::Converting {
                digest: "f".repeat(64),
                total: 50,
                completed: 25,
            }),
            Ok(PullEvent::Status("success")),
        ]
    }

    async fn text(body: Body) -> String {
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn progress_is_one_frame_an_event() {
        let frames = text(frames(Box::pin(stream::iter(events())), "hf:o/r".into())).await;
        let digest = "0123456789abcdef".repeat(4);
        let expected = format!(
            "{{\"status\":\"pulling manifest\"}}\n{{\"status\":\"pulling 0123456789ab\",\"digest\":\"sha256:{digest}\",\"total\":100}}\n{{\"status\":\"pulling 0123456789ab\",\"digest\":\"sha256:{digest}\",\"total\":100,\"completed\":100}}\n{{\"status\":\"converting model\",\"digest\":\"sha256:{}\",\"total\":50,\"completed\":25}}\n{{\"status\":\"success\"}}\n",
            "f".repeat(64)
        );
        assert_eq!(frames, expected);
    }

    #[tokio::test]
    async fn without_a_stream_only_the_last_object_is_sent() {
        let response = last(Box::pin(stream::iter(events())), "hf:o/r").await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(text(response.into_body()).await, "{\"status\":\"success\"}");
    }

    #[tokio::test]
    async fn an_error_is_a_frame_in_a_stream_and_a_status_without_one() {
        let broken = || {
            let mut broken = events();
            broken[2] = Err(Failure::Unavailable("the Hub does not answer".into()));
            Box::pin(stream::iter(broken))
        };
        let frames = text(frames(broken(), "hf:o/r".into())).await;
        assert!(
            frames.ends_with("\n{\"error\":\"the Hub does not answer\"}\n"),
            "{frames}"
        );
        let response = last(broken(), "hf:o/r").await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(
            text(response.into_body()).await,
            "{\"error\":\"the Hub does not answer\"}"
        );
    }
}
