//! What a request may say about loading and sampling; nothing here has a default.

use serde::{Deserialize, Serialize};

/// Sampling and length of one answer. `None` means that the request did not say; defaults are filled in by the
/// dialect (they differ between wires) and by the model's settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// Tokens to generate at most; negative means "until the model ends or ten context windows are full".
    pub num_predict: Option<i64>,
    /// Tokens at the front of the prompt that a context shift keeps.
    pub num_keep: Option<i64>,
    /// Seed of the sampler; negative means random.
    pub seed: Option<i64>,
    /// Softmax temperature; 0 is greedy.
    pub temperature: Option<f32>,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: Option<i32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the best one's probability.
    pub min_p: Option<f32>,
    /// Locally typical sampling.
    pub typical_p: Option<f32>,
    /// Window of the penalties in tokens; 0 off, -1 the whole context.
    pub repeat_last_n: Option<i32>,
    /// Multiplicative repetition penalty; 1 is none.
    pub repeat_penalty: Option<f32>,
    /// Additive penalty for presence.
    pub presence_penalty: Option<f32>,
    /// Additive penalty for each occurrence.
    pub frequency_penalty: Option<f32>,
    /// Strings that end the answer; they are not part of it. `Some` replaces the model's own.
    pub stop: Option<Vec<String>>,
    /// Added to the logit of a token before it is chosen: token id and bias. -100 bans a token, 100 forces it.
    pub logit_bias: Vec<(i32, f32)>,
}

/// Options that are fixed when a model is loaded. A change of one that matters reloads the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadOptions {
    /// Context window of one sequence in tokens.
    pub context_length: Option<u32>,
    /// Tokens in one logical batch.
    pub num_batch: Option<u32>,
    /// Layers to offload; negative means as many as fit.
    pub num_gpu: Option<i32>,
    /// Device that holds the small tensors.
    pub main_gpu: Option<i32>,
    /// Map the file instead of reading it.
    pub use_mmap: Option<bool>,
    /// Compute threads; 0 means the daemon's grant.
    pub num_thread: Option<u32>,
}

/// On, off, or as the engine thinks best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoSwitch {
    /// The engine decides.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvCacheType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit blocks.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4-bit blocks.
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// Placement of a model's weights on several devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitMode {
    /// The whole model on one device.
    None,
    /// Whole layers on each device.
    #[default]
    Layer,
    /// Rows of every weight matrix on each device (tensor parallelism).
    Row,
}
