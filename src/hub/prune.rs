//! What lies in the cache, came through hubllama, and is of no use any more.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    Hub,
    cache::{self, RepoFolder},
    converted,
    download::blocking,
    error::HubError,
    ledger::Ledger,
    partial::BlobLock,
    remove, resolve,
};
use crate::config::HubConfig;

/// Age below which something may belong to work that is under way.
const SETTLED: Duration = Duration::from_secs(600);

/// Something that could be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waste {
    /// Why it is of no use.
    pub kind: WasteKind,
    /// For people: a file or a model.
    pub what: String,
    /// Bytes that would be freed.
    pub bytes: u64,
    paths: Vec<PathBuf>,
    lock: Option<PathBuf>,
}

/// Why something is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WasteKind {
    /// A download that was broken off; a pull would go on with it.
    Partial,
    /// An older commit of a model that is there in a newer one.
    Superseded,
    /// Content that no model uses, or that was made of a checkpoint that is gone.
    Orphan,
}

impl Hub {
    /// What could be removed; nothing is.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub async fn prunable(&self, config: &HubConfig) -> Result<Vec<Waste>, HubError> {
        let (hub, root, roots) = (self.clone(), config.cache_dir.clone(), super::roots(config));
        blocking(move || {
            let mut waste = find(&root, &hub.0.ledger, SETTLED);
            let stale = hub.0.conversions.stale(&roots).into_iter();
            let stale = stale.chain(hub.0.prepared.stale(&roots));
            waste.extend(stale.map(|(what, path)| Waste {
                kind: WasteKind::Orphan,
                what,
                bytes: converted::occupied(&path),
                paths: vec![path],
                lock: None,
            }));
            Ok(waste)
        })
        .await
    }

    /// Removes what was found, and returns how many bytes that freed. What is in use meanwhile stays.
    ///
    /// # Errors
    /// If the file system refuses.
    pub async fn prune(&self, waste: Vec<Waste>) -> Result<u64, HubError> {
        let hub = self.clone();
        blocking(move || {
            waste
                .into_iter()
                .try_fold(0, |freed, waste| Ok(freed + remove_waste(&hub.0.ledger, waste)?))
        })
        .await
    }
}

fn find(root: &Path, ledger: &Ledger, settled: Duration) -> Vec<Waste> {
    let mut waste = Vec::new();
    for folder in RepoFolder::all(root) {
        waste.extend(superseded(&folder, ledger));
        let used = remove::referenced(&folder).unwrap_or_default();
        for entry in fs::read_dir(folder.path.join("blobs")).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let (Some(name), Ok(meta)) = (name.to_str(), entry.metadata()) else {
                continue;
            };
            let age = meta
                .modified()
                .ok()
                .and_then(|then| SystemTime::now().duration_since(then).ok());
            if !meta.is_file() || age.is_none_or(|age| age < settled) {
                continue;
            }
            let locks = root.join(".locks").join(folder.path.file_name().unwrap_or_default());
            let what = format!("{}/{} {}", folder.org, folder.repo, name.get(..12).unwrap_or(name));
            if let Some(etag) = name.strip_suffix(".hubllama.incomplete") {
                waste.push(Waste {
                    kind: WasteKind::Partial,
                    what,
                    bytes: allocated(&meta),
                    paths: vec![path.with_file_name(format!("{etag}.hubllama.ranges")), path],
                    lock: Some(locks.join(format!("{etag}.lock"))),
                });
            } else if name.starts_with(".hubllama.") || ledger.owns(&path) && !used.contains(&path) {
                waste.push(Waste {
                    kind: WasteKind::Orphan,
                    what,
                    bytes: allocated(&meta),
                    paths: vec![path],
                    lock: Some(locks.join(format!("{name}.lock"))).filter(|_| !name.starts_with('.')),
                });
            }
        }
    }
    waste.sort_by(|a, b| (a.kind, &a.what).cmp(&(b.kind, &b.what)));
    waste
}

/// Models of commits that no branch or tag means any more, and that are there in a commit that one does.
fn superseded(folder: &RepoFolder, ledger: &Ledger) -> Vec<Waste> {
    let meant = folder.referenced_commits();
    let (current, old): (Vec<_>, Vec<_>) = folder
        .snapshots(None)
        .into_iter()
        .partition(|snapshot| meant.contains(&snapshot.commit));
    let listed = |snapshot: &cache::Snapshot| resolve::all(&snapshot.files(&mut Vec::new()));
    let labels: HashSet<String> = current
        .iter()
        .flat_map(listed)
        .map(|model| model.label.to_ascii_lowercase())
        .collect();
    let mut waste = Vec::new();
    for snapshot in &old {
        for model in listed(snapshot) {
            let links: Vec<PathBuf> = model.files.iter().map(|file| snapshot.path.join(&file.path)).collect();
            let blobs: Option<Vec<PathBuf>> = links.iter().map(|link| cache::blob_of(folder, link)).collect();
            let Some(blobs) = blobs.filter(|blobs| blobs.iter().all(|blob| ledger.owns(blob))) else {
                continue;
            };
            if !labels.contains(&model.label.to_ascii_lowercase()) {
                continue;
            }
            let kept = remove::referenced_but(folder, &links).unwrap_or_default();
            let lone: Vec<PathBuf> = blobs.into_iter().filter(|blob| !kept.contains(blob)).collect();
            let bytes = lone
                .iter()
                .filter_map(|blob| fs::symlink_metadata(blob).ok())
                .map(|meta| meta.len())
                .sum();
            waste.push(Waste {
                kind: WasteKind::Superseded,
                what: format!("hf:{}/{}@{}:{}", folder.org, folder.repo, &snapshot.commit, model.label),
                bytes,
                paths: links.into_iter().chain(lone).collect(),
                lock: None,
            });
        }
    }
    waste
}

fn remove_waste(ledger: &Ledger, waste: Waste) -> Result<u64, HubError> {
    // Who downloads holds the lock, and what it needs is no waste.
    let _lock = match &waste.lock {
        Some(path) => match BlobLock::try_take(path)? {
            Some(lock) => Some(lock),
            None => return Ok(0),
        },
        None => None,
    };
    for path in &waste.paths {
        match fs::remove_file(path) {
            Ok(()) => ledger.forget(path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(HubError::io("remove", path, &error)),
        }
        if waste.kind == WasteKind::Superseded {
            remove::remove_empty_folders(path, "snapshots");
        }
    }
    Ok(waste.bytes)
}

/// Bytes on disk: a partial file has holes.
fn allocated(meta: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    meta.blocks().saturating_mul(512)
}

#[cfg(test)]
mod tests {
    use super::{
        super::cache::tests::{NEW, OLD, put},
        *,
    };

    #[test]
    fn finds_and_removes_what_is_ours_and_useless() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = root.path();
        let ledger = Ledger::load(state.path());
        let ours = |commit: &str, path: &str, content: &str| {
            let blob = put(root, "o/r", commit, path, content);
            ledger.add(blob.clone()).unwrap();
            blob
        };
        let old = ours(OLD, "sub/m-Q4_0.gguf", "old four");
        let kept = ours(OLD, "m-F16.gguf", "only in the old commit");
        let shared = ours(OLD, "m-Q8_0.gguf", "the same eight");
        let new = ours(NEW, "m-Q4_0.gguf", "new four");
        ours(NEW, "m-Q8_0.gguf", "the same eight");
        let foreign = put(root, "o/r", OLD, "m-Q5_0.gguf", "old five, another's");
        put(root, "o/r", NEW, "m-Q5_0.gguf", "new five, another's");
        let folder = RepoFolder::new(root, "o", "r");
        folder.write_reference("main", NEW).unwrap();
        let orphan = folder.blob("ab");
        fs::write(&orphan, "nobody's").unwrap();
        ledger.add(orphan.clone()).unwrap();
        let unknown = folder.blob("cd");
        fs::write(&unknown, "somebody's").unwrap();
        let partial = folder.blob("ef.hubllama.incomplete");
        fs::write(&partial, "half").unwrap();
        fs::write(folder.blob("ef.hubllama.ranges"), "{}").unwrap();

        assert!(
            find(root, &ledger, SETTLED)
                .iter()
                .all(|waste| waste.kind == WasteKind::Superseded),
            "what is young may be in use"
        );
        let waste = find(root, &ledger, Duration::ZERO);
        let found: Vec<(WasteKind, &str)> = waste.iter().map(|waste| (waste.kind, waste.what.as_str())).collect();
        let q4 = format!("hf:o/r@{OLD}:Q4_0");
        let q8 = format!("hf:o/r@{OLD}:Q8_0");
        assert_eq!(
            found,
            [
                (WasteKind::Partial, "o/r ef.hubllama."),
                (WasteKind::Superseded, &q4),
                (WasteKind::Superseded, &q8),
                (WasteKind::Orphan, "o/r ab"),
            ]
        );
        assert_eq!((waste[1].bytes, waste[2].bytes), (8, 0), "a shared blob frees nothing");
        let lock = BlobLock::try_take(&root.join(".locks/models--o--r/ef.lock")).unwrap();
        for waste in waste {
            remove_waste(&ledger, waste).unwrap();
        }
        assert!(partial.exists(), "somebody downloads it");
        drop(lock);
        for waste in find(root, &ledger, Duration::ZERO) {
            remove_waste(&ledger, waste).unwrap();
        }
        assert!(!partial.exists() && !orphan.exists() && !old.exists());
        assert!(!folder.path.join("snapshots").join(OLD).join("sub").exists());
        for path in [kept, shared, new, foreign, unknown] {
            assert!(path.exists(), "{}", path.display());
        }
        assert_eq!(find(root, &ledger, Duration::ZERO), []);
    }
}
