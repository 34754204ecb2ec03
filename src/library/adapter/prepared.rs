//! GGUF files of PEFT adapters, converted once for each kind of base model:
//! `STATE/adapters/models--ORG--ADAPTER/COMMIT/VERSION-FINGERPRINT.gguf`.
//!
//! FINGERPRINT stands for the base's configuration ([`AdapterBase::fingerprint`]), which decides how the conversion
//! orders the rows of an adapter. VERSION is [`convert::VERSION`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use dashmap::DashMap;
use tokio_util::sync::CancellationToken;

use super::LocalAdapter;
use crate::{
    convert::{self, AdapterBase, ConvertError},
    gguf::GgufHeader,
    hub::{HubError, cache::RepoFolder, name::AdapterName},
    library::{Library, LocalModel, blobs, blocking, error::LibraryError},
};

/// Models whose files are remembered.
const MAX_REMEMBERED: usize = 256;

/// Prepared adapters: the converted files on disk, and which of them are known to fit their base.
#[derive(Debug)]
pub(in crate::library) struct PreparedAdapters {
    root: PathBuf,
    /// The files of a model by its digest, which changes with any file of base or adapters.
    checked: DashMap<String, Vec<PathBuf>>,
}

impl Library {
    /// Returns the GGUF files of a model's adapters, in the order of the name. Converts those that are missing, which
    /// takes about as long as a copy of the adapter.
    ///
    /// # Errors
    /// If an adapter cannot be applied to this base, or the file system refuses.
    pub async fn adapter_files(&self, model: &LocalModel) -> Result<Vec<PathBuf>, LibraryError> {
        if model.adapters.is_empty() {
            return Ok(Vec::new());
        }
        let (library, model) = (self.clone(), model.clone());
        blocking(move || library.0.prepared.files_of(&model)).await
    }
}

impl PreparedAdapters {
    pub(in crate::library) fn new(state_dir: &Path) -> Self {
        Self {
            root: state_dir.join("adapters"),
            checked: DashMap::new(),
        }
    }

    /// Returns the folder of the files that were made from an adapter at one commit.
    fn folder(&self, name: &AdapterName, commit: &str) -> PathBuf {
        RepoFolder::new(&self.root, &name.org, &name.repo).path.join(commit)
    }

    /// Returns the files of a model's adapters, each checked against the base. Converts those that are missing.
    fn files_of(&self, model: &LocalModel) -> Result<Vec<PathBuf>, LibraryError> {
        // Cloned, so that the entry is not locked while the files are looked at.
        let known = self.checked.get(&model.digest).map(|paths| paths.clone());
        if let Some(paths) = known.filter(|paths| paths.iter().all(|path| path.is_file())) {
            return Ok(paths);
        }
        let open = |path: &PathBuf| {
            GgufHeader::open(path).map_err(|error| LibraryError::Adapter {
                repo: model
                    .adapters
                    .first()
                    .map_or_else(String::new, LocalAdapter::repository),
                error: ConvertError::Adapter(format!(
                    "its base {} is not a usable GGUF file: {error}",
                    path.display()
                ))
                .into(),
            })
        };
        let headers: Result<Vec<GgufHeader>, LibraryError> = model.base.files.iter().map(open).collect();
        let base = AdapterBase::of(&headers?);
        let file = |adapter: &LocalAdapter| self.file(adapter, &base);
        let paths: Result<Vec<PathBuf>, LibraryError> = model.adapters.iter().map(file).collect();
        let paths = paths?;
        // A bound on memory, not a cache policy: checking a model again costs a read of two headers.
        if self.checked.len() >= MAX_REMEMBERED {
            self.checked.clear();
        }
        self.checked.insert(model.digest.clone(), paths.clone());
        Ok(paths)
    }

    /// Returns the GGUF file of an adapter for a base, checked against it.
    fn file(&self, adapter: &LocalAdapter, base: &AdapterBase) -> Result<PathBuf, LibraryError> {
        let repo = adapter.repository();
        let refused = |error| LibraryError::adapter(&repo, error);
        let path = match adapter.gguf() {
            Some(file) => file.to_owned(),
            None => self.converted(adapter, base)?,
        };
        let header = GgufHeader::open(&path).map_err(|error| refused(error.into()))?;
        base.check(&header).map_err(refused)?;
        Ok(path)
    }

    /// Returns the file that a PEFT adapter becomes for a base. Converts it if it is missing.
    fn converted(&self, adapter: &LocalAdapter, base: &AdapterBase) -> Result<PathBuf, LibraryError> {
        let repo = adapter.repository();
        let folder = self.folder(&adapter.name, &adapter.commit);
        let path = folder.join(format!("{}-{}.gguf", convert::VERSION, base.fingerprint()));
        if path.is_file() {
            return Ok(path);
        }
        fs::create_dir_all(&folder).map_err(|error| HubError::io("create", &folder, &error))?;
        tracing::info!(adapter = repo, path = %path.display(), "converting an adapter");
        let written = convert::plan_adapter(&adapter.snapshot(), &adapter.name.repo, base)
            .and_then(|planned| planned.write(&path, &|_, _| {}, &CancellationToken::new()));
        if written.is_err() {
            // Fails if files for other bases are in it, as it should.
            let _ = fs::remove_dir(&folder);
            blobs::remove_empty_folders(&folder, "adapters");
        }
        written.map_err(|error| LibraryError::adapter(&repo, error))?;
        Ok(path)
    }

    /// Removes the files that were made from an adapter at one commit; returns their bytes.
    pub(in crate::library) fn remove(&self, name: &AdapterName, commit: &str) -> u64 {
        let folder = self.folder(name, commit);
        let files = fs::read_dir(&folder).into_iter().flatten().flatten();
        let bytes = files.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
        if fs::remove_dir_all(&folder).is_ok() {
            blobs::remove_empty_folders(&folder, "adapters");
        }
        self.checked.clear();
        bytes
    }

    /// Returns the files that have lost their use, because their adapter is gone or another version made them, each
    /// with a description for the user.
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
