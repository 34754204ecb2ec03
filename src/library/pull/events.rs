//! Progress events of a pull, in the form that Ollama's clients expect.

use std::{fs, path::PathBuf};

use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep_until},
};

use crate::{
    convert::ConversionProgress,
    hub::{
        HubError, cache,
        download::SharedDownload,
        target::{BlobTarget, DownloadState},
    },
    inference::PullEvent,
    library::{blocking, error::LibraryError},
    stdx::hex,
};

/// Time between two progress events of a file, the same as Ollama's.
pub(super) const EVENT_INTERVAL: Duration = Duration::from_millis(60);

/// Pull events: the sending half of the progress stream of one pull.
pub(super) struct PullEvents(mpsc::Sender<Result<PullEvent, LibraryError>>);

impl PullEvents {
    pub(super) fn new(sender: mpsc::Sender<Result<PullEvent, LibraryError>>) -> Self {
        Self(sender)
    }

    /// Reports the begin of a step.
    pub(super) async fn status(&self, status: &'static str) -> Result<(), LibraryError> {
        self.send(PullEvent::Status(status)).await
    }

    pub(super) async fn converting(&self, digest: &str, advance: ConversionProgress) -> Result<(), LibraryError> {
        self.send(PullEvent::Converting {
            digest: digest.to_owned(),
            total: advance.total,
            completed: advance.done,
        })
        .await
    }

    /// Reports files that are complete on disk.
    pub(super) async fn complete_files(&self, paths: &[PathBuf]) -> Result<(), LibraryError> {
        for path in paths {
            let path = path.clone();
            let (digest, size) = blocking(move || {
                let meta = fs::metadata(&path).map_err(|error| HubError::io("read", &path, &error))?;
                let etag = cache::blob_name(&path);
                Ok((
                    event_digest(&etag.unwrap_or_else(|| path.display().to_string())),
                    meta.len(),
                ))
            })
            .await?;
            self.complete_file(&digest, size).await?;
        }
        Ok(())
    }

    /// Reports a download until its last byte has arrived.
    ///
    /// # Errors
    /// If the download fails, or nobody reads the events any more.
    pub(super) async fn follow(&self, download: &SharedDownload, target: &BlobTarget) -> Result<(), LibraryError> {
        let digest = event_digest(&target.etag);
        let mut state = download.watch();
        self.file(&digest, target.size, 0).await?;
        let mut shown = 0;
        loop {
            let next = Instant::now() + EVENT_INTERVAL;
            let completed = match &*state.borrow_and_update() {
                DownloadState::Fetching { completed } => Ok(*completed),
                DownloadState::Verifying | DownloadState::Done(Ok(())) => Err(None),
                DownloadState::Done(Err(error)) => Err(Some(error.clone())),
            };
            match completed {
                Ok(completed) if completed != shown && completed < target.size => {
                    self.file(&digest, target.size, completed).await?;
                    shown = completed;
                }
                Ok(_) => {}
                Err(None) => return self.file(&digest, target.size, target.size).await,
                Err(Some(error)) => return Err(error.into()),
            }
            sleep_until(next).await;
            // The sender may be dropped right after its last state, which has to be read first.
            if state.changed().await.is_err() && !matches!(*state.borrow(), DownloadState::Done(_)) {
                return Err(HubError::Cancelled.into());
            }
        }
    }

    /// Reports a file that is complete. Clients draw a bar only for a file that they have seen at zero.
    pub(super) async fn complete_file(&self, digest: &str, size: u64) -> Result<(), LibraryError> {
        self.file(digest, size, 0).await?;
        self.file(digest, size, size).await
    }

    async fn file(&self, digest: &str, total: u64, completed: u64) -> Result<(), LibraryError> {
        self.send(PullEvent::File {
            digest: digest.to_owned(),
            total,
            completed,
        })
        .await
    }

    async fn send(&self, event: PullEvent) -> Result<(), LibraryError> {
        self.0.send(Ok(event)).await.map_err(|_| HubError::Cancelled.into())
    }
}

/// Returns 64 hex digits that stand for a file: its sha256 if the ETag is one. Small files have only git's sha1, and
/// clients tell files apart by this text alone, so it is hashed to the same length.
pub(super) fn event_digest(etag: &str) -> String {
    if hex::is_hex(etag, 64) {
        etag.to_owned()
    } else {
        hex::encode(Sha256::digest(etag))
    }
}
