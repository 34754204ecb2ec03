//! The Hugging Face Hub: names, which files they stand for, downloading them, and the cache that is shared with every
//! other program of the user.
//!
//! [`Hub`] answers three questions: what is here ([`Hub::locate`], [`Hub::list`]; no network), bring it ([`Hub::pull`]),
//! take it away ([`Hub::delete`]). What is in the files is not known here.

mod backoff;
mod cache;
mod client;
mod disk;
mod download;
mod error;
mod ledger;
pub mod name;
mod partial;
mod pull;
mod remove;
pub mod resolve;
mod wire;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

pub use client::Reachable;
pub use error::HubError;
pub use name::{HfName, NameError, Selector};
pub use pull::Pull;
pub use resolve::ResolveError;

use cache::{CachedModel, Watched};
use download::blocking;
use ledger::Ledger;

use crate::config::HubConfig;

/// File systems tick: a change so soon after another one may leave the same time behind.
const TICK: Duration = Duration::from_millis(50);

/// A handle on the Hub and its cache; clones share downloads and what is known. Settings come with each call, so that a
/// change of them takes effect at once.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: client::Pool,
    downloads: download::Downloads,
    ledger: Arc<Ledger>,
    scan: Mutex<Option<Scan>>,
}

/// A scan that holds as long as nothing that it read has changed.
#[derive(Debug)]
struct Scan {
    root: PathBuf,
    watched: Watched,
    at: SystemTime,
    models: Vec<CachedModel>,
}

/// A complete model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalModel {
    /// `hf:ORG/REPO[@REVISION]:SELECTOR`, spelled as in the cache; parses as an [`HfName`].
    pub canonical: String,
    /// Spelled as in the cache.
    pub org: String,
    /// Spelled as in the cache.
    pub repo: String,
    /// 40 hex digits.
    pub commit: String,
    /// The canonical selector.
    pub label: String,
    /// Snapshot paths of the weights, first shard first.
    pub files: Vec<PathBuf>,
    /// Snapshot path of the projector.
    pub mmproj: Option<PathBuf>,
    /// Bytes of all files, the projector included.
    pub size_bytes: u64,
    /// 64 hex digits: sha256 of the weights where they are one file.
    pub digest: String,
    /// When the last of its files arrived.
    pub modified_at: SystemTime,
    /// Whether hubllama downloaded the weights, so that deleting the model removes them.
    pub owned: bool,
}

/// What became of a model that was to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// Its files are gone.
    Removed {
        /// Bytes of content that were removed; files that another model uses stay.
        bytes_freed: u64,
    },
    /// Its files are another program's and stay; it is not listed until it is pulled again.
    Unlisted,
}

impl Hub {
    /// A handle whose ledger lies in `state_dir`. Reads that one file.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self(Arc::new(Shared {
            pool: client::Pool::default(),
            downloads: download::Downloads::default(),
            ledger: Arc::new(Ledger::load(state_dir)),
            scan: Mutex::new(None),
        }))
    }

    /// Finds a model in the cache; asks nobody.
    ///
    /// # Errors
    /// If it is not complete in the cache, was deleted while its files are another program's, or asks for adapters.
    pub async fn locate(&self, config: &HubConfig, name: &HfName) -> Result<LocalModel, HubError> {
        if let [adapter, ..] = name.adapters.as_slice() {
            return Err(HubError::Adapters(adapter.to_string()));
        }
        let model = self.find(config, name).await?;
        if self.0.ledger.is_unlisted(&key(&model.org, &model.repo, &model.label)) {
            return Err(HubError::NotCached(name.to_string()));
        }
        Ok(model)
    }

    /// Every complete model of the cache that was not unlisted, sorted by name.
    pub async fn list(&self, config: &HubConfig) -> Vec<LocalModel> {
        let (hub, root) = (self.clone(), config.cache_dir.clone());
        let listed = blocking(move || {
            let models = hub.scan(&root).into_iter();
            let listed = models.filter(|m| !hub.0.ledger.is_unlisted(&key(&m.org, &m.repo, &m.label)));
            Ok(listed.map(|model| hub.local(&root, model, None)).collect())
        });
        listed.await.unwrap_or_default()
    }

    /// Downloads a model, or says that it is there. Must be called on a Tokio runtime; the work goes on until it is done
    /// or the stream is dropped.
    #[must_use]
    pub fn pull(&self, config: &HubConfig, name: &HfName) -> Pull {
        Pull::start(self.clone(), Arc::new(config.clone()), name.clone())
    }

    /// Removes a model's files where hubllama downloaded them, else only stops listing it.
    ///
    /// # Errors
    /// If nothing in the cache answers to the name, or the file system refuses.
    pub async fn delete(&self, config: &HubConfig, name: &HfName) -> Result<Deleted, HubError> {
        let model = self.locate(config, name).await?;
        // The selector is made explicit, so that the same model is meant at every commit.
        let selector = Selector::parse(&model.label).ok().flatten();
        let name = HfName {
            org: model.org,
            repo: model.repo,
            selector,
            ..name.clone()
        };
        let (hub, root) = (self.clone(), config.cache_dir.clone());
        blocking(move || {
            let key = key(&name.org, &name.repo, &model.label);
            remove::delete(&root, &hub.0.ledger, &name, &key)
        })
        .await
    }

    /// Asks the Hub whether it is there and what it thinks of the token.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn reachable(&self, config: &HubConfig) -> Result<Reachable, HubError> {
        client::Client::new(&self.0.pool, Arc::new(config.clone()))?
            .reachable()
            .await
    }

    /// Reads a small text file of a repository: from the cache where it is there, else from the Hub, which leaves it in no
    /// cache. `None` if the repository has no such file.
    ///
    /// # Errors
    /// If the Hub has to be asked and cannot be, or does not have the repository.
    pub async fn text(&self, config: &HubConfig, name: &HfName, path: &str) -> Result<Option<String>, HubError> {
        let (root, wanted, file) = (config.cache_dir.clone(), name.clone(), path.to_owned());
        let cached = blocking(move || Ok(cache::text(&root, &wanted, &file))).await?;
        if cached.is_some() {
            return Ok(cached);
        }
        if config.offline {
            return Err(HubError::Offline(name.to_string()));
        }
        let about = client::About {
            repo: &name.repo_id(),
            revision: name.revision.as_deref().unwrap_or("main"),
            path,
        };
        client::Client::new(&self.0.pool, Arc::new(config.clone()))?
            .text(&about)
            .await
    }

    /// Finds a model in the cache, also one that is unlisted.
    async fn find(&self, config: &HubConfig, name: &HfName) -> Result<LocalModel, HubError> {
        let (hub, root, name) = (self.clone(), config.cache_dir.clone(), name.clone());
        blocking(move || {
            let model = cache::locate(&root, &name)?;
            Ok(hub.local(&root, model, name.revision))
        })
        .await
    }

    fn local(&self, root: &Path, model: CachedModel, revision: Option<String>) -> LocalModel {
        let owned = remove::is_owned(root, &self.0.ledger, &model);
        let CachedModel {
            org,
            repo,
            commit,
            label,
            files,
            mmproj,
            size_bytes,
            digest,
            modified_at,
        } = model;
        let revision = revision.map(|revision| format!("@{revision}")).unwrap_or_default();
        let canonical = format!("hf:{org}/{repo}{revision}:{label}");
        LocalModel {
            canonical,
            org,
            repo,
            commit,
            label,
            files,
            mmproj,
            size_bytes,
            digest,
            modified_at,
            owned,
        }
    }

    fn scan(&self, root: &Path) -> Vec<CachedModel> {
        let mut kept = self.0.scan.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scan) = kept.as_ref().filter(|scan| scan.root == root && scan.holds()) {
            return scan.models.clone();
        }
        let at = SystemTime::now();
        let (mut models, watched) = cache::scan(root);
        models.sort_by_cached_key(|model| key(&model.org, &model.repo, &model.label));
        *kept = Some(Scan {
            root: root.to_owned(),
            watched,
            at,
            models: models.clone(),
        });
        models
    }
}

impl Scan {
    fn holds(&self) -> bool {
        self.watched.iter().all(|(path, then)| {
            let is_settled = then.is_none_or(|then| then + TICK < self.at);
            is_settled && cache::modified(path) == *then
        })
    }
}

/// What a model is called in the ledger.
fn key(org: &str, repo: &str, label: &str) -> String {
    format!("{org}/{repo}:{label}").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{
        cache::tests::{OLD, name, put},
        *,
    };

    #[tokio::test]
    async fn lists_locates_and_unlists() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = HubConfig {
            cache_dir: root.path().to_owned(),
            ..HubConfig::default()
        };
        let hub = Hub::new(state.path());
        assert_eq!(hub.list(&config).await, []);
        put(root.path(), "Org/Repo", OLD, "m-Q4_0.gguf", "weights");
        let model = hub.locate(&config, &name("HF:org/REPO")).await.unwrap();
        assert_eq!(model.canonical, "hf:Org/Repo:Q4_0");
        assert!(!model.owned);
        assert_eq!(hub.list(&config).await, [model]);

        assert_eq!(hub.delete(&config, &name("hf:org/repo")).await, Ok(Deleted::Unlisted));
        assert_eq!(hub.list(&config).await, []);
        assert!(hub.locate(&config, &name("hf:org/repo")).await.is_err());
        assert!(hub.delete(&config, &name("hf:org/repo")).await.is_err());
        assert_eq!(
            Hub::new(state.path()).list(&config).await,
            [],
            "it stays unlisted after a restart"
        );
    }

    #[tokio::test]
    async fn a_scan_is_kept_until_something_changes() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = HubConfig {
            cache_dir: root.path().to_owned(),
            ..HubConfig::default()
        };
        let hub = Hub::new(state.path());
        put(root.path(), "o/r", OLD, "sub/m-Q4_0.gguf", "weights");
        let deadline = Instant::now() + Duration::from_secs(10);
        let holds = || hub.0.scan.lock().unwrap().as_ref().is_some_and(Scan::holds);
        while !holds() {
            assert!(Instant::now() < deadline, "the scan never settles");
            assert_eq!(hub.list(&config).await.len(), 1);
            tokio::task::yield_now().await;
        }
        put(root.path(), "o/r", OLD, "sub/m-Q8_0.gguf", "more");
        assert!(!holds());
        assert_eq!(hub.list(&config).await.len(), 2);
    }
}
