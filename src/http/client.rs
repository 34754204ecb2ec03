//! Pooled HTTP/1.1 client for Ollama: no proxy, no redirects, no limit of the total time.
//!
//! A connection is driven by the task that uses it and not by a task of its own: polling the response body also reads
//! the socket. A relayed frame then costs no switch of tasks, and frames that arrive in one read leave in one write.
//! (With a task for each connection, as in hyper-util's client, every frame is handed over separately; that cost a
//! quarter of a relay's throughput when it was measured.)

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, Once, OnceLock},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    Request, Response, Uri,
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
    },
    http::uri::{Authority, Scheme},
    rt::{Read, Write},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use tower_service::Service;

use super::body::{self, Body, BoxError};
use crate::stdx::sync::lock;

/// Time for which idle connections are kept. Ollama never closes one, but a proxy in between may.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Idle connections that are kept at the same time.
const MAX_IDLE: usize = 64;

/// Silence after which the kernel probes the connection. Streams may be silent for minutes.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Failure to get a response.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URI has no host.
    #[error("the address is not absolute")]
    Address,
    /// No connection could be made.
    #[error("no connection")]
    Connect(#[source] BoxError),
    /// TLS cannot be set up, for example without the system's certificates.
    #[error("no TLS: {0}")]
    Tls(String),
    /// The connection failed before the head of a response arrived.
    #[error("the connection ended before there was an answer")]
    Exchange(#[source] hyper::Error),
}

/// HTTP client with a pool of connections. It keeps the spelling of headers in both directions.
pub struct HttpClient {
    connect_timeout: Duration,
    /// Created on first use: reading the system's certificates takes time and fails on a machine without any.
    tls: OnceLock<Result<HttpsConnector<HttpConnector>, String>>,
    pool: Arc<Pool>,
}

impl HttpClient {
    /// Returns a client that gives up connecting after `connect_timeout`.
    #[must_use]
    pub fn new(connect_timeout: Duration) -> Self {
        Self {
            connect_timeout,
            tls: OnceLock::new(),
            pool: Arc::default(),
        }
    }

    /// Returns the time limit for connecting.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Sends a request with an absolute URI and a `Host` header; resolves at the head of the response.
    ///
    /// The request is repeated only if a pooled connection turns out to be closed before any byte was written. Dropping
    /// the future or the response body closes the connection, which tells Ollama that the client is gone.
    ///
    /// # Errors
    ///
    /// If no connection can be made, or it fails before the head of a response.
    pub async fn request(&self, mut request: Request<Body>) -> Result<Response<Body>, ClientError> {
        let address = Address::of(request.uri()).ok_or(ClientError::Address)?;
        let server = request.uri().clone();
        // On the connection itself only path and query are sent.
        if let Some(target) = server.path_and_query() {
            *request.uri_mut() = Uri::from(target.clone());
        }
        loop {
            let pooled = self.pool.take(&address);
            let may_be_stale = pooled.is_some();
            let mut connection = match pooled {
                Some(connection) => connection,
                None => self.connect(&server).await?,
            };
            match connection.exchange(request).await {
                Ok(response) => {
                    let pool = Arc::clone(&self.pool);
                    return Ok(response.map(|incoming| {
                        body::boxed(DrivenBody {
                            incoming,
                            connection: Some(connection),
                            address,
                            pool,
                            broken: None,
                        })
                    }));
                }
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if may_be_stale => request = unsent,
                    _ => return Err(ClientError::Exchange(failed.into_error())),
                },
            }
        }
    }

    async fn connect(&self, server: &Uri) -> Result<Connection, ClientError> {
        let refused = ClientError::Connect;
        if server.scheme() == Some(&Scheme::HTTPS) {
            let tls = self.tls.get_or_init(|| tls_connector(self.connect_timeout));
            let mut tls = tls.clone().map_err(ClientError::Tls)?;
            let stream = tls.call(server.clone()).await.map_err(refused)?;
            Connection::open(stream).await
        } else {
            let mut plain = connector(self.connect_timeout);
            let stream = plain
                .call(server.clone())
                .await
                .map_err(|error| refused(error.into()))?;
            Connection::open(stream).await
        }
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient")
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// Key of idle connections in the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address(Scheme, Authority);

impl Address {
    fn of(uri: &Uri) -> Option<Self> {
        Some(Self(uri.scheme()?.clone(), uri.authority()?.clone()))
    }
}

type Driver = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

/// A connection with the future that moves its bytes.
struct Connection {
    sender: SendRequest<Body>,
    /// `None` once the connection is closed.
    driver: Option<Driver>,
}

impl Connection {
    async fn open(stream: impl Read + Write + Unpin + Send + 'static) -> Result<Self, ClientError> {
        let (sender, driver) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(stream)
            .await
            .map_err(|error| ClientError::Connect(error.into()))?;
        Ok(Self {
            sender,
            driver: Some(Box::pin(driver)),
        })
    }

    /// Moves bytes as far as possible without waiting. An error of the connection reaches the future of the response or
    /// of its body, so it is ignored here.
    fn drive(driver: &mut Option<Driver>, context: &mut Context<'_>) {
        if let Some(running) = driver
            && running.as_mut().poll(context).is_ready()
        {
            *driver = None;
        }
    }

    async fn exchange(&mut self, request: Request<Body>) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        let Self { sender, driver } = self;
        let mut response = pin!(sender.try_send_request(request));
        poll_fn(|context| {
            Self::drive(driver, context);
            match response.as_mut().poll(context) {
                Poll::Ready(response) => Poll::Ready(response),
                Poll::Pending => {
                    // The driver yields after some work. Poll again, so that queued bytes are written at once.
                    Self::drive(driver, context);
                    response.as_mut().poll(context)
                }
            }
        })
        .await
    }

    /// Returns true if the connection seems able to take another request.
    fn is_idle(&mut self) -> bool {
        // No task waits for an idle connection, so there is nobody to wake.
        let mut context = Context::from_waker(Waker::noop());
        Self::drive(&mut self.driver, &mut context);
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Idle connections. No task watches them: a connection that the other side closed is detected when it is taken.
#[derive(Default)]
struct Pool {
    idle: Mutex<Vec<(Address, Instant, Connection)>>,
}

impl Pool {
    /// Takes the connection that was used most recently, which is the least likely to have been closed meanwhile.
    fn take(&self, address: &Address) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        idle.retain(|(_, since, _)| since.elapsed() < IDLE_TIMEOUT);
        while let Some(index) = idle.iter().rposition(|(other, ..)| other == address) {
            let (.., mut connection) = idle.remove(index);
            if connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    fn put(&self, address: Address, connection: Connection) {
        let mut idle = lock(&self.idle);
        // The first entry has been idle for longest.
        if idle.len() >= MAX_IDLE {
            idle.remove(0);
        }
        idle.push((address, Instant::now(), connection));
    }
}

/// Response body that drives its connection and returns it to the pool at its end.
struct DrivenBody {
    incoming: Incoming,
    connection: Option<Connection>,
    address: Address,
    pool: Arc<Pool>,
    /// Error that ended the body.
    broken: Option<hyper::Error>,
}

impl DrivenBody {
    fn give_back(&mut self) {
        if let Some(mut connection) = self.connection.take()
            && connection.is_idle()
        {
            self.pool.put(self.address.clone(), connection);
        }
    }
}

impl HttpBody for DrivenBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let mut frame = Pin::new(&mut self.incoming).poll_frame(context);
        if frame.is_pending()
            && let Some(connection) = &mut self.connection
        {
            Connection::drive(&mut connection.driver, context);
            frame = Pin::new(&mut self.incoming).poll_frame(context);
        }
        match frame {
            Poll::Ready(None) => self.give_back(),
            // The server drops its socket on a body's error, with the frames that are not written yet. Yield once
            // before the error, so that they are written.
            Poll::Ready(Some(Err(error))) => {
                self.connection = None;
                self.broken = Some(error);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for DrivenBody {
    fn drop(&mut self) {
        // hyper does not poll a body of known length again after its last byte, so the end may only be seen here.
        if self.incoming.is_end_stream() {
            self.give_back();
        }
    }
}

fn connector(connect_timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    // The TLS connector passes https URIs to this one, which by default refuses them.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    connector
}

fn tls_connector(connect_timeout: Duration) -> Result<HttpsConnector<HttpConnector>, String> {
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_platform_verifier(rustls::crypto::aws_lc_rs::default_provider())
        .map_err(|error| error.to_string())?
        .https_only()
        .enable_http1()
        .wrap_connector(connector(connect_timeout));
    Ok(connector)
}

/// Installs aws-lc as the process's TLS provider. Further calls do nothing.
pub fn install_tls() {
    static ONCE: Once = Once::new();
    // An error means that a library has already installed a provider, which is the same one.
    ONCE.call_once(|| drop(rustls::crypto::aws_lc_rs::default_provider().install_default()));
}
