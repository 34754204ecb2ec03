//! Finding and removing files that hubllama downloaded or made and that have lost their use.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    Library, blobs, blocking, checkpoint,
    conversions::{ConversionStore, occupied_bytes},
    error::LibraryError,
    roots,
};
use crate::{
    config::HubConfig,
    hub::{
        HubError,
        cache::{self, CachedModel, RepoFolder, SnapshotFolder},
        ledger::Ledger,
        partial::BlobLock,
        resolve,
    },
};

/// Minimum age of a file that may be removed: a younger one may belong to work in progress.
const MIN_AGE: Duration = Duration::from_secs(600);

/// Prunable item: files that belong together and could be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrunableItem {
    pub reason: PruneReason,
    /// A file or a model, for the user.
    pub description: String,
    /// Bytes that its removal frees.
    pub bytes: u64,
    paths: Vec<PathBuf>,
    /// The lock of the blob; whoever downloads it holds the lock.
    lock: Option<PathBuf>,
}

/// Prune reason: why files have lost their use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PruneReason {
    /// An interrupted download, which a pull would resume.
    Partial,
    /// An older commit of a model that is complete in a newer one.
    Superseded,
    /// A checkpoint that could not be converted.
    Unconverted,
    /// Content that no model uses, or that was made from a checkpoint that is gone.
    Orphan,
}

impl Library {
    /// Finds what could be removed; removes nothing.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub async fn prunable(&self, config: &HubConfig) -> Result<Vec<PrunableItem>, LibraryError> {
        let (library, root, roots) = (self.clone(), config.cache_dir.clone(), roots(config));
        blocking(move || {
            let shared = &library.0;
            let mut items = find(&root, &shared.ledger, MIN_AGE);
            for folder in RepoFolder::all(&root) {
                items.extend(checkpoints(&folder, &shared.ledger, &shared.conversions));
            }
            let mut stale = shared.conversions.stale(&roots);
            stale.extend(shared.prepared.stale(&roots));
            // The conversions of a superseded checkpoint are listed with it.
            stale.retain(|(_, path)| !items.iter().any(|item| item.paths.contains(path)));
            items.extend(stale.into_iter().map(|(description, path)| PrunableItem {
                reason: PruneReason::Orphan,
                description,
                bytes: occupied_bytes(&path),
                paths: vec![path],
                lock: None,
            }));
            sort(&mut items);
            Ok(items)
        })
        .await
    }

    /// Removes items that [`Library::prunable`] found, except those that a download uses by now; returns the bytes
    /// freed.
    ///
    /// # Errors
    /// If the file system refuses.
    pub async fn prune(&self, items: Vec<PrunableItem>) -> Result<u64, LibraryError> {
        let library = self.clone();
        blocking(move || {
            let ledger = &library.0.ledger;
            items
                .into_iter()
                .try_fold(0, |freed, item| Ok(freed + item.remove(ledger)?))
        })
        .await
    }
}

impl PrunableItem {
    fn remove(self, ledger: &Ledger) -> Result<u64, HubError> {
        let _lock = match &self.lock {
            Some(path) => match BlobLock::try_take(path)? {
                Some(lock) => Some(lock),
                None => return Ok(0),
            },
            None => None,
        };
        for path in &self.paths {
            match fs::remove_file(path) {
                Ok(()) => ledger.forget(path)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(HubError::io("remove", path, &error)),
            }
            for folder in ["snapshots", "converted"] {
                blobs::remove_empty_folders(path, folder);
            }
        }
        Ok(self.bytes)
    }
}

fn sort(items: &mut [PrunableItem]) {
    items.sort_by(|a, b| (a.reason, &a.description).cmp(&(b.reason, &b.description)));
}

/// Finds interrupted downloads, orphaned blobs and superseded GGUF models in one cache.
fn find(root: &Path, ledger: &Ledger, min_age: Duration) -> Vec<PrunableItem> {
    let mut items = Vec::new();
    for folder in RepoFolder::all(root) {
        items.extend(superseded_models(&folder, ledger));
        let used = blobs::referenced(&folder).unwrap_or_default();
        for entry in fs::read_dir(folder.path.join("blobs")).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let (Some(name), Ok(meta)) = (name.to_str(), entry.metadata()) else {
                continue;
            };
            let age = meta
                .modified()
                .ok()
                .and_then(|then| SystemTime::now().duration_since(then).ok());
            if !meta.is_file() || age.is_none_or(|age| age < min_age) {
                continue;
            }
            let locks = root.join(".locks").join(folder.path.file_name().unwrap_or_default());
            let description = format!("{}/{} {}", folder.org, folder.repo, name.get(..12).unwrap_or(name));
            if let Some(etag) = name.strip_suffix(".hubllama.incomplete") {
                items.push(PrunableItem {
                    reason: PruneReason::Partial,
                    description,
                    bytes: allocated_bytes(&meta),
                    paths: vec![path.with_file_name(format!("{etag}.hubllama.ranges")), path],
                    lock: Some(locks.join(format!("{etag}.lock"))),
                });
            } else if name.starts_with(".hubllama.") || ledger.owns(&path) && !used.contains(&path) {
                items.push(PrunableItem {
                    reason: PruneReason::Orphan,
                    description,
                    bytes: allocated_bytes(&meta),
                    paths: vec![path],
                    // A temporary file has no lock: its name is unique to the process that made it.
                    lock: Some(locks.join(format!("{name}.lock"))).filter(|_| !name.starts_with('.')),
                });
            }
        }
    }
    sort(&mut items);
    items
}

/// Finds the models of commits that no branch or tag points to any more, if a commit that one points to has them, too.
fn superseded_models(folder: &RepoFolder, ledger: &Ledger) -> Vec<PrunableItem> {
    let referenced = folder.referenced_commits();
    let (current, old): (Vec<_>, Vec<_>) = folder
        .snapshots(None)
        .into_iter()
        .partition(|snapshot| referenced.contains(&snapshot.commit));
    let models = |snapshot: &SnapshotFolder| resolve::all(&snapshot.files(&mut Vec::new()));
    let labels: HashSet<String> = current
        .iter()
        .flat_map(models)
        .map(|model| model.label.to_ascii_lowercase())
        .collect();
    let mut items = Vec::new();
    for snapshot in &old {
        for model in models(snapshot) {
            let links: Vec<PathBuf> = model.files.iter().map(|file| snapshot.path.join(&file.path)).collect();
            if !labels.contains(&model.label.to_ascii_lowercase()) {
                continue;
            }
            items.extend(removable(folder, ledger, links).map(|(paths, bytes)| PrunableItem {
                reason: PruneReason::Superseded,
                description: format!("hf:{}/{}@{}:{}", folder.org, folder.repo, &snapshot.commit, model.label),
                bytes,
                paths,
                lock: None,
            }));
        }
    }
    items
}

/// Checkpoint in one snapshot, with its links and its conversions.
struct CheckpointUse {
    snapshot: SnapshotFolder,
    links: Vec<PathBuf>,
    conversions: Vec<CachedModel>,
}

/// Finds the checkpoints of a repository that are superseded or could not be converted.
///
/// A checkpoint is superseded if no branch or tag points to its commit, one points to a commit with a checkpoint, and
/// everything that was converted from the old one was converted from a current one, too.
fn checkpoints(folder: &RepoFolder, ledger: &Ledger, store: &ConversionStore) -> Vec<PrunableItem> {
    let referenced = folder.referenced_commits();
    let found = folder.snapshots(None).into_iter().filter_map(|snapshot| {
        let sources = checkpoint::files(&snapshot.files_where(&mut Vec::new(), checkpoint::is_part))?;
        Some(CheckpointUse {
            links: sources.iter().map(|file| snapshot.path.join(&file.path)).collect(),
            conversions: store.in_snapshot(folder, &snapshot),
            snapshot,
        })
    });
    let (current, old): (Vec<_>, Vec<_>) = found.partition(|found| referenced.contains(&found.snapshot.commit));
    let is_current = |label: &str| {
        let conversions = current.iter().flat_map(|found| &found.conversions);
        conversions.into_iter().any(|model| model.label == label)
    };
    let superseded = old
        .iter()
        .filter(|found| !current.is_empty() && found.conversions.iter().all(|model| is_current(&model.label)));
    let unconverted = current.iter().chain(&old).filter(|found| {
        let has_files = !store.files(folder, &found.snapshot.commit).is_empty();
        found.conversions.is_empty() && !has_files && ledger.is_unconverted(&found.snapshot.path)
    });
    let all = superseded.map(|found| (PruneReason::Superseded, found));
    let all = all.chain(unconverted.map(|found| (PruneReason::Unconverted, found)));
    let mut items: Vec<PrunableItem> = Vec::new();
    for (reason, found) in all {
        let commit = &found.snapshot.commit;
        let Some((mut paths, mut bytes)) = removable(folder, ledger, found.links.clone()) else {
            continue;
        };
        for file in store.files(folder, commit) {
            bytes += fs::symlink_metadata(&file).map_or(0, |meta| allocated_bytes(&meta));
            paths.push(file);
        }
        let description = format!("hf:{}/{}@{commit} safetensors", folder.org, folder.repo);
        // A checkpoint can be both superseded and unconverted.
        if !items.iter().any(|known| known.description == description) {
            items.push(PrunableItem {
                reason,
                description,
                bytes,
                paths,
                lock: None,
            });
        }
    }
    items
}

/// Returns the paths that would be removed with some links, which are the links and the blobs that nothing else links
/// to, and the bytes of these blobs. Returns `None` if hubllama did not download all of it.
fn removable(folder: &RepoFolder, ledger: &Ledger, links: Vec<PathBuf>) -> Option<(Vec<PathBuf>, u64)> {
    let blobs: Option<Vec<PathBuf>> = links.iter().map(|link| cache::blob_of(folder, link)).collect();
    let blobs = blobs.filter(|blobs| blobs.iter().all(|blob| ledger.owns(blob)))?;
    let shared = blobs::referenced_except(folder, &links).unwrap_or_default();
    let lone: HashSet<PathBuf> = blobs.into_iter().filter(|blob| !shared.contains(blob)).collect();
    let bytes = lone
        .iter()
        .filter_map(|blob| fs::symlink_metadata(blob).ok())
        .map(|meta| meta.len())
        .sum();
    Some((links.into_iter().chain(lone).collect(), bytes))
}

/// Returns the bytes that a file occupies on the disk, which for a partial download are fewer than its length.
fn allocated_bytes(meta: &fs::Metadata) -> u64 {
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
            find(root, &ledger, MIN_AGE)
                .iter()
                .all(|item| item.reason == PruneReason::Superseded),
            "what is young may be in use"
        );
        let items = find(root, &ledger, Duration::ZERO);
        let found: Vec<(PruneReason, &str)> = items
            .iter()
            .map(|item| (item.reason, item.description.as_str()))
            .collect();
        let q4 = format!("hf:o/r@{OLD}:Q4_0");
        let q8 = format!("hf:o/r@{OLD}:Q8_0");
        assert_eq!(
            found,
            [
                (PruneReason::Partial, "o/r ef.hubllama."),
                (PruneReason::Superseded, &q4),
                (PruneReason::Superseded, &q8),
                (PruneReason::Orphan, "o/r ab"),
            ]
        );
        assert_eq!((items[1].bytes, items[2].bytes), (8, 0), "a shared blob frees nothing");
        let lock = BlobLock::try_take(&root.join(".locks/models--o--r/ef.lock")).unwrap();
        for item in items {
            item.remove(&ledger).unwrap();
        }
        assert!(partial.exists(), "somebody downloads it");
        drop(lock);
        for item in find(root, &ledger, Duration::ZERO) {
            item.remove(&ledger).unwrap();
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
            let items = library.prunable(&config).await.unwrap();
            let kinds = items
                .iter()
                .map(|item| (item.reason, item.description.clone(), item.bytes));
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
            (1, PruneReason::Superseded, &what)
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
            assert_eq!(kinds().await, [(PruneReason::Unconverted, what, 8)]);
            library.prune(library.prunable(&config).await.unwrap()).await.unwrap();
            assert_eq!(kinds().await, []);
            assert!(!ledger.is_unconverted(&folder.path.join("snapshots").join(NEW)));
        }
    }
}
