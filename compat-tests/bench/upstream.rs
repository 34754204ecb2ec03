//! Stand-in for Ollama. It answers `POST /api/generate` with one small JSON object, or with [`FRAMES`] NDJSON frames
//! that are sent one by one if the request asks for a stream. It runs in its own process, as Ollama does.

use std::{
    convert::Infallible,
    io::{self, Write as _},
    net::Ipv4Addr,
    pin::Pin,
    task::{Context, Poll},
};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Number of frames in one streamed reply.
pub(crate) const FRAMES: usize = 200;

const FRAME: &[u8] =
    b"{\"model\":\"tiny\",\"created_at\":\"2026-01-01T00:00:00.000000000Z\",\"response\":\" word\",\"done\":false}\n";
const ONCE: &[u8] =
    b"{\"model\":\"tiny\",\"created_at\":\"2026-01-01T00:00:00.000000000Z\",\"response\":\"a few words\",\"done\":true}";

/// Prints the address and serves until the process is killed.
pub(crate) fn serve() -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            println!("{}", listener.local_addr()?);
            io::stdout().flush()?;
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
            }
        })
}

async fn answer(request: Request<Incoming>) -> Result<Response<Either<Full<Bytes>, Frames>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let streams = body.windows(13).any(|part| part == b"\"stream\":true");
    let (kind, body) = if streams {
        (
            "application/x-ndjson",
            Either::Right(Frames {
                left: FRAMES,
                pause: false,
            }),
        )
    } else {
        (
            "application/json; charset=utf-8",
            Either::Left(Full::new(Bytes::from_static(ONCE))),
        )
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// Body that repeats a frame, with a pause after each in which the connection is flushed.
struct Frames {
    left: usize,
    pause: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.pause = !self.pause;
        if self.pause {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(FRAME)))))
    }
}
