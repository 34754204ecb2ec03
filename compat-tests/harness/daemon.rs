//! Runs the server under test in this process, on a port chosen by the system.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use hubllama::{
    api::RequestHandler,
    config::Config,
    server::{BoundAddress, HttpServer, ServeError, ShutdownSignal},
};
use tokio::{runtime::Runtime, task::JoinHandle};

/// Function that creates the request handler from the live settings.
pub(crate) type MakeHandler = fn(Arc<ArcSwap<Config>>) -> Arc<dyn RequestHandler>;

/// Running server. Dropping it closes its connections.
pub(crate) struct Daemon {
    addresses: Vec<BoundAddress>,
    pub(crate) settings: Arc<ArcSwap<Config>>,
    pub(crate) stop: ShutdownSignal,
    running: JoinHandle<Result<(), ServeError>>,
    runtime: Runtime,
}

impl Daemon {
    /// Starts a server with these settings. It listens on a free port if the settings have the default addresses.
    pub(crate) fn start(mut config: Config, handler: MakeHandler) -> Self {
        if config.server.listen == Config::default().server.listen {
            config.server.listen = vec!["127.0.0.1:0".into()];
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let server = runtime.block_on(HttpServer::bind(&config.server)).expect("a server");
        let addresses = server.addresses();
        let settings = Arc::new(ArcSwap::from_pointee(config));
        let stop = ShutdownSignal::default();
        let handler = {
            // The handler may spawn tasks.
            let _runtime = runtime.enter();
            handler(Arc::clone(&settings))
        };
        let running = runtime.spawn(server.run(handler, Arc::clone(&settings), stop.clone()));
        Self {
            addresses,
            settings,
            stop,
            running,
            runtime,
        }
    }

    pub(crate) fn addresses(&self) -> &[BoundAddress] {
        &self.addresses
    }

    /// Returns the first TCP address.
    pub(crate) fn address(&self) -> SocketAddr {
        let tcp = |address: &BoundAddress| {
            if let BoundAddress::Tcp(address) = address {
                Some(*address)
            } else {
                None
            }
        };
        self.addresses.iter().find_map(tcp).expect("a TCP listener")
    }

    /// Changes `ollama.url` of the running server.
    pub(crate) fn set_upstream(&self, url: &str) {
        let mut config = Config::clone(&self.settings.load());
        config.ollama.url = url.into();
        self.settings.store(Arc::new(config));
    }

    /// Waits until the server ends without being stopped.
    pub(crate) fn ended(self) -> Result<(), ServeError> {
        let Self { running, runtime, .. } = self;
        runtime.block_on(running).expect("no panic")
    }
}
