//! Capabilities of a model.

use serde::{Deserialize, Serialize};

/// Capability of a model. The names are those in `/api/show` and `/api/tags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelCapability {
    /// Generates text.
    Completion,
    /// Has a chat template that can present tools.
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
    /// Returns the lowercase word that every wire format uses.
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
