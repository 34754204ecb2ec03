//! LoRA adapters on the Hub: repositories with two small factors for each matrix of some base, as PEFT stores them or as a
//! GGUF file. A name such as `hf:ORG/REPO+ORG/ADAPTER` is a model of its own: the base's files and the adapter's.
//!
//! It is listed once it was pulled, since nothing in the cache says which adapter somebody wants on which base; it can be
//! used as soon as both are there. Adapters are converted for each kind of base into `STATE/adapters`.

mod made;
mod pull;
mod remove;

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest as _, Sha256};

use super::{Library, LocalModel, remove::is_ours};
use crate::{
    convert::TargetType,
    hub::{
        HfName, HubError, Selector,
        cache::{self, RepoFolder, Snapshot},
        ledger::Ledger,
        name::AdapterName,
        resolve::{self, RepoFile},
    },
    stdx::hex,
};

pub(super) use made::Prepared;
pub(super) use pull::{bring, update, wanted};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// An adapter in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAdapter {
    /// Spelled as in the cache.
    pub name: AdapterName,
    /// The cache that it is in.
    pub root: PathBuf,
    /// 40 hex digits.
    pub commit: String,
    /// Snapshot paths: one GGUF file, or the settings and the weights of PEFT.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// 64 hex digits.
    pub digest: String,
    /// When the last of its files arrived.
    pub modified_at: SystemTime,
    /// Whether hubllama downloaded all of it.
    pub owned: bool,
}

impl LocalAdapter {
    /// The file, if it needs no conversion.
    fn gguf(&self) -> Option<&Path> {
        let [file] = self.files.as_slice() else {
            return None;
        };
        Some(file)
    }

    fn folder(&self) -> RepoFolder {
        RepoFolder::new(&self.root, &self.name.org, &self.name.repo)
    }

    /// The snapshot that it is in.
    pub(super) fn snapshot(&self) -> PathBuf {
        self.folder().path.join("snapshots").join(&self.commit)
    }
}

impl LocalModel {
    /// The model with adapters on top, which is another one.
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

    /// What it would be called in the ledger without its adapters.
    fn base_key(&self) -> String {
        super::key(&self.org, &self.repo, &self.label)
    }

    /// What it is called in the ledger. Branches keep their case.
    pub(super) fn key(&self) -> String {
        let mut key = self.base_key();
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

/// The files of an adapter in a listing: PEFT's, or else a GGUF file. Pickles are never opened.
///
/// # Errors
/// The reason why there is none.
fn resolve(listing: &[RepoFile]) -> Result<Vec<RepoFile>, &'static str> {
    let find = |path: &str| listing.iter().find(|file| file.path == path).cloned();
    match (find(CONFIG), find(WEIGHTS), find(PICKLE)) {
        (Some(config), Some(weights), _) => Ok(vec![config, weights]),
        (config, _, pickle) => match gguf(listing) {
            Some(file) => Ok(vec![file]),
            None if pickle.is_some() => Err(
                "it has its weights only as a pickle (adapter_model.bin), which can run code and is never opened; ask its \
                 author for adapter_model.safetensors",
            ),
            None if config.is_some() => Err("it has no adapter_model.safetensors; ask its author for it"),
            None => Err(
                "it has no adapter_config.json in its root, and no GGUF file; name the repository of a LoRA adapter",
            ),
        },
    }
}

/// The GGUF file of a repository that is made for adapters: the most precise one.
fn gguf(listing: &[RepoFile]) -> Option<RepoFile> {
    const ORDER: [&str; 4] = ["F16", "BF16", "F32", "Q8_0"];
    let wanted = ORDER.iter().map(|label| Selector::Label((*label).to_owned()));
    let mut choices = wanted.map(Some).chain([None]);
    let found = choices.find_map(|selector| resolve::resolve(listing, selector.as_ref()).ok())?;
    match found.files.as_slice() {
        [file] => Some(file.clone()),
        _ => None,
    }
}

fn is_part(path: &str) -> bool {
    matches!(path, CONFIG | WEIGHTS) || path.to_ascii_lowercase().ends_with(".gguf")
}

/// Every snapshot of a repository that holds an adapter and answers to a revision, most wanted first.
fn snapshots(root: &Path, name: &AdapterName) -> Vec<(RepoFolder, Snapshot, Vec<RepoFile>)> {
    let Some(folder) = RepoFolder::find(root, &name.org, &name.repo) else {
        return Vec::new();
    };
    let snapshots = folder.snapshots(name.revision.as_deref()).into_iter();
    let found = snapshots.filter_map(|snapshot| {
        let files = resolve(&snapshot.files_where(&mut Vec::new(), is_part)).ok()?;
        Some((folder.clone(), snapshot, files))
    });
    found.collect()
}

/// Finds an adapter in the caches; asks nobody.
fn find(roots: &[PathBuf], ledger: &Ledger, name: &AdapterName) -> Option<LocalAdapter> {
    let (folder, snapshot, files) = roots.iter().find_map(|root| snapshots(root, name).into_iter().next())?;
    let paths: Vec<PathBuf> = files.iter().map(|file| snapshot.path.join(&file.path)).collect();
    let modified = paths.iter().filter_map(|path| cache::modified(path)).max();
    Some(LocalAdapter {
        name: AdapterName {
            org: folder.org.clone(),
            repo: folder.repo.clone(),
            revision: name.revision.clone(),
        },
        root: folder.path.parent().map(Path::to_owned).unwrap_or_default(),
        commit: snapshot.commit,
        size_bytes: files.iter().map(|file| file.size).sum(),
        digest: cache::digest(&files),
        modified_at: modified.unwrap_or(SystemTime::UNIX_EPOCH),
        owned: paths.iter().all(|path| is_ours(ledger, &folder, path)),
        files: paths,
    })
}

impl Library {
    /// The adapters of a name, in its order.
    pub(super) fn find_adapters(&self, roots: &[PathBuf], name: &HfName) -> Result<Vec<LocalAdapter>, HubError> {
        let find = |adapter: &AdapterName| {
            find(roots, &self.0.ledger, adapter).ok_or_else(|| HubError::NotCached(name.to_string()))
        };
        name.adapters.iter().map(find).collect()
    }

    /// Every model with adapters that was pulled and is still complete.
    pub(super) fn adapted(&self, roots: &[PathBuf]) -> Vec<LocalModel> {
        let keys = self.0.ledger.keys().into_iter();
        let names = keys.filter_map(|key| HfName::parse(&format!("hf:{key}")).ok());
        let names = names.filter(|name| !name.adapters.is_empty());
        // These names are whole: none is without a type.
        let models = names.filter_map(|name| self.find_now(roots, &name, TargetType::default()).ok());
        models
            .filter(|model| !self.0.ledger.is_unlisted(&model.key()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(paths: &[&str]) -> Result<Vec<String>, &'static str> {
        let file = |path: &&str| RepoFile {
            path: (*path).to_owned(),
            size: 1,
            oid: None,
            lfs_sha256: None,
        };
        let listing: Vec<RepoFile> = paths.iter().map(file).collect();
        resolve(&listing).map(|files| files.into_iter().map(|file| file.path).collect())
    }

    #[test]
    fn what_is_fetched() {
        let peft = [WEIGHTS, "README.md", "tokenizer.json", PICKLE, CONFIG, "lora-F16.gguf"];
        assert_eq!(chosen(&peft), Ok(vec![CONFIG.into(), WEIGHTS.into()]));
        let both = ["lora-Q8_0.gguf", "lora-F16.gguf", CONFIG, PICKLE];
        assert_eq!(chosen(&both), Ok(vec!["lora-F16.gguf".into()]));
        assert_eq!(chosen(&["adapter.gguf"]), Ok(vec!["adapter.gguf".into()]));
        for (paths, part) in [
            (&[CONFIG, PICKLE][..], "a pickle"),
            (&[CONFIG], "no adapter_model.safetensors"),
            (&["config.json", "model.safetensors"], "no adapter_config.json"),
            (&["checkpoint-1/adapter_config.json"], "in its root"),
            (&["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], "no GGUF file"),
        ] {
            let reason = chosen(paths).unwrap_err();
            assert!(reason.contains(part), "{paths:?}: {reason}");
        }
    }
}
