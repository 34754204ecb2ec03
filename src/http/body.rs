//! The body type of all requests and responses, and its constructors.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Request or response body of the server and of the client for Ollama. It is not `Sync`, since the streams of answers
/// are not.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Returns a body that is sent in one piece, with a `Content-Length`.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Returns an empty body.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Returns a body of unknown length. Each item is one frame, which is sent as soon as it is ready.
pub fn stream<S>(items: S) -> Body
where
    S: Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    StreamBody::new(items.map(|item| item.map(Frame::data))).boxed_unsync()
}

/// Boxes any body without changing its length or its frames.
pub fn boxed<B>(body: B) -> Body
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Lets `body` own `value`, which is dropped with the body, whether that was sent completely or aborted.
pub fn retain<T>(body: Body, value: T) -> Body
where
    T: Send + Unpin + 'static,
{
    Retain { body, _value: value }.boxed_unsync()
}

struct Retain<T> {
    body: Body,
    _value: T,
}

impl<T> fmt::Debug for Retain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retain").finish_non_exhaustive()
    }
}

impl<T: Unpin> HttpBody for Retain<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::stream as streams;

    use super::*;

    #[tokio::test]
    async fn a_retained_value_lives_as_long_as_the_body() {
        let value = Arc::new(());
        let body = retain(full("abc"), Arc::clone(&value));
        assert_eq!(body.size_hint().exact(), Some(3));
        assert_eq!(Arc::strong_count(&value), 2);
        drop(body);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[tokio::test]
    async fn a_stream_keeps_its_frames() {
        let mut body = stream(streams::iter(["a", "bc"].map(|text| Ok(Bytes::from(text)))));
        assert_eq!(body.size_hint().exact(), None);
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            frames.push(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(frames, ["a", "bc"]);
    }
}
