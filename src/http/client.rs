//! The pooled HTTP/1.1 client that talks to upstream servers: no proxy, no redirects, no total time limit.

use std::{
    fmt,
    sync::{Once, OnceLock},
    time::Duration,
};

use hyper::{Request, Response, body::Incoming, http::uri::Scheme};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use super::body::Body;

/// Idle connections are kept this long. Ollama never closes one; anything between it and us may.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Idle connections that are kept for one host.
const MAX_IDLE_PER_HOST: usize = 64;

/// Silence after which the kernel asks whether the other side still lives. Streams may be silent for minutes.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made.
    #[error("no connection")]
    Connect(#[source] legacy::Error),
    /// TLS cannot be used on this machine.
    #[error("no TLS: {0}")]
    Tls(String),
    /// The connection failed before the head of a response had come.
    #[error("the connection ended before there was an answer")]
    Exchange(#[source] legacy::Error),
}

/// A client with a pool of connections. Header spelling is kept in both directions.
pub struct Client {
    connect_timeout: Duration,
    plain: legacy::Client<HttpConnector, Body>,
    /// Made when it is first needed: reading the system's certificates takes time, and may fail where there are none.
    tls: OnceLock<Result<TlsClient, String>>,
}

type TlsClient = legacy::Client<HttpsConnector<HttpConnector>, Body>;

impl Client {
    /// A client that gives up connecting after `connect_timeout`.
    #[must_use]
    pub fn new(connect_timeout: Duration) -> Self {
        let plain = builder().build(connector(connect_timeout));
        Self {
            connect_timeout,
            plain,
            tls: OnceLock::new(),
        }
    }

    /// The time to connect that this client was made with.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Sends a request with an absolute URI; resolves at the head of the response.
    ///
    /// A request is sent again only where a pooled connection turned out to be closed before any byte was written.
    /// Dropping the future, or the response body, closes the connection.
    pub async fn request(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let response = if request.uri().scheme() == Some(&Scheme::HTTPS) {
            let tls = self.tls.get_or_init(|| tls_client(self.connect_timeout));
            tls.as_ref()
                .map_err(|reason| ClientError::Tls(reason.clone()))?
                .request(request)
        } else {
            self.plain.request(request)
        };
        response.await.map_err(|error| {
            if error.is_connect() {
                ClientError::Connect(error)
            } else {
                ClientError::Exchange(error)
            }
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

fn builder() -> legacy::Builder {
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
        .http1_preserve_header_case(true);
    builder
}

fn connector(connect_timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    connector
}

fn tls_client(connect_timeout: Duration) -> Result<TlsClient, String> {
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_platform_verifier(rustls::crypto::ring::default_provider())
        .map_err(|error| error.to_string())?
        .https_only()
        .enable_http1()
        .wrap_connector(connector(connect_timeout));
    Ok(builder().build(connector))
}
/// Makes ring the process's TLS provider, once.
pub fn install_tls() {
    static ONCE: Once = Once::new();
    // An error means that another part of the process has installed the same provider.
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}
