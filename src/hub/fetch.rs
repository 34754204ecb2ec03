//! Transfer of one file from the Hub into its partial file.
//!
//! [`FileFetch`] downloads the missing ranges over plain HTTP, several at once. A range that fails is retried, with a
//! new link if the old one expired, and from another endpoint if this one sends nothing. Depending on the setting and
//! the size, the file comes over the xet protocol (`xet`) instead.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Response, StatusCode};
use tokio::sync::watch;
use url::Url;

use super::{
    backoff::Backoff,
    client::{FileLocation, HubClient},
    error::HubError,
    partial::PartialBlob,
    target::{BlobTarget, DownloadState},
    tasks::blocking,
    transfer::{BlobTransfer, PROGRESS_BYTES, WRITE_BYTES},
    wire::content_range,
    xet::{self, XetFetch},
};
use crate::config::XetUse;

/// Lower limit of a ranged request in bytes. The round trip of a smaller one costs more than it gains.
const MIN_PIECE_BYTES: u64 = 1 << 20;
/// Upper limit of a ranged request in bytes. A larger one that fails late leaves the other connections idle.
const MAX_PIECE_BYTES: u64 = 32 << 20;
/// Upper limit of the time between two writes. Bytes that are not written are lost when the download ends early.
const WRITE_INTERVAL: Duration = Duration::from_millis(250);
/// Upper limit of a file that the Hub sends over plain HTTP, in bytes.
const MAX_PLAIN_BYTES: u64 = 50_000_000_000;

/// Download of one file, shared by its ranges.
pub(crate) struct FileFetch<'a> {
    transfer: BlobTransfer<'a>,
    /// Location of the content; renewed when the link expires or does not work.
    location: tokio::sync::Mutex<Option<FileLocation>>,
}

/// Error of one try, by the way to recover from it.
enum FetchError {
    /// The server ignores ranges and sends the whole file.
    NoRanges(Response),
    /// The link was refused. Asking the Hub again gives a new link, or the true reason.
    LinkExpired(Url, HubError),
    Failed(HubError),
}

impl From<HubError> for FetchError {
    fn from(error: HubError) -> Self {
        Self::Failed(error)
    }
}

impl<'a> FileFetch<'a> {
    pub(crate) fn new(
        client: &'a HubClient,
        target: &'a BlobTarget,
        partial: Arc<PartialBlob>,
        state: &'a watch::Sender<DownloadState>,
    ) -> Self {
        Self {
            transfer: BlobTransfer {
                client,
                target,
                partial,
                state,
            },
            location: tokio::sync::Mutex::new(None),
        }
    }

    /// Downloads everything that is missing.
    pub(crate) async fn run(&self) -> Result<(), HubError> {
        self.transfer.report(self.transfer.partial.completed());
        if self.transfer.partial.missing().is_empty()
            || !wants_xet(self.transfer.client.config().xet, self.transfer.target.size)
        {
            return self.plain().await;
        }
        let Some(xet) = self.xet().await else {
            return self.plain().await;
        };
        match xet.run().await {
            Err(error) if !xet::is_final(&error) => {
                tracing::warn!(path = self.transfer.target.path, %error, "the download over xet failed; plain HTTP is tried");
                let plain = self.plain().await;
                // Of a file that is too large for plain HTTP, the error of xet says more.
                plain.map_err(|plain| {
                    if wants_xet(XetUse::Auto, self.transfer.target.size) {
                        error
                    } else {
                        plain
                    }
                })
            }
            result => result,
        }
    }

    /// Prepares a download over xet; `None` if the Hub does not have the file there.
    async fn xet(&self) -> Option<XetFetch<'_>> {
        // An error is not fatal here: plain HTTP asks again, with all retries.
        let found = self.transfer.locate().await.ok()?;
        let hash = found.xet_hash.clone();
        let endpoint = found.endpoint.clone();
        *self.location.lock().await = Some(found);
        Some(XetFetch::new(&self.transfer, hash?, endpoint))
    }

    /// Downloads everything that is missing over plain HTTP.
    async fn plain(&self) -> Result<(), HubError> {
        let mut pieces = pieces(
            &self.transfer.partial.missing(),
            self.transfer.target.size,
            self.transfer.client.config().parallel_ranges,
        );
        let Some(first) = pieces.pop() else { return Ok(()) };
        // Only a response tells whether the server honors ranges, so one connection starts before the others.
        let mut backoff = self.transfer.client.backoff();
        let opened = loop {
            match self.open(Some(first)).await {
                Ok(response) => break response,
                Err(FetchError::NoRanges(response)) => return self.whole(response).await,
                Err(error) => {
                    self.forget_location(&error, false).await;
                    self.recover(error, &mut backoff).await?;
                }
            }
        };
        let pieces: Vec<_> = pieces.into_iter().map(|piece| (piece, None)).collect();
        let in_order = pieces.into_iter().rev();
        let mut transfers = stream::iter([(first, Some(opened))].into_iter().chain(in_order))
            .map(|(piece, response)| self.piece(piece, response))
            .buffer_unordered(self.transfer.client.config().parallel_ranges.max(1));
        while let Some(()) = transfers.try_next().await? {}
        Ok(())
    }

    /// Downloads one range, over as many tries as make progress.
    async fn piece(&self, (start, end): (u64, u64), mut opened: Option<Response>) -> Result<(), HubError> {
        let mut backoff = self.transfer.client.backoff();
        let mut at = start;
        while at < end {
            let before = at;
            let result = match opened.take() {
                Some(response) => Ok(response),
                None => self.open(Some((at, end))).await,
            };
            let error = match result {
                Ok(response) => match self.copy(response, &mut at, end).await {
                    Ok(()) => continue,
                    Err(error) => FetchError::Failed(error),
                },
                // Other servers behind the same address honored ranges, and may do so again.
                Err(FetchError::NoRanges(_)) => {
                    FetchError::Failed(self.transfer.interrupted("the server ignored a range"))
                }
                Err(error) => error,
            };
            let has_progress = at - before >= PROGRESS_BYTES;
            if has_progress {
                backoff.reset();
            }
            self.forget_location(&error, has_progress).await;
            self.recover(error, &mut backoff).await?;
        }
        Ok(())
    }

    /// Downloads the whole file with one request. A try that breaks off starts over.
    async fn whole(&self, response: Response) -> Result<(), HubError> {
        let mut backoff = self.transfer.client.backoff();
        let mut opened = Some(response);
        loop {
            let result = match opened.take() {
                Some(response) => Ok(response),
                None => self.open(None).await,
            };
            let error = match result {
                Ok(response) => {
                    let partial = Arc::clone(&self.transfer.partial);
                    blocking(move || partial.clear()).await?;
                    self.transfer.report(0);
                    match self.copy(response, &mut 0, self.transfer.target.size).await {
                        Ok(()) => return Ok(()),
                        Err(error) => FetchError::Failed(error),
                    }
                }
                Err(error) => error,
            };
            self.forget_location(&error, false).await;
            self.recover(error, &mut backoff).await?;
        }
    }

    /// Makes the next try ask for a new link. Without any progress, another endpoint gives it.
    async fn forget_location(&self, error: &FetchError, has_progress: bool) {
        // An expired link is no fault of the endpoint, and `recover` renews it.
        if matches!(error, FetchError::LinkExpired(..)) {
            return;
        }
        if let Some(location) = self.location.lock().await.take()
            && !has_progress
        {
            self.transfer.client.mark_unhealthy(&location.endpoint);
        }
    }

    /// Waits before the next try, and renews an expired link.
    async fn recover(&self, error: FetchError, backoff: &mut Backoff) -> Result<(), HubError> {
        match error {
            FetchError::Failed(error) => backoff.wait(error).await,
            FetchError::NoRanges(_) => {
                backoff
                    .wait(self.transfer.interrupted("the server stopped honoring ranges"))
                    .await
            }
            FetchError::LinkExpired(stale, error) => {
                self.renew(&stale).await?;
                backoff.wait_anyway(error).await
            }
        }
    }

    /// Sends one request and checks that the response is for the requested range.
    async fn open(&self, range: Option<(u64, u64)>) -> Result<Response, FetchError> {
        let url = self.link().await?;
        let response = self.transfer.client.get(&url, range, &self.transfer.about()).await?;
        match (response.status(), range) {
            (StatusCode::PARTIAL_CONTENT, Some((start, _))) => {
                if content_range(&response) == Some((start, self.transfer.target.size)) {
                    return Ok(response);
                }
                Err(self
                    .transfer
                    .client
                    .protocol(&url, "it sent another range than was asked for")
                    .into())
            }
            (StatusCode::OK, None) => Ok(response),
            (StatusCode::OK, Some(_)) => Err(FetchError::NoRanges(response)),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::GONE, _) => {
                let error = self.transfer.client.refusal(response, &self.transfer.about()).await;
                Err(FetchError::LinkExpired(url, error))
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => Err(self
                .transfer
                .client
                .protocol(&url, "its file is shorter than its listing says")
                .into()),
            _ => Err(self
                .transfer
                .client
                .refusal(response, &self.transfer.about())
                .await
                .into()),
        }
    }

    /// Writes a body to `at..end`, and advances `at` with each write.
    async fn copy(&self, mut response: Response, at: &mut u64, end: u64) -> Result<(), HubError> {
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        let mut drips = self.transfer.client.drip_detector();
        let mut written = Instant::now();
        loop {
            let mut received = self.transfer.client.content(&mut response).await;
            let length = received
                .as_ref()
                .map_or(0, |chunk| chunk.as_ref().map_or(0, bytes::Bytes::len));
            let is_whole = *at + (buffer.len() + length) as u64 >= end;
            if drips.is_dripping(length) && matches!(received, Ok(Some(_))) && !is_whole {
                received = Err(self.transfer.interrupted("the server sends almost nothing"));
            }
            let is_over = !matches!(received, Ok(Some(_)));
            if let Ok(Some(chunk)) = &received {
                buffer.extend_from_slice(chunk);
            }
            if *at + buffer.len() as u64 > end {
                return Err(self
                    .transfer
                    .client
                    .protocol(response.url(), "it sent more than was asked for"));
            }
            // Bytes that arrived before an error are kept.
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
                Ok(None) => return Err(self.transfer.interrupted("the server sent less than it promised")),
                Err(HubError::Interrupted { reason, .. }) => return Err(self.transfer.interrupted(&reason)),
                Err(error) => return Err(error),
            }
        }
    }

    async fn write(&self, offset: u64, mut bytes: Vec<u8>) -> Result<Vec<u8>, HubError> {
        let partial = Arc::clone(&self.transfer.partial);
        let (bytes, completed) = blocking(move || {
            let completed = partial.write(offset, &bytes)?;
            bytes.clear();
            Ok((bytes, completed))
        })
        .await?;
        self.transfer.report(completed);
        Ok(bytes)
    }

    async fn link(&self) -> Result<Url, HubError> {
        let mut location = self.location.lock().await;
        match &*location {
            Some(location) => Ok(location.url.clone()),
            None => Ok(location.insert(self.transfer.locate().await?).url.clone()),
        }
    }

    /// Replaces an expired link, unless another range has done so already.
    async fn renew(&self, stale: &Url) -> Result<(), HubError> {
        let mut location = self.location.lock().await;
        if location.as_ref().is_none_or(|location| location.url == *stale) {
            *location = Some(self.transfer.locate().await?);
        }
        Ok(())
    }
}

/// Splits the missing ranges into requests, the last first.
fn pieces(missing: &[(u64, u64)], size: u64, parallel: usize) -> Vec<(u64, u64)> {
    // Four for each connection, so that none is idle for long at the end of the file.
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

/// True when a file of this size is to be downloaded over xet.
fn wants_xet(setting: XetUse, size: u64) -> bool {
    match setting {
        XetUse::Off => false,
        XetUse::Auto => size > MAX_PLAIN_BYTES,
        XetUse::Always => true,
    }
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
