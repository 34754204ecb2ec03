//! How a range of a file is put together: what the content-addressed store says (the terms of a file and where their xorbs
//! are), checked, and turned round into requests, each with the places where its chunks belong. Pure.

use std::{collections::HashMap, ops::Range};

use serde::Deserialize;
use url::Url;

use super::chunks::MAX_CHUNK_BYTES;

/// Chunks of a xorb; the format's own limit is an eighth of it.
const MAX_CHUNKS: u64 = 64 << 10;

/// The answer to `GET /v1/reconstructions/HASH`.
#[derive(Debug, Deserialize)]
pub(super) struct ReconstructionWire {
    /// Bytes of the first term that lie before what was asked for.
    offset_into_first_range: u64,
    /// Parts of the file in their order.
    terms: Vec<TermWire>,
    /// By xorb.
    fetch_info: HashMap<String, Vec<FetchWire>>,
}

#[derive(Debug, Deserialize)]
struct TermWire {
    /// The xorb.
    hash: String,
    unpacked_length: u64,
    /// Of chunks.
    range: RangeWire,
}

#[derive(Debug, Deserialize)]
struct FetchWire {
    /// Of chunks.
    range: RangeWire,
    url: String,
    /// Of bytes of the xorb; its end is inclusive.
    url_range: RangeWire,
}

/// The end is exclusive where nothing else is said.
#[derive(Clone, Copy, Debug, Deserialize)]
struct RangeWire {
    start: u64,
    end: u64,
}

/// One request for chunks of a xorb.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) url: Url,
    /// Of the xorb.
    pub(super) bytes: Range<u64>,
    /// What those bytes are.
    pub(super) chunks: Range<u64>,
    /// What they are for.
    pub(super) uses: Vec<Use>,
}

/// A part of the file that is made of chunks of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) chunks: Range<u64>,
    /// Bytes of those chunks' contents.
    pub(super) length: u64,
    /// Where the first chunk's content lies in the file.
    pub(super) at: u64,
    /// What of it is wanted, as a range of the file.
    pub(super) wanted: Range<u64>,
}

/// What to fetch for a range of a file, in the file's order.
///
/// # Errors
/// A phrase that says what makes no sense.
pub(super) fn plan(
    wire: &ReconstructionWire,
    range: &Range<u64>,
    is_allowed: impl Fn(&Url) -> bool,
) -> Result<Vec<Piece>, &'static str> {
    let too_early = "its first term begins before the file";
    let mut at = range.start.checked_sub(wire.offset_into_first_range).ok_or(too_early)?;
    let mut pieces: Vec<Piece> = Vec::new();
    let mut known: HashMap<(&str, usize), usize> = HashMap::new();
    for term in &wire.terms {
        if at >= range.end {
            break;
        }
        let chunks = term.range.checked()?;
        if term.unpacked_length == 0 || term.unpacked_length > count(&chunks) * MAX_CHUNK_BYTES {
            return Err("a term has a length that its chunks cannot have");
        }
        let end = at
            .checked_add(term.unpacked_length)
            .ok_or("a term lies behind the end of every file")?;
        let part = Use {
            wanted: at.max(range.start)..end.min(range.end),
            length: term.unpacked_length,
            chunks,
            at,
        };
        at = end;
        if part.wanted.is_empty() {
            continue;
        }
        let fetches = wire.fetch_info.get(&term.hash).map(Vec::as_slice).unwrap_or_default();
        let holds = |fetch: &FetchWire| fetch.range.start <= part.chunks.start && part.chunks.end <= fetch.range.end;
        let index = fetches
            .iter()
            .position(holds)
            .ok_or("it does not say where a xorb is")?;
        let place = match known.get(&(term.hash.as_str(), index)) {
            Some(place) => *place,
            None => {
                pieces.push(fetches[index].piece(&is_allowed)?);
                known.insert((&term.hash, index), pieces.len() - 1);
                pieces.len() - 1
            }
        };
        pieces[place].uses.push(part);
    }
    if at < range.end {
        return Err("it describes less of the file than was asked for");
    }
    Ok(pieces)
}

impl FetchWire {
    fn piece(&self, is_allowed: impl Fn(&Url) -> bool) -> Result<Piece, &'static str> {
        let chunks = self.range.checked()?;
        let end = self.url_range.end.checked_add(1);
        let bytes = self.url_range.start..end.ok_or("a xorb has no end")?;
        if bytes.is_empty() || count(&bytes) > count(&chunks) * MAX_CHUNK_BYTES {
            return Err("chunks have a size that they cannot have");
        }
        let url = Url::parse(&self.url).ok().filter(is_allowed);
        Ok(Piece {
            url: url.ok_or("a xorb is at an address that cannot be used")?,
            bytes,
            chunks,
            uses: Vec::new(),
        })
    }
}

impl RangeWire {
    /// As a range of chunks.
    fn checked(self) -> Result<Range<u64>, &'static str> {
        let is_sound = self.start < self.end && self.end <= MAX_CHUNKS;
        is_sound
            .then_some(self.start..self.end)
            .ok_or("a range of chunks makes no sense")
    }
}

fn count(range: &Range<u64>) -> u64 {
    range.end - range.start
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Two terms of one xorb around one of another; the file's bytes 100 to 1100, of which the first 10 are not wanted.
    fn answer() -> Value {
        json!({
            "offset_into_first_range": 10,
            "terms": [
                {"hash": "a", "unpacked_length": 300, "range": {"start": 2, "end": 4}},
                {"hash": "b", "unpacked_length": 500, "range": {"start": 0, "end": 1}},
                {"hash": "a", "unpacked_length": 200, "range": {"start": 3, "end": 5}},
            ],
            "fetch_info": {
                "a": [{"range": {"start": 2, "end": 5}, "url": "https://x/a", "url_range": {"start": 50, "end": 449}}],
                "b": [{"range": {"start": 0, "end": 1}, "url": "https://x/b", "url_range": {"start": 0, "end": 99}}],
            },
        })
    }

    fn planned(answer: Value) -> Result<Vec<Piece>, &'static str> {
        let wire = serde_json::from_value(answer).unwrap();
        plan(&wire, &(110..1000), |url| url.scheme() == "https")
    }

    #[test]
    fn terms_become_requests() {
        let pieces = planned(answer()).unwrap();
        let part = |chunks, length, at, wanted| Use {
            chunks,
            length,
            at,
            wanted,
        };
        assert_eq!(pieces.len(), 2, "what two terms share is fetched once");
        assert_eq!(
            (pieces[0].url.as_str(), &pieces[0].bytes, &pieces[0].chunks),
            ("https://x/a", &(50..450), &(2..5))
        );
        assert_eq!(
            pieces[0].uses,
            [part(2..4, 300, 100, 110..400), part(3..5, 200, 900, 900..1000)]
        );
        assert_eq!(pieces[1].uses, [part(0..1, 500, 400, 400..900)]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let changes: [(fn(&mut Value), &str); 11] = [
            (|a| a["offset_into_first_range"] = 111.into(), "before the file"),
            (|a| a["terms"] = json!([]), "less of the file"),
            (|a| a["terms"][2]["unpacked_length"] = 99.into(), "less of the file"),
            (|a| a["terms"][1]["unpacked_length"] = 0.into(), "length"),
            (|a| a["terms"][1]["unpacked_length"] = (1_u64 << 40).into(), "length"),
            (|a| a["terms"][1]["range"]["end"] = 0.into(), "range of chunks"),
            (|a| a["terms"][1]["range"]["end"] = u64::MAX.into(), "range of chunks"),
            (|a| a["terms"][1]["range"]["end"] = 2.into(), "where a xorb is"),
            (|a| a["terms"][1]["hash"] = "c".into(), "where a xorb is"),
            (
                |a| a["fetch_info"]["b"][0]["url_range"]["end"] = (u64::MAX - 1).into(),
                "size",
            ),
            (|a| a["fetch_info"]["b"][0]["url"] = "http://x/b".into(), "address"),
        ];
        for (change, problem) in changes {
            let mut answer = answer();
            change(&mut answer);
            let error = planned(answer).unwrap_err();
            assert!(error.contains(problem), "{error}: {problem}");
        }
        let mut answer = answer();
        answer["fetch_info"]["b"][0]["url_range"]["end"] = u64::MAX.into();
        assert_eq!(planned(answer), Err("a xorb has no end"));
    }
}
