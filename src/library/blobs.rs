//! Links and blobs of the shared cache: which of them are ours, and how they are removed.
//!
//! A snapshot holds links to blobs, and several links may lead to one blob. So links are removed first, and a blob only
//! if no link leads to it any more. The ledger says which blobs hubllama downloaded.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::hub::{
    HubError,
    cache::{self, CachedModel, RepoFolder},
    ledger::Ledger,
};

/// Removes links, and the blobs that only they led to; returns the bytes of the removed blobs.
pub(super) fn release(folder: &RepoFolder, ledger: &Ledger, links: &[PathBuf]) -> Result<u64, HubError> {
    let blobs = unlink(folder, links).map_err(|error| HubError::io("delete from", &folder.path, &error))?;
    remove_unreferenced(folder, ledger, &blobs.into_iter().collect())
}

/// Removes those of the given blobs that no snapshot links to any more, and the repository's folder if it is empty
/// then; returns the bytes of the removed blobs.
pub(super) fn remove_unreferenced(
    folder: &RepoFolder,
    ledger: &Ledger,
    blobs: &HashSet<PathBuf>,
) -> Result<u64, HubError> {
    let io_error = |error: io::Error| HubError::io("delete from", &folder.path, &error);
    let still_used = referenced(folder).map_err(io_error)?;
    let mut bytes_freed = 0;
    for blob in blobs.difference(&still_used) {
        // A blob may itself be a link into a store that repositories share: only the link is ours.
        bytes_freed += fs::symlink_metadata(blob).map_err(io_error)?.len();
        fs::remove_file(blob).map_err(io_error)?;
        ledger.forget(blob)?;
    }
    remove_if_bare(&folder.path);
    Ok(bytes_freed)
}

/// Returns true if hubllama downloaded every file of a model, or converted it. A conversion is ours whoever downloaded
/// its checkpoint.
pub(super) fn is_owned(ledger: &Ledger, model: &CachedModel) -> bool {
    let folder = RepoFolder::new(&model.root, &model.org, &model.repo);
    !model.sources.is_empty() || model.files.iter().all(|link| is_ours(ledger, &folder, link))
}

/// Returns true if hubllama downloaded the file that a link of a snapshot leads to.
pub(super) fn is_ours(ledger: &Ledger, folder: &RepoFolder, link: &Path) -> bool {
    cache::blob_of(folder, link).is_some_and(|blob| ledger.owns(&blob))
}

/// Removes links, and the folders below `snapshots` that became empty; returns the blobs that the links led to.
pub(super) fn unlink(folder: &RepoFolder, links: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut blobs = Vec::new();
    for link in links {
        blobs.extend(cache::blob_of(folder, link));
        fs::remove_file(link)?;
        remove_empty_folders(link, "snapshots");
    }
    Ok(blobs)
}

/// Removes the parent folders of a removed file that are empty, up to the one named `below`, which stays. Does nothing
/// for a path outside of such a folder.
pub(super) fn remove_empty_folders(gone: &Path, below: &str) {
    let parents = gone.ancestors().skip(1).take_while(|parent| !parent.ends_with(below));
    if gone.ancestors().any(|parent| parent.ends_with(below)) {
        for emptied in parents {
            // The usual error is that the folder is not empty.
            if fs::remove_dir(emptied).is_err() {
                break;
            }
        }
    }
}

/// Returns every blob that a snapshot of the repository links to.
pub(super) fn referenced(folder: &RepoFolder) -> io::Result<HashSet<PathBuf>> {
    referenced_except(folder, &[])
}

/// Returns every blob that a snapshot of the repository links to, as if `links` did not exist.
pub(super) fn referenced_except(folder: &RepoFolder, links: &[PathBuf]) -> io::Result<HashSet<PathBuf>> {
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

/// Removes the folder of a repository without snapshots and blobs, and its references with it. A blob without a link
/// keeps the folder: it may belong to a pull in progress.
fn remove_if_bare(folder: &Path) {
    let is_empty = |part: &str| fs::read_dir(folder.join(part)).map_or(true, |mut entries| entries.next().is_none());
    if is_empty("snapshots") && is_empty("blobs") {
        // Best effort: an empty folder that stays is harmless, and another program may be filling it right now.
        let _ = fs::remove_dir_all(folder.join("refs"));
        let _ = fs::remove_dir(folder.join("snapshots"));
        let _ = fs::remove_dir(folder.join("blobs"));
        let _ = fs::remove_dir(folder);
    }
}
