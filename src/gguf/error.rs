//! Why a container could not be read.

use std::io;

/// Why a GGUF header could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The operating system said no.
    #[error("the GGUF file could not be read or written")]
    Io(#[from] io::Error),
    /// Another kind of file.
    #[error("this is not a GGUF file: it begins with the bytes {0:02x?} instead of \"GGUF\"")]
    NotGguf([u8; 4]),
    /// Made for, or on, a big-endian machine.
    #[error("this GGUF file is big endian, which llama.cpp cannot load here: choose the little-endian file")]
    BigEndian,
    /// A version that nobody writes any more, or not yet.
    #[error("this GGUF file has version {0}, but only versions 2 and 3 can be read: choose a newer conversion")]
    Version(u32),
    /// The bytes end before the header does. More bytes may help: a caller that read only a prefix fetches more.
    #[error("the GGUF file ends inside its header, after {position} bytes: the download is incomplete")]
    Truncated {
        /// Bytes that were read.
        position: u64,
    },
    /// A count or length beyond what any real model has.
    #[error("the GGUF header is not plausible: {what} is {value}, the limit is {limit}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// What the header says.
        value: u64,
        /// What is accepted.
        limit: u64,
    },
    /// The header contradicts itself or the format.
    #[error("the GGUF header is malformed: {0}")]
    Malformed(String),
    /// A tensor's bytes are not all there. More bytes cannot help: `file_len` is the whole file's.
    #[error("tensor {name:?} ends at byte {end}, but the file has only {file_len}: the download is incomplete")]
    OutsideFile {
        /// The tensor.
        name: String,
        /// The first byte behind it, counted from the file's start.
        end: u64,
        /// Bytes in the file.
        file_len: u64,
    },
}
