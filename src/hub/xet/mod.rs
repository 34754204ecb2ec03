//! The bytes of one file over the Hub's xet protocol: the file is described as ranges of chunks in xorbs, which lie on a
//! content network. Plain HTTP gives the same bytes with less ado, but not of files that are too large for it.
//!
//! A reader of our own, after the description at <https://huggingface.co/docs/xet/index>: the Hub's crates bring some two
//! hundred others along, and a runtime, a cache and retries that this program has already. Chunks are not checked one by
//! one (the answer has no hashes of them); the whole file is, like every other.

mod chunks;
mod reconstruction;

use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use reqwest::{Response, StatusCode};
use tokio::select;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    client::{XetAccess, host},
    download::blocking,
    error::HubError,
    fetch::{Fetch, PROGRESS_BYTES, WRITE_BYTES, WRITE_INTERVAL, content_range},
    partial::Partial,
    sites::Site,
};
use chunks::Chunks;
use reconstruction::{Piece, ReconstructionWire, Use};

/// Bytes of a file whose description is asked for at once. Each has links of its own, which expire.
const SEGMENT_BYTES: u64 = 256 << 20;
/// Time before the end of a token at which it is not used any more.
const SPARE_TIME: Duration = Duration::from_secs(30);

/// One file over xet.
pub(super) struct Xet<'a> {
    fetch: &'a Fetch<'a>,
    /// What the store knows the file by: 64 hex digits, no hash of the content alone.
    hash: String,
    /// Who gives tokens for the store.
    site: Site,
    access: tokio::sync::Mutex<Option<XetAccess>>,
}

impl<'a> Xet<'a> {
    pub(super) fn new(fetch: &'a Fetch<'a>, hash: String, site: Site) -> Self {
        Self {
            fetch,
            hash,
            site,
            access: tokio::sync::Mutex::default(),
        }
    }

    /// Brings everything that is missing, over as many tries as make progress.
    pub(super) async fn run(&self) -> Result<(), HubError> {
        let mut backoff = self.fetch.client.backoff();
        loop {
            let before = self.fetch.partial.completed();
            let Err(error) = self.pass().await else { return Ok(()) };
            if is_final(&error) {
                return Err(error);
            }
            if self.fetch.partial.completed() >= before + PROGRESS_BYTES {
                backoff.reset();
            }
            // Links, tokens and servers change with a new description of what is missing still.
            backoff.wait_anyway(error).await?;
        }
    }

    /// One try to bring everything that is missing. It ends when all its requests have ended, so that none of them still
    /// writes while the next try does.
    async fn pass(&self) -> Result<(), HubError> {
        let parallel = self.fetch.client.config().parallel_ranges.max(1);
        let mut segments = segments(&self.fetch.partial.missing()).into_iter();
        let mut waiting = VecDeque::new();
        let stop = CancellationToken::new();
        let mut transfers = FuturesUnordered::new();
        let mut first = None;
        // Who lies about one length leads all that follows to the wrong places.
        let mut doubtful = Vec::new();
        loop {
            while first.is_none() && transfers.len() < parallel {
                if let Some((piece, segment)) = waiting.pop_front() {
                    transfers.push(self.transfer(piece, segment, &stop));
                    continue;
                }
                let Some(segment) = segments.next() else { break };
                match self.describe(&segment).await {
                    Ok(pieces) => waiting.extend(pieces.into_iter().map(|piece| (piece, segment.clone()))),
                    Err(error) => first = Some(error),
                }
            }
            if first.is_some() {
                stop.cancel();
            }
            match transfers.next().await {
                None => break,
                Some(Ok(())) => {}
                Some(Err((error, segment))) => {
                    doubtful.extend(matches!(error, HubError::Protocol { .. }).then_some(segment));
                    first.get_or_insert(error);
                }
            }
        }
        for Range { start, end } in doubtful {
            self.fetch.partial.forget(start, end);
        }
        first.map_or(Ok(()), Err)
    }

    /// Fetches a piece, unless it is told to stop; in an error, with the segment that it belongs to.
    async fn transfer(
        &self,
        piece: Piece,
        segment: Range<u64>,
        stop: &CancellationToken,
    ) -> Result<(), (HubError, Range<u64>)> {
        self.receive(&piece, stop).await.map_err(|error| (error, segment))
    }

    /// Asks the store what a range of the file is made of.
    async fn describe(&self, segment: &Range<u64>) -> Result<Vec<Piece>, HubError> {
        let client = self.fetch.client;
        let access = self.access().await?;
        let mut url = access.store.clone();
        super::client::extend(&mut url, ["v1", "reconstructions", &self.hash])?;
        let range = (segment.start, segment.end);
        let response = client.get_with(&url, Some(range), Some(&access.token)).await?;
        if !response.status().is_success() {
            // The token may have ended before its time.
            self.access.lock().await.take();
            return Err(status(&response));
        }
        let wire: ReconstructionWire = client.parsed(response).await?;
        reconstruction::plan(&wire, segment, |url| is_secure(url, &access.store))
            .map_err(|problem| client.protocol(&url, problem))
    }

    /// A token for the store that holds still.
    async fn access(&self) -> Result<XetAccess, HubError> {
        let mut access = self.access.lock().await;
        if let Some(access) = access
            .as_ref()
            .filter(|access| access.until > SystemTime::now() + SPARE_TIME)
        {
            return Ok(access.clone());
        }
        let given = self.fetch.client.xet_access(&self.site, &self.fetch.about()).await?;
        if !is_secure(&given.store, &self.site.url) {
            return Err(self
                .fetch
                .client
                .protocol(&self.site.url, "its store is at an address that cannot be used"));
        }
        Ok(access.insert(given).clone())
    }

    /// Fetches chunks and puts them where they belong.
    async fn receive(&self, piece: &Piece, stop: &CancellationToken) -> Result<(), HubError> {
        let (fetch, client) = (self.fetch, self.fetch.client);
        let range = (piece.bytes.start, piece.bytes.end);
        // The link is signed; it is shown no token.
        let mut response = client.get_with(&piece.url, Some(range), None).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(status(&response));
        }
        if content_range(&response).is_some_and(|(start, _)| start != piece.bytes.start) {
            return Err(client.protocol(&piece.url, "it sent another range than was asked for"));
        }
        let mut sorter = Sorter::new(piece);
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        let mut pace = client.pace();
        let mut written = Instant::now();
        loop {
            let mut received = select! {
                received = client.content(&mut response) => received,
                () = stop.cancelled() => Err(HubError::Cancelled),
            };
            let length = match &received {
                Ok(Some(chunk)) => chunk.len(),
                _ => 0,
            };
            if pace.is_dripping(length) && matches!(received, Ok(Some(_))) {
                received = Err(fetch.interrupted("the server sends next to nothing"));
            }
            if let Ok(Some(chunk)) = &received {
                buffer.extend_from_slice(chunk);
            }
            let is_over = !matches!(received, Ok(Some(_)));
            // What arrived before an error is kept.
            if buffer.len() >= WRITE_BYTES || is_over || written.elapsed() >= WRITE_INTERVAL {
                (sorter, buffer) = self.sort(sorter, buffer, &piece.url).await?;
                written = Instant::now();
                if sorter.is_done() {
                    return Ok(());
                }
            }
            match received {
                Ok(Some(_)) => {}
                Ok(None) => return Err(fetch.interrupted("the server sent less than it promised")),
                Err(HubError::Interrupted { reason, .. }) => return Err(fetch.interrupted(&reason)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Unpacks what has arrived and writes it.
    async fn sort(&self, mut sorter: Sorter, mut bytes: Vec<u8>, url: &Url) -> Result<(Sorter, Vec<u8>), HubError> {
        let partial = Arc::clone(&self.fetch.partial);
        let sorted = blocking(move || {
            let problem = sorter.sort(&bytes, &partial)?;
            bytes.clear();
            Ok((sorter, bytes, problem, partial.completed()))
        });
        let (sorter, bytes, problem, completed) = sorted.await?;
        self.fetch.report(completed);
        match problem {
            Some(problem) => Err(self.fetch.client.protocol(url, problem)),
            None => Ok((sorter, bytes)),
        }
    }
}

/// Puts the chunks of a piece where they belong.
#[derive(Debug)]
struct Sorter {
    chunks: Chunks,
    /// Place of the next chunk in its xorb.
    next: u64,
    /// With how many bytes of each there have been.
    uses: Vec<(Use, u64)>,
}

impl Sorter {
    fn new(piece: &Piece) -> Self {
        Self {
            chunks: Chunks::default(),
            next: piece.chunks.start,
            uses: piece.uses.iter().map(|part| (part.clone(), 0)).collect(),
        }
    }

    fn is_done(&self) -> bool {
        self.uses.iter().all(|(part, _)| part.chunks.end <= self.next)
    }

    /// Takes what has arrived; a phrase if something is wrong with it.
    fn sort(&mut self, bytes: &[u8], partial: &Partial) -> Result<Option<&'static str>, HubError> {
        self.chunks.push(bytes);
        while !self.is_done() {
            let chunk = match self.chunks.next() {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(None),
                Err(problem) => return Ok(Some(problem)),
            };
            let mut uses = self
                .uses
                .iter_mut()
                .filter(|(part, _)| part.chunks.contains(&self.next))
                .peekable();
            if uses.peek().is_some() {
                let content = match chunk.content() {
                    Ok(content) => content,
                    Err(problem) => return Ok(Some(problem)),
                };
                for (part, done) in uses {
                    let at = part.at + *done;
                    *done += content.len() as u64;
                    let is_last = self.next + 1 == part.chunks.end;
                    if *done > part.length || (is_last && *done != part.length) {
                        return Ok(Some("its terms have other lengths than their chunks"));
                    }
                    let (skip, keep) = overlap(at, content.len(), &part.wanted);
                    if skip < keep {
                        partial.write(at + skip as u64, &content[skip..keep])?;
                    }
                }
            }
            self.next += 1;
        }
        Ok(None)
    }
}

/// Which bytes of `length` that lie at `at` are in a range.
fn overlap(at: u64, length: usize, range: &Range<u64>) -> (usize, usize) {
    let inside = |place: u64| usize::try_from(place.saturating_sub(at)).map_or(length, |place| place.min(length));
    (inside(range.start), inside(range.end))
}

/// Cuts what is missing into ranges whose description is asked for at once.
fn segments(missing: &[(u64, u64)]) -> Vec<Range<u64>> {
    let cut = |&(start, end): &(u64, u64)| {
        let step = SEGMENT_BYTES as usize;
        (start..end)
            .step_by(step)
            .map(move |at| at..end.min(at + SEGMENT_BYTES))
    };
    missing.iter().flat_map(cut).collect()
}

/// Whether another try, or another way, is of no use.
pub(super) fn is_final(error: &HubError) -> bool {
    matches!(
        error,
        HubError::Cancelled | HubError::Io { .. } | HubError::DiskFull { .. }
    )
}

/// A step down from https would expose what is asked for.
fn is_secure(url: &Url, from: &Url) -> bool {
    url.host_str().is_some() && (url.scheme() == "https" || (url.scheme() == "http" && from.scheme() == "http"))
}

fn status(response: &Response) -> HubError {
    HubError::Status {
        host: host(response.url()),
        status: response.status().as_u16(),
        message: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_what_is_missing() {
        const S: u64 = SEGMENT_BYTES;
        assert_eq!(segments(&[]), []);
        assert_eq!(
            segments(&[(5, 6), (10, 2 * S + 11)]),
            [5..6, 10..S + 10, S + 10..2 * S + 10, 2 * S + 10..2 * S + 11]
        );
    }

    #[test]
    fn overlaps() {
        assert_eq!(overlap(100, 10, &(0..1000)), (0, 10));
        assert_eq!(overlap(100, 10, &(105..107)), (5, 7));
        assert_eq!(overlap(100, 10, &(0..100)), (0, 0));
        assert_eq!(overlap(100, 10, &(110..120)), (10, 10));
    }
}
