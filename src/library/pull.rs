//! One pull from its name to its links: what to fetch, in which order things are said, when they become visible.

use std::{
    path::PathBuf,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Library, LocalModel, Update, adapter,
    checkpoint::{self, Checkpoint},
    conversions::{self, Kept, Wanted},
    error,
};
use crate::{
    config::HubConfig,
    convert::{self, Advance, TargetType},
    hub::{
        HfName, HubError,
        adopt::adopt,
        cache::{self, RepoFolder},
        client::{HubClient, RepoInfo, RequestSubject},
        disk,
        download::{SharedDownload, is_present},
        ledger::Note,
        partial::PartialBlob,
        resolve::{self, RepoFile},
        search,
        target::{BlobTarget, DownloadState},
        tasks::blocking,
    },
    inference::PullEvent,
    stdx::hex,
};

/// Time between two progress events of a file, Ollama's own.
const INTERVAL: Duration = Duration::from_millis(60);
/// The longest that a pull of a cached model waits for the Hub.
const PATIENCE: Duration = Duration::from_secs(5);
/// Events that wait for a slow reader; the download does not.
const QUEUE: usize = 16;
/// Time between two words of a conversion.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Progress of one pull. Dropping it lets the download go, which ends it unless another pull shares it; what has arrived
/// stays for the next pull.
#[derive(Debug)]
pub struct Pull {
    events: mpsc::Receiver<Result<PullEvent, HubError>>,
    task: AbortHandle,
}

impl Pull {
    pub(crate) fn start(library: Library, config: Arc<HubConfig>, name: HfName) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let task = tokio::spawn(async move {
            let events = Events(sender);
            // A reader that is gone does not want to hear that it is gone.
            if let Err(error) = run(&library, config, &name, &events).await {
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

pub(crate) struct Events(mpsc::Sender<Result<PullEvent, HubError>>);

impl Events {
    pub(crate) async fn status(&self, status: &'static str) -> Result<(), HubError> {
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

    /// Says of files that they are there.
    pub(crate) async fn whole(&self, paths: &[PathBuf]) -> Result<(), HubError> {
        for path in paths {
            let path = path.clone();
            let (digest, size) = blocking(move || {
                let size = std::fs::metadata(&path)
                    .map_err(|error| HubError::io("read", &path, &error))?
                    .len();
                let etag = cache::blob_name(&path);
                Ok((digest_of(&etag.unwrap_or_else(|| path.display().to_string())), size))
            })
            .await?;
            report_whole(&digest, size, self).await?;
        }
        Ok(())
    }

    async fn send(&self, event: PullEvent) -> Result<(), HubError> {
        self.0.send(Ok(event)).await.map_err(|_| HubError::Cancelled)
    }
}

async fn run(library: &Library, config: Arc<HubConfig>, name: &HfName, events: &Events) -> Result<(), HubError> {
    events.status("pulling manifest").await?;
    let adapters = adapter::wanted(library, &config, name).await?;
    let base = HfName {
        adapters: Vec::new(),
        ..name.clone()
    };
    bring(library, &config, &base, events).await?;
    if !adapters.is_empty() {
        adapter::bring(library, &config, name, adapters, events).await?;
    }
    events.status("success").await
}

/// Brings a model without adapters.
async fn bring(library: &Library, config: &Arc<HubConfig>, name: &HfName, events: &Events) -> Result<(), HubError> {
    let Ok(model) = library.find(config, name).await else {
        return bring_new(library, config, name, events).await;
    };
    if config.offline {
        return from_cache(library, &model, events).await;
    }
    match plan_soon(library, config, name).await {
        Ok(plan) if is_elsewhere(config, &model, &plan).await? => from_cache(library, &model, events).await,
        Ok(plan) => fetch(library, config, name, plan, events).await,
        Err(error) if is_no_help(&error) => {
            tracing::warn!(model.name = %name, %error, "the Hub is of no help; the cached model is used");
            from_cache(library, &model, events).await
        }
        Err(error) => Err(error),
    }
}

/// Brings a model that is not in the cache; its checkpoint may be, where somebody has downloaded that.
async fn bring_new(library: &Library, config: &Arc<HubConfig>, name: &HfName, events: &Events) -> Result<(), HubError> {
    let (roots, wanted) = (super::roots(config), name.clone());
    let default = checkpoint::default_type(config.safetensors_type);
    let cached = blocking(move || Ok(conversions::cached(&roots, &wanted, default))).await?;
    match cached {
        None if config.offline => Err(HubError::Offline(name.to_string())),
        None => {
            let plan = plan(library, Arc::clone(config), name).await?;
            fetch(library, config, name, plan, events).await
        }
        Some(checkpoint) if config.offline => from_checkpoint(library, config, checkpoint, events).await,
        Some(checkpoint) => match plan_soon(library, config, name).await {
            Ok(plan) => fetch(library, config, name, plan, events).await,
            Err(error) if is_no_help(&error) => {
                tracing::warn!(model.name = %name, %error, "the Hub is of no help; the cached checkpoint is used");
                from_checkpoint(library, config, checkpoint, events).await
            }
            Err(error) => Err(error),
        },
    }
}

/// Whether what is cached is better than the answer.
fn is_no_help(error: &HubError) -> bool {
    error.is_transient() || matches!(error, HubError::Protocol { .. })
}

/// A plan for who has the model already, and is not kept waiting by a Hub that is slow, away or asks for patience.
async fn plan_soon(library: &Library, config: &Arc<HubConfig>, name: &HfName) -> Result<Plan, HubError> {
    soon(config, |config| plan(library, config, name)).await
}

/// An answer for who can do without one.
pub(crate) async fn soon<T, F: Future<Output = Result<T, HubError>>>(
    config: &Arc<HubConfig>,
    ask: impl FnOnce(Arc<HubConfig>) -> F,
) -> Result<T, HubError> {
    let hasty = HubConfig {
        retry_attempts: 0,
        ..(**config).clone()
    };
    let after = config.connect_timeout.min(PATIENCE);
    match timeout(after, ask(Arc::new(hasty))).await {
        Ok(result) => result,
        Err(_) => Err(HubError::Stalled {
            host: config.endpoint.clone(),
            after,
        }),
    }
}

/// Whether the files of a plan are those of a model in a cache that is only read: then nothing is to be copied.
async fn is_elsewhere(config: &HubConfig, model: &LocalModel, plan: &Plan) -> Result<bool, HubError> {
    // What is made of a checkpoint may be another type than the one that is there.
    if model.root == config.cache_dir || !model.sources.is_empty() {
        return Ok(false);
    }
    let wanted: Vec<Option<String>> = plan.files.iter().map(|file| file.etag().map(str::to_owned)).collect();
    Ok(wanted == hashes(model).await?)
}

/// Hashes of what was downloaded for a model, by its blobs, the projector last.
async fn hashes(model: &LocalModel) -> Result<Vec<Option<String>>, HubError> {
    let files: Vec<PathBuf> = model.downloads().cloned().collect();
    blocking(move || Ok(files.iter().map(|file| cache::blob_name(file)).collect())).await
}

/// What the Hub has instead of a cached model.
pub(crate) async fn update(
    library: &Library,
    config: &HubConfig,
    name: &HfName,
    model: &LocalModel,
) -> Result<Option<Update>, HubError> {
    let config = Arc::new(config.clone());
    // Mostly there is nothing new, and a commit is told sooner than a listing.
    let client = HubClient::new(&library.0.pool, Arc::clone(&config))?;
    let revision = name.revision.as_deref().unwrap_or("main");
    if client.info(&name.repo_id(), revision).await?.commit == model.commit {
        return Ok(None);
    }
    let plan = plan(library, config, name).await?;
    // A commit that changes a README is no new model.
    let here = hashes(model).await?;
    let new = plan
        .files
        .iter()
        .filter(|file| !here.contains(&file.etag().map(str::to_owned)));
    let bytes = new.fold(0_u64, |sum, file| sum.saturating_add(file.size));
    Ok((bytes > 0).then_some(Update {
        commit: plan.info.commit,
        bytes,
    }))
}

/// What to fetch.
struct Plan {
    info: RepoInfo,
    what: What,
    files: Vec<RepoFile>,
}

/// What the files are.
enum What {
    /// The model with this selector.
    Gguf(String),
    /// A checkpoint, of which a model of this type is made.
    Checkpoint(TargetType),
}

async fn plan(library: &Library, config: Arc<HubConfig>, name: &HfName) -> Result<Plan, HubError> {
    let default = checkpoint::default_type(config.safetensors_type);
    let client = HubClient::new(&library.0.pool, config)?;
    let revision = name.revision.as_deref().unwrap_or("main");
    let info = client.info(&name.repo_id(), revision).await?;
    let repo = format!("{}/{}", info.org, info.repo);
    let listing = client.tree(&repo, &info.commit).await?;
    let selector = name.selector.as_ref();
    let unfound = match resolve::resolve(&listing, selector) {
        Ok(resolution) => {
            // Drafts are left where they are: nothing here decodes with two models, so that their bytes would be of no use.
            let mut files = resolution.files;
            files.extend(resolution.mmproj);
            let what = What::Gguf(resolution.label);
            return Ok(Plan { info, what, files });
        }
        Err(error) => error,
    };
    let Checkpoint { kind, files } =
        checkpoint::resolve(&listing, selector, default, unfound).map_err(|error| HubError::Resolve { repo, error })?;
    let what = What::Checkpoint(kind);
    Ok(Plan { info, what, files })
}

async fn fetch(
    library: &Library,
    config: &Arc<HubConfig>,
    name: &HfName,
    plan: Plan,
    events: &Events,
) -> Result<(), HubError> {
    let Plan { info, what, files } = plan;
    let client = HubClient::new(&library.0.pool, Arc::clone(config))?;
    if let What::Checkpoint(_) = what {
        library.0.conversions.check_converter()?;
        let repo = format!("{}/{}", info.org, info.repo);
        let checked = check_config(&client, &repo, &targets(config, &info, &files)?).await;
        with_alternatives(&client, checked).await?;
    }
    download(library, config, &info, &files, name.revision.as_deref(), events).await?;
    let note = Note {
        commit: info.commit.clone(),
        endpoint: config.endpoint.clone(),
        license: info.license.clone(),
    };
    let label = match what {
        What::Gguf(label) => label,
        What::Checkpoint(kind) => {
            let wanted = Wanted {
                folder: RepoFolder::new(&config.cache_dir, &info.org, &info.repo),
                commit: info.commit.clone(),
                kind,
            };
            let snapshot = wanted.folder.path.join("snapshots").join(&wanted.commit);
            let made = make(library, config, wanted, events).await;
            note_conversion(library, snapshot, &made).await?;
            with_alternatives(&client, made).await?
        }
    };
    let (library, key) = (library.clone(), super::key(&info.org, &info.repo, &label));
    blocking(move || library.0.ledger.pulled(&key, note)).await
}

/// Where the files of a commit go.
fn targets(config: &HubConfig, info: &RepoInfo, files: &[RepoFile]) -> Result<Vec<BlobTarget>, HubError> {
    let folder = RepoFolder::new(&config.cache_dir, &info.org, &info.repo);
    let target = |file: &RepoFile| {
        let Some(etag) = file.etag() else {
            let problem = format!("it lists {} without a hash", file.path);
            return Err(HubError::Protocol {
                host: config.endpoint.clone(),
                problem,
            });
        };
        Ok(BlobTarget {
            repo: format!("{}/{}", info.org, info.repo),
            commit: info.commit.clone(),
            path: file.path.clone(),
            size: file.size,
            blob: folder.blob(etag),
            lock: config
                .cache_dir
                .join(".locks")
                .join(format!("models--{}--{}", info.org, info.repo))
                .join(format!("{etag}.lock")),
            etag: etag.to_owned(),
        })
    };
    files.iter().map(target).collect()
}

/// Fetches files of a commit, as far as they are not there, and makes all of them visible at once.
pub(crate) async fn download(
    library: &Library,
    config: &Arc<HubConfig>,
    info: &RepoInfo,
    files: &[RepoFile],
    revision: Option<&str>,
    events: &Events,
) -> Result<(), HubError> {
    let client = HubClient::new(&library.0.pool, Arc::clone(config))?;
    let targets = targets(config, info, files)?;
    if !config.extra_caches.is_empty() {
        let (library, caches, wanted) = (library.clone(), config.extra_caches.clone(), targets.clone());
        blocking(move || {
            let mut wanted = wanted.iter();
            wanted.try_for_each(|target| adopt(target, &caches, &library.0.ledger))
        })
        .await?;
    }
    check_space(&format!("{}/{}", info.org, info.repo), &targets).await?;
    let mut flights: Vec<(BlobTarget, Option<Arc<SharedDownload>>)> = Vec::new();
    for target in targets {
        let (blob, size) = (target.blob.clone(), target.size);
        let flight = if blocking(move || Ok(is_present(&blob, size))).await? {
            report_whole(&digest_of(&target.etag), size, events).await?;
            None
        } else {
            let flight = library.0.downloads.join(&client, &target, &library.0.ledger);
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
    let revision = revision.unwrap_or("main").to_owned();
    let targets: Vec<BlobTarget> = flights.into_iter().map(|(target, _)| target).collect();
    let folder = RepoFolder::new(&config.cache_dir, &info.org, &info.repo);
    let commit = info.commit.clone();
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
            folder.write_reference(&revision, &commit)?;
        }
        Ok(())
    })
    .await
}

/// Makes a model of a checkpoint, and says how far that is, again and again: a stream without a word for minutes is taken for
/// a dead one.
async fn make(library: &Library, config: &HubConfig, wanted: Wanted, events: &Events) -> Result<String, HubError> {
    let conversions = &library.0.conversions;
    let kept = Kept::wanted(config, wanted.kind);
    if let Some(label) = conversions.find(&wanted, kept).await? {
        return Ok(label);
    }
    let status = match kept {
        Kept::File => "converting model",
        Kept::Header => "planning model",
    };
    let digest = hex::encode(Sha256::digest(wanted.to_string()));
    let event = |advance: Advance| PullEvent::Converting {
        digest: digest.clone(),
        total: advance.total,
        completed: advance.done,
    };
    let (mut watch, mut told) = (conversions.watch(), None);
    let mut making = pin!(conversions.make(wanted.clone(), kept));
    loop {
        match told {
            Some(advance) => events.send(event(advance)).await?,
            None => events.status(status).await?,
        }
        let pause = Instant::now() + INTERVAL;
        let news = async {
            sleep_until(pause).await;
            let is_new = |state: &Option<_>| conversions::advance_of(state, &wanted).is_some_and(|it| Some(it) != told);
            match timeout(SIGN_OF_LIFE, watch.wait_for(is_new)).await {
                Ok(Ok(state)) => conversions::advance_of(&state, &wanted),
                _ => told,
            }
        };
        tokio::select! {
            made = &mut making => {
                if let (Ok(_), Some(Advance { total, stage, .. })) = (&made, told) {
                    events.send(event(Advance { done: total, total, stage })).await?;
                }
                return made;
            }
            advance = news => told = advance,
        }
    }
}

/// Notes a checkpoint that is of no use, so that it can be offered for removal.
async fn note_conversion<T>(
    library: &Library,
    snapshot: PathBuf,
    result: &Result<T, HubError>,
) -> Result<(), HubError> {
    let failed = match result {
        Ok(_) => false,
        Err(HubError::Checkpoint { .. } | HubError::Converter(_)) => true,
        Err(_) => return Ok(()),
    };
    let library = library.clone();
    blocking(move || library.0.ledger.set_unconverted(&snapshot, failed)).await
}

/// Adds to the error of a checkpoint that cannot be converted what could be pulled instead.
async fn with_alternatives<T>(client: &HubClient, result: Result<T, HubError>) -> Result<T, HubError> {
    match result {
        Err(HubError::Checkpoint { repo, reason, .. }) => Err(HubError::Checkpoint {
            alternatives: search::made_from(client, &repo).await,
            repo,
            reason,
        }),
        result => result,
    }
}

/// Refuses a checkpoint that can never be converted before its weights are fetched.
async fn check_config(client: &HubClient, repo: &str, targets: &[BlobTarget]) -> Result<(), HubError> {
    let missing = targets.to_vec();
    let is_here = blocking(move || Ok(missing.iter().all(|target| is_present(&target.blob, target.size)))).await?;
    let Some(config) = targets.iter().find(|target| target.path == "config.json" && !is_here) else {
        return Ok(());
    };
    let about = RequestSubject {
        repo,
        revision: &config.commit,
        path: &config.path,
    };
    let text = client.text(&about).await?.unwrap_or_default();
    convert::check_config(&text).map_err(|error| error::conversion(repo, &error))
}

/// Refuses a pull whose files do not all fit, before the first of them is begun.
async fn check_space(repo: &str, targets: &[BlobTarget]) -> Result<(), HubError> {
    let (repo, targets) = (repo.to_owned(), targets.to_vec());
    blocking(move || {
        let missing = targets.iter().filter(|target| !is_present(&target.blob, target.size));
        let needed = missing.fold(0_u64, |sum, target| {
            let left = target.size.saturating_sub(PartialBlob::peek(&target.blob, target.size));
            sum.saturating_add(left)
        });
        match targets.first() {
            Some(first) => disk::check_space(&repo, &first.blob, needed),
            None => Ok(()),
        }
    })
    .await
}

/// Tells how a download advances, until all its bytes are there.
async fn follow(flight: &SharedDownload, target: &BlobTarget, events: &Events) -> Result<(), HubError> {
    let digest = digest_of(&target.etag);
    let mut state = flight.watch();
    events.file(&digest, target.size, 0).await?;
    let mut shown = 0;
    loop {
        let next = Instant::now() + INTERVAL;
        let completed = match &*state.borrow_and_update() {
            DownloadState::Fetching { completed } => Ok(*completed),
            DownloadState::Verifying | DownloadState::Done(Ok(())) => Err(None),
            DownloadState::Done(Err(error)) => Err(Some(error.clone())),
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
        if state.changed().await.is_err() && !matches!(*state.borrow(), DownloadState::Done(_)) {
            return Err(HubError::Cancelled);
        }
    }
}

/// Says what a pull says of a model that is complete.
async fn from_cache(library: &Library, model: &LocalModel, events: &Events) -> Result<(), HubError> {
    let files: Vec<PathBuf> = model.downloads().cloned().collect();
    events.whole(&files).await?;
    events.status("verifying sha256 digest").await?;
    events.status("writing manifest").await?;
    let (library, key) = (library.clone(), super::key(&model.org, &model.repo, &model.label));
    blocking(move || library.0.ledger.set_unlisted(&key, false)).await
}

/// Makes a model of a checkpoint that is in a cache.
async fn from_checkpoint(
    library: &Library,
    config: &HubConfig,
    checkpoint: Wanted,
    events: &Events,
) -> Result<(), HubError> {
    let (org, repo) = (checkpoint.folder.org.clone(), checkpoint.folder.repo.clone());
    let label = make(library, config, checkpoint, events).await?;
    let (library, key) = (library.clone(), super::key(&org, &repo, &label));
    blocking(move || library.0.ledger.set_unlisted(&key, false)).await
}

async fn report_whole(digest: &str, size: u64, events: &Events) -> Result<(), HubError> {
    events.file(digest, size, 0).await?;
    events.file(digest, size, size).await
}

/// 64 hex digits for an event. A small file has only git's hash, and clients tell files apart by this text alone.
fn digest_of(etag: &str) -> String {
    if hex::is_hex(etag, 64) {
        etag.to_owned()
    } else {
        hex::encode(Sha256::digest(etag))
    }
}
