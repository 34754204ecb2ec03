//! What lies in the cache, came through hubllama, and is of no use any more.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    Library, checkpoint,
    conversions::{self, Conversions},
    remove,
};
use crate::{
    config::HubConfig,
    hub::{
        HubError,
        cache::{self, RepoFolder},
        ledger::Ledger,
        partial::BlobLock,
        resolve,
        tasks::blocking,
    },
};

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
    /// A checkpoint that could not be converted.
    Unconverted,
    /// Content that no model uses, or that was made of a checkpoint that is gone.
    Orphan,
}

impl Library {
    /// What could be removed; nothing is.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub async fn prunable(&self, config: &HubConfig) -> Result<Vec<Waste>, HubError> {
        let (library, root, roots) = (self.clone(), config.cache_dir.clone(), super::roots(config));
        blocking(move || {
            let mut waste = find(&root, &library.0.ledger, SETTLED);
            for folder in RepoFolder::all(&root) {
                waste.extend(checkpoints(&folder, &library.0.ledger, &library.0.conversions));
            }
            let mut stale = library.0.conversions.stale(&roots);
            stale.extend(library.0.prepared.stale(&roots));
            stale.retain(|(_, path)| !waste.iter().any(|waste| waste.paths.contains(path)));
            waste.extend(stale.into_iter().map(|(what, path)| Waste {
                kind: WasteKind::Orphan,
                what,
                bytes: conversions::occupied(&path),
                paths: vec![path],
                lock: None,
            }));
            waste.sort_by(|a, b| (a.kind, &a.what).cmp(&(b.kind, &b.what)));
            Ok(waste)
        })
        .await
    }

    /// Removes what was found, and returns how many bytes that freed. What is in use meanwhile stays.
    ///
    /// # Errors
    /// If the file system refuses.
    pub async fn prune(&self, waste: Vec<Waste>) -> Result<u64, HubError> {
        let library = self.clone();
        blocking(move || {
            waste
                .into_iter()
                .try_fold(0, |freed, waste| Ok(freed + remove_waste(&library.0.ledger, waste)?))
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
            if !labels.contains(&model.label.to_ascii_lowercase()) {
                continue;
            }
            waste.extend(ours(folder, ledger, links).map(|(paths, bytes)| Waste {
                kind: WasteKind::Superseded,
                what: format!("hf:{}/{}@{}:{}", folder.org, folder.repo, &snapshot.commit, model.label),
                bytes,
                paths,
                lock: None,
            }));
        }
    }
    waste
}

/// Checkpoints of commits that no branch or tag means any more, where one that does has a checkpoint and whatever was made of
/// the old one; and those that could not be converted, of which nothing is made.
fn checkpoints(folder: &RepoFolder, ledger: &Ledger, conversions: &Conversions) -> Vec<Waste> {
    let meant = folder.referenced_commits();
    let snapshots = folder.snapshots(None);
    let found = snapshots.iter().filter_map(|snapshot| {
        let sources = checkpoint::files(&snapshot.files_where(&mut Vec::new(), checkpoint::is_part))?;
        let links: Vec<PathBuf> = sources.iter().map(|file| snapshot.path.join(&file.path)).collect();
        Some((snapshot, links, conversions.in_snapshot(folder, snapshot)))
    });
    let (current, old): (Vec<_>, Vec<_>) = found.partition(|(snapshot, ..)| meant.contains(&snapshot.commit));
    let is_current = |label: &str| {
        current
            .iter()
            .flat_map(|(_, _, made)| made)
            .any(|model| model.label == label)
    };
    let superseded = old.iter().filter(|(_, _, made)| {
        let is_whole = made.iter().all(|model| is_current(&model.label));
        !current.is_empty() && is_whole
    });
    let unconverted = current.iter().chain(&old).filter(|(snapshot, _, made)| {
        let is_empty = made.is_empty() && conversions.files(folder, &snapshot.commit).is_empty();
        is_empty && ledger.is_unconverted(&snapshot.path)
    });
    let all = superseded.map(|old| (WasteKind::Superseded, old));
    let all = all.chain(unconverted.map(|failed| (WasteKind::Unconverted, failed)));
    let mut waste: Vec<Waste> = Vec::new();
    for (kind, (snapshot, links, _)) in all {
        let Some((mut paths, mut bytes)) = ours(folder, ledger, links.clone()) else {
            continue;
        };
        for file in conversions.files(folder, &snapshot.commit) {
            bytes += fs::symlink_metadata(&file).map_or(0, |meta| allocated(&meta));
            paths.push(file);
        }
        let what = format!("hf:{}/{}@{} safetensors", folder.org, folder.repo, snapshot.commit);
        if !waste.iter().any(|known| known.what == what) {
            waste.push(Waste {
                kind,
                what,
                bytes,
                paths,
                lock: None,
            });
        }
    }
    waste
}

/// What would go with some links, if hubllama downloaded all that they lead to: themselves, and the blobs that nothing else
/// leads to, with the bytes of those.
fn ours(folder: &RepoFolder, ledger: &Ledger, links: Vec<PathBuf>) -> Option<(Vec<PathBuf>, u64)> {
    let blobs: Option<Vec<PathBuf>> = links.iter().map(|link| cache::blob_of(folder, link)).collect();
    let blobs = blobs.filter(|blobs| blobs.iter().all(|blob| ledger.owns(blob)))?;
    let kept = remove::referenced_but(folder, &links).unwrap_or_default();
    let lone: HashSet<PathBuf> = blobs.into_iter().filter(|blob| !kept.contains(blob)).collect();
    let bytes = lone
        .iter()
        .filter_map(|blob| fs::symlink_metadata(blob).ok())
        .map(|meta| meta.len())
        .sum();
    Some((links.into_iter().chain(lone).collect(), bytes))
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
        for folder in ["snapshots", "converted"] {
            remove::remove_empty_folders(path, folder);
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
    use super::*;
    use crate::hub::cache::tests::{NEW, OLD, put};

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

    #[tokio::test]
    async fn checkpoints_that_are_old_or_of_no_use_are_found() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let library = Library::new(state.path());
        let config = HubConfig {
            cache_dir: root.path().to_owned(),
            ..HubConfig::default()
        };
        let ledger = &library.0.ledger;
        let file = |repo: &str, commit: &str, path: &str, content: &str| {
            let blob = put(root.path(), repo, commit, path, content);
            ledger.add(blob.clone()).unwrap();
            blob
        };
        let made = |commit: &str, label: &str| {
            let folder = state.path().join("converted/models--o--r").join(commit);
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join(format!("{}-{label}.gguf", crate::convert::VERSION));
            fs::write(&path, "made").unwrap();
            path
        };
        let kinds = || async {
            let waste = library.prunable(&config).await.unwrap();
            let kinds = waste.iter().map(|waste| (waste.kind, waste.what.clone(), waste.bytes));
            kinds.collect::<Vec<_>>()
        };
        let config_json = file("o/r", OLD, "config.json", "{}");
        let old = file("o/r", OLD, "model.safetensors", "old weights");
        let folder = RepoFolder::new(root.path(), "o", "r");
        folder.write_reference("main", OLD).unwrap();
        made(OLD, "Q8_0");
        assert_eq!(kinds().await, [], "it is what main means");
        file("o/r", NEW, "config.json", "{}");
        let new = file("o/r", NEW, "model.safetensors", "new weights");
        folder.write_reference("main", NEW).unwrap();
        assert_eq!(kinds().await, [], "nothing newer is made yet");
        let newer = made(NEW, "Q8_0");
        let what = format!("hf:o/r@{OLD} safetensors");
        let found = kinds().await;
        assert_eq!(
            (found.len(), found[0].0, &found[0].1),
            (1, WasteKind::Superseded, &what)
        );
        // A file takes whole blocks of the disk.
        assert!(found[0].2 >= "old weights".len() as u64);
        let other = made(OLD, "Q4_0");
        assert_eq!(kinds().await, [], "Q4_0 there is only of the old one");
        fs::remove_file(other).unwrap();
        let freed = library.prune(library.prunable(&config).await.unwrap()).await.unwrap();
        assert_eq!(freed, found[0].2);
        assert!(!old.exists() && config_json.exists() && new.exists() && newer.exists());
        assert!(!state.path().join("converted/models--o--r").join(OLD).exists());
        assert!(!folder.path.join("snapshots").join(OLD).exists());

        // One that failed, and one that failed and is partly another's.
        for repo in ["o/failed", "o/theirs"] {
            file(repo, NEW, "config.json", "{}");
            let (org, name) = repo.split_once('/').unwrap();
            let folder = RepoFolder::new(root.path(), org, name);
            folder.write_reference("main", NEW).unwrap();
            match name {
                "failed" => file(repo, NEW, "model.safetensors", "broken"),
                _ => put(root.path(), repo, NEW, "model.safetensors", "broken, another's"),
            };
            assert_eq!(kinds().await, [], "nobody tried");
            ledger
                .set_unconverted(&folder.path.join("snapshots").join(NEW), true)
                .unwrap();
            if name == "theirs" {
                assert_eq!(kinds().await, []);
                break;
            }
            let what = format!("hf:o/failed@{NEW} safetensors");
            assert_eq!(kinds().await, [(WasteKind::Unconverted, what, 8)]);
            library.prune(library.prunable(&config).await.unwrap()).await.unwrap();
            assert_eq!(kinds().await, []);
            assert!(!ledger.is_unconverted(&folder.path.join("snapshots").join(NEW)));
        }
    }
}
