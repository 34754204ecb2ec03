//! Brings one blob into the cache: once, however many ask for it, resuming what an earlier try left, and verified before
//! anybody can open it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};
use tokio::{sync::watch, task::AbortHandle};
use url::Url;

use super::{
    backoff::Backoff,
    client::{About, Client},
    error::HubError,
    ledger::Ledger,
    partial::{BlobLock, Partial},
};

/// Bytes of one ranged request, at least: below, requests cost more than they gain.
const MIN_PIECE_BYTES: u64 = 1 << 20;
/// Bytes of one ranged request, at most: above, a late failure of one leaves the other connections idle.
const MAX_PIECE_BYTES: u64 = 32 << 20;
/// Bytes that are gathered before they are written; times the connections, this is the memory of a download.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes after which a try counts as one that got somewhere.
const PROGRESS_BYTES: u64 = 64 << 10;
/// Bytes that are left free on the disk.
const SPARE_BYTES: u64 = 64 << 20;
/// Time between two looks at a lock that another process holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

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
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    let Some(lock) = take_lock(target, state).await? else {
        return Ok(());
    };
    let opened = {
        let target = target.clone();
        blocking(move || Partial::open(&target.blob, target.size, lock)).await?
    };
    let partial = Arc::new(opened);
    check_space(target, target.size - partial.completed())?;
    let fetch = Fetch {
        client,
        target,
        partial,
        state,
        location: tokio::sync::Mutex::new(None),
    };
    fetch.run().await?;
    state.send_replace(State::Verifying);
    verify(target, fetch.partial, Arc::clone(ledger)).await
}

/// Waits for the lock on the blob; `None` if the blob is there, perhaps because another process has just made it.
async fn take_lock(target: &Target, state: &watch::Sender<State>) -> Result<Option<BlobLock>, HubError> {
    loop {
        let Target { blob, lock, size, .. } = target.clone();
        let (is_there, taken, elsewhere) = blocking(move || {
            let taken = BlobLock::try_take(&lock)?;
            Ok((is_present(&blob, size), taken, Partial::peek(&blob, size)))
        })
        .await?;
        if is_there {
            return Ok(None);
        }
        if taken.is_some() {
            return Ok(taken);
        }
        state.send_replace(State::Fetching { completed: elsewhere });
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
}

fn check_space(target: &Target, needed: u64) -> Result<(), HubError> {
    let folder = target.blob.parent().unwrap_or(&target.blob);
    let Ok(stat) = rustix::fs::statvfs(folder) else {
        // A file system that cannot tell is not a reason to refuse.
        return Ok(());
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if needed == 0 || free >= needed.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(HubError::DiskFull {
        path: target.path.clone(),
        folder: folder.display().to_string(),
        needed,
        free,
    })
}

async fn verify(target: &Target, partial: Arc<Partial>, ledger: Arc<Ledger>) -> Result<(), HubError> {
    let given_up = Arc::new(AtomicBool::new(false));
    let _guard = SetOnDrop(Arc::clone(&given_up));
    let Target { etag, path, blob, .. } = target.clone();
    blocking(move || {
        let actual = partial.hash(etag.len(), || given_up.load(Ordering::Relaxed))?;
        if actual == etag {
            partial.finish()?;
            return ledger.add(blob);
        }
        partial.discard()?;
        Err(HubError::HashMismatch {
            path,
            expected: etag,
            actual,
        })
    })
    .await
}

/// Tells work on the blocking pool, which cannot be aborted, that nobody waits for it.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Everything that the ranges of one file share.
struct Fetch<'a> {
    client: &'a Client,
    target: &'a Target,
    partial: Arc<Partial>,
    state: &'a watch::Sender<State>,
    /// Link to the content, renewed when it expires.
    location: tokio::sync::Mutex<Option<Url>>,
}

/// Why a try ended.
enum Trouble {
    /// The server sends the whole file whatever is asked for.
    NoRanges(Response),
    /// The link does not hold any more; asking the Hub again gives a new one, or the true reason.
    LinkExpired(Url, HubError),
    Failed(HubError),
}

impl From<HubError> for Trouble {
    fn from(error: HubError) -> Self {
        Self::Failed(error)
    }
}

impl Fetch<'_> {
    async fn run(&self) -> Result<(), HubError> {
        self.report(self.partial.completed());
        let mut pieces = pieces(
            &self.partial.missing(),
            self.target.size,
            self.client.config().parallel_ranges,
        );
        let Some(first) = pieces.pop() else { return Ok(()) };
        // Only an answer tells whether ranges work; one connection asks before the others start.
        let mut backoff = self.client.backoff();
        let opened = loop {
            match self.open(Some(first)).await {
                Ok(response) => break response,
                Err(Trouble::NoRanges(response)) => return self.whole(response).await,
                Err(trouble) => self.recover(trouble, &mut backoff).await?,
            }
        };
        let pieces: Vec<_> = pieces.into_iter().map(|piece| (piece, None)).collect();
        let in_order = pieces.into_iter().rev();
        let mut transfers = stream::iter([(first, Some(opened))].into_iter().chain(in_order))
            .map(|(piece, response)| self.piece(piece, response))
            .buffer_unordered(self.client.config().parallel_ranges.max(1));
        while let Some(()) = transfers.try_next().await? {}
        Ok(())
    }

    /// Fetches one range, over as many tries as make progress.
    async fn piece(&self, (start, end): (u64, u64), mut opened: Option<Response>) -> Result<(), HubError> {
        let mut backoff = self.client.backoff();
        let mut at = start;
        while at < end {
            let before = at;
            let result = match opened.take() {
                Some(response) => Ok(response),
                None => self.open(Some((at, end))).await,
            };
            let trouble = match result {
                Ok(response) => match self.copy(response, &mut at, end).await {
                    Ok(()) => continue,
                    Err(error) => Trouble::Failed(error),
                },
                // It honoured ranges before; another of its servers may again.
                Err(Trouble::NoRanges(_)) => Trouble::Failed(self.interrupted("the server ignored a range")),
                Err(trouble) => trouble,
            };
            if at - before >= PROGRESS_BYTES {
                backoff.reset();
            }
            self.recover(trouble, &mut backoff).await?;
        }
        Ok(())
    }

    /// Fetches the whole file in one go; a try that breaks off cannot be resumed.
    async fn whole(&self, response: Response) -> Result<(), HubError> {
        let mut backoff = self.client.backoff();
        let mut opened = Some(response);
        loop {
            let result = match opened.take() {
                Some(response) => Ok(response),
                None => self.open(None).await,
            };
            let trouble = match result {
                Ok(response) => {
                    let partial = Arc::clone(&self.partial);
                    blocking(move || partial.clear()).await?;
                    self.report(0);
                    match self.copy(response, &mut 0, self.target.size).await {
                        Ok(()) => return Ok(()),
                        Err(error) => Trouble::Failed(error),
                    }
                }
                Err(trouble) => trouble,
            };
            self.recover(trouble, &mut backoff).await?;
        }
    }

    /// Waits before another try, with a new link where the old one expired.
    async fn recover(&self, trouble: Trouble, backoff: &mut Backoff) -> Result<(), HubError> {
        match trouble {
            Trouble::Failed(error) => backoff.wait(error).await,
            Trouble::NoRanges(_) => {
                backoff
                    .wait(self.interrupted("the server changed its mind about ranges"))
                    .await
            }
            Trouble::LinkExpired(stale, error) => {
                self.renew(&stale).await?;
                backoff.wait_anyway(error).await
            }
        }
    }

    /// One request whose answer is what was asked for.
    async fn open(&self, range: Option<(u64, u64)>) -> Result<Response, Trouble> {
        let url = self.link().await?;
        let response = self.client.get(&url, range).await?;
        match (response.status(), range) {
            (StatusCode::PARTIAL_CONTENT, Some((start, _))) => {
                if content_range(&response) == Some((start, self.target.size)) {
                    return Ok(response);
                }
                Err(self
                    .client
                    .protocol(&url, "it sent another range than was asked for")
                    .into())
            }
            (StatusCode::OK, None) => Ok(response),
            (StatusCode::OK, Some(_)) => Err(Trouble::NoRanges(response)),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::GONE, _) => {
                let error = self.client.refusal(response, &self.about()).await;
                Err(Trouble::LinkExpired(url, error))
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => Err(self
                .client
                .protocol(&url, "its file is shorter than its listing says")
                .into()),
            _ => Err(self.client.refusal(response, &self.about()).await.into()),
        }
    }

    /// Writes a body to `at..end`, moving `at` along.
    async fn copy(&self, mut response: Response, at: &mut u64, end: u64) -> Result<(), HubError> {
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        loop {
            let received = self.client.chunk(&mut response).await;
            let is_over = !matches!(received, Ok(Some(_)));
            if let Ok(Some(chunk)) = &received {
                buffer.extend_from_slice(chunk);
            }
            if *at + buffer.len() as u64 > end {
                return Err(self.client.protocol(response.url(), "it sent more than was asked for"));
            }
            // What arrived before an error is kept.
            if buffer.len() >= WRITE_BYTES || (is_over && !buffer.is_empty()) {
                let length = buffer.len() as u64;
                buffer = self.write(*at, buffer).await?;
                *at += length;
            }
            match received {
                Ok(Some(_)) => {}
                Ok(None) if *at == end => return Ok(()),
                Ok(None) => return Err(self.interrupted("the server sent less than it promised")),
                Err(HubError::Interrupted { reason, .. }) => return Err(self.interrupted(&reason)),
                Err(error) => return Err(error),
            }
        }
    }

    async fn write(&self, offset: u64, mut bytes: Vec<u8>) -> Result<Vec<u8>, HubError> {
        let partial = Arc::clone(&self.partial);
        let (bytes, completed) = blocking(move || {
            let completed = partial.write(offset, &bytes)?;
            bytes.clear();
            Ok((bytes, completed))
        })
        .await?;
        self.report(completed);
        Ok(bytes)
    }

    fn report(&self, completed: u64) {
        // Ranges finish their writes in any order.
        self.state.send_if_modified(|state| match state {
            State::Fetching { completed: shown } if *shown != completed && (completed > *shown || completed == 0) => {
                *shown = completed;
                true
            }
            _ => false,
        });
    }

    async fn link(&self) -> Result<Url, HubError> {
        let mut location = self.location.lock().await;
        match &*location {
            Some(url) => Ok(url.clone()),
            None => Ok(location.insert(self.locate().await?).clone()),
        }
    }

    /// Replaces a link, unless another range has done so already.
    async fn renew(&self, stale: &Url) -> Result<(), HubError> {
        let mut location = self.location.lock().await;
        if location.as_ref() == Some(stale) {
            *location = Some(self.locate().await?);
        }
        Ok(())
    }

    async fn locate(&self) -> Result<Url, HubError> {
        let found = self.client.locate(&self.about()).await?;
        let Target { size, etag, path, .. } = self.target;
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
            _ => Ok(found.url),
        }
    }

    fn about(&self) -> About<'_> {
        About {
            repo: &self.target.repo,
            revision: &self.target.commit,
            path: &self.target.path,
        }
    }

    fn interrupted(&self, reason: &str) -> HubError {
        HubError::Interrupted {
            path: self.target.path.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// Cuts what is missing into requests, the last first.
fn pieces(missing: &[(u64, u64)], size: u64, parallel: usize) -> Vec<(u64, u64)> {
    // Four for each connection, so that none is idle for long at the end.
    let length = (size / (4 * parallel.max(1) as u64)).clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES);
    let mut pieces = Vec::new();
    for &(start, end) in missing {
        let mut at = start;
        while at < end {
            let next = end.min(at + length);
            pieces.push((at, next));
            at = next;
        }
    }
    pieces.reverse();
    pieces
}

/// Start and whole size out of `bytes START-END/SIZE`.
fn content_range(response: &Response) -> Option<(u64, u64)> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, size.parse().ok()?))
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    // The pool refuses only while the process ends.
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(HubError::Cancelled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_what_is_missing() {
        const MIB: u64 = 1 << 20;
        assert_eq!(pieces(&[], 10, 8), []);
        assert_eq!(pieces(&[(0, 10)], 10, 8), [(0, 10)]);
        assert_eq!(
            pieces(&[(0, MIB), (2 * MIB, 2 * MIB + 5)], 3 * MIB, 8),
            [(2 * MIB, 2 * MIB + 5), (0, MIB)]
        );
        let many = pieces(&[(0, 1000 * MIB)], 1000 * MIB, 8);
        assert_eq!(many.len(), 32);
        assert_eq!(many.iter().map(|piece| piece.1 - piece.0).sum::<u64>(), 1000 * MIB);
        assert_eq!(pieces(&[(0, 40 * MIB)], 40 * MIB, 0).len(), 4);
    }
}
