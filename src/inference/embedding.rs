//! Requests whose answer is not text: vectors and token ids.

use std::time::Duration;

use super::{KeepAlive, LoadOptions};

/// Request for the vectors of some texts, independent of the wire format.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// Texts, each of which gets one vector.
    pub inputs: Vec<String>,
    /// If set, an input that does not fit the context is cut; otherwise it is refused.
    pub truncate: bool,
    /// Number of leading components to keep, scaled to length 1 again (Matryoshka embeddings). A value that does not
    /// shorten the vector is ignored.
    pub dimensions: Option<u32>,
    pub normalization: VectorNormalization,
    pub load: LoadOptions,
    /// New keep-alive of the model; `None` leaves it unchanged.
    pub keep_alive: Option<KeepAlive>,
}

/// Scaling of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorNormalization {
    /// Scaled to Euclidean length 1.
    Unit,
    /// The scaling of Ollama's old `/api/embeddings`: unscaled for architectures whose files say so, else to length 1.
    AsModel,
}

/// Vectors of one request, with their usage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EmbeddingResult {
    /// Vectors in the order of the inputs.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs, after cutting.
    pub prompt_tokens: u32,
    /// Time from the request's arrival until its model was ready.
    pub load_duration: Duration,
    /// Time from the request's arrival to the end.
    pub total_duration: Duration,
}

/// A token of a text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TextToken {
    /// Id in the model's vocabulary.
    pub id: i32,
    /// Bytes of the token, which may be part of a UTF-8 character.
    pub bytes: Vec<u8>,
}
