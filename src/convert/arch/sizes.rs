//! Sizes of a decoder: the defaults of its transformers class, and what its `config.json` says. Tensor shapes are
//! checked against them.

use super::ModelBuilder;
use crate::convert::ConvertError;

/// Class of the transformers library: its default configuration, and llama.cpp's name for the architecture. A
/// `config.json` leaves out what equals the default, so every value here is that of the class's `PretrainedConfig`.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelClass {
    pub(super) arch: &'static str,
    /// `None` if the class has no default: the configuration must say it.
    pub(super) heads: Option<u64>,
    /// `None` if the default is the number of query heads.
    pub(super) kv_heads: Option<u64>,
    pub(super) head_dim: HeadDim,
    pub(super) context: u64,
    pub(super) epsilon: f64,
    pub(super) theta: f64,
    /// Number of experts, and how many of them each token uses.
    pub(super) experts: Option<(u64, u64)>,
    pub(super) norms: NormKind,
    /// Name of the norm after the last layer.
    pub(super) final_norm: &'static str,
}

/// Kind of the norms: RMSNorm, or LayerNorm, which subtracts the mean first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormKind {
    Rms,
    Layer,
}

/// Rule for `head_dim`. It decides whether `attention.key_length` is written, which must be so exactly if llama.cpp's
/// converter writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadDim {
    /// The class sets `head_dim` to `hidden / heads` when it is absent, so the converter always finds it.
    Always,
    /// Present only if `config.json` has it.
    IfSaid,
    /// The class ignores the key: the size is `hidden / heads`.
    Never,
    /// The class has this default.
    Or(u64),
}

/// Sizes of a decoder.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecoderSizes {
    pub(super) blocks: u64,
    pub(super) hidden: u64,
    pub(super) feed_forward: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head_dim: u64,
}

/// Dimension of a weight.
#[derive(Clone, Copy, Debug)]
pub(super) enum WeightDim {
    Hidden,
    /// Query heads times `head_dim`.
    Query,
    /// Key-value heads times `head_dim`.
    Key,
    /// Queries, keys and values fused.
    Qkv,
    Head,
    Heads,
    KeyHeads,
    FeedForward,
    /// Gate and up projections fused.
    GateUp,
}

impl DecoderSizes {
    /// Reads the sizes, with the class's defaults for what `config.json` leaves out.
    pub(super) fn read(build: &ModelBuilder<'_>, class: &ModelClass) -> Result<Self, ConvertError> {
        let config = build.config;
        let hidden = config.count(&["hidden_size", "n_embd", "dim"])?;
        let heads_keys = ["num_attention_heads", "n_head", "n_heads"];
        let heads = match class.heads {
            Some(default) => config.integer_or(&heads_keys, default)?,
            None => config.count(&heads_keys)?,
        };
        let kv_heads = config.integer_or(&["num_key_value_heads", "n_kv_heads"], class.kv_heads.unwrap_or(heads))?;
        // Grouped-query attention: each key-value head serves the same number of query heads.
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(ConvertError::Config(format!(
                "{heads} heads cannot share {kv_heads} key heads"
            )));
        }
        let said = match class.head_dim {
            HeadDim::Never => None,
            HeadDim::Or(default) => Some(config.integer_or(&["head_dim"], default)?),
            HeadDim::Always | HeadDim::IfSaid => config.optional_integer(&["head_dim"])?,
        };
        let head_dim = said.unwrap_or(hidden / heads);
        // RoPE rotates pairs of elements.
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(ConvertError::Config(format!("a head would have the size {head_dim}")));
        }
        Ok(Self {
            blocks: build.blocks(&["num_hidden_layers", "n_layers", "n_layer", "num_layers"])?,
            // Mixtures of experts have this size too, that of a dense layer or of an expert.
            feed_forward: config.count(&["intermediate_size", "n_inner", "hidden_dim"])?,
            hidden,
            heads,
            kv_heads,
            head_dim,
        })
    }

    pub(super) fn of(&self, dim: WeightDim) -> u64 {
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match dim {
            WeightDim::Hidden => self.hidden,
            WeightDim::Query => query,
            WeightDim::Key => key,
            WeightDim::Qkv => query + 2 * key,
            WeightDim::Head => self.head_dim,
            WeightDim::Heads => self.heads,
            WeightDim::KeyHeads => self.kv_heads,
            WeightDim::FeedForward => self.feed_forward,
            WeightDim::GateUp => 2 * self.feed_forward,
        }
    }
}
