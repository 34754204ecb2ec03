//! HTTP mechanics: listeners, connections, limits, CORS and host check, the one route table, and the orderly end.
//!
//! Nothing here knows a model or reads a body; what a route means is the handler's affair.

mod connection;
mod cors;
mod dispatch;
mod host;
mod listener;
mod routes;

pub use listener::{Address, BindError};

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
    api::Handler,
    config::{Config, ServerConfig},
};

/// First wait after the system ran out of descriptors; doubles each time.
const ACCEPT_DELAY: Duration = Duration::from_millis(20);

/// Longest such wait.
const MAX_ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// How often the log says what a stop waits for.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Requests that such a report names.
const REPORTED_REQUESTS: usize = 5;

/// Ends a server in two steps.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Accept nothing new, and let streams end within `server.shutdown_timeout`.
    pub soft: CancellationToken,
    /// Drop what is left. Never cancelled before `soft`.
    pub hard: CancellationToken,
}

impl Stop {
    /// Asks for the next step: the first call is soft, the second hard.
    pub fn advance(&self) {
        if self.soft.is_cancelled() {
            self.hard.cancel();
        } else {
            self.soft.cancel();
        }
    }
}

/// Why a server ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener broke.
    #[error("{address} cannot be listened on any more")]
    Listener {
        /// Which one.
        address: Address,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part of the server panicked.
    #[error("a listener ended unexpectedly")]
    Panicked,
}

/// A server whose sockets are open: clients can connect, and wait until it runs.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    max_connections: usize,
    max_header_bytes: usize,
}

impl Server {
    /// Opens every listener of the configuration.
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

    /// Where clients reach it.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().map(|listener| listener.address.clone()).collect()
    }

    /// Serves until it is stopped; returns when the last connection has ended. `settings` are the live ones.
    pub async fn run(
        self,
        handler: Arc<dyn Handler>,
        settings: Arc<ArcSwap<Config>>,
        stop: Stop,
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
            permits: Arc::new(Semaphore::new(max_connections.clamp(1, Semaphore::MAX_PERMITS))),
            connections: TaskTracker::new(),
            draining: stop.soft.child_token(),
            ended: stop.hard.child_token(),
        });
        // Connections are tasks of their own; they end with this future, however it ends.
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

/// What all connections share.
struct Shared {
    builder: auto::Builder<TokioExecutor>,
    dispatcher: Arc<Dispatcher>,
    permits: Arc<Semaphore>,
    connections: TaskTracker,
    draining: CancellationToken,
    ended: CancellationToken,
}

impl Shared {
    /// Waits for connections to end by themselves, then drops the rest.
    async fn drain(&self, timeout: Duration, in_flight: &InFlight) {
        self.connections.close();
        let deadline = Instant::now() + timeout;
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        loop {
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

    /// A permit for one connection more; `None` where the server stops before there is one.
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
