//! Pulling the base model: the name without its adapters.

use std::{path::PathBuf, sync::Arc};

use super::{
    PullJob, PullPlan,
    plan::{PullSource, targets},
    with_short_timeout,
};
use crate::{
    convert,
    hub::{
        HubError,
        cache::RepoFolder,
        client::{HubClient, RequestSubject},
        download::is_present,
        ledger::PullRecord,
        search,
        target::BlobTarget,
    },
    library::{LocalModel, blocking, conversions::ConversionKey, error::LibraryError, key, roots},
};

impl PullJob {
    /// Pulls the model without its adapters. If it is on disk, the Hub is asked for something newer, but a Hub that
    /// does not answer is no reason to fail.
    pub(super) async fn pull_base(&self) -> Result<(), LibraryError> {
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
