//! Downloads of blobs into the cache.
//!
//! [`BlobDownloads`] gives everyone who wants the same blob the same [`SharedDownload`]. A download takes the blob's
//! lock, resumes the partial file that an earlier one left, fetches what is missing (`fetch`), and gives the file its
//! name in the cache once its hash is right.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use dashmap::{DashMap, Entry};
use tokio::{sync::watch, task::AbortHandle, time::Instant};

use super::{
    client::HubClient,
    disk,
    error::HubError,
    fetch::FileFetch,
    ledger::Ledger,
    partial::{BlobLock, PartialBlob},
    target::{BlobTarget, DownloadState},
    tasks::blocking,
};

/// Time between two tries to take a lock that another process holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);
/// Lower limit of the time without a new byte after which the holder of a lock counts as hung. It is long because the
/// holder may be hashing or syncing a large file.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);

/// Download in progress. It ends when the last of its holders drops it.
#[derive(Debug)]
pub(crate) struct SharedDownload {
    state: watch::Receiver<DownloadState>,
    task: AbortHandle,
}

/// Downloads in progress, by the path of the blob.
#[derive(Debug, Default)]
pub(crate) struct BlobDownloads(DashMap<PathBuf, Weak<SharedDownload>>);

impl BlobDownloads {
    /// Joins the download of a blob, or starts it. A complete download is noted in the ledger.
    pub(crate) fn join(&self, client: &HubClient, target: &BlobTarget, ledger: &Arc<Ledger>) -> Arc<SharedDownload> {
        self.0.retain(|_, download| download.strong_count() > 0);
        let start = || {
            Arc::new(SharedDownload::start(
                client.clone(),
                target.clone(),
                Arc::clone(ledger),
            ))
        };
        // The entry is locked from the look to the insertion, so that two callers never start two downloads of one
        // blob.
        match self.0.entry(target.blob.clone()) {
            Entry::Vacant(entry) => {
                let download = start();
                entry.insert(Arc::downgrade(&download));
                download
            }
            Entry::Occupied(mut entry) => match entry.get().upgrade().filter(|download| !download.is_done()) {
                Some(download) => download,
                None => {
                    let download = start();
                    entry.insert(Arc::downgrade(&download));
                    download
                }
            },
        }
    }
}

impl SharedDownload {
    fn start(client: HubClient, target: BlobTarget, ledger: Arc<Ledger>) -> Self {
        let (sender, state) = watch::channel(DownloadState::Fetching { completed: 0 });
        let task = tokio::spawn(async move {
            let result = run(&client, &target, &ledger, &sender).await;
            sender.send_replace(DownloadState::Done(result));
        });
        Self {
            state,
            task: task.abort_handle(),
        }
    }

    /// Returns a view of the state. A view that ends without `Done` means that the download was cancelled.
    pub(crate) fn watch(&self) -> watch::Receiver<DownloadState> {
        self.state.clone()
    }

    /// Waits for the end of the download.
    pub(crate) async fn done(&self) -> Result<(), HubError> {
        let mut state = self.state.clone();
        match state
            .wait_for(|state| matches!(state, DownloadState::Done(_)))
            .await
            .as_deref()
        {
            Ok(DownloadState::Done(result)) => result.clone(),
            _ => Err(HubError::Cancelled),
        }
    }

    fn is_done(&self) -> bool {
        matches!(*self.state.borrow(), DownloadState::Done(_))
    }
}

impl Drop for SharedDownload {
    fn drop(&mut self) {
        // What has arrived stays on disk for the next pull.
        self.task.abort();
    }
}

/// True when the blob is in the cache. Size is enough: the content was verified before it got its name.
pub(crate) fn is_present(blob: &Path, size: u64) -> bool {
    fs::metadata(blob).is_ok_and(|meta| meta.is_file() && meta.len() == size)
}

async fn run(
    client: &HubClient,
    target: &BlobTarget,
    ledger: &Arc<Ledger>,
    state: &watch::Sender<DownloadState>,
) -> Result<(), HubError> {
    let patience = LOCK_PATIENCE.max(client.config().stall_timeout * 10);
    let Some(lock) = take_lock(target, state, patience).await? else {
        return Ok(());
    };
    let opened = {
        let target = target.clone();
        blocking(move || PartialBlob::open(&target.blob, target.size, lock)).await?
    };
    let partial = Arc::new(opened);
    disk::check_space(&target.path, &target.blob, target.size - partial.completed())?;
    // Work on the blocking pool cannot be aborted. It is told when this download ends, in whichever way.
    let _guard = GiveUpOnDrop(Arc::clone(&partial));
    let (hashed, kept) = (Arc::clone(&partial), Arc::clone(&partial));
    let digits = target.etag.len();
    let hash = tokio::task::spawn_blocking(move || hashed.hash(digits));
    let keeper = tokio::task::spawn_blocking(move || kept.keep());
    FileFetch::new(client, target, Arc::clone(&partial), state)
        .run()
        .await?;
    state.send_replace(DownloadState::Verifying);
    let actual = hash.await.unwrap_or(Err(HubError::Cancelled))?;
    if keeper.is_finished() {
        // It ends before the download only with an error of the disk.
        keeper.await.unwrap_or(Err(HubError::Cancelled))?;
    }
    let (target, ledger) = (target.clone(), Arc::clone(ledger));
    blocking(move || {
        if actual == target.etag {
            partial.finish()?;
            return ledger.add(target.blob);
        }
        partial.discard()?;
        Err(HubError::HashMismatch {
            path: target.path,
            expected: target.etag,
            actual,
        })
    })
    .await
}

/// Waits for the lock on the blob. `None` if the blob is in the cache, perhaps because another process has just
/// completed it.
///
/// # Errors
/// [`HubError::Locked`] if the holder of the lock downloads nothing for `patience`.
async fn take_lock(
    target: &BlobTarget,
    state: &watch::Sender<DownloadState>,
    patience: Duration,
) -> Result<Option<BlobLock>, HubError> {
    let mut seen = (0, Instant::now());
    loop {
        let BlobTarget { blob, lock, size, .. } = target.clone();
        let (is_there, taken, elsewhere) = blocking(move || {
            let taken = BlobLock::try_take(&lock)?;
            let elsewhere = if taken.is_some() {
                0
            } else {
                PartialBlob::peek_any(&blob, size)
            };
            Ok((is_present(&blob, size), taken, elsewhere))
        })
        .await?;
        if is_there {
            return Ok(None);
        }
        if taken.is_some() {
            return Ok(taken);
        }
        if elsewhere != seen.0 {
            seen = (elsewhere, Instant::now());
            state.send_replace(DownloadState::Fetching { completed: elsewhere });
        } else if seen.1.elapsed() >= patience {
            return Err(HubError::Locked {
                path: target.path.clone(),
                lock: target.lock.display().to_string(),
            });
        }
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
}

/// Guard that ends the work on the blocking pool together with the download.
struct GiveUpOnDrop(Arc<PartialBlob>);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(folder: &Path) -> BlobTarget {
        BlobTarget {
            repo: "o/r".into(),
            commit: "1".repeat(40),
            path: "m.gguf".into(),
            size: 10,
            etag: "a".repeat(64),
            blob: folder.join("blob"),
            lock: folder.join("lock"),
        }
    }

    #[tokio::test]
    async fn waiting_for_a_lock_shows_progress_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path());
        let (state, watch) = watch::channel(DownloadState::Fetching { completed: 0 });
        let held = BlobLock::try_take(&target.lock).unwrap().expect("it is free");
        // The name of a partial file of Python's client.
        fs::write(folder.path().join("blob.0123abcd.incomplete"), "1234").unwrap();
        let error = take_lock(&target, &state, Duration::from_millis(300)).await.err();
        assert!(matches!(error, Some(HubError::Locked { .. })), "{error:?}");
        assert!(matches!(*watch.borrow(), DownloadState::Fetching { completed: 4 }));
        drop(held);
        let taken = take_lock(&target, &state, Duration::ZERO).await.unwrap();
        assert!(taken.is_some());
        // The former holder has completed the blob.
        fs::write(&target.blob, "0123456789").unwrap();
        let taken = take_lock(&target, &state, Duration::ZERO).await.unwrap();
        assert!(taken.is_none());
    }
}
