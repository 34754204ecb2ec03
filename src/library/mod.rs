//! The models on this machine: finding, listing, pulling, converting, removing, verifying, importing and pruning them.
//!
//! [`Library`] is the handle. The provider of hf: names and the command line call it; below it, `hub` talks to the
//! network and knows the layout of the shared cache, and `lifecycle` runs the converter process. A [`LocalModel`] is a
//! model that is complete on disk; what its files contain is not read here.
//!
//! # Life of a checkpoint
//!
//! A GGUF file in the cache is served as it is. A checkpoint of safetensors goes through more stages:
//!
//! ```text
//! fetched     its files are in the Hub's cache (by a pull, or by another program)
//!    │
//! planned     a converter process reads config.json, the tokenizer and the tensor table, and checks that llama.cpp
//!    │        tokenizes like the checkpoint's own tokenizer
//!    ├─▶ written    K-quants, or hub.safetensors = "file":    STATE/converted/…/VERSION-TYPE.gguf, a complete file
//!    └─▶ streamed   plain types, or hub.safetensors = "stream": …/VERSION-TYPE.header, a GGUF header; each load makes
//!           │                                                the weights from the checkpoint again
//! listed      as hf:ORG/REPO:TYPE, while its checkpoint is in the cache
//!    │
//! superseded  the branch moved to a commit whose checkpoint was converted to the same types
//!    │
//! pruned      `hubllama prune` offers the old checkpoint and its conversions; `hubllama rm` of the last conversion
//!             removes the checkpoint, too. Files that another program downloaded stay
//! ```
//!
//! A checkpoint that cannot be converted is noted in the ledger and offered for pruning.

mod adapter;
mod blobs;
mod checkpoint;
mod conversions;
mod error;
mod import;
mod model;
mod provenance;
mod prune;
mod pull;
mod remove;
mod scan;
mod search;
mod updates;
mod verify;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub use adapter::LocalAdapter;
pub use error::LibraryError;
pub use model::LocalModel;
pub use provenance::{AdapterProvenance, FileProvenance, ModelProvenance};
pub use prune::{PrunableItem, PruneReason};
pub use pull::PullProgress;
pub use search::{MemoryFit, total_memory};
pub use updates::AvailableUpdate;
pub use verify::{FileVerdict, VerifiedFile};

use adapter::PreparedAdapters;
use conversions::{CheckpointConverter, ConversionStore};
use remove::ModelRemoval;
use scan::ScanCache;

use crate::{
    config::HubConfig,
    hub::{
        HfName, HubError, HubReachability, Selector,
        cache::{self, CachedModel},
        client::{self, HubClient},
        download::BlobDownloads,
        ledger::Ledger,
        pool,
    },
    inference::WeightType,
    lifecycle::WorkerCommand,
    stdx,
};

/// Delete outcome: whether the files of a deleted model are gone, or the model is only hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// The files were removed.
    Removed {
        /// Bytes of removed content; files that another model uses stay.
        bytes_freed: u64,
    },
    /// The files belong to another program and stay. The model is not listed until it is pulled again.
    Unlisted,
}

/// Library: a handle on the models of this machine. Clones share the downloads in progress and all caches. The
/// configuration comes with each call, so that a change of it takes effect at once.
#[derive(Clone, Debug)]
pub struct Library(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: pool::ConnectionPool,
    downloads: BlobDownloads,
    ledger: Arc<Ledger>,
    conversions: ConversionStore,
    converter: CheckpointConverter,
    prepared: PreparedAdapters,
    scans: ScanCache,
}

impl Library {
    /// Opens the library whose ledger and conversions lie in `state_dir`. Conversions run in this program's own binary.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::with_worker(state_dir, WorkerCommand::default())
    }

    /// Opens the library; `worker` is the command that runs conversions.
    #[must_use]
    pub fn with_worker(state_dir: &Path, worker: WorkerCommand) -> Self {
        let conversions = ConversionStore::new(state_dir);
        Self(Arc::new(Shared {
            pool: pool::ConnectionPool::default(),
            downloads: BlobDownloads::default(),
            ledger: Arc::new(Ledger::load(state_dir)),
            converter: CheckpointConverter::new(conversions.clone(), worker),
            conversions,
            prepared: PreparedAdapters::new(state_dir),
            scans: ScanCache::default(),
        }))
    }

    /// Finds a model on disk, without the network.
    ///
    /// # Errors
    /// If it is not complete in the cache, or was unlisted.
    pub async fn locate(&self, config: &HubConfig, name: &HfName) -> Result<LocalModel, LibraryError> {
        let model = self.find(config, name).await?;
        if self.0.ledger.is_unlisted(&model.ledger_key()) {
            return Err(HubError::NotCached(name.to_string()).into());
        }
        Ok(model)
    }

    /// Returns true if a name stands for a given model, however it is spelled. A name without a selector stands for
    /// every model of its repository, one without a revision for every commit.
    pub async fn means(&self, config: &HubConfig, name: &HfName, model: &LocalModel) -> bool {
        let base = &model.base;
        if !name.org.eq_ignore_ascii_case(&base.org) || !name.repo.eq_ignore_ascii_case(&base.repo) {
            return false;
        }
        // A selector has many spellings (label, path, folder), so the name is resolved where the model is and the files
        // are compared.
        let name = HfName {
            selector: name
                .selector
                .clone()
                .or_else(|| Selector::parse(&base.label).ok().flatten()),
            revision: name.revision.clone().or_else(|| Some(base.commit.clone())),
            ..name.clone()
        };
        self.find(config, &name)
            .await
            .is_ok_and(|found| found.base.files == base.files && found.adapters == model.adapters)
    }

    /// Returns every complete model that is not unlisted, sorted by name; models with adapters, which have to be pulled
    /// to be listed, come last.
    pub async fn list(&self, config: &HubConfig) -> Vec<LocalModel> {
        let (library, roots) = (self.clone(), roots(config));
        let listed = blocking(move || {
            let mut models = library.0.scans.models(&roots);
            for converted in library.0.conversions.all(&roots) {
                // A GGUF file that was downloaded wins over a conversion to the same type.
                if !models.iter().any(|model| ledger_key(model) == ledger_key(&converted)) {
                    models.push(converted);
                }
            }
            models.sort_by_key(ledger_key);
            let listed = models
                .into_iter()
                .filter(|model| !library.0.ledger.is_unlisted(&ledger_key(model)));
            let mut listed: Vec<LocalModel> = listed.map(|model| library.local(model, None)).collect();
            listed.extend(library.adapted(&roots));
            Ok(listed)
        });
        listed.await.unwrap_or_default()
    }

    /// Starts to download a model and its adapters, and to convert what is no GGUF file yet. Must be called on a Tokio
    /// runtime; dropping the progress stream cancels the pull.
    #[must_use]
    pub fn pull(&self, config: &HubConfig, name: &HfName) -> PullProgress {
        PullProgress::start(self.clone(), Arc::new(config.clone()), name.clone())
    }

    /// Removes a model's files if hubllama downloaded them, else only stops listing the model.
    ///
    /// # Errors
    /// If no model in the cache has the name, or the file system refuses.
    pub async fn delete(&self, config: &HubConfig, name: &HfName) -> Result<DeleteOutcome, LibraryError> {
        self.remove(config, name, false).await
    }

    /// Removes a model's files even if another program put them into the cache. The files in `extra_caches`, which are
    /// never written to, stay; the model is no longer listed.
    ///
    /// # Errors
    /// As [`Library::delete`].
    pub async fn delete_files(&self, config: &HubConfig, name: &HfName) -> Result<DeleteOutcome, LibraryError> {
        self.remove(config, name, true).await
    }

    async fn remove(&self, config: &HubConfig, name: &HfName, all: bool) -> Result<DeleteOutcome, LibraryError> {
        let model = match self.locate(config, name).await {
            // An unlisted model can still be removed from the disk.
            Err(error) if all && error.is_not_cached() => self.find(config, name).await?,
            located => located?,
        };
        let removal = ModelRemoval {
            library: self.clone(),
            config: config.clone(),
            all,
        };
        let name = name.clone();
        blocking(move || removal.remove(&model, &name)).await
    }

    /// Asks the Hub whether it is reachable and accepts the token.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn reachable(&self, config: &HubConfig) -> Result<HubReachability, LibraryError> {
        Ok(self.client(config.clone().into())?.reachable().await?)
    }

    /// Reads a small text file of a repository: from the cache if it is there, else from the Hub, without storing it.
    /// Returns `None` if the repository has no such file.
    ///
    /// # Errors
    /// If the Hub has to be asked and cannot be, or does not have the repository.
    pub async fn text(&self, config: &HubConfig, name: &HfName, path: &str) -> Result<Option<String>, LibraryError> {
        let (roots, wanted, file) = (roots(config), name.clone(), path.to_owned());
        let find = move || roots.iter().find_map(|root| cache::text(root, &wanted, &file));
        let cached = blocking(move || Ok(find())).await?;
        if cached.is_some() {
            return Ok(cached);
        }
        if config.offline {
            return Err(HubError::Offline(name.to_string()).into());
        }
        let about = client::RequestSubject {
            repo: &name.repo_id(),
            revision: name.revision.as_deref().unwrap_or("main"),
            path,
        };
        Ok(self.client(config.clone().into())?.text(&about).await?)
    }

    fn client(&self, config: Arc<HubConfig>) -> Result<HubClient, HubError> {
        HubClient::new(&self.0.pool, config)
    }

    /// Finds a model on disk, even an unlisted one.
    async fn find(&self, config: &HubConfig, name: &HfName) -> Result<LocalModel, LibraryError> {
        let (library, roots, name) = (self.clone(), roots(config), name.clone());
        let default = config.safetensors_type;
        blocking(move || Ok(library.find_blocking(&roots, &name, default)?)).await
    }

    fn find_blocking(&self, roots: &[PathBuf], name: &HfName, default: WeightType) -> Result<LocalModel, HubError> {
        let model = cache::locate_in(roots, name).or_else(|_| self.0.conversions.locate(roots, name, default))?;
        let model = self.local(model, name.revision.as_deref());
        if name.adapters.is_empty() {
            return Ok(model);
        }
        Ok(model.with_adapters(adapter::find_all(roots, &self.0.ledger, name)?))
    }

    fn local(&self, model: CachedModel, revision: Option<&str>) -> LocalModel {
        let owned = blobs::is_owned(&self.0.ledger, &model);
        LocalModel::new(model, revision, owned)
    }

    /// Returns every model with adapters that was pulled, is still complete and is not unlisted. The ledger is the only
    /// record of which adapters somebody wants on which base.
    fn adapted(&self, roots: &[PathBuf]) -> Vec<LocalModel> {
        let keys = self.0.ledger.keys().into_iter();
        let names = keys.filter_map(|key| HfName::parse(&format!("hf:{key}")).ok());
        let names = names.filter(|name| !name.adapters.is_empty());
        // The names in the ledger have selectors, so the default type is never used.
        let models = names.filter_map(|name| self.find_blocking(roots, &name, WeightType::default()).ok());
        models
            .filter(|model| !self.0.ledger.is_unlisted(&model.ledger_key()))
            .collect()
    }
}

/// Returns the cache folders in which models are looked for, in order of preference.
fn roots(config: &HubConfig) -> Vec<PathBuf> {
    config.extra_caches.iter().chain([&config.cache_dir]).cloned().collect()
}

/// Returns the key of a model without adapters in the ledger.
fn ledger_key(model: &CachedModel) -> String {
    key(&model.org, &model.repo, &model.label)
}

/// Returns `org/repo:label` in lower case, the key of a model without adapters in the ledger.
fn key(org: &str, repo: &str, label: &str) -> String {
    format!("{org}/{repo}:{label}").to_ascii_lowercase()
}

/// Runs file work on a thread that may block. The error type is fixed, so that `?` in the work needs no annotation.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LibraryError> + Send + 'static,
) -> Result<T, LibraryError> {
    stdx::task::blocking(work).await
}

#[cfg(test)]
mod tests;
