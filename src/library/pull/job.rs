//! One pull as a task: which steps it takes, and in which order the results become visible.

use std::{path::PathBuf, pin::pin, sync::Arc};

use sha2::{Digest as _, Sha256};
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::{
    PullEvents, PullPlan,
    events::{EVENT_INTERVAL, event_digest},
    plan::{PullSource, targets},
    with_short_timeout,
};
use crate::{
    config::{HubConfig, TokenizerMismatch},
    convert::{self, ConversionProgress},
    hub::{
        HfName, HubError,
        adopt::adopt,
        cache::{self, RepoFolder},
        client::{HubClient, RepoInfo, RequestSubject},
        disk,
        download::{SharedDownload, is_present},
        ledger::PullRecord,
        partial::PartialBlob,
        resolve::RepoFile,
        search,
        target::BlobTarget,
    },
    library::{
        Library, LocalModel, adapter, blocking,
        conversions::{ConversionKey, configured_output, progress_of},
        error::LibraryError,
        key, roots,
    },
    stdx::hex,
    worker::protocol::ConversionOutput,
};

/// Longest silence during a conversion: clients and proxies take a stream without data for a dead one.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Pull job: one pull from its name to its links in the cache.
pub(in crate::library) struct PullJob {
    pub(in crate::library) library: Library,
    pub(in crate::library) config: Arc<HubConfig>,
    pub(in crate::library) name: HfName,
    /// The name without its adapters.
    base: HfName,
    pub(in crate::library) events: PullEvents,
}

impl PullJob {
    pub(super) fn new(library: Library, config: Arc<HubConfig>, name: HfName, events: PullEvents) -> Self {
        let base = HfName {
            adapters: Vec::new(),
            ..name.clone()
        };
        Self {
            library,
            config,
            name,
            base,
            events,
        }
    }

    pub(super) async fn run(&self) -> Result<(), LibraryError> {
        self.events.status("pulling manifest").await?;
        let adapters = adapter::plan_all(self).await?;
        self.pull_base().await?;
        if !adapters.is_empty() {
            adapter::pull_all(self, adapters).await?;
        }
        self.events.status("success").await
    }

    /// Pulls the model without its adapters. If it is on disk, the Hub is asked for something newer, but a Hub that does
    /// not answer is no reason to fail.
    async fn pull_base(&self) -> Result<(), LibraryError> {
        let Ok(model) = self.library.find(&self.config, &self.base).await else {
            return self.pull_missing().await;
        };
        if self.config.offline {
            return self.use_cached(&model).await;
        }
        match self.plan_with_short_timeout().await {
            Ok(plan) if plan.is_satisfied_by(&self.config, &model).await? => self.use_cached(&model).await,
            Ok(plan) => self.fetch(plan).await,
            Err(error) if error.is_hub_failure() => {
                tracing::warn!(model.name = %self.base, %error, "the Hub gives no usable answer; the cached model is used");
                self.use_cached(&model).await
            }
            Err(error) => Err(error),
        }
    }

    /// Pulls a model that is not on disk. Its checkpoint may be, if another program downloaded that.
    async fn pull_missing(&self) -> Result<(), LibraryError> {
        let (roots, wanted) = (roots(&self.config), self.base.clone());
        let default = self.config.safetensors_type;
        let cached = blocking(move || Ok(ConversionKey::find(&roots, &wanted, default))).await?;
        match cached {
            None if self.config.offline => Err(HubError::Offline(self.base.to_string()).into()),
            None => {
                let plan = PullPlan::new(&self.library, Arc::clone(&self.config), &self.base).await?;
                self.fetch(plan).await
            }
            Some(checkpoint) if self.config.offline => self.convert_cached(checkpoint).await,
            Some(checkpoint) => match self.plan_with_short_timeout().await {
                Ok(plan) => self.fetch(plan).await,
                Err(error) if error.is_hub_failure() => {
                    tracing::warn!(model.name = %self.base, %error, "the Hub gives no usable answer; the cached checkpoint is used");
                    self.convert_cached(checkpoint).await
                }
                Err(error) => Err(error),
            },
        }
    }

    async fn plan_with_short_timeout(&self) -> Result<PullPlan, LibraryError> {
        with_short_timeout(&self.config, |config| async {
            Ok(PullPlan::new(&self.library, config, &self.base).await?)
        })
        .await
    }

    /// Carries out a plan: downloads the files, converts a checkpoint and records the pull.
    async fn fetch(&self, plan: PullPlan) -> Result<(), LibraryError> {
        let PullPlan { info, source, files } = plan;
        let client = self.library.client(Arc::clone(&self.config))?;
        if let PullSource::Checkpoint(_) = source {
            let repo = format!("{}/{}", info.org, info.repo);
            let checked = check_config(&client, &repo, &targets(&self.config, &info, &files)?).await;
            with_alternatives(&client, checked).await?;
        }
        self.download(&info, &files, self.base.revision.as_deref()).await?;
        let label = match source {
            PullSource::Gguf(label) => label,
            PullSource::Checkpoint(weight_type) => {
                let key = ConversionKey {
                    folder: RepoFolder::new(&self.config.cache_dir, &info.org, &info.repo),
                    commit: info.commit.clone(),
                    weight_type,
                };
                let snapshot = key.snapshot();
                let converted = self.convert(key).await;
                self.note_unconverted(snapshot, &converted).await?;
                with_alternatives(&client, converted).await?
            }
        };
        let record = PullRecord {
            commit: info.commit,
            endpoint: self.config.endpoint.clone(),
            license: info.license,
        };
        self.record(key(&info.org, &info.repo, &label), record).await
    }

    /// Reports a model that is complete on disk, and lists it if it was unlisted.
    async fn use_cached(&self, model: &LocalModel) -> Result<(), LibraryError> {
        let files: Vec<PathBuf> = model.downloads().cloned().collect();
        self.events.complete_files(&files).await?;
        self.events.status("verifying sha256 digest").await?;
        self.events.status("writing manifest").await?;
        self.list_again(model.ledger_key()).await
    }

    /// Converts a checkpoint that is in a cache, and lists the conversion if it was unlisted.
    async fn convert_cached(&self, checkpoint: ConversionKey) -> Result<(), LibraryError> {
        let (org, repo) = (checkpoint.folder.org.clone(), checkpoint.folder.repo.clone());
        let label = self.convert(checkpoint).await?;
        self.list_again(key(&org, &repo, &label)).await
    }

    async fn list_again(&self, key: String) -> Result<(), LibraryError> {
        let library = self.library.clone();
        blocking(move || Ok(library.0.ledger.set_unlisted(&key, false)?)).await
    }

    /// Records in the ledger where a model was pulled from.
    pub(in crate::library) async fn record(&self, key: String, record: PullRecord) -> Result<(), LibraryError> {
        let library = self.library.clone();
        blocking(move || Ok(library.0.ledger.pulled(&key, record)?)).await
    }

    /// Downloads those files of a commit that are missing, and links all of them into the snapshot at once, so that nobody
    /// sees half a model.
    ///
    /// # Errors
    /// If the disk is too small, a download fails, or a file was deleted meanwhile.
    pub(in crate::library) async fn download(
        &self,
        info: &RepoInfo,
        files: &[RepoFile],
        revision: Option<&str>,
    ) -> Result<(), LibraryError> {
        let client = self.library.client(Arc::clone(&self.config))?;
        let targets = targets(&self.config, info, files)?;
        self.adopt_from_extra_caches(&targets).await?;
        check_space(&format!("{}/{}", info.org, info.repo), &targets).await?;
        let shared = &self.library.0;
        let mut downloads: Vec<Arc<SharedDownload>> = Vec::new();
        for target in &targets {
            let (blob, size) = (target.blob.clone(), target.size);
            if blocking(move || Ok(is_present(&blob, size))).await? {
                self.events.complete_file(&event_digest(&target.etag), size).await?;
            } else {
                let download = shared.downloads.join(&client, target, &shared.ledger);
                self.events.follow(&download, target).await?;
                downloads.push(download);
            }
        }
        // A file is hashed while the next one is fetched, so the last hashes may still be running.
        self.events.status("verifying sha256 digest").await?;
        for download in downloads {
            download.done().await?;
        }
        self.events.status("writing manifest").await?;
        let folder = RepoFolder::new(&self.config.cache_dir, &info.org, &info.repo);
        let (commit, revision) = (info.commit.clone(), revision.unwrap_or("main").to_owned());
        blocking(move || Ok(link_all(&folder, &commit, &revision, &targets)?)).await
    }

    /// Links content that another user's cache holds, so that it is not downloaded.
    async fn adopt_from_extra_caches(&self, targets: &[BlobTarget]) -> Result<(), LibraryError> {
        if self.config.extra_caches.is_empty() {
            return Ok(());
        }
        let (library, caches, targets) = (self.library.clone(), self.config.extra_caches.clone(), targets.to_vec());
        blocking(move || {
            let mut targets = targets.iter();
            Ok(targets.try_for_each(|target| adopt(target, &caches, &library.0.ledger))?)
        })
        .await
    }

    /// Converts a checkpoint unless that was done before, and reports the progress at least every
    /// [`KEEPALIVE_INTERVAL`]; returns the name of the weight type.
    async fn convert(&self, key: ConversionKey) -> Result<String, LibraryError> {
        let shared = &self.library.0;
        let output = configured_output(&self.config, key.weight_type);
        if let Some(label) = shared.conversions.find(&key, output).await? {
            return Ok(label);
        }
        let status = match output {
            ConversionOutput::Full => "converting model",
            ConversionOutput::HeaderOnly => "planning model",
        };
        let digest = hex::encode(Sha256::digest(key.to_string()));
        let allow_tokenizer_mismatch = self.config.tokenizer_mismatch == TokenizerMismatch::Warn;
        let (mut watch, mut shown) = (shared.converter.watch(), None);
        let mut converting = pin!(shared.converter.convert(key.clone(), output, allow_tokenizer_mismatch));
        loop {
            match shown {
                Some(advance) => self.events.converting(&digest, advance).await?,
                None => self.events.status(status).await?,
            }
            let pause = Instant::now() + EVENT_INTERVAL;
            let next = async {
                sleep_until(pause).await;
                let is_new = |running: &Option<_>| progress_of(running, &key).is_some_and(|it| Some(it) != shown);
                // The timeout repeats the last event.
                match timeout(KEEPALIVE_INTERVAL, watch.wait_for(is_new)).await {
                    Ok(Ok(running)) => progress_of(&running, &key),
                    _ => shown,
                }
            };
            tokio::select! {
                converted = &mut converting => {
                    if let (Ok(_), Some(ConversionProgress { total, stage, .. })) = (&converted, shown) {
                        self.events.converting(&digest, ConversionProgress { done: total, total, stage }).await?;
                    }
                    return converted;
                }
                advance = next => shown = advance,
            }
        }
    }

    /// Notes in the ledger if a checkpoint could not be converted, so that `prune` offers it for removal.
    async fn note_unconverted(
        &self,
        snapshot: PathBuf,
        converted: &Result<String, LibraryError>,
    ) -> Result<(), LibraryError> {
        let has_failed = match converted {
            Ok(_) => false,
            Err(LibraryError::Checkpoint { .. } | LibraryError::Conversion(_)) => true,
            // A cancelled pull says nothing about the checkpoint.
            Err(_) => return Ok(()),
        };
        let library = self.library.clone();
        blocking(move || Ok(library.0.ledger.set_unconverted(&snapshot, has_failed)?)).await
    }
}

/// Links downloaded blobs into the snapshot of a commit, and points the revision to it.
fn link_all(folder: &RepoFolder, commit: &str, revision: &str, targets: &[BlobTarget]) -> Result<(), HubError> {
    for target in targets {
        folder.link(&target.commit, &target.path, &target.etag)?;
    }
    // Checked after the links exist: from here on a deletion of another model does not take the blobs.
    if let Some(gone) = targets.iter().find(|target| !is_present(&target.blob, target.size)) {
        return Err(HubError::Interrupted {
            path: gone.path.clone(),
            reason: "it was deleted from the cache".to_owned(),
        });
    }
    if !cache::is_commit(revision) {
        folder.write_reference(revision, commit)?;
    }
    Ok(())
}

/// Adds to the error of a checkpoint that cannot be converted the repositories that could be pulled instead.
async fn with_alternatives<T>(client: &HubClient, result: Result<T, LibraryError>) -> Result<T, LibraryError> {
    match result {
        Err(LibraryError::Checkpoint { repo, error, .. }) => Err(LibraryError::Checkpoint {
            alternatives: search::made_from(client, &repo).await,
            repo,
            error,
        }),
        result => result,
    }
}

/// Refuses a checkpoint that can never be converted by its `config.json`, before its weights are fetched.
async fn check_config(client: &HubClient, repo: &str, targets: &[BlobTarget]) -> Result<(), LibraryError> {
    let all = targets.to_vec();
    let is_here = blocking(move || Ok(all.iter().all(|target| is_present(&target.blob, target.size)))).await?;
    let Some(config) = targets.iter().find(|target| target.path == "config.json" && !is_here) else {
        return Ok(());
    };
    let about = RequestSubject {
        repo,
        revision: &config.commit,
        path: &config.path,
    };
    let text = client.text(&about).await?.unwrap_or_default();
    convert::check_config(&text).map_err(|error| LibraryError::conversion(repo, error))
}

/// Refuses a pull whose files do not all fit on the disk, before the first of them is fetched.
async fn check_space(repo: &str, targets: &[BlobTarget]) -> Result<(), LibraryError> {
    let (repo, targets) = (repo.to_owned(), targets.to_vec());
    blocking(move || {
        let missing = targets.iter().filter(|target| !is_present(&target.blob, target.size));
        let needed = missing.fold(0_u64, |sum, target| {
            let left = target.size.saturating_sub(PartialBlob::peek(&target.blob, target.size));
            sum.saturating_add(left)
        });
        match targets.first() {
            Some(first) => Ok(disk::check_space(&repo, &first.blob, needed)?),
            None => Ok(()),
        }
    })
    .await
}
