//! What a model can do, as listings say it.

use serde::{Deserialize, Serialize};

/// What a model can do, in the words that `/api/show` and `/api/tags` use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelCapability {
    /// Generates text.
    Completion,
    /// Its chat template can present tools.
    Tools,
    /// Separates reasoning from the answer.
    Thinking,
    /// Returns vectors, not text.
    Embedding,
    /// Accepts images.
    Vision,
    /// Accepts audio.
    Audio,
    /// Fills in the middle between a prompt and a suffix.
    Insert,
}

impl ModelCapability {
    /// The lower-case word used on every wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Tools => "tools",
            Self::Thinking => "thinking",
            Self::Embedding => "embedding",
            Self::Vision => "vision",
            Self::Audio => "audio",
            Self::Insert => "insert",
        }
    }
}
