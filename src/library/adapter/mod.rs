//! LoRA adapters of the Hub: repositories with two small matrices for each weight of a base model that they change,
//! stored by PEFT or as a GGUF file.
//!
//! A name such as `hf:ORG/REPO+ORG/ADAPTER` is a model of its own, made of the base's files and the adapter's. It can
//! be used as soon as both are in the cache; it is listed after it was pulled, because nothing in the cache tells which
//! adapter belongs on which base. PEFT adapters are converted for the base by [`PreparedAdapters`].

mod prepared;

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::blobs::is_ours;
use crate::hub::{
    HfName, HubError, Selector,
    cache::{self, RepoFolder, SnapshotFolder},
    ledger::Ledger,
    name::AdapterName,
    resolve::{self, RepoFile},
};

pub(super) use prepared::PreparedAdapters;

/// The files of PEFT: settings, weights, and weights in the old format.
pub(super) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// Local adapter: an adapter that is complete in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAdapter {
    /// Spelled as in the cache.
    pub name: AdapterName,
    /// The cache folder that holds it.
    pub root: PathBuf,
    /// 40 hex digits.
    pub commit: String,
    /// Snapshot paths: one GGUF file, or the settings and the weights of PEFT.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// 64 hex digits.
    pub digest: String,
    /// Arrival time of the newest file.
    pub modified_at: SystemTime,
    /// True if hubllama downloaded all of it.
    pub owned: bool,
}

impl LocalAdapter {
    /// Returns the adapter's GGUF file, if it needs no conversion.
    fn gguf(&self) -> Option<&Path> {
        let [file] = self.files.as_slice() else {
            return None;
        };
        Some(file)
    }

    /// Returns `ORG/ADAPTER`.
    fn repository(&self) -> String {
        format!("{}/{}", self.name.org, self.name.repo)
    }

    /// Returns the folder of the snapshot that holds the adapter.
    pub(super) fn snapshot(&self) -> PathBuf {
        let folder = RepoFolder::new(&self.root, &self.name.org, &self.name.repo);
        folder.path.join("snapshots").join(&self.commit)
    }
}

/// Chooses the files of an adapter from a listing: those of PEFT, else a GGUF file. Pickles are never opened.
///
/// # Errors
/// The reason why there are none, as a sentence about "it".
pub(super) fn resolve(listing: &[RepoFile]) -> Result<Vec<RepoFile>, &'static str> {
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

/// Chooses the GGUF file of an adapter's repository: the most precise one, since adapters are small.
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

/// Returns every snapshot of a repository in one cache that holds an adapter and answers to the name's revision, most
/// wanted first, with the adapter's files.
pub(super) fn snapshots(root: &Path, name: &AdapterName) -> Vec<(RepoFolder, SnapshotFolder, Vec<RepoFile>)> {
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

/// Finds the adapters of a name in the caches, in the order of the name.
///
/// # Errors
/// If one of them is in no cache.
pub(super) fn find_all(roots: &[PathBuf], ledger: &Ledger, name: &HfName) -> Result<Vec<LocalAdapter>, HubError> {
    let missing = || HubError::NotCached(name.to_string());
    let adapters = name.adapters.iter();
    adapters
        .map(|adapter| find(roots, ledger, adapter).ok_or_else(missing))
        .collect()
}

/// Finds an adapter in the caches; the first one that has it wins.
pub(super) fn find(roots: &[PathBuf], ledger: &Ledger, name: &AdapterName) -> Option<LocalAdapter> {
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
