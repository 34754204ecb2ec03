//! A model that is complete on this machine, with its adapters.

use std::{path::PathBuf, time::SystemTime};

use sha2::{Digest as _, Sha256};

use super::{LocalAdapter, ledger_key};
use crate::{
    hub::{cache::CachedModel, name::AdapterName},
    stdx::hex,
};

/// Local model: a base model that is complete in a cache, and the LoRA adapters that a name puts on top of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalModel {
    /// `hf:ORG/REPO[@REVISION]:SELECTOR[+ORG/ADAPTER[@REVISION]]…`, spelled as in the cache; parses as an
    /// [`HfName`](crate::hub::HfName).
    pub canonical: String,
    /// The model without its adapters.
    pub base: CachedModel,
    /// LoRA adapters in the order of the name.
    pub adapters: Vec<LocalAdapter>,
    /// Bytes of all files, projector and adapters included; a header counts as if it had its weights.
    pub size_bytes: u64,
    /// 64 hex digits: the base's digest, or sha256 of the digests of base and adapters.
    pub digest: String,
    /// Arrival time of the newest file.
    pub modified_at: SystemTime,
    /// True if hubllama downloaded or converted the weights, so that deleting the model removes them; for a model with
    /// adapters, if it downloaded these.
    pub owned: bool,
}

impl LocalModel {
    /// Describes a cached model; `revision` is the one in the name that it was found by.
    pub(super) fn new(base: CachedModel, revision: Option<&str>, owned: bool) -> Self {
        let revision = revision.map(|revision| format!("@{revision}")).unwrap_or_default();
        Self {
            canonical: format!("hf:{}/{}{revision}:{}", base.org, base.repo, base.label),
            size_bytes: base.size_bytes,
            digest: base.digest.clone(),
            modified_at: base.modified_at,
            owned,
            adapters: Vec::new(),
            base,
        }
    }

    /// Puts adapters on top, which makes it another model with a name and digest of its own.
    pub(super) fn with_adapters(mut self, adapters: Vec<LocalAdapter>) -> Self {
        let mut hasher = Sha256::new_with_prefix(&self.digest);
        for adapter in &adapters {
            self.canonical.push('+');
            self.canonical.push_str(&adapter.name.to_string());
            self.size_bytes = self.size_bytes.saturating_add(adapter.size_bytes);
            self.modified_at = self.modified_at.max(adapter.modified_at);
            hasher.update(format!("+{}", adapter.digest));
        }
        self.owned = adapters.iter().all(|adapter| adapter.owned);
        self.digest = hex::encode(hasher.finalize());
        self.adapters = adapters;
        self
    }

    /// Returns the downloaded files: those of the base model, or of the checkpoint that it was converted from, and
    /// those of the adapters.
    pub(super) fn downloads(&self) -> impl Iterator<Item = &PathBuf> {
        let adapters = self.adapters.iter().flat_map(|adapter| &adapter.files);
        self.base.downloads().chain(adapters)
    }

    /// Returns the key in the ledger. The case of branches matters and is kept; the rest is lower case.
    pub(super) fn ledger_key(&self) -> String {
        let mut key = ledger_key(&self.base);
        for adapter in &self.adapters {
            let AdapterName { org, repo, revision } = &adapter.name;
            let lower = AdapterName {
                org: org.to_ascii_lowercase(),
                repo: repo.to_ascii_lowercase(),
                revision: revision.clone(),
            };
            key.push_str(&format!("+{lower}"));
        }
        key
    }
}
