//! The GGUF container: reading and writing headers.
//!
//! Nothing here touches tensor data or llama.cpp; a header is enough for listings, for `/api/show` and for refusing
//! a file that would crash the engine.

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

/// Where tensor data begins, and each tensor in it, unless the file's `general.alignment` says otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The key that changes [`DEFAULT_ALIGNMENT`].
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// Every token that ends an answer, where there are more than the container has keys for: ids as text with commas between,
/// since llama.cpp tells no lists.
pub const END_TOKENS_KEY: &str = "hubllama.end_token_ids";
/// What a comparison of the engine with the checkpoint's own tokenizer said, in a file that hubllama made.
pub const TOKENIZER_CHECK_KEY: &str = "hubllama.tokenizer_check";
