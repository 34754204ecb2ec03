//! Errors of this folder.

/// Failed call into llama.cpp. Each text is one sentence, fit for the user.
///
/// llama.cpp's C functions return NULL or a number and tell the reason only in their log; the variants that hold a
/// `String` carry the first error line of that log, or a general sentence when there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LlamaError {
    #[error("the {0} holds a NUL character")]
    Nul(&'static str),
    #[error("{0}")]
    Load(String),
    /// Failure of the [`ModelSource`](super::ModelSource) that a model was read from.
    #[error("{0}")]
    Source(String),
    #[error("{0}")]
    Adapter(String),
    #[error("{0}")]
    Context(String),
    /// `llama_decode` found no room for the batch; the cache is as it was before.
    #[error("the KV cache is full")]
    CacheFull,
    /// `llama_decode` returned another status than 0 and 1.
    #[error("llama.cpp could not decode (status {status}): {reason}")]
    Decode { status: i32, reason: String },
    #[error("the text is longer than 2 GiB")]
    TextTooLong,
    #[error("the grammar has more than {0} bytes")]
    GrammarTooLong(usize),
    #[error("a trigger of the grammar is too long")]
    TriggerTooLong,
    #[error("llama.cpp cannot parse the grammar")]
    Grammar,
    #[error("the grammar does not admit the token")]
    NotAdmitted,
    /// Exception of `common/chat`, mostly a sentence of the template engine or of the template itself.
    #[error("{0}")]
    Chat(String),
    #[error("unreadable answer of common/chat: {0}")]
    ChatAnswer(String),
    #[error("rows of {row} numbers are not whole blocks of {weight_type}")]
    PartialBlocks { row: usize, weight_type: &'static str },
    #[error("{0} cannot be made from a checkpoint alone")]
    NeedsSamples(&'static str),
    #[error("a number is too large for {0}")]
    TooLarge(&'static str),
    #[error("{0}")]
    Quantize(String),
}
