//! Responses with the bytes of files, as far as the faults allow.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Frame,
    header::{HeaderValue, RANGE},
};

use super::{
    Shared, Source,
    answers::{Body, page},
};

/// Bytes in one frame of a body.
const CHUNK: u64 = 64 << 10;

/// Builds a response with the requested range of a file, modified by the faults.
pub(super) fn bytes(shared: &Arc<Shared>, path: &str, source: &Source, headers: &HeaderMap) -> Response<Body> {
    let size = source.size();
    let mut state = shared.state();
    let faults = &mut state.faults;
    let range = headers
        .get(RANGE)
        .and_then(|value| value.to_str().ok())
        .filter(|_| !faults.no_ranges);
    let (start, end, status) = match range.map(|range| parse_range(range, size)) {
        None => (0, size, StatusCode::OK),
        Some(Some((start, end))) => (start, end, StatusCode::PARTIAL_CONTENT),
        Some(None) => {
            let mut response = page(416, "");
            let size = format!("bytes */{size}");
            response
                .headers_mut()
                .insert("content-range", HeaderValue::try_from(size).expect("digits"));
            return response;
        }
    };
    let mut plan = BodyPlan {
        shared: Arc::clone(shared),
        path: path.to_owned(),
        source: source.clone(),
        at: start,
        end,
        last: end,
        breaks: None,
        delay: faults.delay,
        drips_from: u64::MAX,
        wrong: faults.wrong_content,
    };
    if let Some((bytes, count)) = faults.drip.as_mut().filter(|(_, count)| *count > 0) {
        *count -= 1;
        plan.drips_from = start + *bytes;
    }
    for (fault, kind) in [(&mut faults.truncate, Break::Cut), (&mut faults.stall, Break::Hang)] {
        if let Some((bytes, count)) = fault.as_mut().filter(|(_, count)| *count > 0) {
            *count -= 1;
            plan.last = end.min(start + *bytes);
            plan.breaks = Some(kind);
        }
    }
    drop(state);
    let mut response = Response::builder()
        .status(status)
        .header("content-type", "application/octet-stream")
        .header("content-length", end - start);
    if !shared.state().faults.no_ranges {
        response = response.header("accept-ranges", "bytes");
    }
    if status == StatusCode::PARTIAL_CONTENT {
        response = response.header("content-range", format!("bytes {start}-{}/{size}", end - 1));
    }
    let body = StreamBody::new(stream::unfold(plan, BodyPlan::next));
    response.body(body.boxed_unsync()).expect("a valid response")
}

#[derive(Clone, Copy, Debug)]
enum Break {
    Cut,
    Hang,
}

struct BodyPlan {
    shared: Arc<Shared>,
    path: String,
    source: Source,
    at: u64,
    end: u64,
    /// Offset at which the body breaks; `end` if it does not.
    last: u64,
    breaks: Option<Break>,
    delay: Duration,
    /// Offset from which the body arrives byte by byte.
    drips_from: u64,
    wrong: bool,
}

impl BodyPlan {
    async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        if self.at >= self.last {
            if self.last == self.end {
                return None;
            }
            match self.breaks {
                Some(Break::Hang) => std::future::pending::<()>().await,
                // Gives the bytes that were written time to leave the socket before the connection is closed.
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            return Some((Err(io::Error::other("the connection breaks here")), self));
        }
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let mut length = CHUNK.min(self.last - self.at);
        if self.at >= self.drips_from {
            tokio::time::sleep(Duration::from_millis(20)).await;
            length = 1;
        }
        let read = self.source.read(self.at, length);
        self.at += length;
        self.shared.state().hits.entry(self.path.clone()).or_default().bytes += length;
        let chunk = match read {
            Ok(chunk) if self.wrong => chunk.iter().map(|byte| byte ^ 1).collect(),
            Ok(chunk) => chunk,
            Err(error) => return Some((Err(error), self)),
        };
        Some((Ok(Frame::data(chunk)), self))
    }
}

/// Parses `bytes=START-END` and returns the range with an exclusive end; `None` if it is outside the file.
pub(super) fn parse_range(range: &str, size: u64) -> Option<(u64, u64)> {
    let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = start.parse().ok()?;
    let end = if end.is_empty() {
        size
    } else {
        end.parse::<u64>().ok()? + 1
    };
    (start < size && start < end).then_some((start, end.min(size)))
}
