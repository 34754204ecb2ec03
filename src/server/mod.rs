//! HTTP server: listeners, connections and their limits, the checks of origin and host, the route table, and the drain.
//!
//! [`HttpServer::bind`] opens the sockets, [`HttpServer::run`] serves until a [`ShutdownSignal`]. Each connection is a
//! task; each request passes the `dispatch` module, which routes it to the [`RequestHandler`] of the layer below.
//! Nothing here knows a model or reads a body.

mod connection;
mod cors;
mod dispatch;
mod host;
mod listener;
mod routes;

pub use listener::{BindError, BoundAddress};

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hyper_util::{rt::TokioExecutor, server::conn::auto};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    dispatch::{Dispatcher, InFlight},
    listener::{AcceptFailure, Accepted, Listener},
    routes::Routes,
};
use crate::{
    api::RequestHandler,
    config::{Config, ServerConfig},
};

/// First wait after the system ran out of file descriptors; it doubles each time.
const ACCEPT_DELAY: Duration = Duration::from_millis(20);

/// Longest wait after the system ran out of file descriptors.
const MAX_ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// Interval of log lines about the requests that a drain waits for.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Requests that a log line about a drain names.
const REPORTED_REQUESTS: usize = 5;

/// Shutdown of a server in two steps.
#[derive(Clone, Debug, Default)]
pub struct ShutdownSignal {
    /// Soft stop: accept no further connections, and let open streams finish within `server.shutdown_timeout`.
    pub soft: CancellationToken,
    /// Hard stop: drop all connections. It is never cancelled before `soft`.
    pub hard: CancellationToken,
}

impl ShutdownSignal {
    /// Takes the next step: the first call stops softly, the second one hard.
    pub fn advance(&self) {
        if self.soft.is_cancelled() {
            self.hard.cancel();
        } else {
            self.soft.cancel();
        }
    }
}

/// Failure of a running server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener failed.
    #[error("{address} cannot be listened on any more")]
    Listener {
        address: BoundAddress,
        #[source]
        source: io::Error,
    },
    /// An accept loop panicked.
    #[error("a listener ended unexpectedly")]
    Panicked,
}

/// A server with open sockets. Clients can connect to it before it runs; their requests wait.
#[derive(Debug)]
pub struct HttpServer {
    listeners: Vec<Listener>,
    max_connections: usize,
    max_header_bytes: usize,
}

impl HttpServer {
    /// Opens every listener of the configuration.
    ///
    /// # Errors
    ///
    /// If an address is malformed, in use, or refused by the system.
    pub async fn bind(config: &ServerConfig) -> Result<Self, BindError> {
        let mut listeners = Vec::new();
        for entry in &config.listen {
            listeners.extend(Listener::open(entry).await?);
        }
        if listeners.is_empty() {
            return Err(BindError::Nothing);
        }
        let ServerConfig {
            max_connections,
            max_header_bytes,
            ..
        } = *config;
        Ok(Self {
            listeners,
            max_connections,
            max_header_bytes,
        })
    }

    /// Returns the addresses at which clients reach the server.
    #[must_use]
    pub fn addresses(&self) -> Vec<BoundAddress> {
        self.listeners.iter().map(|listener| listener.address.clone()).collect()
    }

    /// Serves until `stop`, and returns when the last connection has ended. `settings` is the cell of the live
    /// configuration.
    ///
    /// # Errors
    ///
    /// If a listener fails. Open connections are drained first.
    pub async fn run(
        self,
        handler: Arc<dyn RequestHandler>,
        settings: Arc<ArcSwap<Config>>,
        stop: ShutdownSignal,
    ) -> Result<(), ServeError> {
        let Self {
            listeners,
            max_connections,
            max_header_bytes,
        } = self;
        let in_flight = InFlight::default();
        let shared = Arc::new(Shared {
            builder: connection::builder(max_header_bytes),
            dispatcher: Arc::new(Dispatcher {
                routes: Routes::new(),
                handler,
                settings: Arc::clone(&settings),
                in_flight: in_flight.clone(),
            }),
            // A semaphore panics above its own maximum, and with none no connection would ever be served.
            permits: Arc::new(Semaphore::new(max_connections.clamp(1, Semaphore::MAX_PERMITS))),
            connections: TaskTracker::new(),
            // Child tokens, so that a failed listener stops this server without touching the daemon's own signal.
            draining: stop.soft.child_token(),
            ended: stop.hard.child_token(),
        });
        // Connections run in tasks of their own. The guard ends them even if this future is dropped.
        let _end = shared.ended.clone().drop_guard();

        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(accept(listener, Arc::clone(&shared)));
        }
        let mut outcome = Ok(());
        while let Some(joined) = accepting.join_next().await {
            let result = joined.unwrap_or(Err(ServeError::Panicked));
            if result.is_err() && outcome.is_ok() {
                outcome = result;
                shared.draining.cancel();
            }
        }
        shared.drain(settings.load().server.shutdown_timeout, &in_flight).await;
        outcome
    }
}

/// State that all connections share.
struct Shared {
    builder: auto::Builder<TokioExecutor>,
    dispatcher: Arc<Dispatcher>,
    permits: Arc<Semaphore>,
    connections: TaskTracker,
    draining: CancellationToken,
    ended: CancellationToken,
}

impl Shared {
    /// Waits for connections to end, and drops those that are left after the timeout or a hard stop.
    async fn drain(&self, timeout: Duration, in_flight: &InFlight) {
        // Without it `wait` would never return, even when no connection is left.
        self.connections.close();
        let deadline = Instant::now() + timeout;
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        loop {
            // In this order, because the first tick is due at once: a server without connections ends without a log
            // line.
            tokio::select! {
                biased;
                () = self.connections.wait() => return,
                () = self.ended.cancelled() => break,
                () = tokio::time::sleep_until(deadline) => break,
                now = report.tick() => {
                    let (requests, oldest) = in_flight.oldest(REPORTED_REQUESTS);
                    let seconds_left = deadline.saturating_duration_since(now).as_secs();
                    tracing::info!(requests, ?oldest, seconds_left, "stopping: waiting for requests to end");
                }
            }
        }
        let (requests, oldest) = in_flight.oldest(REPORTED_REQUESTS);
        if requests > 0 {
            tracing::warn!(requests, ?oldest, "stopping: requests that have not ended are dropped");
        }
        self.ended.cancel();
        self.connections.wait().await;
    }

    /// Waits for the permit of one more connection; `None` if the server stops first.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            () = self.draining.cancelled() => None,
            permit = Arc::clone(&self.permits).acquire_owned() => permit.ok(),
        }
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>) -> Result<(), ServeError> {
    let check_host = listener.is_loopback();
    let mut delay = ACCEPT_DELAY;
    let mut full = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.draining.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => match listener::classify(&error) {
                AcceptFailure::Connection => {
                    tracing::debug!(%error, "connection lost before it was accepted");
                    continue;
                }
                AcceptFailure::Exhausted => {
                    tracing::error!(%error, "no connection can be accepted; raise the limit of open files");
                    tokio::select! {
                        () = shared.draining.cancelled() => return Ok(()),
                        () = tokio::time::sleep(delay) => {}
                    }
                    delay = (delay * 2).min(MAX_ACCEPT_DELAY);
                    continue;
                }
                AcceptFailure::Listener => {
                    return Err(ServeError::Listener {
                        address: listener.address.clone(),
                        source: error,
                    });
                }
            },
        };
        delay = ACCEPT_DELAY;
        // Logged once for each time that the limit is reached, not for each connection.
        let was_full = std::mem::replace(&mut full, shared.permits.available_permits() == 0);
        if full && !was_full {
            tracing::warn!("server.max_connections is reached; new connections wait");
        }
        let Some(permit) = shared.permit().await else {
            return Ok(());
        };
        let task = Arc::clone(&shared);
        shared.connections.spawn(async move {
            let _permit = permit;
            let Shared {
                builder,
                dispatcher,
                draining,
                ended,
                ..
            } = &*task;
            match stream {
                Accepted::Tcp(stream) => {
                    connection::serve(stream, builder, dispatcher, check_host, draining, ended).await;
                }
                Accepted::Unix(stream) => {
                    connection::serve(stream, builder, dispatcher, check_host, draining, ended).await;
                }
            }
        });
    }
}
