//! A model in listings and details.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Message, ModelCapability};

/// Facts about a model from its file's header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// `general.architecture`, for example `llama`.
    pub architecture: String,
    /// Families for `details.families`: the architecture, and `clip` if there is a projector.
    pub families: Vec<String>,
    /// Elements of all tensors.
    pub parameter_count: u64,
    /// Name of the file type, for example `Q4_K_M`; `unknown` if the file has none.
    pub quantization: String,
    /// Context length in tokens that the model was trained for; 0 if unknown.
    pub context_length: u32,
    /// Width of the embedding; 0 if unknown.
    pub embedding_length: u32,
    /// Capabilities in the order in which they are listed.
    pub capabilities: Vec<ModelCapability>,
}

/// Entry of a model listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// Canonical name, always with an explicit selector.
    pub name: String,
    /// Time at which the files were downloaded.
    pub modified_at: SystemTime,
    /// Size of all files in bytes.
    pub size_bytes: u64,
    /// 64 lowercase hex digits.
    pub digest: String,
    pub facts: ModelFacts,
    /// Model that a client created this one from; empty for a model of the Hub.
    pub parent_model: String,
}

/// A model that is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidentModel {
    pub card: ModelCard,
    /// Weights, KV cache and compute buffers in bytes.
    pub size_bytes: u64,
    /// Part of `size_bytes` in the memory of devices.
    pub device_bytes: u64,
    /// Time at which an idle model is unloaded; `None` means never.
    pub expires_at: Option<SystemTime>,
    /// Context window of one sequence in tokens.
    pub context_length: u32,
}

/// Details of a model for `/api/show`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDetails {
    pub card: ModelCard,
    /// Name of the weights for the `FROM` line of a Modelfile.
    pub from: String,
    /// The chat template's source (Jinja); empty if there is none.
    pub template: String,
    /// Text or identifier of the license; empty if unknown.
    pub license: String,
    /// System prompt from the settings; empty if there is none.
    pub system: String,
    /// Parameters from the settings, name and value in Go's spelling.
    pub parameters: Vec<(String, String)>,
    /// Messages that precede every conversation.
    pub messages: Vec<Message>,
    /// Header keys, sorted; long arrays are `null` unless a verbose answer was asked for.
    pub model_info: serde_json::Map<String, serde_json::Value>,
    /// Header keys of the projector, if the model has one.
    pub projector_info: Option<serde_json::Map<String, serde_json::Value>>,
    pub tensors: Vec<TensorFacts>,
}

/// Name, element type and shape of a tensor, with the fastest dimension first, the order of GGUF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorFacts {
    /// Name, for example `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type, for example `Q4_K`.
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
        /// 64 lowercase hex digits of the content's sha256.
        digest: String,
        /// Bytes in all.
        total: u64,
        /// Bytes on disk.
        completed: u64,
    },
    /// The conversion of downloaded files to one GGUF file advanced.
    Converting {
        /// 64 lowercase hex digits that stand for the file: its content is not known before the end.
        digest: String,
        /// Bytes in all.
        total: u64,
        /// Bytes that are written.
        completed: u64,
    },
}
