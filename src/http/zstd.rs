//! Decoder of compressed request bodies (`Content-Encoding: zstd`).
//!
//! A few compressed bytes can stand for gigabytes, so the window and the decoded length are limited. The error texts
//! are those of the decoder that Ollama uses (klauspost/compress), as far as it has the same errors.

use std::{
    fmt,
    io::{self, BufRead, Read},
};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// Largest window that a frame may ask for; the same limit as Ollama's.
const MAX_WINDOW_BYTES: u64 = 8 << 20;

/// Largest decoded body in bytes; the same limit as Ollama's.
const MAX_DECODED_BYTES: u64 = 20 << 20;

/// Failure to decode a body. The reader returns it inside an [`io::Error`]; any other I/O error is one of the source.
#[derive(Debug, thiserror::Error)]
pub enum ZstdError {
    /// The body is not zstd.
    #[error("invalid input: magic number mismatch")]
    Magic,
    /// The window is larger than the limit.
    #[error("window size exceeded")]
    Window,
    /// The body ends within a frame.
    #[error("unexpected EOF")]
    Truncated,
    /// The checksum of the decoded bytes is wrong.
    #[error("CRC check failed")]
    Checksum,
    /// The body decodes to more than `MAX_DECODED_BYTES`.
    #[error("http: request body too large")]
    TooLarge,
    /// Any other error of the decoder.
    #[error("the zstd body is broken: {0}")]
    Broken(String),
}

impl ZstdError {
    /// Returns the decoding error inside `error`, if it is one.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<ZstdError> for io::Error {
    fn from(error: ZstdError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Reader that decodes one frame after another in memory of the size of a window.
pub struct ZstdDecoder<R> {
    source: R,
    frame: FrameDecoder,
    within_frame: bool,
    /// Bytes left of the limit.
    left: u64,
}

impl<R> fmt::Debug for ZstdDecoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZstdDecoder")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl<R: BufRead> ZstdDecoder<R> {
    pub fn new(source: R) -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(MAX_WINDOW_BYTES);
        Self {
            source,
            frame,
            within_frame: false,
            left: MAX_DECODED_BYTES,
        }
    }

    /// Begins the next frame, or skips one without content (RFC 8878, skippable frames). Returns false at the end of
    /// the body.
    fn begin(&mut self) -> io::Result<bool> {
        if self.source.fill_buf()?.is_empty() {
            return Ok(false);
        }
        match self.frame.reset(&mut self.source) {
            Ok(()) => self.within_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let skipped = io::copy(&mut self.source.by_ref().take(u64::from(length)), &mut io::sink())?;
                if skipped < u64::from(length) {
                    return Err(ZstdError::Truncated.into());
                }
            }
            Err(error) => return Err(self.broken(&error)),
        }
        Ok(true)
    }

    /// Reads the next bytes of the frame; 0 at its end.
    fn read_frame(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.frame.can_collect() == 0 && !self.frame.is_finished() {
            self.frame
                // One block at a time: the decoder keeps what it has decoded in memory until that is read.
                .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(|error| self.broken(&error))?;
        }
        let read = self.frame.read(buffer)?;
        if read == 0
            && let Some(expected) = self.frame.get_checksum_from_data()
            && self.frame.get_calculated_checksum() != Some(expected)
        {
            return Err(ZstdError::Checksum.into());
        }
        Ok(read)
    }

    fn broken(&mut self, error: &FrameDecoderError) -> io::Error {
        match error {
            FrameDecoderError::WindowSizeTooBig { .. } => ZstdError::Window,
            FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::BadMagicNumber(_)) => ZstdError::Magic,
            // The library reports a truncated source with several errors; common to them is that the source is empty.
            _ if self.source.fill_buf().is_ok_and(<[u8]>::is_empty) => ZstdError::Truncated,
            other => ZstdError::Broken(other.to_string()),
        }
        .into()
    }
}

impl<R: BufRead> Read for ZstdDecoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.within_frame {
                let read = self.read_frame(buffer)?;
                if read > 0 {
                    self.left = self.left.checked_sub(read as u64).ok_or(ZstdError::TooLarge)?;
                    return Ok(read);
                }
                self.within_frame = false;
            } else if !self.begin()? {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn compress(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        decode_in_pieces(bytes, 8 << 10)
    }

    fn decode_in_pieces(bytes: &[u8], size: usize) -> io::Result<Vec<u8>> {
        let mut decoded = Vec::new();
        ZstdDecoder::new(BufReader::with_capacity(size, bytes)).read_to_end(&mut decoded)?;
        Ok(decoded)
    }

    fn error(bytes: &[u8]) -> String {
        let error = decode(bytes).unwrap_err();
        assert!(ZstdError::of(&error).is_some(), "{error:?}");
        error.to_string()
    }

    /// Returns a frame with a window of `2^log` bytes that holds `blocks` times 128 KiB of one repeated byte.
    fn repeated(log: u8, blocks: usize) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, (log - 10) << 3];
        for block in 0..blocks {
            let header = u32::from(block + 1 == blocks) | 1 << 1 | (128 << 10) << 3;
            frame.extend_from_slice(&header.to_le_bytes()[..3]);
            frame.push(b' ');
        }
        frame
    }

    #[test]
    fn frames_follow_each_other_and_some_hold_nothing() {
        let skipped = [0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let body = [
            &compress(b"ab")[..],
            &skipped,
            &compress(b""),
            &compress(b"cd"),
            &skipped,
        ]
        .concat();
        assert_eq!(decode(&body).unwrap(), b"abcd");
        assert_eq!(decode(b"").unwrap(), b"");
    }

    #[test]
    fn a_window_and_a_length_beyond_the_bounds_are_refused() {
        assert_eq!(decode(&repeated(23, 2)).unwrap().len(), 256 << 10);
        assert_eq!(error(&repeated(24, 1)), "window size exceeded");
        // A few hundred bytes for 20 MiB, and one block more.
        assert_eq!(decode(&repeated(20, 160)).unwrap().len() as u64, MAX_DECODED_BYTES);
        assert_eq!(error(&repeated(20, 161)), "http: request body too large");
        assert_eq!(
            error(&[repeated(20, 160), compress(b"x")].concat()),
            "http: request body too large"
        );
    }

    #[test]
    fn what_is_broken_is_said_so() {
        let whole = compress(&b"some text that repeats, some text that repeats".repeat(20));
        for end in 1..whole.len() {
            assert_eq!(error(&whole[..end]), "unexpected EOF", "{end}");
        }
        assert_eq!(error(b"{\"model\":\"a\"}"), "invalid input: magic number mismatch");
        assert_eq!(
            error(&[&whole[..], b"tail"].concat()),
            "invalid input: magic number mismatch"
        );
        assert_eq!(error(&[0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1]), "unexpected EOF");
        let mut flipped = whole;
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        assert_eq!(error(&flipped), "CRC check failed");
    }

    proptest! {
        #[test]
        fn every_cut_gives_the_same(
            text in prop::collection::vec("[ab]{0,40}|.{0,40}", 0..40),
            size in 1usize..64,
        ) {
            let bytes = text.concat().into_bytes();
            prop_assert_eq!(decode_in_pieces(&compress(&bytes), size).unwrap(), bytes);
        }

        #[test]
        fn noise_is_an_error_or_bytes(
            noise in prop::collection::vec(any::<u8>(), 0..64),
            at in any::<prop::sample::Index>(),
        ) {
            let mut body = compress(&b"some text that repeats, some text that repeats".repeat(20));
            let at = at.index(body.len());
            let end = (at + noise.len()).min(body.len());
            body.splice(at..end, noise);
            if let Err(error) = decode(&body) {
                prop_assert!(ZstdError::of(&error).is_some(), "{error:?}");
            }
        }
    }
}
