//! The origin of a model's files, for `/api/show` and `hubllama show`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Library, LocalModel, blobs, blocking, ledger_key};
use crate::{
    hub::{
        cache::{self, RepoFolder},
        ledger::Ledger,
    },
    stdx::hex,
};

/// Model provenance: the repository, commit and files that a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelProvenance {
    /// `ORG/REPO`.
    pub repository: String,
    /// 40 hex digits.
    pub commit: String,
    /// Base URL of the Hub; `None` if hubllama did not pull the model.
    pub endpoint: Option<String>,
    /// License from the model card, if hubllama pulled the model.
    pub license: Option<String>,
    /// Weights, then the projector.
    pub files: Vec<FileProvenance>,
    /// True if hubllama downloaded the weights; for a conversion, the weights that it was made from.
    pub owned: bool,
    pub adapters: Vec<AdapterProvenance>,
}

/// Adapter provenance: the repository, commit and files that a LoRA adapter comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdapterProvenance {
    /// `ORG/ADAPTER`.
    pub repository: String,
    /// 40 hex digits.
    pub commit: String,
    pub files: Vec<FileProvenance>,
}

/// File provenance: one file of a repository and the hash of its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileProvenance {
    /// Path in the repository.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// 64 hex digits; only large files have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Hash that git gives the content, 40 hex digits; only small files have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git_sha1: Option<String>,
}

impl Library {
    /// Returns the provenance of a model. What cannot be read is left out.
    pub async fn provenance(&self, model: &LocalModel) -> ModelProvenance {
        let (library, copy) = (self.clone(), model.clone());
        let read = blocking(move || Ok(ModelProvenance::read(&library.0.ledger, &copy)));
        read.await.unwrap_or_else(|_| ModelProvenance::of_name(model))
    }
}

impl ModelProvenance {
    /// Describes a model without a look at the disk.
    fn of_name(model: &LocalModel) -> Self {
        Self {
            repository: format!("{}/{}", model.base.org, model.base.repo),
            commit: model.base.commit.clone(),
            endpoint: None,
            license: None,
            files: Vec::new(),
            owned: model.owned,
            adapters: Vec::new(),
        }
    }

    fn read(ledger: &Ledger, model: &LocalModel) -> Self {
        let base = &model.base;
        let folder = RepoFolder::new(&base.root, &base.org, &base.repo);
        let snapshot = folder.path.join("snapshots").join(&base.commit);
        // A conversion is always ours, but the question is who downloaded its checkpoint.
        let owned = model.owned && base.sources.iter().all(|file| blobs::is_ours(ledger, &folder, file));
        let adapters = model.adapters.iter().map(|adapter| AdapterProvenance {
            repository: format!("{}/{}", adapter.name.org, adapter.name.repo),
            commit: adapter.commit.clone(),
            files: files_in(&adapter.snapshot(), &adapter.files),
        });
        let files: Vec<PathBuf> = base.downloads().cloned().collect();
        let record = ledger
            .record(&ledger_key(base))
            // The license may have changed between commits.
            .filter(|record| record.commit == base.commit);
        let (endpoint, license) = record.map_or((None, None), |record| (Some(record.endpoint), record.license));
        Self {
            // An imported file has a record without an endpoint.
            endpoint: endpoint.filter(|endpoint| !endpoint.is_empty()),
            license,
            files: files_in(&snapshot, &files),
            adapters: adapters.collect(),
            owned,
            ..Self::of_name(model)
        }
    }

    /// Returns the `hubllama.…` keys of `model_info` in the answer of `/api/show`.
    #[must_use]
    pub fn keys(&self, template_source: &str) -> Map<String, Value> {
        let mut keys = Map::new();
        let mut add = |name: &str, value: Value| {
            if !value.is_null() {
                keys.insert(format!("hubllama.{name}"), value);
            }
        };
        add("repository", self.repository.as_str().into());
        add("commit", self.commit.as_str().into());
        add("endpoint", json!(self.endpoint));
        add("license", json!(self.license));
        add("files", json!(self.files));
        if !self.adapters.is_empty() {
            add("adapters", json!(self.adapters));
        }
        add("template_source", template_source.into());
        add("downloaded", self.owned.into());
        keys
    }
}

fn files_in(snapshot: &Path, files: &[PathBuf]) -> Vec<FileProvenance> {
    let provenance = |file: &PathBuf| {
        let etag = cache::blob_name(file).unwrap_or_default();
        FileProvenance {
            path: file.strip_prefix(snapshot).unwrap_or(file).display().to_string(),
            size: std::fs::metadata(file).map_or(0, |meta| meta.len()),
            git_sha1: Some(etag.clone()).filter(|etag| hex::is_hex(etag, 40)),
            sha256: Some(etag).filter(|etag| hex::is_hex(etag, 64)),
        }
    };
    files.iter().map(provenance).collect()
}
