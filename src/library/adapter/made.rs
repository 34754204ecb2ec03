//! GGUF files of adapters, made once for each kind of base:
//! `STATE/adapters/models--ORG--ADAPTER/COMMIT/VERSION-FINGERPRINT.gguf`.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use tokio_util::sync::CancellationToken;

use super::LocalAdapter;
use crate::{
    convert::{self, AdapterBase},
    gguf::{self, Header},
    hub::{HubError, cache::RepoFolder, tasks::blocking},
    library::{Library, LocalModel, error, remove},
    stdx::sync::lock,
};

/// Models whose files are remembered.
const KEPT: usize = 256;

/// Where the made files are, and which were looked at already.
#[derive(Debug)]
pub(in crate::library) struct Prepared {
    root: PathBuf,
    /// By the model's digest, which changes with any of its files.
    kept: Mutex<HashMap<String, Vec<PathBuf>>>,
}

impl Prepared {
    pub(in crate::library) fn new(state_dir: &Path) -> Self {
        Self {
            root: state_dir.join("adapters"),
            kept: Mutex::default(),
        }
    }

    /// The folder of the files that one commit of an adapter became.
    pub(super) fn folder(&self, adapter: &LocalAdapter) -> PathBuf {
        let repository = RepoFolder::new(&self.root, &adapter.name.org, &adapter.name.repo);
        repository.path.join(&adapter.commit)
    }

    /// Removes what one commit of an adapter became; returns how many bytes that were.
    pub(super) fn remove(&self, adapter: &LocalAdapter) -> u64 {
        let folder = self.folder(adapter);
        let files = fs::read_dir(&folder).into_iter().flatten().flatten();
        let bytes = files.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
        if fs::remove_dir_all(&folder).is_ok() {
            remove::remove_empty_folders(&folder, "adapters");
        }
        lock(&self.kept).clear();
        bytes
    }

    /// Files that are of no use any more: their adapter is gone, or another version made them. For people, and their paths.
    pub(in crate::library) fn stale(&self, roots: &[PathBuf]) -> Vec<(String, PathBuf)> {
        let children = |folder: &Path| {
            fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
        };
        let mut stale = Vec::new();
        for own in RepoFolder::all(&self.root) {
            for commit in children(&own.path) {
                let is_here = |root: &PathBuf| {
                    let folder = RepoFolder::find(root, &own.org, &own.repo);
                    let name = commit.file_name().unwrap_or_default();
                    folder.is_some_and(|folder| folder.path.join("snapshots").join(name).is_dir())
                };
                let is_used = roots.iter().any(is_here);
                let is_current = |path: &Path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    name.starts_with(&format!("{}-", convert::VERSION))
                };
                let unused = children(&commit).filter(|path| !is_used || !is_current(path));
                stale.extend(unused.map(|path| (format!("{}/{} (adapter)", own.org, own.repo), path)));
            }
        }
        stale
    }
}

impl Library {
    /// The GGUF files of a model's adapters, in their order. What is not there yet is made: that takes about as long as copying
    /// the adapter.
    ///
    /// # Errors
    /// If an adapter cannot be applied to this base, or the file system refuses.
    pub async fn adapter_files(&self, model: &LocalModel) -> Result<Vec<PathBuf>, HubError> {
        if model.adapters.is_empty() {
            return Ok(Vec::new());
        }
        let (library, model) = (self.clone(), model.clone());
        blocking(move || library.prepare(&model)).await
    }

    fn prepare(&self, model: &LocalModel) -> Result<Vec<PathBuf>, HubError> {
        let prepared = &self.0.prepared;
        let lock_kept = || lock(&prepared.kept);
        let kept = lock_kept().get(&model.digest).cloned();
        if let Some(paths) = kept.filter(|paths| paths.iter().all(|path| path.is_file())) {
            return Ok(paths);
        }
        let open = |path: &PathBuf| {
            Header::open(path).map_err(|error| HubError::Adapter {
                repo: model
                    .adapters
                    .first()
                    .map_or_else(String::new, LocalAdapter::repository),
                reason: format!("its base {} is no usable GGUF: {error}", path.display()),
            })
        };
        let headers: Result<Vec<Header>, HubError> = model.files.iter().map(open).collect();
        let base = AdapterBase::of(&headers?);
        let file = |adapter: &LocalAdapter| prepared.file(adapter, &base);
        let paths: Result<Vec<PathBuf>, HubError> = model.adapters.iter().map(file).collect();
        let paths = paths?;
        let mut kept = lock_kept();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(model.digest.clone(), paths.clone());
        Ok(paths)
    }
}

impl LocalAdapter {
    fn repository(&self) -> String {
        format!("{}/{}", self.name.org, self.name.repo)
    }
}

impl Prepared {
    /// The file of an adapter for a base, checked against it.
    fn file(&self, adapter: &LocalAdapter, base: &AdapterBase) -> Result<PathBuf, HubError> {
        let repo = adapter.repository();
        let refused = |error| error::adapter(&repo, &error);
        let path = match adapter.gguf() {
            Some(file) => file.to_owned(),
            None => {
                let name = format!("{}-{}.gguf", convert::VERSION, base.fingerprint());
                let path = self.folder(adapter).join(name);
                if !path.is_file() {
                    let folder = self.folder(adapter);
                    fs::create_dir_all(&folder).map_err(|error| HubError::io("create", &folder, &error))?;
                    tracing::info!(adapter = repo, path = %path.display(), "converting an adapter");
                    let made = convert::plan_adapter(&adapter.snapshot(), &adapter.name.repo, base)
                        .and_then(|planned| planned.write(&path, &|_, _| {}, &CancellationToken::new()));
                    if made.is_err() {
                        // Only where it is empty.
                        let _ = fs::remove_dir(&folder);
                        remove::remove_empty_folders(&folder, "adapters");
                    }
                    made.map_err(refused)?;
                }
                path
            }
        };
        let header = Header::open(&path).map_err(|error: gguf::Error| refused(error.into()))?;
        base.check(&header).map_err(refused)?;
        Ok(path)
    }
}
