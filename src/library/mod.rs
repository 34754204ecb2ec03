//! The models on this machine: finding, listing, pulling, converting, removing, verifying, importing and pruning them.
//!
//! [`Library`] answers three questions: what is here ([`Library::locate`], [`Library::list`]; no network), bring it ([`Library::pull`]),
//! take it away ([`Library::delete`]). Around them: [`Library::search`], [`Library::update`], [`Library::provenance`], [`Library::verify`],
//! [`Library::import`] and [`Library::prune`]. What is in the files is not known here.

mod adapter;
mod checkpoint;
mod conversions;
mod error;
mod import;
mod provenance;
mod prune;
mod pull;
mod remove;
mod search;
mod updates;
mod verify;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

pub use adapter::LocalAdapter;
pub use conversions::{Converter, Kept, Order};
pub use provenance::{AdapterProvenance, FileProvenance, Provenance};
pub use prune::{Waste, WasteKind};
pub use pull::Pull;
pub use search::{MemoryFit, total_memory};
pub use verify::{Checked, Verdict};

use conversions::Conversions;

use crate::{
    config::HubConfig,
    convert::TargetType,
    hub::{
        HfName, HubError, Reachable, Selector,
        cache::{self, CachedModel, Watched},
        client, download,
        ledger::Ledger,
        tasks::blocking,
    },
    stdx::sync::lock,
};

/// File systems tick: a change so soon after another one may leave the same time behind.
const TICK: Duration = Duration::from_millis(50);

/// A handle on the Hub and its cache; clones share downloads and what is known. Settings come with each call, so that a
/// change of them takes effect at once.
#[derive(Clone, Debug)]
pub struct Library(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: client::ConnectionPool,
    downloads: download::BlobDownloads,
    ledger: Arc<Ledger>,
    conversions: Conversions,
    prepared: adapter::Prepared,
    /// By cache.
    scans: Mutex<HashMap<PathBuf, Scan>>,
}

/// A scan that holds as long as nothing that it read has changed.
#[derive(Debug)]
struct Scan {
    watched: Watched,
    at: SystemTime,
    models: Vec<CachedModel>,
}

/// A complete model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalModel {
    /// `hf:ORG/REPO[@REVISION]:SELECTOR`, spelled as in the cache; parses as an [`HfName`].
    pub canonical: String,
    /// The cache that it is in.
    pub root: PathBuf,
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
    /// Snapshot paths of the checkpoint that the file was made from; empty where the file was downloaded.
    pub sources: Vec<PathBuf>,
    /// The folder of that checkpoint where its weights are loaded, and the file is only a header.
    pub checkpoint: Option<PathBuf>,
    /// Bytes of all files, the projector included, as if every weight were in them.
    pub size_bytes: u64,
    /// 64 hex digits: sha256 of the weights where they are one file.
    pub digest: String,
    /// When the last of its files arrived.
    pub modified_at: SystemTime,
    /// Whether hubllama downloaded or made the weights, so that deleting the model removes them.
    pub owned: bool,
    /// LoRA adapters on top, in the order of the name.
    pub adapters: Vec<LocalAdapter>,
}

/// What the Hub has instead of the files in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// 40 hex digits.
    pub commit: String,
    /// Bytes of the files that are new.
    pub bytes: u64,
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

impl LocalModel {
    /// What was downloaded for it: its own files, or those that it was made from, and its adapters'.
    pub(crate) fn downloads(&self) -> impl Iterator<Item = &PathBuf> {
        let adapters = self.adapters.iter().flat_map(|adapter| &adapter.files);
        self.base_downloads().chain(adapters)
    }

    /// The same without its adapters'.
    fn base_downloads(&self) -> impl Iterator<Item = &PathBuf> {
        let own = self.files.iter().chain(&self.mmproj);
        let own = own.filter(|_| self.sources.is_empty());
        self.sources.iter().chain(own)
    }
}

impl Library {
    /// A handle whose ledger lies in `state_dir`. Reads that one file.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::build(state_dir, None)
    }

    /// The same, which also serves checkpoints: what it pulls of them is converted.
    #[must_use]
    pub fn with_converter(state_dir: &Path, converter: Arc<dyn Converter>) -> Self {
        Self::build(state_dir, Some(converter))
    }

    fn build(state_dir: &Path, converter: Option<Arc<dyn Converter>>) -> Self {
        Self(Arc::new(Shared {
            pool: client::ConnectionPool::default(),
            downloads: download::BlobDownloads::default(),
            ledger: Arc::new(Ledger::load(state_dir)),
            conversions: Conversions::new(state_dir, converter),
            prepared: adapter::Prepared::new(state_dir),
            scans: Mutex::default(),
        }))
    }

    /// Finds a model in the cache; asks nobody.
    ///
    /// # Errors
    /// If it is not complete in the cache, or was deleted while its files are another program's.
    pub async fn locate(&self, config: &HubConfig, name: &HfName) -> Result<LocalModel, HubError> {
        let model = self.find(config, name).await?;
        if self.0.ledger.is_unlisted(&model.key()) {
            return Err(HubError::NotCached(name.to_string()));
        }
        Ok(model)
    }

    /// Whether a name stands for a model of the cache, however it is spelled. A name without a selector means every model of
    /// its repository, one without a revision every commit.
    pub async fn means(&self, config: &HubConfig, name: &HfName, model: &LocalModel) -> bool {
        if !name.org.eq_ignore_ascii_case(&model.org) || !name.repo.eq_ignore_ascii_case(&model.repo) {
            return false;
        }
        // What the selector finds where the model is; only a look at its folder tells.
        let name = HfName {
            selector: name
                .selector
                .clone()
                .or_else(|| Selector::parse(&model.label).ok().flatten()),
            revision: name.revision.clone().or_else(|| Some(model.commit.clone())),
            ..name.clone()
        };
        self.find(config, &name)
            .await
            .is_ok_and(|found| found.files == model.files && found.adapters == model.adapters)
    }

    /// Every complete model of the cache that was not unlisted, sorted by name; then those with adapters that were pulled.
    pub async fn list(&self, config: &HubConfig) -> Vec<LocalModel> {
        let (library, roots) = (self.clone(), roots(config));
        let listed = blocking(move || {
            let mut models = library.scan(&roots);
            let key = |model: &CachedModel| key(&model.org, &model.repo, &model.label);
            for made in library.0.conversions.all(&roots) {
                if !models.iter().any(|model| key(model) == key(&made)) {
                    models.push(made);
                }
            }
            models.sort_by_key(key);
            let listed = models
                .into_iter()
                .filter(|model| !library.0.ledger.is_unlisted(&key(model)));
            let mut listed: Vec<LocalModel> = listed.map(|model| library.local(model, None)).collect();
            listed.extend(library.adapted(&roots));
            Ok(listed)
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
        self.remove(config, name, false).await
    }

    /// Removes a model's files, also those that another program put into the cache; what is in the other caches of
    /// `extra_caches` stays, and is not listed any more.
    ///
    /// # Errors
    /// As [`Library::delete`].
    pub async fn delete_files(&self, config: &HubConfig, name: &HfName) -> Result<Deleted, HubError> {
        self.remove(config, name, true).await
    }

    /// Whether the Hub has other files for a cached model by now; downloads nothing.
    ///
    /// # Errors
    /// If the model is not in the cache, or the Hub cannot be asked.
    pub async fn update(&self, config: &HubConfig, name: &HfName) -> Result<Option<Update>, HubError> {
        let model = self.locate(config, name).await?;
        if !model.adapters.is_empty() {
            return self.update_adapted(config, name, &model).await;
        }
        if name.revision.as_deref().is_some_and(cache::is_commit) {
            return Ok(None);
        }
        if config.offline {
            return Err(HubError::SwitchedOff);
        }
        // The selector is made explicit, so that a better one that came since is not taken for an update of this one.
        let name = HfName {
            selector: Selector::parse(&model.label).ok().flatten(),
            ..name.clone()
        };
        pull::update(self, config, &name, &model).await
    }

    async fn remove(&self, config: &HubConfig, name: &HfName, all: bool) -> Result<Deleted, HubError> {
        let model = match self.locate(config, name).await {
            // What is unlisted can still be removed.
            Err(HubError::NotCached(_)) if all => self.find(config, name).await?,
            other => other?,
        };
        let (library, config, name) = (self.clone(), config.clone(), name.clone());
        blocking(move || match model.adapters.is_empty() {
            false => library.remove_adapted(&config, &model, all),
            true if !all && library.is_base(&roots(&config), &model.key()) => {
                library.0.ledger.set_unlisted(&model.key(), true)?;
                Ok(Deleted::Unlisted)
            }
            true => library.remove_base(&config, &name, all),
        })
        .await
    }

    /// Removes a model without adapters.
    fn remove_base(&self, config: &HubConfig, name: &HfName, all: bool) -> Result<Deleted, HubError> {
        let roots = roots(config);
        let default = checkpoint::default_type(config.safetensors_type);
        let model = self.find_now(&roots, name, default)?;
        let key = model.key();
        // The selector is made explicit, so that the same model is meant at every commit.
        let selector = Selector::parse(&model.label).ok().flatten();
        let name = HfName {
            org: model.org,
            repo: model.repo,
            selector,
            ..name.clone()
        };
        let ledger = &self.0.ledger;
        if !model.sources.is_empty() {
            let made = self.0.conversions.locate(&roots, &name, TargetType::Stored)?;
            ledger.set_unlisted(&key, false)?;
            let revision = name.revision.as_deref();
            let conversions = &self.0.conversions;
            return conversions.delete(&config.cache_dir, ledger, &made, revision, all);
        }
        let elsewhere = cache::locate_in(&config.extra_caches, &name).is_ok();
        match remove::delete(&config.cache_dir, ledger, &name, &key, all) {
            Err(HubError::NotCached(_)) if elsewhere => {}
            deleted if !elsewhere => return deleted,
            deleted => {
                deleted?;
            }
        }
        // It is not ours to remove there, but must not come back into the lists.
        ledger.set_unlisted(&key, true)?;
        Ok(Deleted::Unlisted)
    }

    async fn update_adapted(
        &self,
        config: &HubConfig,
        name: &HfName,
        model: &LocalModel,
    ) -> Result<Option<Update>, HubError> {
        let base = HfName {
            adapters: Vec::new(),
            ..name.clone()
        };
        let of_base = Box::pin(self.update(config, &base)).await?;
        let of_adapters = adapter::update(self, &Arc::new(config.clone()), model).await?;
        Ok(match (of_base, of_adapters) {
            (Some(one), Some(other)) => Some(Update {
                bytes: one.bytes.saturating_add(other.bytes),
                ..one
            }),
            (one, other) => one.or(other),
        })
    }

    /// Asks the Hub whether it is there and what it thinks of the token.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn reachable(&self, config: &HubConfig) -> Result<Reachable, HubError> {
        client::HubClient::new(&self.0.pool, Arc::new(config.clone()))?
            .reachable()
            .await
    }

    /// Reads a small text file of a repository: from the cache where it is there, else from the Hub, which leaves it in no
    /// cache. `None` if the repository has no such file.
    ///
    /// # Errors
    /// If the Hub has to be asked and cannot be, or does not have the repository.
    pub async fn text(&self, config: &HubConfig, name: &HfName, path: &str) -> Result<Option<String>, HubError> {
        let (roots, wanted, file) = (roots(config), name.clone(), path.to_owned());
        let find = move || roots.iter().find_map(|root| cache::text(root, &wanted, &file));
        let cached = blocking(move || Ok(find())).await?;
        if cached.is_some() {
            return Ok(cached);
        }
        if config.offline {
            return Err(HubError::Offline(name.to_string()));
        }
        let about = client::RequestSubject {
            repo: &name.repo_id(),
            revision: name.revision.as_deref().unwrap_or("main"),
            path,
        };
        client::HubClient::new(&self.0.pool, Arc::new(config.clone()))?
            .text(&about)
            .await
    }

    /// Finds a model in the cache, also one that is unlisted.
    async fn find(&self, config: &HubConfig, name: &HfName) -> Result<LocalModel, HubError> {
        let (library, roots, name) = (self.clone(), roots(config), name.clone());
        let default = checkpoint::default_type(config.safetensors_type);
        blocking(move || library.find_now(&roots, &name, default)).await
    }

    fn find_now(&self, roots: &[PathBuf], name: &HfName, default: TargetType) -> Result<LocalModel, HubError> {
        let model = cache::locate_in(roots, name).or_else(|_| self.0.conversions.locate(roots, name, default))?;
        let model = self.local(model, name.revision.clone());
        if name.adapters.is_empty() {
            return Ok(model);
        }
        Ok(model.with_adapters(self.find_adapters(roots, name)?))
    }

    fn local(&self, model: CachedModel, revision: Option<String>) -> LocalModel {
        let owned = remove::is_owned(&self.0.ledger, &model);
        let CachedModel {
            root,
            org,
            repo,
            commit,
            label,
            files,
            mmproj,
            sources,
            checkpoint,
            size_bytes,
            digest,
            modified_at,
        } = model;
        let revision = revision.map(|revision| format!("@{revision}")).unwrap_or_default();
        let canonical = format!("hf:{org}/{repo}{revision}:{label}");
        LocalModel {
            canonical,
            root,
            org,
            repo,
            commit,
            label,
            files,
            mmproj,
            sources,
            checkpoint,
            size_bytes,
            digest,
            modified_at,
            owned,
            adapters: Vec::new(),
        }
    }

    /// Every complete model of the caches, each once, sorted.
    fn scan(&self, roots: &[PathBuf]) -> Vec<CachedModel> {
        let mut scans = lock(&self.0.scans);
        scans.retain(|root, _| roots.contains(root));
        let mut models: BTreeMap<String, CachedModel> = BTreeMap::new();
        for root in roots {
            if !scans.get(root).is_some_and(Scan::holds) {
                let at = SystemTime::now();
                let (models, watched) = cache::scan(root);
                scans.insert(root.clone(), Scan { watched, at, models });
            }
            for model in scans.get(root).into_iter().flat_map(|scan| &scan.models) {
                let key = key(&model.org, &model.repo, &model.label);
                if models.get(&key).is_none_or(|first| cache::supersedes(model, first)) {
                    models.insert(key, model.clone());
                }
            }
        }
        models.into_values().collect()
    }
}

/// Where models are looked for, in this order.
fn roots(config: &HubConfig) -> Vec<PathBuf> {
    config.extra_caches.iter().chain([&config.cache_dir]).cloned().collect()
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

    use super::*;
    use crate::hub::cache::{
        RepoFolder,
        tests::{NEW, OLD, name, put},
    };

    #[tokio::test]
    async fn lists_locates_and_unlists() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = HubConfig {
            cache_dir: root.path().to_owned(),
            ..HubConfig::default()
        };
        let library = Library::new(state.path());
        assert_eq!(library.list(&config).await, []);
        put(root.path(), "Org/Repo", OLD, "m-Q4_0.gguf", "weights");
        let model = library.locate(&config, &name("HF:org/REPO")).await.unwrap();
        assert_eq!(model.canonical, "hf:Org/Repo:Q4_0");
        assert!(!model.owned);
        assert_eq!(library.list(&config).await, [model]);

        assert_eq!(
            library.delete(&config, &name("hf:org/repo")).await,
            Ok(Deleted::Unlisted)
        );
        assert_eq!(library.list(&config).await, []);
        assert!(library.locate(&config, &name("hf:org/repo")).await.is_err());
        assert!(library.delete(&config, &name("hf:org/repo")).await.is_err());
        assert_eq!(
            Library::new(state.path()).list(&config).await,
            [],
            "it stays unlisted after a restart"
        );
    }

    #[tokio::test]
    async fn a_model_is_meant_by_every_spelling_of_its_name() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = HubConfig {
            cache_dir: root.path().to_owned(),
            ..HubConfig::default()
        };
        let library = Library::new(state.path());
        for path in ["m-Q4_0.gguf", "q8/m-Q8_0.gguf", "sub/m-Q4_0.gguf", "m-UD-Q2_K.gguf"] {
            put(root.path(), "Org/Repo", OLD, path, path);
        }
        RepoFolder::new(root.path(), "Org", "Repo")
            .write_reference("main", OLD)
            .unwrap();
        let meant = |spelling: &str| {
            let (library, config, spelling) = (library.clone(), config.clone(), name(spelling));
            async move {
                let mut meant = Vec::new();
                for model in library.list(&config).await {
                    if library.means(&config, &spelling, &model).await {
                        meant.push(model.label);
                    }
                }
                meant.join(" ")
            }
        };
        for (spelling, labels) in [
            ("HF:org/REPO:q4_0", "Q4_0"),
            ("hf.co/Org/Repo:q8_0", "Q8_0"),
            ("hf:org/repo/Q8", "Q8_0"),
            ("hf:org/repo/q8:q8_0", "Q8_0"),
            ("hf:org/repo:m-q4_0.gguf", "Q4_0"),
            ("hf:org/repo/sub:Q4_0", "sub/m-Q4_0.gguf"),
            ("hf:org/repo/sub/m-Q4_0.gguf", "sub/m-Q4_0.gguf"),
            ("hf:org/repo:Q2_K", "UD-Q2_K"),
            ("hf:org/repo@main:Q4_0", "Q4_0"),
            ("hf:org/repo", "Q4_0 Q8_0 sub/m-Q4_0.gguf UD-Q2_K"),
            ("hf:org/repo:latest", "Q4_0 Q8_0 sub/m-Q4_0.gguf UD-Q2_K"),
            ("hf:org/repo@v1:Q4_0", ""),
            ("hf:org/other:Q4_0", ""),
            ("hf:org/repo:F16", ""),
        ] {
            assert_eq!(meant(spelling).await, labels, "{spelling}");
        }
    }

    #[tokio::test]
    async fn other_caches_are_read_first_and_never_written() {
        let (own, extra, state) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        let config = HubConfig {
            cache_dir: own.path().to_owned(),
            extra_caches: vec![extra.path().to_owned()],
            ..HubConfig::default()
        };
        let library = Library::new(state.path());
        put(extra.path(), "o/r", OLD, "m-Q4_0.gguf", "theirs");
        put(own.path(), "o/r", OLD, "m-Q4_0.gguf", "theirs");
        put(own.path(), "o/r", OLD, "m-Q8_0.gguf", "ours");
        let root = |text: &'static str| {
            let (library, config) = (library.clone(), config.clone());
            async move { library.locate(&config, &name(text)).await.map(|model| model.root) }
        };
        assert_eq!(root("hf:o/r:Q4_0").await.as_deref(), Ok(extra.path()));
        assert_eq!(root("hf:o/r:Q8_0").await.as_deref(), Ok(own.path()));
        assert_eq!(library.list(&config).await.len(), 2, "each is listed once");
        // Another commit that came later is what was asked for last.
        std::thread::sleep(TICK);
        put(own.path(), "o/r", NEW, "m-Q4_0.gguf", "newer");
        assert_eq!(root("hf:o/r:Q4_0").await.as_deref(), Ok(own.path()));
        assert_eq!(library.list(&config).await[0].commit, NEW);

        assert_eq!(
            library.delete_files(&config, &name("hf:o/r:Q4_0")).await,
            Ok(Deleted::Unlisted)
        );
        assert!(cache::locate(own.path(), &name("hf:o/r:Q4_0")).is_err());
        assert!(cache::locate(extra.path(), &name("hf:o/r:Q4_0")).is_ok());
        assert!(root("hf:o/r:Q4_0").await.is_err());
        assert_eq!(
            library.delete_files(&config, &name("hf:o/r:Q8_0")).await,
            Ok(Deleted::Removed { bytes_freed: 4 })
        );
        assert_eq!(library.list(&config).await, []);
    }

    #[tokio::test]
    async fn a_scan_is_kept_until_something_changes() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = HubConfig {
            cache_dir: root.path().to_owned(),
            ..HubConfig::default()
        };
        let library = Library::new(state.path());
        put(root.path(), "o/r", OLD, "sub/m-Q4_0.gguf", "weights");
        let deadline = Instant::now() + Duration::from_secs(10);
        let holds = || library.0.scans.lock().unwrap().values().any(Scan::holds);
        while !holds() {
            assert!(Instant::now() < deadline, "the scan never settles");
            assert_eq!(library.list(&config).await.len(), 1);
            tokio::task::yield_now().await;
        }
        put(root.path(), "o/r", OLD, "sub/m-Q8_0.gguf", "more");
        assert!(!holds());
        assert_eq!(library.list(&config).await.len(), 2);
    }
}
