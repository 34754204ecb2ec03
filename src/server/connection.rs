//! Service of a connection: HTTP/1.1 or HTTP/2 with prior knowledge, the limits, and the end.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::dispatch::Dispatcher;
use crate::http::body;

/// Time limit for the head of a request, from the end of the previous request. Bodies and responses have no limit,
/// since a model may take minutes.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Smallest buffer that hyper accepts; it panics below.
const MIN_HEADER_BYTES: usize = 8 << 10;

/// Concurrent requests on one HTTP/2 connection. RFC 9113 (section 6.5.2) recommends at least 100.
const MAX_STREAMS: u32 = 128;

/// Returns a builder of connections with the limits of this module. (hyper itself refuses more than 100 headers.)
pub(super) fn builder(max_header_bytes: usize) -> auto::Builder<TokioExecutor> {
    let max_header_bytes = max_header_bytes.max(MIN_HEADER_BYTES);
    // Headers of Ollama keep their spelling when they are forwarded; our own are spelled in the same way.
    let mut builder = auto::Builder::new(TokioExecutor::new())
        .preserve_header_case(true)
        .title_case_headers(true);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(max_header_bytes)
        // A client that closes its sending side is taken for gone: that ends generation for a client that aborted.
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(max_header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS);
    builder
}

/// Serves a connection until it ends. After `draining` it accepts no further request; after `ended` it is dropped.
pub(super) async fn serve<S>(
    stream: S,
    builder: &auto::Builder<TokioExecutor>,
    dispatcher: &Arc<Dispatcher>,
    check_host: bool,
    draining: &CancellationToken,
    ended: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // hyper's own time limit starts only once it has told HTTP/1 from HTTP/2, which takes up to 24 bytes.
    let spoken = Arc::new(AtomicBool::new(false));
    let service = {
        let spoken = Arc::clone(&spoken);
        let dispatcher = Arc::clone(dispatcher);
        service_fn(move |request: Request<Incoming>| {
            spoken.store(true, Ordering::Relaxed);
            let dispatcher = Arc::clone(&dispatcher);
            async move { Ok::<_, Infallible>(dispatcher.dispatch(request.map(body::boxed), check_host).await) }
        })
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut silence = pin!(tokio::time::sleep(HEADER_TIMEOUT));
    let (mut watching, mut accepting) = (true, true);
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(error, "connection ended");
                }
                return;
            }
            () = draining.cancelled(), if accepting => {
                accepting = false;
                connection.as_mut().graceful_shutdown();
            }
            // Returning drops the connection with the answers that are still open on it; that cancels their work.
            () = ended.cancelled() => return,
            () = silence.as_mut(), if watching => {
                watching = false;
                if !spoken.load(Ordering::Relaxed) {
                    tracing::debug!("connection ended: no request came");
                    return;
                }
            }
        }
    }
}
