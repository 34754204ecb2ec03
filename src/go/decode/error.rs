//! Failure to decode a body.

/// Reason why a request body could not be decoded. Its text is Go's.
///
/// The two first variants are separate because the `/v1` routes of Ollama word them differently from its native routes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Body without anything but blanks.
    #[error("missing request body")]
    Empty,
    /// Body that ends inside its value.
    #[error("unexpected EOF")]
    Truncated,
    /// Body that is not JSON, or JSON of another shape.
    #[error("{0}")]
    Malformed(String),
}

impl DecodeError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Malformed(message.into())
    }
}
