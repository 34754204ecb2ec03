//! Content that another user's cache has already: linked into ours instead of downloaded.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use super::{
    cache::RepoFolder, download::is_present, error::HubError, ledger::Ledger, name::split_repo_id, partial::BlobLock,
    target::BlobTarget,
};
use crate::stdx::fs::symlink_atomic;

/// Makes the blob of a target a link to the same blob in one of the caches that are only read, if one has it. The name of a
/// blob is the hash of its content, and whoever put it there has checked that; the link is ours to remove.
pub(crate) fn adopt(target: &BlobTarget, extra_caches: &[PathBuf], ledger: &Ledger) -> Result<(), HubError> {
    if is_present(&target.blob, target.size) {
        return Ok(());
    }
    let Some(found) = find(target, extra_caches) else {
        return Ok(());
    };
    // Who holds the lock brings the content itself.
    let Some(_lock) = BlobLock::try_take(&target.lock)? else {
        return Ok(());
    };
    if let Some(path) = found.to_str() {
        tracing::debug!(path = target.path, %path, "content of another cache is used");
        symlink_atomic(&target.blob, path).map_err(|error| HubError::io("link", &target.blob, &error))?;
        ledger.add(target.blob.clone())?;
    }
    Ok(())
}

/// A whole blob that can be read, by its true path.
fn find(target: &BlobTarget, extra_caches: &[PathBuf]) -> Option<PathBuf> {
    let (org, repo) = split_repo_id(&target.repo)?;
    let folders = extra_caches.iter().filter_map(|root| RepoFolder::find(root, org, repo));
    let mut blobs = folders.map(|folder| folder.blob(&target.etag));
    let found = blobs.find(|blob| is_present(blob, target.size) && File::open(blob).is_ok())?;
    fs::canonicalize(found).ok()
}
