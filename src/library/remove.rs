//! Taking a model out of the shared cache without taking anything from anybody else.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::Deleted;
use crate::hub::{
    HfName, HubError,
    cache::{self, RepoFolder, Snapshot},
    ledger::Ledger,
    resolve,
};

/// Removes a model's files where hubllama downloaded them, or where `all` says so, else unlists it; `key` is its name in
/// the ledger.
pub(crate) fn delete(root: &Path, ledger: &Ledger, name: &HfName, key: &str, all: bool) -> Result<Deleted, HubError> {
    let Some(folder) = RepoFolder::find(root, &name.org, &name.repo) else {
        return Err(HubError::NotCached(name.to_string()));
    };
    let io_error = |error: io::Error| HubError::io("delete from", &folder.path, &error);
    let mut found = false;
    let mut is_left = false;
    let mut unlinked = HashSet::new();
    // The same model may be cached at several commits; one that stayed would be listed in its place.
    for snapshot in folder.snapshots(name.revision.as_deref()) {
        let Ok(model) = cache::model_in(&folder, &snapshot, name.selector.as_ref()) else {
            continue;
        };
        found = true;
        if !all && !is_owned(ledger, &model) {
            is_left = true;
            continue;
        }
        unlinked.extend(unlink(&folder, &model.files).map_err(io_error)?);
        let projector = model.mmproj.filter(|link| all || is_ours(ledger, &folder, link));
        if let Some(projector) = projector.filter(|link| is_lone(&snapshot, link)) {
            unlinked.extend(unlink(&folder, &[projector]).map_err(io_error)?);
        }
    }
    if !found {
        return Err(HubError::NotCached(name.to_string()));
    }
    let bytes_freed = free(&folder, ledger, &unlinked)?;
    if is_left {
        ledger.set_unlisted(key, true)?;
        tracing::info!(model.name = %name, "model is unlisted; its files are another program's and stay");
        return Ok(Deleted::Unlisted);
    }
    // Whoever downloads it next may see it again.
    ledger.set_unlisted(key, false)?;
    Ok(Deleted::Removed { bytes_freed })
}

/// Removes links, and the blobs that only they led to; returns the bytes of those.
pub(crate) fn release(folder: &RepoFolder, ledger: &Ledger, links: &[PathBuf]) -> Result<u64, HubError> {
    let blobs = unlink(folder, links).map_err(|error| HubError::io("delete from", &folder.path, &error))?;
    free(folder, ledger, &blobs.into_iter().collect())
}

/// Removes those blobs that nothing refers to any more, and what is bare then.
fn free(folder: &RepoFolder, ledger: &Ledger, unlinked: &HashSet<PathBuf>) -> Result<u64, HubError> {
    let io_error = |error: io::Error| HubError::io("delete from", &folder.path, &error);
    let still_used = referenced(folder).map_err(io_error)?;
    let mut bytes_freed = 0;
    for blob in unlinked.difference(&still_used) {
        // A blob may itself be a link into a store that repositories share: only the link is ours.
        bytes_freed += fs::symlink_metadata(blob).map_err(io_error)?.len();
        fs::remove_file(blob).map_err(io_error)?;
        ledger.forget(blob)?;
    }
    remove_if_bare(&folder.path);
    Ok(bytes_freed)
}

/// Whether hubllama downloaded every file.
pub(crate) fn is_owned(ledger: &Ledger, model: &cache::CachedModel) -> bool {
    let folder = RepoFolder::new(&model.root, &model.org, &model.repo);
    // What was made of a checkpoint is ours, whoever brought that.
    !model.sources.is_empty() || model.files.iter().all(|link| is_ours(ledger, &folder, link))
}

pub(crate) fn is_ours(ledger: &Ledger, folder: &RepoFolder, link: &Path) -> bool {
    cache::blob_of(folder, link).is_some_and(|blob| ledger.owns(&blob))
}

/// A projector serves every quantisation of its folder; it goes with the last of them.
fn is_lone(snapshot: &Snapshot, projector: &Path) -> bool {
    let is_used = |model: &resolve::Resolution| {
        model
            .mmproj
            .as_ref()
            .is_some_and(|used| snapshot.path.join(&used.path) == projector)
    };
    let files = snapshot.files(&mut Vec::new());
    !resolve::all(&files).iter().any(is_used)
}

/// Removes links, and the folders that became empty, the snapshot's own included; returns the blobs they led to.
fn unlink(folder: &RepoFolder, links: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut blobs = Vec::new();
    for link in links {
        blobs.extend(cache::blob_of(folder, link));
        fs::remove_file(link)?;
        remove_empty_folders(link, "snapshots");
    }
    Ok(blobs)
}

/// Removes the folders around a file that is gone, as far as they are empty and below one of this name.
pub(crate) fn remove_empty_folders(gone: &Path, below: &str) {
    let parents = gone.ancestors().skip(1).take_while(|parent| !parent.ends_with(below));
    // A blob's folder is not below it.
    if gone.ancestors().any(|parent| parent.ends_with(below)) {
        for emptied in parents {
            // Not empty is the usual case and no error.
            if fs::remove_dir(emptied).is_err() {
                break;
            }
        }
    }
}

/// Every blob that some snapshot refers to. Blobs without a link are left alone: they may belong to a pull that is under way.
pub(crate) fn referenced(folder: &RepoFolder) -> io::Result<HashSet<PathBuf>> {
    referenced_but(folder, &[])
}

/// The same as if some links were not there.
pub(crate) fn referenced_but(folder: &RepoFolder, links: &[PathBuf]) -> io::Result<HashSet<PathBuf>> {
    let mut referenced = HashSet::new();
    let mut stack = vec![folder.path.join("snapshots")];
    while let Some(path) = stack.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten() {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                stack.push(entry.path());
            } else if !links.contains(&entry.path()) {
                referenced.extend(cache::blob_of(folder, &entry.path()));
            }
        }
    }
    Ok(referenced)
}

/// References without a snapshot are of no use; anything else that is left keeps the folder.
fn remove_if_bare(folder: &Path) {
    let is_bare = ["snapshots", "blobs"]
        .iter()
        .all(|part| fs::read_dir(folder.join(part)).map_or(true, |mut entries| entries.next().is_none()));
    if is_bare {
        let _ = fs::remove_dir_all(folder.join("refs"));
        let _ = fs::remove_dir(folder.join("snapshots"));
        let _ = fs::remove_dir(folder.join("blobs"));
        let _ = fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::cache::tests::{NEW, OLD, name, put};

    struct Bench {
        root: tempfile::TempDir,
        state: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                root: tempfile::tempdir().unwrap(),
                state: tempfile::tempdir().unwrap(),
            }
        }

        fn ours(&self, commit: &str, path: &str, content: &str) -> PathBuf {
            let blob = put(self.root.path(), "o/r", commit, path, content);
            self.ledger().add(blob.clone()).unwrap();
            blob
        }

        fn ledger(&self) -> Ledger {
            Ledger::load(self.state.path())
        }

        fn delete(&self, text: &str) -> Result<Deleted, HubError> {
            delete(self.root.path(), &self.ledger(), &name(text), "key", false)
        }

        fn delete_all(&self, text: &str) -> Result<Deleted, HubError> {
            delete(self.root.path(), &self.ledger(), &name(text), "key", true)
        }
    }

    #[test]
    fn ours_is_removed() {
        let bench = Bench::new();
        bench.ours(OLD, "sub/m-Q4_0.gguf", "weights");
        RepoFolder::new(bench.root.path(), "o", "r")
            .write_reference("main", OLD)
            .unwrap();
        assert_eq!(bench.delete("hf:O/R:q4_0"), Ok(Deleted::Removed { bytes_freed: 7 }));
        assert_eq!(
            fs::read_dir(bench.root.path()).unwrap().count(),
            0,
            "no empty folder is left"
        );
        assert_eq!(
            bench.delete("hf:o/r:Q4_0"),
            Err(HubError::NotCached("hf:o/r:Q4_0".into()))
        );
    }

    #[test]
    fn a_shared_blob_stays() {
        let bench = Bench::new();
        let blob = bench.ours(OLD, "m-Q4_0.gguf", "weights");
        put(bench.root.path(), "o/r", NEW, "renamed.gguf", "weights");
        assert_eq!(bench.delete("hf:o/r:Q4_0"), Ok(Deleted::Removed { bytes_freed: 0 }));
        assert!(blob.exists() && bench.ledger().owns(&blob));
    }

    #[test]
    fn foreign_files_are_only_unlisted() {
        let bench = Bench::new();
        let blob = put(bench.root.path(), "o/r", OLD, "m-Q4_0.gguf", "weights");
        assert_eq!(bench.delete("hf:o/r:Q4_0"), Ok(Deleted::Unlisted));
        assert!(blob.exists() && bench.ledger().is_unlisted("key"));
    }

    #[test]
    fn foreign_files_go_where_all_was_said() {
        let bench = Bench::new();
        let blob = put(bench.root.path(), "o/r", OLD, "m-Q4_0.gguf", "weights");
        let eye = put(bench.root.path(), "o/r", OLD, "mmproj-F16.gguf", "eye");
        bench.delete("hf:o/r:Q4_0").unwrap();
        assert!(blob.exists() && bench.ledger().is_unlisted("key"));
        assert_eq!(
            bench.delete_all("hf:o/r:Q4_0"),
            Ok(Deleted::Removed { bytes_freed: 10 })
        );
        assert!(!blob.exists() && !eye.exists() && !bench.ledger().is_unlisted("key"));
    }

    #[test]
    fn the_projector_goes_last() {
        let bench = Bench::new();
        bench.ours(OLD, "m-Q4_0.gguf", "four");
        bench.ours(OLD, "m-Q8_0.gguf", "eight");
        let eye = bench.ours(OLD, "mmproj-F16.gguf", "eye");
        bench.delete("hf:o/r:Q4_0").unwrap();
        assert!(eye.exists());
        bench.delete("hf:o/r:Q8_0").unwrap();
        assert!(!eye.exists());
    }
}
