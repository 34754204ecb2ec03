//! Adopting content from the caches of other users: a blob that one of them has is linked instead of downloaded.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use super::{
    cache::RepoFolder, download::is_present, error::HubError, ledger::Ledger, name::split_repo_id, partial::BlobLock,
    target::BlobTarget,
};
use crate::stdx::fs::symlink_atomic;

/// Makes the blob of a target a link to the same blob in one of the read-only caches, if one of them has it.
///
/// The content is not hashed again: a blob is named by the hash that the program which downloaded it has verified. The
/// link, not the content, is recorded as ours.
///
/// # Errors
/// If the link or the ledger cannot be written.
pub(crate) fn adopt(target: &BlobTarget, extra_caches: &[PathBuf], ledger: &Ledger) -> Result<(), HubError> {
    if is_present(&target.blob, target.size) {
        return Ok(());
    }
    let Some(found) = find(target, extra_caches) else {
        return Ok(());
    };
    // The holder of the lock is downloading the content.
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

/// Finds a complete, readable blob. Returns its real path: blobs of a read-only cache may be links themselves.
fn find(target: &BlobTarget, extra_caches: &[PathBuf]) -> Option<PathBuf> {
    let (org, repo) = split_repo_id(&target.repo)?;
    let folders = extra_caches.iter().filter_map(|root| RepoFolder::find(root, org, repo));
    let mut blobs = folders.map(|folder| folder.blob(&target.etag));
    let found = blobs.find(|blob| is_present(blob, target.size) && File::open(blob).is_ok())?;
    fs::canonicalize(found).ok()
}
