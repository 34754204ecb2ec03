//! One pull from its name to its links: what to fetch, in which order things are said, when they become visible.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::{
    Hub, LocalModel,
    cache::{self, RepoFolder},
    client::{Client, RepoInfo},
    download::{Flight, State, Target, blocking, is_present},
    error::HubError,
    name::HfName,
    resolve::{self, RepoFile},
};
use crate::{config::HubConfig, inference::PullEvent};

/// Time between two progress events of a file, Ollama's own.
const INTERVAL: Duration = Duration::from_millis(60);
/// Events that wait for a slow reader; the download does not.
const QUEUE: usize = 16;

/// Progress of one pull. Dropping it lets the download go, which ends it unless another pull shares it; what has arrived
/// stays for the next pull.
#[derive(Debug)]
pub struct Pull {
    events: mpsc::Receiver<Result<PullEvent, HubError>>,
    task: AbortHandle,
}

impl Pull {
    pub(crate) fn start(hub: Hub, config: Arc<HubConfig>, name: HfName) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let task = tokio::spawn(async move {
            let events = Events(sender);
            // A reader that is gone does not want to hear that it is gone.
            if let Err(error) = run(&hub, config, &name, &events).await {
                let _ = events.0.send(Err(error)).await;
            }
        });
        Self {
            events,
            task: task.abort_handle(),
        }
    }
}

impl Stream for Pull {
    type Item = Result<PullEvent, HubError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Events(mpsc::Sender<Result<PullEvent, HubError>>);

impl Events {
    async fn status(&self, status: &'static str) -> Result<(), HubError> {
        self.send(PullEvent::Status(status)).await
    }

    async fn file(&self, digest: &str, total: u64, completed: u64) -> Result<(), HubError> {
        self.send(PullEvent::File {
            digest: digest.to_owned(),
            total,
            completed,
        })
        .await
    }

    async fn send(&self, event: PullEvent) -> Result<(), HubError> {
        self.0.send(Ok(event)).await.map_err(|_| HubError::Cancelled)
    }
}

async fn run(hub: &Hub, config: Arc<HubConfig>, name: &HfName, events: &Events) -> Result<(), HubError> {
    if let [adapter, ..] = name.adapters.as_slice() {
        return Err(HubError::Adapters(adapter.to_string()));
    }
    events.status("pulling manifest").await?;
    let cached = hub.find(&config, name).await.ok();
    if config.offline {
        return match cached {
            Some(model) => from_cache(hub, &model, events).await,
            None => Err(HubError::Offline(name.to_string())),
        };
    }
    // Who has the model already is not kept waiting for long by a Hub that is away.
    let patience = if cached.is_some() {
        config.retry_attempts.min(1)
    } else {
        config.retry_attempts
    };
    let plan_config = HubConfig {
        retry_attempts: patience,
        ..(*config).clone()
    };
    match (plan(hub, plan_config, name).await, cached) {
        (Ok(plan), _) => fetch(hub, &config, name, plan, events).await,
        (Err(error), Some(model)) if error.is_transient() => {
            tracing::warn!(model.name = %name, %error, "the Hub does not answer; the cached model is used");
            from_cache(hub, &model, events).await
        }
        (Err(error), _) => Err(error),
    }
}

/// What to fetch.
struct Plan {
    info: RepoInfo,
    label: String,
    files: Vec<RepoFile>,
}

async fn plan(hub: &Hub, config: HubConfig, name: &HfName) -> Result<Plan, HubError> {
    let client = Client::new(&hub.0.pool, Arc::new(config))?;
    let revision = name.revision.as_deref().unwrap_or("main");
    let info = client.info(&name.repo_id(), revision).await?;
    let repo = format!("{}/{}", info.org, info.repo);
    let listing = client.tree(&repo, &info.commit).await?;
    let resolution =
        resolve::resolve(&listing, name.selector.as_ref()).map_err(|error| HubError::Resolve { repo, error })?;
    let mut files = resolution.files;
    files.extend(resolution.mmproj);
    Ok(Plan {
        info,
        label: resolution.label,
        files,
    })
}

async fn fetch(hub: &Hub, config: &Arc<HubConfig>, name: &HfName, plan: Plan, events: &Events) -> Result<(), HubError> {
    let client = Client::new(&hub.0.pool, Arc::clone(config))?;
    let Plan { info, label, files } = plan;
    let repo = format!("{}/{}", info.org, info.repo);
    let folder = RepoFolder::new(&config.cache_dir, &info.org, &info.repo);
    let mut flights: Vec<(Target, Option<Arc<Flight>>)> = Vec::new();
    for file in &files {
        let Some(etag) = file.lfs_sha256.clone().or_else(|| file.oid.clone()) else {
            let problem = format!("it lists {} without a hash", file.path);
            return Err(HubError::Protocol {
                host: config.endpoint.clone(),
                problem,
            });
        };
        let target = Target {
            repo: repo.clone(),
            commit: info.commit.clone(),
            path: file.path.clone(),
            size: file.size,
            blob: folder.blob(&etag),
            lock: config
                .cache_dir
                .join(".locks")
                .join(format!("models--{}--{}", info.org, info.repo))
                .join(format!("{etag}.lock")),
            etag,
        };
        let (blob, size) = (target.blob.clone(), target.size);
        let flight = if blocking(move || Ok(is_present(&blob, size))).await? {
            report_whole(&digest_of(&target.etag), size, events).await?;
            None
        } else {
            let flight = hub.0.downloads.join(&client, &target, &hub.0.ledger);
            follow(&flight, &target, events).await?;
            Some(flight)
        };
        flights.push((target, flight));
    }
    // Each file is hashed as soon as it is there, while the next one comes; here the last hashes are waited for.
    events.status("verifying sha256 digest").await?;
    for flight in flights.iter().filter_map(|(_, flight)| flight.as_ref()) {
        flight.done().await?;
    }
    events.status("writing manifest").await?;
    let (hub, key) = (hub.clone(), super::key(&info.org, &info.repo, &label));
    let revision = name.revision.clone().unwrap_or_else(|| "main".to_owned());
    let targets: Vec<Target> = flights.into_iter().map(|(target, _)| target).collect();
    blocking(move || {
        for target in &targets {
            folder.link(&target.commit, &target.path, &target.etag)?;
        }
        // Somebody may have deleted the model meanwhile.
        if let Some(gone) = targets.iter().find(|target| !is_present(&target.blob, target.size)) {
            let reason = "it was deleted from the cache".to_owned();
            return Err(HubError::Interrupted {
                path: gone.path.clone(),
                reason,
            });
        }
        if !cache::is_commit(&revision) {
            folder.write_reference(&revision, &info.commit)?;
        }
        hub.0.ledger.set_unlisted(&key, false)
    })
    .await?;
    events.status("success").await
}

/// Tells how a download advances, until all its bytes are there.
async fn follow(flight: &Flight, target: &Target, events: &Events) -> Result<(), HubError> {
    let digest = digest_of(&target.etag);
    let mut state = flight.watch();
    events.file(&digest, target.size, 0).await?;
    let mut shown = 0;
    loop {
        let next = Instant::now() + INTERVAL;
        let completed = match &*state.borrow_and_update() {
            State::Fetching { completed } => Ok(*completed),
            State::Verifying | State::Done(Ok(())) => Err(None),
            State::Done(Err(error)) => Err(Some(error.clone())),
        };
        match completed {
            Ok(completed) if completed != shown && completed < target.size => {
                events.file(&digest, target.size, completed).await?;
                shown = completed;
            }
            Ok(_) => {}
            Err(None) => return events.file(&digest, target.size, target.size).await,
            Err(Some(error)) => return Err(error),
        }
        sleep_until(next).await;
        if state.changed().await.is_err() && !matches!(*state.borrow(), State::Done(_)) {
            return Err(HubError::Cancelled);
        }
    }
}

/// Says what a pull says of a model that is complete.
async fn from_cache(hub: &Hub, model: &LocalModel, events: &Events) -> Result<(), HubError> {
    for path in model.files.iter().chain(&model.mmproj) {
        let path = path.clone();
        let (digest, size) = blocking(move || {
            let size = std::fs::metadata(&path)
                .map_err(|error| HubError::io("read", &path, &error))?
                .len();
            let etag = std::fs::read_link(&path)
                .ok()
                .and_then(|blob| blob.file_name()?.to_str().map(str::to_owned));
            Ok((digest_of(&etag.unwrap_or_else(|| path.display().to_string())), size))
        })
        .await?;
        report_whole(&digest, size, events).await?;
    }
    events.status("verifying sha256 digest").await?;
    events.status("writing manifest").await?;
    let (hub, key) = (hub.clone(), super::key(&model.org, &model.repo, &model.label));
    blocking(move || hub.0.ledger.set_unlisted(&key, false)).await?;
    events.status("success").await
}

async fn report_whole(digest: &str, size: u64, events: &Events) -> Result<(), HubError> {
    events.file(digest, size, 0).await?;
    events.file(digest, size, size).await
}

/// 64 hex digits for an event. A small file has only git's hash, and clients tell files apart by this text alone.
fn digest_of(etag: &str) -> String {
    if cache::is_hex(etag, 64) {
        etag.to_owned()
    } else {
        cache::hex(&Sha256::digest(etag))
    }
}
