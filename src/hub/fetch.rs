//! The bytes of one file over HTTP: in ranges, several at once, each tried again and from another link where one fails. Or
//! over xet, where that is wanted or needed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};
use tokio::sync::watch;
use url::Url;

use super::{
    backoff::Backoff,
    client::{About, Client, FileLocation},
    download::{State, Target, blocking},
    error::HubError,
    partial::Partial,
    xet::{self, Xet},
};
use crate::config::XetUse;

/// Bytes of one ranged request, at least: below, requests cost more than they gain.
const MIN_PIECE_BYTES: u64 = 1 << 20;
/// Bytes of one ranged request, at most: above, a late failure of one leaves the other connections idle.
const MAX_PIECE_BYTES: u64 = 32 << 20;
/// Bytes that are gathered before they are written; times the connections, this is the memory of a download.
pub(super) const WRITE_BYTES: usize = 1 << 20;
/// The longest that bytes wait for more: what is not written is lost when the download is given up.
pub(super) const WRITE_INTERVAL: Duration = Duration::from_millis(250);
/// Bytes after which a try counts as one that got somewhere.
pub(super) const PROGRESS_BYTES: u64 = 64 << 10;
/// The largest file that the Hub gives over plain HTTP.
const MAX_PLAIN_BYTES: u64 = 50_000_000_000;

/// Everything that the ranges of one file share.
pub(crate) struct Fetch<'a> {
    pub(super) client: &'a Client,
    target: &'a Target,
    pub(super) partial: Arc<Partial>,
    state: &'a watch::Sender<State>,
    /// Where the content is, renewed when the link expires or does not help.
    location: tokio::sync::Mutex<Option<FileLocation>>,
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

impl<'a> Fetch<'a> {
    pub(crate) fn new(
        client: &'a Client,
        target: &'a Target,
        partial: Arc<Partial>,
        state: &'a watch::Sender<State>,
    ) -> Self {
        Self {
            client,
            target,
            partial,
            state,
            location: tokio::sync::Mutex::new(None),
        }
    }

    /// Brings everything that is missing.
    pub(crate) async fn run(&self) -> Result<(), HubError> {
        self.report(self.partial.completed());
        if self.partial.missing().is_empty() || !wants_xet(self.client.config().xet, self.target.size) {
            return self.plain().await;
        }
        let Some(xet) = self.xet().await else {
            return self.plain().await;
        };
        match xet.run().await {
            Err(error) if !xet::is_final(&error) => {
                tracing::warn!(path = self.target.path, %error, "xet does not help; plain HTTP is tried");
                let plain = self.plain().await;
                // That it is too large for plain HTTP is known.
                plain.map_err(|plain| {
                    if wants_xet(XetUse::Auto, self.target.size) {
                        error
                    } else {
                        plain
                    }
                })
            }
            result => result,
        }
    }

    /// The file over xet, if the Hub has it there.
    async fn xet(&self) -> Option<Xet<'_>> {
        // Who cannot be asked now is asked again over plain HTTP, with all its patience.
        let found = self.locate().await.ok()?;
        let hash = found.xet_hash.clone();
        let site = found.site.clone();
        *self.location.lock().await = Some(found);
        Some(Xet::new(self, hash?, site))
    }

    /// The same over plain HTTP.
    async fn plain(&self) -> Result<(), HubError> {
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
                Err(trouble) => {
                    self.forget(&trouble, false).await;
                    self.recover(trouble, &mut backoff).await?;
                }
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
            let got_somewhere = at - before >= PROGRESS_BYTES;
            if got_somewhere {
                backoff.reset();
            }
            self.forget(&trouble, got_somewhere).await;
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
            self.forget(&trouble, false).await;
            self.recover(trouble, &mut backoff).await?;
        }
    }

    /// Lets the next try ask for a new link; where not even a byte came, perhaps at another address.
    async fn forget(&self, trouble: &Trouble, worked: bool) {
        // That a link expires is nobody's fault, and it is renewed in its own way.
        if matches!(trouble, Trouble::LinkExpired(..)) {
            return;
        }
        if let Some(location) = self.location.lock().await.take()
            && !worked
        {
            self.client.blame(&location.site);
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
        let response = self.client.get(&url, range, &self.about()).await?;
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
        let mut pace = self.client.pace();
        let mut written = Instant::now();
        loop {
            let mut received = self.client.content(&mut response).await;
            let length = received
                .as_ref()
                .map_or(0, |chunk| chunk.as_ref().map_or(0, bytes::Bytes::len));
            let is_whole = *at + (buffer.len() + length) as u64 >= end;
            if pace.is_dripping(length) && matches!(received, Ok(Some(_))) && !is_whole {
                received = Err(self.interrupted("the server sends next to nothing"));
            }
            let is_over = !matches!(received, Ok(Some(_)));
            if let Ok(Some(chunk)) = &received {
                buffer.extend_from_slice(chunk);
            }
            if *at + buffer.len() as u64 > end {
                return Err(self.client.protocol(response.url(), "it sent more than was asked for"));
            }
            // What arrived before an error is kept.
            let is_due = buffer.len() >= WRITE_BYTES || is_over || written.elapsed() >= WRITE_INTERVAL;
            if is_due && !buffer.is_empty() {
                let length = buffer.len() as u64;
                buffer = self.write(*at, buffer).await?;
                *at += length;
                written = Instant::now();
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

    pub(super) fn report(&self, completed: u64) {
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
            Some(location) => Ok(location.url.clone()),
            None => Ok(location.insert(self.locate().await?).url.clone()),
        }
    }

    /// Replaces a link, unless another range has done so already.
    async fn renew(&self, stale: &Url) -> Result<(), HubError> {
        let mut location = self.location.lock().await;
        if location.as_ref().is_none_or(|location| location.url == *stale) {
            *location = Some(self.locate().await?);
        }
        Ok(())
    }

    async fn locate(&self) -> Result<FileLocation, HubError> {
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
            _ => Ok(found),
        }
    }

    pub(super) fn about(&self) -> About<'_> {
        About {
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

/// Whether a file of this size is to come over xet.
fn wants_xet(setting: XetUse, size: u64) -> bool {
    match setting {
        XetUse::Off => false,
        XetUse::Auto => size > MAX_PLAIN_BYTES,
        XetUse::Always => true,
    }
}

/// Start and whole size out of `bytes START-END/SIZE`.
pub(super) fn content_range(response: &Response) -> Option<(u64, u64)> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xet_is_for_what_plain_http_cannot_give() {
        assert!(!wants_xet(XetUse::Auto, 50_000_000_000));
        assert!(wants_xet(XetUse::Auto, 50_000_000_001));
        assert!(wants_xet(XetUse::Always, 1));
        assert!(!wants_xet(XetUse::Off, u64::MAX));
    }

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
