//! Transfer of one file: its client, its target, its partial file and its progress.
//!
//! Both ways to download a file, ranges over plain HTTP (`fetch`) and the xet protocol (`xet`), are built on
//! [`BlobTransfer`].

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    client::{FileLocation, HubClient, RequestSubject},
    error::HubError,
    partial::PartialBlob,
    target::{BlobTarget, DownloadState},
};

/// Bytes that are gathered before they are written. Times the connections, this is the memory of a download.
pub(super) const WRITE_BYTES: usize = 1 << 20;
/// Bytes after which a try counts as progress and the retries start over.
pub(super) const PROGRESS_BYTES: u64 = 64 << 10;

/// Download of one file into its partial file.
pub(super) struct BlobTransfer<'a> {
    pub(super) client: &'a HubClient,
    pub(super) target: &'a BlobTarget,
    pub(super) partial: Arc<PartialBlob>,
    pub(super) state: &'a watch::Sender<DownloadState>,
}

impl BlobTransfer<'_> {
    /// Reports the number of bytes on disk.
    pub(super) fn report(&self, completed: u64) {
        // Ranges finish their writes in any order, so a smaller number is an older one. Zero means that the file starts
        // over.
        self.state.send_if_modified(|state| match state {
            DownloadState::Fetching { completed: shown }
                if *shown != completed && (completed > *shown || completed == 0) =>
            {
                *shown = completed;
                true
            }
            _ => false,
        });
    }

    /// Asks for the location of the file, and checks that it is the file of the listing.
    pub(super) async fn locate(&self) -> Result<FileLocation, HubError> {
        let found = self.client.locate(&self.about()).await?;
        let BlobTarget { size, etag, path, .. } = self.target;
        if found.size.is_some_and(|announced| announced != *size) {
            return Err(self
                .client
                .protocol(&found.url, "its listing and its file differ in size"));
        }
        match found.etag {
            Some(announced) if announced.len() == etag.len() && announced != *etag => Err(HubError::HashMismatch {
                path: path.clone(),
                expected: etag.clone(),
                actual: announced,
            }),
            _ => Ok(found),
        }
    }

    pub(super) fn about(&self) -> RequestSubject<'_> {
        RequestSubject {
            repo: &self.target.repo,
            revision: &self.target.commit,
            path: &self.target.path,
        }
    }

    pub(super) fn interrupted(&self, reason: &str) -> HubError {
        HubError::Interrupted {
            path: self.target.path.clone(),
            reason: reason.to_owned(),
        }
    }
}
