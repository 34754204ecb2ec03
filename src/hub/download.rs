//! Brings one blob into the cache: once, however many ask for it, resuming what an earlier try left, and verified before
//! anybody can open it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{sync::watch, task::AbortHandle, time::Instant};

use super::{
    client::Client,
    disk,
    error::HubError,
    fetch::Fetch,
    ledger::Ledger,
    partial::{BlobLock, Partial},
};
use crate::stdx::{self, sync::lock};

/// Time between two looks at a lock that another process holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);
/// Time without a new byte after which who holds a lock is thought to hang, at least: it may be hashing or syncing.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);

/// What is to be brought, and where to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// `ORG/REPO`.
    pub(crate) repo: String,
    pub(crate) commit: String,
    /// Path in the repository.
    pub(crate) path: String,
    pub(crate) size: u64,
    /// sha256 of the content or git's sha1 of it; also the blob's name.
    pub(crate) etag: String,
    pub(crate) blob: PathBuf,
    pub(crate) lock: PathBuf,
}

/// How far a download is.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// Waiting, or bytes are coming.
    Fetching {
        /// Bytes on disk.
        completed: u64,
    },
    /// All bytes are there and are being hashed.
    Verifying,
    /// It is over; the blob is there, or it is not.
    Done(Result<(), HubError>),
}

/// A download that is under way. It ends when the last of those who wait for it lets go.
#[derive(Debug)]
pub(crate) struct Flight {
    state: watch::Receiver<State>,
    task: AbortHandle,
}

/// Downloads under way, by blob.
#[derive(Debug, Default)]
pub(crate) struct Downloads(Mutex<HashMap<PathBuf, Weak<Flight>>>);

impl Downloads {
    /// Joins the download of a blob, or starts it. The ledger hears of it when it is complete.
    pub(crate) fn join(&self, client: &Client, target: &Target, ledger: &Arc<Ledger>) -> Arc<Flight> {
        let mut flights = lock(&self.0);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights
            .get(&target.blob)
            .and_then(Weak::upgrade)
            .filter(|flight| !flight.is_done())
        {
            return flight;
        }
        let flight = Arc::new(Flight::start(client.clone(), target.clone(), Arc::clone(ledger)));
        flights.insert(target.blob.clone(), Arc::downgrade(&flight));
        flight
    }
}

impl Flight {
    fn start(client: Client, target: Target, ledger: Arc<Ledger>) -> Self {
        let (sender, state) = watch::channel(State::Fetching { completed: 0 });
        let task = tokio::spawn(async move {
            let result = run(&client, &target, &ledger, &sender).await;
            sender.send_replace(State::Done(result));
        });
        Self {
            state,
            task: task.abort_handle(),
        }
    }

    /// A view of the state; it ends if the download was torn down, which counts as cancelled.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits for the end.
    pub(crate) async fn done(&self) -> Result<(), HubError> {
        let mut state = self.state.clone();
        match state.wait_for(|state| matches!(state, State::Done(_))).await.as_deref() {
            Ok(State::Done(result)) => result.clone(),
            _ => Err(HubError::Cancelled),
        }
    }

    fn is_done(&self) -> bool {
        matches!(*self.state.borrow(), State::Done(_))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // What has arrived stays on disk for the next pull.
        self.task.abort();
    }
}

/// Whether the blob is there and whole. Its content was verified before it got its name.
pub(crate) fn is_present(blob: &Path, size: u64) -> bool {
    fs::metadata(blob).is_ok_and(|meta| meta.is_file() && meta.len() == size)
}

async fn run(
    client: &Client,
    target: &Target,
    ledger: &Arc<Ledger>,
    state: &watch::Sender<State>,
) -> Result<(), HubError> {
    let patience = LOCK_PATIENCE.max(client.config().stall_timeout * 10);
    let Some(lock) = take_lock(target, state, patience).await? else {
        return Ok(());
    };
    let opened = {
        let target = target.clone();
        blocking(move || Partial::open(&target.blob, target.size, lock)).await?
    };
    let partial = Arc::new(opened);
    disk::check_space(&target.path, &target.blob, target.size - partial.completed())?;
    // Work on the blocking pool cannot be aborted: it is told when this download ends, however it ends.
    let _guard = GiveUpOnDrop(Arc::clone(&partial));
    let (hashed, kept) = (Arc::clone(&partial), Arc::clone(&partial));
    let digits = target.etag.len();
    let hash = tokio::task::spawn_blocking(move || hashed.hash(digits));
    let keeper = tokio::task::spawn_blocking(move || kept.keep());
    Fetch::new(client, target, Arc::clone(&partial), state).run().await?;
    state.send_replace(State::Verifying);
    let actual = hash.await.unwrap_or(Err(HubError::Cancelled))?;
    if keeper.is_finished() {
        // It ends before the download only where the disk refuses.
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

/// Waits for the lock on the blob; `None` if the blob is there, perhaps because another process has just made it.
async fn take_lock(
    target: &Target,
    state: &watch::Sender<State>,
    patience: Duration,
) -> Result<Option<BlobLock>, HubError> {
    let mut seen = (0, Instant::now());
    loop {
        let Target { blob, lock, size, .. } = target.clone();
        let (is_there, taken, elsewhere) = blocking(move || {
            let taken = BlobLock::try_take(&lock)?;
            let elsewhere = if taken.is_some() {
                0
            } else {
                Partial::peek_any(&blob, size)
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
            state.send_replace(State::Fetching { completed: elsewhere });
        } else if seen.1.elapsed() >= patience {
            return Err(HubError::Locked {
                path: target.path.clone(),
                lock: target.lock.display().to_string(),
            });
        }
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
}

/// Ends what works along with a download.
struct GiveUpOnDrop(Arc<Partial>);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    stdx::task::blocking(work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(folder: &Path) -> Target {
        Target {
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
    async fn who_waits_for_a_lock_sees_progress_and_does_not_wait_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path());
        let (state, watch) = watch::channel(State::Fetching { completed: 0 });
        let held = BlobLock::try_take(&target.lock).unwrap().expect("it is free");
        // As Python's client names what it has so far.
        fs::write(folder.path().join("blob.0123abcd.incomplete"), "1234").unwrap();
        let error = take_lock(&target, &state, Duration::from_millis(300)).await.err();
        assert!(matches!(error, Some(HubError::Locked { .. })), "{error:?}");
        assert!(matches!(*watch.borrow(), State::Fetching { completed: 4 }));
        drop(held);
        let taken = take_lock(&target, &state, Duration::ZERO).await.unwrap();
        assert!(taken.is_some());
        // The one that held it has made the blob.
        fs::write(&target.blob, "0123456789").unwrap();
        let taken = take_lock(&target, &state, Duration::ZERO).await.unwrap();
        assert!(taken.is_none());
    }
}
