//! The GGUF file format (`ggml/docs/gguf.md`): reading and writing of headers.
//!
//! [`GgufHeader`] is a parsed header, [`GgufLayout`] lays out a new file, [`precheck`] refuses files on which llama.cpp
//! would crash. Nothing here touches tensor data or llama.cpp: a header is enough for listings and `/api/show`.

pub mod check;
mod error;
mod reader;
mod special_tokens;
mod types;
mod value;
mod writer;

pub use check::{GgufRefusal, precheck};
pub use error::GgufError;
pub use reader::{GgufHeader, GgufSplit, TensorInfo};
pub use special_tokens::{CHAT_TEMPLATE_KEY, bos_token, chat_template, eos_token};
pub use types::{GgmlType, file_type_name};
pub use value::{GgufArray, GgufMetadata, GgufValue, StringArray};
pub use writer::{GgufLayout, TensorSpec};

/// Alignment in bytes of the tensor data and of each tensor in it, unless the file has [`ALIGNMENT_KEY`].
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Metadata key of the alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// Metadata key of all end-of-generation tokens, if there are more than the format has keys for. The value is their ids
/// with commas between, as a string, because llama.cpp's API returns only strings.
pub const END_TOKENS_KEY: &str = "hubllama.end_token_ids";
/// Metadata key of the result of comparing llama.cpp's tokenizer with the checkpoint's own, in files that hubllama
/// converted.
pub const TOKENIZER_CHECK_KEY: &str = "hubllama.tokenizer_check";
