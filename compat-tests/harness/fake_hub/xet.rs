//! Content-addressed store of the xet protocol: files are described as ranges of chunks in xorbs, which are behind
//! links that are valid for one range each. Length and compression of a chunk depend on its position alone, so that
//! every kind occurs; equal chunks are stored once.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Response,
    header::{AUTHORIZATION, HeaderValue, RANGE},
};
use lz4_flex::frame::FrameEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Shared, Source,
    answers::{Body, error, hex, json_response, page, take},
    content::{self, parse_range},
};

/// Lengths of chunks in bytes, repeated over the file; 256 KiB together.
const LENGTHS: [u64; 4] = [64 << 10, 128 << 10, 40 << 10, 24 << 10];
/// Number of chunks in one xorb.
const CHUNKS: usize = 11;
/// Token that the store accepts. The Hub's token is another one.
pub(crate) const XET_TOKEN: &str = "xet_loopback";

/// Faults of the store. Counters say how many more times a fault occurs.
#[derive(Clone, Debug, Default)]
pub(crate) struct XetFaults {
    /// The Hub refuses a token with this status.
    pub(crate) no_token: Option<(u16, u32)>,
    /// The store rejects the token.
    pub(crate) token_expired: u32,
    /// Links to xorbs answer with this status.
    pub(crate) xorb_status: Option<(u16, u32)>,
    /// Xorbs contain a compressed chunk that cannot be decompressed.
    pub(crate) broken_chunks: u32,
    /// If set, xorbs contain a wrong byte in an uncompressed chunk.
    pub(crate) wrong_bytes: bool,
    /// Xorbs begin with a chunk that decompresses to far more than its header says.
    pub(crate) bombs: u32,
    /// Descriptions make a term a byte longer, and its neighbor a byte shorter, than they are.
    pub(crate) wrong_lengths: u32,
    /// Descriptions lack the last term.
    pub(crate) missing_terms: u32,
    /// If set, the store knows only version 1 of descriptions.
    pub(crate) is_old: bool,
}

/// File in the store.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) hash: String,
    size: u64,
    /// Chunks of the file: index of the xorb, and index of the chunk in it.
    chunks: Vec<(usize, usize)>,
    xorbs: Vec<Xorb>,
}

#[derive(Debug, Default)]
struct Xorb {
    hash: String,
    bytes: Bytes,
    chunks: Vec<Chunk>,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// Offset in the xorb.
    start: u64,
    /// Offset behind the chunk in the xorb.
    end: u64,
    /// Bytes of the content, uncompressed.
    length: u64,
    scheme: u8,
}

impl Stored {
    pub(super) fn new(source: &Source, size: u64, sha256: &str) -> Self {
        let mut stored = Self {
            hash: hex(&Sha256::digest(format!("xet {sha256}"))),
            size,
            chunks: Vec::new(),
            xorbs: Vec::new(),
        };
        let mut known = HashMap::new();
        let (mut open, mut bytes) = (Xorb::default(), Vec::new());
        let mut at = 0;
        for length in LENGTHS.iter().cycle() {
            let length = (*length).min(size - at);
            if length == 0 {
                break;
            }
            let content = source.read(at, length).expect("the file is readable");
            at += length;
            let place = *known.entry(Sha256::digest(&content)).or_insert_with(|| {
                if open.chunks.len() == CHUNKS {
                    stored
                        .xorbs
                        .push(std::mem::take(&mut open).closed(std::mem::take(&mut bytes)));
                }
                open.add(&content, &mut bytes);
                (stored.xorbs.len(), open.chunks.len() - 1)
            });
            stored.chunks.push(place);
        }
        stored.xorbs.push(open.closed(bytes));
        stored
    }

    /// Describes a range of the file, as `GET /vVERSION/reconstructions/HASH` does.
    fn describe(&self, (from, to): (u64, u64), version: u8, store: &str, faults: &mut XetFaults) -> Value {
        let mut offset = 0;
        let (mut at, mut terms) = (0, Vec::<(usize, usize, usize, u64)>::new());
        for &(xorb, index) in &self.chunks {
            let length = self.xorbs[xorb].chunks[index].length;
            if at < to && at + length > from {
                match terms.last_mut() {
                    Some(last) if last.0 == xorb && last.2 == index => {
                        last.2 += 1;
                        last.3 += length;
                    }
                    last => {
                        if last.is_none() {
                            offset = from - at;
                        }
                        terms.push((xorb, index, index + 1, length));
                    }
                }
            }
            at += length;
        }
        let mut fetch_info = serde_json::Map::new();
        for (number, xorb) in self.xorbs.iter().enumerate() {
            let own = terms.iter().filter(|term| term.0 == number);
            let (Some(first), Some(last)) = (own.clone().map(|term| term.1).min(), own.map(|term| term.2).max()) else {
                continue;
            };
            let (start, end) = (xorb.chunks[first].start, xorb.chunks[last - 1].end - 1);
            let url = format!("http://{store}/xorbs/{}?signed={start}-{end}", xorb.hash);
            let (chunks, bytes) = (
                json!({"start": first, "end": last}),
                json!({"start": start, "end": end}),
            );
            let fetch = match version {
                1 => json!({"range": chunks, "url": url, "url_range": bytes}),
                _ => json!({"url": url, "ranges": [{"chunks": chunks, "bytes": bytes}]}),
            };
            fetch_info.insert(xorb.hash.clone(), json!([fetch]));
        }
        if terms.len() > 1 && faults.wrong_lengths > 0 {
            faults.wrong_lengths -= 1;
            terms[0].3 += 1;
            terms[1].3 -= 1;
        }
        if faults.missing_terms > 0 {
            faults.missing_terms -= 1;
            terms.pop();
        }
        let terms: Vec<Value> = terms
            .iter()
            .map(|(xorb, start, end, length)| {
                json!({"hash": self.xorbs[*xorb].hash, "unpacked_length": length, "range": {"start": start, "end": end}})
            })
            .collect();
        let fetches = if version == 1 { "fetch_info" } else { "xorbs" };
        json!({"offset_into_first_range": offset, "terms": terms, fetches: fetch_info})
    }
}

impl Xorb {
    fn add(&mut self, content: &[u8], bytes: &mut Vec<u8>) {
        let scheme = (self.chunks.len() % 3) as u8;
        let grouped = |content: &[u8]| -> Vec<u8> {
            let places = (0..4).flat_map(|place| content.iter().skip(place).step_by(4));
            places.copied().collect()
        };
        let stored = match scheme {
            0 => content.to_vec(),
            1 => frame(content),
            _ => frame(&grouped(content)),
        };
        let start = bytes.len() as u64;
        bytes.extend(header(stored.len(), scheme, content.len()));
        bytes.extend(stored);
        self.chunks.push(Chunk {
            start,
            end: bytes.len() as u64,
            length: content.len() as u64,
            scheme,
        });
    }

    fn closed(self, bytes: Vec<u8>) -> Self {
        Self {
            hash: hex(&Sha256::digest(&bytes)),
            bytes: bytes.into(),
            ..self
        }
    }

    /// Finds a chunk with a certain compression in a range, and returns the offset of a byte of its content.
    fn byte_of(&self, is_meant: impl Fn(u8) -> bool, range: (u64, u64)) -> Option<usize> {
        let inside = |chunk: &&Chunk| chunk.start >= range.0 && chunk.end <= range.1 && is_meant(chunk.scheme);
        let chunk = self.chunks.iter().find(inside)?;
        Some(chunk.start as usize + 9)
    }
}

fn header(stored: usize, scheme: u8, length: usize) -> Vec<u8> {
    let number = |number: usize| number.to_le_bytes()[..3].to_vec();
    [vec![0], number(stored), vec![scheme], number(length)].concat()
}

fn frame(content: &[u8]) -> Vec<u8> {
    let mut encoder = FrameEncoder::new(Vec::new());
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

/// Answers `GET /api/models/ORG/REPO/xet-read-token/REVISION`. Some clients read the JSON, others the headers.
pub(super) fn token(shared: &Shared) -> Response<Body> {
    if let Some(status) = take(&mut shared.state().faults.xet.no_token) {
        return error(status, "", "no xet today");
    }
    let until = SystemTime::now() + Duration::from_secs(3600);
    let until = until.duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs();
    let store = format!("http://{}", shared.store);
    let mut response = json_response(&json!({"accessToken": XET_TOKEN, "exp": until, "casUrl": store}));
    let headers = response.headers_mut();
    headers.insert("x-xet-access-token", HeaderValue::from_static(XET_TOKEN));
    headers.insert("x-xet-token-expiration", HeaderValue::from(until));
    headers.insert("x-xet-cas-url", HeaderValue::try_from(store).expect("a URL"));
    response
}

/// Answers `GET /vVERSION/reconstructions/HASH`.
pub(super) fn reconstruction(shared: &Shared, version: u8, hash: &str, headers: &HeaderMap) -> Response<Body> {
    let mut state = shared.state();
    if version > 1 && state.faults.xet.is_old {
        return error(404, "", "no such route");
    }
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if state.faults.xet.token_expired > 0 || token != Some(&format!("Bearer {XET_TOKEN}")) {
        state.faults.xet.token_expired = state.faults.xet.token_expired.saturating_sub(1);
        return error(401, "", "token expired");
    }
    let Some(stored) = state.stored().find(|stored| stored.hash == hash) else {
        return error(404, "", "no such file");
    };
    let range = headers.get(RANGE).and_then(|value| value.to_str().ok());
    let range = match range.map(|range| parse_range(range, stored.size)) {
        None => (0, stored.size),
        Some(Some(range)) => range,
        Some(None) => return page(416, ""),
    };
    let store = shared.store.to_string();
    json_response(&stored.describe(range, version, &store, &mut state.faults.xet))
}

/// Answers `GET /xorbs/HASH?signed=RANGE`. The link is valid for that range only.
pub(super) fn xorb(shared: &Arc<Shared>, path: &str, hash: &str, query: &str, headers: &HeaderMap) -> Response<Body> {
    let mut state = shared.state();
    let stored: Vec<Arc<Stored>> = state.stored().collect();
    let found = stored
        .iter()
        .flat_map(|stored| &stored.xorbs)
        .find(|xorb| xorb.hash == hash);
    let Some(xorb) = found else {
        return error(404, "", "no such xorb");
    };
    let range = headers
        .get(RANGE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if range.strip_prefix("bytes=") != query.strip_prefix("signed=") {
        return page(403, "<html>SignatureDoesNotMatch</html>");
    }
    if let Some(status) = take(&mut state.faults.xet.xorb_status) {
        return page(status, "<html>Request has expired</html>");
    }
    let Some((start, end)) = parse_range(range, xorb.bytes.len() as u64) else {
        return page(416, "");
    };
    let mut bytes = xorb.bytes.to_vec();
    let faults = &mut state.faults.xet;
    if faults.broken_chunks > 0
        && let Some(byte) = xorb.byte_of(|scheme| scheme != 0, (start, end))
    {
        faults.broken_chunks -= 1;
        bytes[byte] ^= 0xff;
    }
    if faults.wrong_bytes
        && let Some(byte) = xorb.byte_of(|scheme| scheme == 0, (start, end))
    {
        bytes[byte] ^= 1;
    }
    if faults.bombs > 0 {
        faults.bombs -= 1;
        let bomb = frame(&vec![0; 32 << 20]);
        let chunk = [header(bomb.len(), 1, LENGTHS[0] as usize), bomb].concat();
        let length = chunk.len().min((end - start) as usize);
        bytes[start as usize..][..length].copy_from_slice(&chunk[..length]);
    }
    drop(state);
    content::bytes(shared, path, &Source::Bytes(bytes.into()), headers)
}
