//! A model as listings and details show it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Message, ModelCapability};

/// What a file's header says of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// `general.architecture`, as `llama`.
    pub architecture: String,
    /// Families for `details.families`: the architecture, and `clip` if there is a projector.
    pub families: Vec<String>,
    /// Elements of all tensors.
    pub parameter_count: u64,
    /// Name of the file type, as `Q4_K_M`; `unknown` if the file does not say.
    pub quantization: String,
    /// Tokens the model was trained for; 0 if unknown.
    pub context_length: u32,
    /// Width of the embedding; 0 if unknown.
    pub embedding_length: u32,
    /// In the order in which they are listed.
    pub capabilities: Vec<ModelCapability>,
}

/// One line of a model listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// Canonical name, always with an explicit selector.
    pub name: String,
    /// When its files arrived.
    pub modified_at: SystemTime,
    /// Size of all its files in bytes.
    pub size_bytes: u64,
    /// 64 lower-case hex digits.
    pub digest: String,
    /// What the header says.
    pub facts: ModelFacts,
    /// The model that a client made this one from; empty if nobody did.
    pub parent_model: String,
}

/// A model that is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidentModel {
    /// As in the listing.
    pub card: ModelCard,
    /// Weights, KV cache and compute buffers in bytes.
    pub size_bytes: u64,
    /// The part of `size_bytes` that lies on devices.
    pub device_bytes: u64,
    /// When it will be unloaded if nothing happens; `None` is never.
    pub expires_at: Option<SystemTime>,
    /// Context window of one sequence in tokens.
    pub context_length: u32,
}

/// Everything `/api/show` tells.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDetails {
    /// As in the listing.
    pub card: ModelCard,
    /// The name of its weights, as a Modelfile's `FROM` has it.
    pub from: String,
    /// The chat template's source (Jinja); empty if there is none.
    pub template: String,
    /// The licence's text or identifier; empty if unknown.
    pub license: String,
    /// System prompt from the settings; empty if there is none.
    pub system: String,
    /// Parameters from the settings, name and value in Go's spelling.
    pub parameters: Vec<(String, String)>,
    /// Turns that stand before every conversation.
    pub messages: Vec<Message>,
    /// Header keys, sorted; long arrays are `null` unless a verbose answer was asked for.
    pub model_info: serde_json::Map<String, serde_json::Value>,
    /// The same of the projector.
    pub projector_info: Option<serde_json::Map<String, serde_json::Value>>,
    /// Every tensor.
    pub tensors: Vec<TensorFacts>,
}

/// A tensor's name, element type and shape (fastest dimension first, as GGUF has it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorFacts {
    /// As `blk.0.attn_q.weight`.
    pub name: String,
    /// As `Q4_K`.
    pub element_type: String,
    /// Elements in each dimension.
    pub shape: Vec<u64>,
}

/// Progress of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullEvent {
    /// A phase began, in Ollama's words: `pulling manifest`, `verifying sha256 digest`, `writing manifest`, `success`.
    Status(&'static str),
    /// A file advanced.
    File {
        /// 64 lower-case hex digits of the content's sha256.
        digest: String,
        /// Bytes in all.
        total: u64,
        /// Bytes on disk.
        completed: u64,
    },
    /// The file that is made of downloaded ones advanced.
    Converting {
        /// 64 lower-case hex digits that stand for the file: its content is not known before the end.
        digest: String,
        /// Bytes in all.
        total: u64,
        /// Bytes that are written.
        completed: u64,
    },
}
