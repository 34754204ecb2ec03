//! Where a model's bytes are from, for `/api/show` and for people.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Library, LocalModel, key, remove};
use crate::{
    hub::{cache, tasks::blocking},
    stdx::hex,
};

/// Where a model is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// `ORG/REPO`.
    pub repository: String,
    /// 40 hex digits.
    pub commit: String,
    /// Base URL of the Hub that it was pulled from; `None` where hubllama did not pull it.
    pub endpoint: Option<String>,
    /// As the repository's card has it, where hubllama pulled it.
    pub license: Option<String>,
    /// Weights, then the projector.
    pub files: Vec<FileProvenance>,
    /// Whether hubllama downloaded the weights; of a conversion, those that it was made from.
    pub owned: bool,
    /// LoRA adapters on top.
    pub adapters: Vec<AdapterProvenance>,
}

/// Where an adapter is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdapterProvenance {
    /// `ORG/ADAPTER`.
    pub repository: String,
    /// 40 hex digits.
    pub commit: String,
    /// Its files.
    pub files: Vec<FileProvenance>,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileProvenance {
    /// Path in the repository.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// sha256 of the content, 64 hex digits; large files have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// git's hash of the content, 40 hex digits; small files have only this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git_sha1: Option<String>,
}

impl Library {
    /// Where a cached model is from.
    pub async fn provenance(&self, model: &LocalModel) -> Provenance {
        let (library, model) = (self.clone(), model.clone());
        let fallback = Provenance {
            repository: format!("{}/{}", model.org, model.repo),
            commit: model.commit.clone(),
            endpoint: None,
            license: None,
            files: Vec::new(),
            owned: model.owned,
            adapters: Vec::new(),
        };
        let known = fallback.clone();
        let found = blocking(move || {
            let folder = cache::RepoFolder::new(&model.root, &model.org, &model.repo);
            let snapshot = folder.path.join("snapshots").join(&model.commit);
            let is_ours = |file: &PathBuf| remove::is_ours(&library.0.ledger, &folder, file);
            // What was made of others' files is ours, but they are not.
            let owned = model.owned && model.sources.iter().all(is_ours);
            let adapters = model.adapters.iter().map(|adapter| AdapterProvenance {
                repository: format!("{}/{}", adapter.name.org, adapter.name.repo),
                commit: adapter.commit.clone(),
                files: files_in(&adapter.snapshot(), &adapter.files),
            });
            let base: Vec<PathBuf> = model.base_downloads().cloned().collect();
            let note = library
                .0
                .ledger
                .note(&key(&model.org, &model.repo, &model.label))
                // Another commit may have another licence.
                .filter(|note| note.commit == model.commit);
            let (endpoint, license) = note.map_or((None, None), |note| (Some(note.endpoint), note.license));
            Ok(Provenance {
                endpoint: endpoint.filter(|endpoint| !endpoint.is_empty()),
                license,
                files: files_in(&snapshot, &base),
                adapters: adapters.collect(),
                owned,
                ..known
            })
        });
        found.await.unwrap_or(fallback)
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

impl Provenance {
    /// The keys that `/api/show` has in `model_info`.
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
