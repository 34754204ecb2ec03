//! Composition root of `hubllama serve`: builds every component, connects them, and takes them down in reverse order.
//!
//! Besides the command line, the daemon is the only module that knows all others. Signals, reloads of the configuration
//! and notifications to systemd have a file each.

mod reload;
mod signals;
mod systemd;

use std::{io, sync::Arc};

use serde_json::json;
use tokio_util::task::TaskTracker;

use crate::{
    api::ApiHandler,
    config::{Config, ConfigInputs, ConfigProblems, ConfigStore, ReloadHandle},
    library::Library,
    lifecycle::{Lifecycle, LifecycleHealth, TemplateHelper, WorkerCommand},
    observability::{self, LogControl},
    provider::{AliasStore, HuggingFace, Registry, ollama::Ollama},
    server::{BindError, HttpServer, ServeError, ShutdownSignal},
};

/// Cores of the machine for each runtime thread: the daemon has little to do, and the cores belong to the models. One
/// thread relays about 200,000 frames per second. On a small machine a second one would mostly steal work from the
/// first, at the cost of a core switch for each frame.
const CORES_PER_RUNTIME_THREAD: usize = 4;
const MAX_RUNTIME_THREADS: usize = 4;

/// Failure to start the daemon, or failure of its server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Config(ConfigProblems),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The system refused a thread, a signal handler or a file.
    #[error("the daemon cannot start")]
    Io(#[from] io::Error),
    #[error("the log cannot be set up: {0}")]
    Log(String),
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
///
/// If the daemon cannot start, or a listener fails.
pub fn run(inputs: ConfigInputs) -> Result<(), StartError> {
    // Before the log, which it configures; the caller prints its problems.
    let store = Arc::new(ConfigStore::open(inputs).map_err(StartError::Config)?);
    let log = observability::init(&store.current().log).map_err(StartError::Log)?;
    // reqwest is built without a TLS provider of its own and takes that of the process.
    crate::http::client::install_tls();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / CORES_PER_RUNTIME_THREAD).clamp(1, MAX_RUNTIME_THREADS))
        .thread_name("hubllama")
        .enable_all()
        .build()?;
    runtime.block_on(serve(store, log))
}

/// Builds the components in the order of their dependencies, serves, and takes them down in reverse order.
async fn serve(store: Arc<ConfigStore>, log: LogControl) -> Result<(), StartError> {
    let config = store.current();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "hubllama starts");
    for notice in store.notices() {
        tracing::warn!("{notice}");
    }
    // Sockets first: if an address is taken, nothing else has to be undone.
    let server = HttpServer::bind(&config.server).await?;
    let stop = ShutdownSignal::default();
    let tasks = TaskTracker::new();

    let (reload, requests) = ReloadHandle::channel();
    let _watch = reload::watch(&store, reload.clone())?;
    let set_log_level = move |config: &Config| {
        if let Err(error) = log.set_level(&config.log.level) {
            tracing::error!(error, "the log level stays as it was");
        }
    };
    tasks.spawn(reload::run(
        Arc::clone(&store),
        requests,
        set_log_level,
        stop.soft.clone(),
    ));
    let signals = signals::SignalHandlers::install()?;
    tasks.spawn(signals.run(stop.clone(), reload));
    // Until the hard stop: the daemon is alive while streams drain.
    tasks.spawn(systemd::watchdog(stop.hard.clone()));

    let worker = WorkerCommand {
        log: config.log.level.clone(),
        ..WorkerCommand::default()
    };
    let lifecycle = Lifecycle::start(worker.clone());
    let library = Library::with_worker(&config.state_dir, worker.clone());
    let hugging_face = HuggingFace::new(library, lifecycle.clone(), TemplateHelper::new(worker));
    let registry = Registry::with_aliases(Arc::new(hugging_face), AliasStore::load(&config.state_dir));
    let api = api(&store, registry, &lifecycle);

    for address in server.addresses() {
        tracing::info!(%address, "listening");
    }
    announce(&config);
    // Before the first accept: the sockets are open, and the kernel queues connections until then.
    systemd::ready();
    let outcome = server.run(Arc::new(api), store.live(), stop.clone()).await;

    systemd::stopping();
    // After a failed listener no signal has done so, and the reload task would wait for one.
    stop.soft.cancel();
    // After the drain: open answers came from the workers until now.
    lifecycle.stop().await;
    stop.hard.cancel();
    tasks.close();
    tasks.wait().await;
    tracing::info!("hubllama ends");
    Ok(outcome?)
}

fn api(store: &Arc<ConfigStore>, registry: Registry, lifecycle: &Lifecycle) -> ApiHandler {
    let (health_of, settings) = (lifecycle.clone(), Arc::clone(store));
    let described = Arc::clone(store);
    ApiHandler {
        registry,
        upstream: Arc::new(Ollama::new()),
        config: store.live(),
        health: Arc::new(move || health(&health_of.health(), &settings)),
        config_status: Arc::new(move || described.describe()),
    }
}

fn health(lifecycle: &LifecycleHealth, store: &ConfigStore) -> serde_json::Value {
    let LifecycleHealth {
        resident,
        in_transition,
        waiting,
        answering,
        quarantined,
    } = lifecycle;
    let quarantined: Vec<_> = quarantined
        .iter()
        .map(|model| json!({ "path": model.key.to_string(), "deaths": model.deaths, "reason": model.reason }))
        .collect();
    let synchronized = store.is_synchronized();
    let status = if quarantined.is_empty() && synchronized {
        "ok"
    } else {
        "degraded"
    };
    json!({
        "status": status,
        "version": env!("CARGO_PKG_VERSION"),
        "models": {
            "resident": resident,
            "in_transition": in_transition,
            "waiting": waiting,
            "answering": answering,
        },
        "quarantined": quarantined,
        "config_synchronized": synchronized,
    })
}

fn announce(config: &Config) {
    match config.ollama.enabled {
        true => tracing::info!(upstream = config.ollama.url, "plain names go to Ollama"),
        false => tracing::info!("plain names are not served: ollama.enabled is false"),
    }
    match config.hub.enabled {
        true => tracing::info!(cache = %config.hub.cache_dir.display(), "hf: names are served from the Hub"),
        false => tracing::info!("hf: names are not served: hub.enabled is false"),
    }
}
