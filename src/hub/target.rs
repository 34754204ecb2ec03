//! Target and progress of the download of one blob, shared by `download`, which owns it, and `fetch` and `xet`, which
//! fill it.

use std::path::PathBuf;

use super::error::HubError;

/// Blob to download: one file of one commit, and its place in the cache.
#[derive(Clone, Debug)]
pub(crate) struct BlobTarget {
    /// `ORG/REPO`.
    pub(crate) repo: String,
    pub(crate) commit: String,
    /// Path in the repository.
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Hash of the content in hex digits (sha256, or git's sha1 of a small file); also the blob's name.
    pub(crate) etag: String,
    pub(crate) blob: PathBuf,
    /// Lock file of the blob, which huggingface_hub takes as well.
    pub(crate) lock: PathBuf,
}

/// Progress of a download.
#[derive(Clone, Debug)]
pub(crate) enum DownloadState {
    /// Waiting for the lock, or bytes are arriving.
    Fetching {
        /// Bytes on disk.
        completed: u64,
    },
    /// All bytes are on disk and are being hashed.
    Verifying,
    /// The download is over. With `Ok` the blob is in the cache.
    Done(Result<(), HubError>),
}
