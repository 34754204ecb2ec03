//! Requests whose answer is not text: vectors and token ids.

use std::time::Duration;

use super::{KeepAlive, LoadOptions};

/// Texts to turn into vectors, free of any wire's spelling.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// One vector each, in this order.
    pub inputs: Vec<String>,
    /// Cut an input that does not fit the context window instead of refusing it.
    pub truncate: bool,
    /// Keep this many leading components and scale the rest to length 1 again (Matryoshka); values that are no shortening
    /// are ignored.
    pub dimensions: Option<u32>,
    /// How vectors are scaled.
    pub normalization: VectorNormalization,
    /// Options that matter when the model is loaded.
    pub load: LoadOptions,
    /// How long the model stays resident afterwards; `None` leaves what is in force.
    pub keep_alive: Option<KeepAlive>,
}

/// How vectors are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorNormalization {
    /// To Euclidean length 1.
    Unit,
    /// As Ollama's old `/api/embeddings` has it: as the model gives them for the architectures whose files say so, else to
    /// length 1.
    AsModel,
}

/// The vectors of one request and what they cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EmbeddingResult {
    /// One for each input, in order.
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
    /// Its id in the model's vocabulary.
    pub id: i32,
    /// Its bytes; they need not be valid UTF-8 on their own.
    pub bytes: Vec<u8>,
}
