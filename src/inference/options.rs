//! Options of sampling and loading. `None` means "not said" throughout; defaults are filled in where the layers
//! (request, alias, model settings, engine settings) come together.

use serde::{Deserialize, Serialize};

/// Calls `$callback!` with the table of sampling parameters: one `name: type,` for each field of [`SamplingOptions`]
/// but `logit_bias`, which only OpenAI's dialect has. `$context` is passed on in front of the table.
///
/// The names are those of Ollama's `options` and of the configuration keys. Whatever treats all parameters alike
/// (merging, reading options, writing options, configuration keys) is generated from this table, so that a new
/// parameter is added here once.
macro_rules! sampling_parameters {
    ($callback:ident! { $($context:tt)* }) => {
        $callback! {
            $($context)*
            num_predict: i64,
            num_keep: i64,
            seed: i64,
            temperature: f32,
            top_k: i32,
            top_p: f32,
            min_p: f32,
            typical_p: f32,
            repeat_last_n: i32,
            repeat_penalty: f32,
            presence_penalty: f32,
            frequency_penalty: f32,
            stop: Vec<String>,
        }
    };
}
pub(crate) use sampling_parameters;

/// Sampling and length of one answer.
///
/// The serialized form is part of the alias records on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// Maximum number of tokens to generate; negative means until the model ends or ten context windows are full.
    pub num_predict: Option<i64>,
    /// Tokens at the front of the prompt that a context shift keeps.
    pub num_keep: Option<i64>,
    /// Seed of the sampler; negative means random.
    pub seed: Option<i64>,
    /// Softmax temperature; 0 means greedy.
    pub temperature: Option<f32>,
    /// Number of most probable tokens to keep; 0 keeps all.
    pub top_k: Option<i32>,
    /// Cumulative probability of nucleus sampling.
    pub top_p: Option<f32>,
    /// Smallest probability to keep, as a share of the best token's.
    pub min_p: Option<f32>,
    /// Cumulative probability of locally typical sampling.
    pub typical_p: Option<f32>,
    /// Window of the penalties in tokens; 0 turns them off, -1 is the whole context.
    pub repeat_last_n: Option<i32>,
    /// Multiplicative repetition penalty; 1 is none.
    pub repeat_penalty: Option<f32>,
    /// Additive penalty for a token that occurs in the window.
    pub presence_penalty: Option<f32>,
    /// Additive penalty for each occurrence of a token in the window.
    pub frequency_penalty: Option<f32>,
    /// Strings that end the answer and are not part of it. `Some` replaces those of a lower layer.
    pub stop: Option<Vec<String>>,
    /// Token ids and biases that are added to their logits: -100 bans a token, 100 forces it.
    pub logit_bias: Vec<(i32, f32)>,
}

impl SamplingOptions {
    /// Returns these options, with those that are not set taken from a lower layer.
    #[must_use]
    pub fn or(self, below: &Self) -> Self {
        macro_rules! merge {
            ($($name:ident: $type:ty,)*) => {
                Self {
                    $($name: self.$name.or_else(|| below.$name.clone()),)*
                    // For the list, empty means not set.
                    logit_bias: match self.logit_bias.is_empty() {
                        true => below.logit_bias.clone(),
                        false => self.logit_bias,
                    },
                }
            };
        }
        sampling_parameters!(merge! {})
    }
}

/// Options that take effect when a model is loaded.
///
/// The serialized form is part of the alias records on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadOptions {
    /// Context length of one sequence in tokens. Alias records have it under Ollama's name.
    #[serde(rename = "num_ctx")]
    pub context_length: Option<u32>,
    /// Tokens in one logical batch.
    pub num_batch: Option<u32>,
    /// Layers on the device; negative means all that fit.
    pub num_gpu: Option<i32>,
    /// Device that holds the small tensors.
    pub main_gpu: Option<i32>,
    /// If set, the file is mapped instead of read.
    pub use_mmap: Option<bool>,
    /// Compute threads; 0 means the daemon's default.
    pub num_thread: Option<u32>,
}

impl LoadOptions {
    /// Returns these options, with those that are not set taken from a lower layer.
    #[must_use]
    pub fn or(self, below: &Self) -> Self {
        Self {
            context_length: self.context_length.or(below.context_length),
            num_batch: self.num_batch.or(below.num_batch),
            num_gpu: self.num_gpu.or(below.num_gpu),
            main_gpu: self.main_gpu.or(below.main_gpu),
            use_mmap: self.use_mmap.or(below.use_mmap),
            num_thread: self.num_thread.or(below.num_thread),
        }
    }
}

/// Feature that is on, off, or left to the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoSwitch {
    #[default]
    Auto,
    On,
    Off,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvCacheType {
    F32,
    #[default]
    F16,
    Bf16,
    #[serde(rename = "q8_0")]
    Q8_0,
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
