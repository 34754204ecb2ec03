//! Chunks of a xorb, one after the other: a header of eight bytes, then the content, compressed or not. After the format's
//! description at <https://huggingface.co/docs/xet/xorb>.

use std::io::Read as _;

use lz4_flex::frame::FrameDecoder;

/// Bytes of a chunk's content; the format's own limit.
const MAX_CONTENT_BYTES: usize = 128 << 10;
/// Bytes of a chunk as it is stored. What does not shrink is stored as it is, so that the format needs no more than this.
const MAX_STORED_BYTES: usize = 2 * MAX_CONTENT_BYTES;
/// Version, stored length (three bytes, little-endian), scheme, length of the content (likewise).
const HEADER_BYTES: usize = 8;
/// Bytes of a chunk with its header.
pub(super) const MAX_CHUNK_BYTES: u64 = (HEADER_BYTES + MAX_STORED_BYTES) as u64;

/// Cuts a stream of bytes into chunks.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    buffer: Vec<u8>,
    /// Where the next chunk begins.
    at: usize,
}

/// One chunk as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    scheme: Scheme,
    stored: &'a [u8],
    length: usize,
}

/// How content is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Plain,
    /// A frame of LZ4.
    Lz4,
    /// The same over every fourth byte, then those after them, and so on: floats have similar bytes at the same places.
    GroupedLz4,
}

impl Chunks {
    /// Adds what has arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next chunk that is whole; `None` until more has arrived.
    ///
    /// # Errors
    /// A phrase that says what is wrong with the header.
    pub(super) fn next(&mut self) -> Result<Option<Chunk<'_>>, &'static str> {
        let rest = &self.buffer[self.at..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let &[version, a, b, c, scheme, d, e, f] = header;
        if version != 0 {
            return Err("its chunks are of an unknown version");
        }
        let number = |low, middle, high| usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16;
        let (stored, length) = (number(a, b, c), number(d, e, f));
        let scheme = match scheme {
            0 => Scheme::Plain,
            1 => Scheme::Lz4,
            2 => Scheme::GroupedLz4,
            _ => return Err("a chunk is compressed in an unknown way"),
        };
        if length > MAX_CONTENT_BYTES || stored > MAX_STORED_BYTES {
            return Err("a chunk is larger than chunks can be");
        }
        let Some(stored) = rest.get(..stored) else {
            return Ok(None);
        };
        self.at += HEADER_BYTES + stored.len();
        Ok(Some(Chunk { scheme, stored, length }))
    }
}

impl Chunk<'_> {
    /// The content, of the length that the header says.
    ///
    /// # Errors
    /// A phrase that says what is wrong.
    pub(super) fn content(&self) -> Result<Vec<u8>, &'static str> {
        let content = match self.scheme {
            Scheme::Plain => self.stored.to_vec(),
            Scheme::Lz4 => self.decompress()?,
            Scheme::GroupedLz4 => ungroup(&self.decompress()?),
        };
        if content.len() == self.length {
            Ok(content)
        } else {
            Err("a chunk has another length than its header says")
        }
    }

    /// At most one byte more than there should be.
    fn decompress(&self) -> Result<Vec<u8>, &'static str> {
        let mut content = Vec::with_capacity(self.length + 1);
        FrameDecoder::new(self.stored)
            .take(self.length as u64 + 1)
            .read_to_end(&mut content)
            .map_err(|_| "a chunk cannot be decompressed")?;
        Ok(content)
    }
}

/// Puts bytes back that were sorted by their place in groups of four.
fn ungroup(sorted: &[u8]) -> Vec<u8> {
    let mut content = vec![0; sorted.len()];
    let mut rest = sorted;
    for place in 0..4 {
        // The last group may lack its last places.
        let (own, others) = rest.split_at((sorted.len() + 3 - place) / 4);
        for (target, byte) in content.iter_mut().skip(place).step_by(4).zip(own) {
            *target = *byte;
        }
        rest = others;
    }
    content
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use lz4_flex::frame::FrameEncoder;
    use proptest::prelude::*;

    use super::*;

    fn frame(content: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::new(Vec::new());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn group(content: &[u8]) -> Vec<u8> {
        (0..4)
            .flat_map(|place| content.iter().skip(place).step_by(4).copied())
            .collect()
    }

    fn header(version: u8, stored: usize, scheme: u8, length: usize) -> Vec<u8> {
        let number = |number: usize| number.to_le_bytes()[..3].to_vec();
        [vec![version], number(stored), vec![scheme], number(length)].concat()
    }

    fn chunk(scheme: u8, content: &[u8]) -> Vec<u8> {
        let stored = match scheme {
            1 => frame(content),
            2 => frame(&group(content)),
            _ => content.to_vec(),
        };
        [header(0, stored.len(), scheme, content.len()), stored].concat()
    }

    proptest! {
        #[test]
        fn chunks_come_out_however_they_arrive(
            contents in prop::collection::vec((0_u8..3, prop::collection::vec(any::<u8>(), 0..70)), 0..6),
            step in 1_usize..40,
        ) {
            let bytes: Vec<u8> = contents.iter().flat_map(|(scheme, content)| chunk(*scheme, content)).collect();
            let (mut chunks, mut found) = (Chunks::default(), Vec::new());
            for part in bytes.chunks(step) {
                chunks.push(part);
                while let Some(chunk) = chunks.next().unwrap() {
                    found.push(chunk.content().unwrap());
                }
            }
            let expected: Vec<Vec<u8>> = contents.into_iter().map(|(_, content)| content).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn nonsense_is_no_chunk_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut chunks = Chunks::default();
            chunks.push(&bytes);
            while let Ok(Some(chunk)) = chunks.next() {
                prop_assert!(chunk.content().map_or(0, |content| content.len()) <= MAX_CONTENT_BYTES);
            }
        }
    }

    #[test]
    fn grouped_bytes() {
        // The first of each four, then the second of each, the third, and the fourth of the only whole one.
        assert_eq!(ungroup(&[0, 4, 1, 5, 2, 6, 3]), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_lies_is_refused() {
        let error = |bytes: &[u8]| {
            let mut chunks = Chunks::default();
            chunks.push(bytes);
            match chunks.next() {
                Err(error) => error,
                Ok(Some(chunk)) => chunk.content().expect_err("it lies"),
                Ok(None) => "it is not whole",
            }
        };
        let bomb = frame(&vec![0; 16 << 20]);
        assert!(bomb.len() < MAX_STORED_BYTES);
        for (bytes, problem) in [
            (header(1, 0, 0, 0), "version"),
            (header(0, 0, 3, 0), "unknown way"),
            (header(0, 1, 0, MAX_CONTENT_BYTES + 1), "larger"),
            (header(0, MAX_STORED_BYTES + 1, 1, 1), "larger"),
            (header(0, 4, 0, 4), "not whole"),
            ([header(0, 4, 0, 5), vec![7; 4]].concat(), "another length"),
            ([header(0, 20, 1, 4), vec![7; 20]].concat(), "decompressed"),
            ([header(0, bomb.len(), 1, 100), bomb.clone()].concat(), "another length"),
            ([header(0, bomb.len(), 2, 100), bomb].concat(), "another length"),
        ] {
            let error = error(&bytes);
            assert!(error.contains(problem), "{error}: {problem}");
        }
    }
}
