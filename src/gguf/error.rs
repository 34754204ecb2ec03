//! Error of reading and writing GGUF headers.

use std::io;

/// Error of reading or writing a GGUF header.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The operating system refused an operation.
    #[error("the GGUF file could not be read or written")]
    Io(#[from] io::Error),
    /// The file does not begin with the magic number.
    #[error("this is not a GGUF file: it begins with the bytes {0:02x?} instead of \"GGUF\"")]
    NotGguf([u8; 4]),
    /// The file is big endian.
    #[error("this GGUF file is big endian, which llama.cpp cannot load here: choose the little-endian file")]
    BigEndian,
    /// The version of the format is obsolete or unknown.
    #[error("this GGUF file has version {0}, but only versions 2 and 3 can be read: choose a newer conversion")]
    Version(u32),
    /// The input ends before the header does. A caller that has read only a prefix of the file can retry with more
    /// bytes.
    #[error("the GGUF file ends inside its header, after {position} bytes: the download is incomplete")]
    Truncated {
        /// Bytes that were read.
        position: u64,
    },
    /// A count or length exceeds what real models have.
    #[error("the GGUF header is not plausible: {what} is {value}, the limit is {limit}")]
    TooLarge {
        /// Name of the quantity.
        what: &'static str,
        value: u64,
        limit: u64,
    },
    /// The header contradicts itself or the format.
    #[error("the GGUF header is malformed: {0}")]
    Malformed(String),
    /// The data of a tensor lies beyond the end of the file.
    #[error("tensor {name:?} ends at byte {end}, but the file has only {file_len}: the download is incomplete")]
    OutsideFile {
        name: String,
        /// End of the tensor in bytes from the start of the file.
        end: u64,
        /// Bytes of the file.
        file_len: u64,
    },
}
