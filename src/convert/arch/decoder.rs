//! What nearly all decoders share: a stack of equal layers, named as Llama's.

use super::{Build, experts::Experts, rope, spec};
use crate::{
    convert::{ConvertError, Recipe, parts::Rows, safetensors::Stored},
    gguf::Value,
};

/// A class of the transformers library: what it takes for granted, and llama.cpp's name for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub(super) arch: &'static str,
    pub(super) heads: Option<u64>,
    /// `None`: as many as heads.
    pub(super) kv_heads: Option<u64>,
    pub(super) head_dim: HeadDim,
    pub(super) context: u64,
    pub(super) epsilon: f64,
    pub(super) theta: f64,
    /// Experts, and how many a token uses.
    pub(super) experts: Option<(u64, u64)>,
    pub(super) norms: Norms,
    /// What it calls the norm behind the last layer.
    pub(super) final_norm: &'static str,
}

/// What norms divide by, and whether they subtract the mean first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norms {
    Rms,
    Layer,
}

/// What a class says of a head's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadDim {
    /// It always has the key.
    Always,
    /// It has none unless the configuration does.
    IfSaid,
    /// It knows no such key.
    Never,
    /// Unless the configuration says otherwise.
    Or(u64),
}

/// Sizes by which shapes are checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) blocks: u64,
    pub(super) hidden: u64,
    pub(super) feed_forward: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head_dim: u64,
}

/// A size in the shape of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dim {
    Hidden,
    /// All heads together.
    Query,
    /// All key heads together.
    Key,
    /// Queries, keys and values together.
    Qkv,
    Head,
    Heads,
    KeyHeads,
    FeedForward,
    /// Gate and up together.
    GateUp,
}

/// How a tensor's rows or numbers are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// The halves of every head are interleaved.
    Interleaved,
    PlusOne,
}

/// Whether there is a bias beside a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    IfStored,
    Always,
}

/// A tensor of every layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight {
    /// Below the layer's name in the checkpoint, without `.weight`.
    from: &'static str,
    /// Below `blk.N`, without `.weight`.
    to: &'static str,
    /// Slowest dimension first.
    dims: &'static [Dim],
    change: Change,
    bias: Bias,
}

impl Weight {
    pub(super) const fn new(from: &'static str, to: &'static str, dims: &'static [Dim]) -> Self {
        Self {
            from,
            to,
            dims,
            change: Change::None,
            bias: Bias::IfStored,
        }
    }

    pub(super) const fn biased(mut self) -> Self {
        self.bias = Bias::Always;
        self
    }

    pub(super) const fn changed(mut self, change: Change) -> Self {
        self.change = change;
        self
    }
}

use Dim::{FeedForward, Head, Hidden, Key, Query};

/// As llama.cpp rotates pairs that are half a head apart, like the checkpoint.
pub(super) const ATTENTION: &[Weight] = &[
    Weight::new("self_attn.q_proj", "attn_q", &[Query, Hidden]),
    Weight::new("self_attn.k_proj", "attn_k", &[Key, Hidden]),
    Weight::new("self_attn.v_proj", "attn_v", &[Key, Hidden]),
    Weight::new("self_attn.o_proj", "attn_output", &[Hidden, Query]),
];
/// As llama.cpp rotates neighbours.
pub(super) const INTERLEAVED_ATTENTION: &[Weight] = &[
    Weight::new("self_attn.q_proj", "attn_q", &[Query, Hidden]).changed(Change::Interleaved),
    Weight::new("self_attn.k_proj", "attn_k", &[Key, Hidden]).changed(Change::Interleaved),
    Weight::new("self_attn.v_proj", "attn_v", &[Key, Hidden]),
    Weight::new("self_attn.o_proj", "attn_output", &[Hidden, Query]),
];
pub(super) const HEAD_NORMS: &[Weight] = &[
    Weight::new("self_attn.q_norm", "attn_q_norm", &[Head]),
    Weight::new("self_attn.k_norm", "attn_k_norm", &[Head]),
];
pub(super) const NORMS: &[Weight] = &[
    Weight::new("input_layernorm", "attn_norm", &[Hidden]),
    Weight::new("post_attention_layernorm", "ffn_norm", &[Hidden]),
];
pub(super) const MLP: &[Weight] = &[
    Weight::new("mlp.gate_proj", "ffn_gate", &[FeedForward, Hidden]),
    Weight::new("mlp.up_proj", "ffn_up", &[FeedForward, Hidden]),
    Weight::new("mlp.down_proj", "ffn_down", &[Hidden, FeedForward]),
];

/// A whole decoder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoder<'a> {
    pub(super) class: Class,
    /// Tensors of every layer.
    pub(super) layer: &'a [&'a [Weight]],
    /// Experts of every layer.
    pub(super) experts: Option<Experts>,
    /// What is added to the last norm.
    pub(super) last_norm: Change,
    /// Whether a stored output matrix is used.
    pub(super) output: bool,
}

impl Sizes {
    pub(super) fn read(build: &Build<'_>, class: &Class) -> Result<Self, ConvertError> {
        let config = build.config;
        let hidden = config.count(&["hidden_size", "n_embd", "dim"])?;
        let heads_keys = ["num_attention_heads", "n_head", "n_heads"];
        let heads = match class.heads {
            Some(default) => config.integer_or(&heads_keys, default)?,
            None => config.count(&heads_keys)?,
        };
        let kv_heads = config.integer_or(&["num_key_value_heads", "n_kv_heads"], class.kv_heads.unwrap_or(heads))?;
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
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(ConvertError::Config(format!("a head would have the size {head_dim}")));
        }
        Ok(Self {
            blocks: build.blocks(&["num_hidden_layers", "n_layers", "n_layer", "num_layers"])?,
            feed_forward: config.count(&["intermediate_size", "n_inner", "hidden_dim"])?,
            hidden,
            heads,
            kv_heads,
            head_dim,
        })
    }

    fn of(&self, dim: Dim) -> u64 {
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match dim {
            Dim::Hidden => self.hidden,
            Dim::Query => query,
            Dim::Key => key,
            Dim::Qkv => query + 2 * key,
            Dim::Head => self.head_dim,
            Dim::Heads => self.heads,
            Dim::KeyHeads => self.kv_heads,
            Dim::FeedForward => self.feed_forward,
            Dim::GateUp => 2 * self.feed_forward,
        }
    }
}

impl Decoder<'_> {
    /// All keys and tensors that decoders have in common.
    pub(super) fn build(&self, build: &mut Build<'_>) -> Result<Sizes, ConvertError> {
        build.arch = self.class.arch;
        let sizes = Sizes::read(build, &self.class)?;
        self.keys(build, &sizes)?;
        self.tensors(build, &sizes)?;
        Ok(sizes)
    }

    fn keys(&self, build: &mut Build<'_>, sizes: &Sizes) -> Result<(), ConvertError> {
        let config = build.config;
        let context = config.integer_or(
            &[
                "max_position_embeddings",
                "n_ctx",
                "n_positions",
                "max_sequence_length",
                "model_max_length",
            ],
            self.class.context,
        )?;
        build.put_integer("block_count", sizes.blocks)?;
        build.put_integer("context_length", context)?;
        build.put_integer("embedding_length", sizes.hidden)?;
        build.put_integer("feed_forward_length", sizes.feed_forward)?;
        build.put_integer("attention.head_count", sizes.heads)?;
        build.put_integer("attention.head_count_kv", sizes.kv_heads)?;
        let is_said = config.find(&["head_dim"]).is_some();
        if match self.class.head_dim {
            HeadDim::Always | HeadDim::Or(_) => true,
            HeadDim::IfSaid => is_said,
            HeadDim::Never => false,
        } {
            build.put_integer("attention.key_length", sizes.head_dim)?;
            build.put_integer("attention.value_length", sizes.head_dim)?;
        }
        let (keys, name) = match self.class.norms {
            Norms::Rms => (&["rms_norm_eps", "norm_eps"][..], "attention.layer_norm_rms_epsilon"),
            Norms::Layer => (
                &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"][..],
                "attention.layer_norm_epsilon",
            ),
        };
        let epsilon = config.number_or(keys, self.class.epsilon)?;
        build.put_number(name, epsilon);
        if config.flag("is_causal") == Some(false) {
            build.put("attention.causal", Value::Bool(false));
        }
        if let Some((experts, used)) = self.class.experts {
            let experts = config.integer_or(&["num_local_experts", "num_experts", "n_routed_experts"], experts)?;
            let used = config.integer_or(&["num_experts_per_tok", "num_experts_per_token"], used)?;
            build.put_integer("expert_count", experts)?;
            build.put_integer("expert_used_count", used)?;
        }
        rope::keys(build, self.class.theta, context)
    }

    fn tensors(&self, build: &mut Build<'_>, sizes: &Sizes) -> Result<(), ConvertError> {
        // Classes without a head leave out the model's name.
        let prefix = if build.has("embed_tokens.weight") { "" } else { "model." };
        build.take_embedding(&format!("{prefix}embed_tokens.weight"), sizes.hidden)?;
        for block in 0..sizes.blocks {
            let layer = format!("{prefix}layers.{block}.");
            for weight in self.layer.iter().copied().flatten() {
                take_weight(build, sizes, weight, &layer, block)?;
            }
            if let Some(experts) = &self.experts {
                experts.take(build, sizes, &layer, block)?;
            }
        }
        let name = format!("{prefix}{}", self.class.final_norm);
        let norm = build.take(&format!("{name}.weight"), &[sizes.hidden])?;
        let recipe = changed(&norm, "output_norm.weight", self.last_norm, sizes);
        build.recipes.push(recipe);
        let bias = format!("{name}.bias");
        if build.has(&bias) {
            let source = build.take(&bias, &[sizes.hidden])?;
            build.add("output_norm.bias", &source);
        }
        if self.output {
            build.take_output("lm_head.weight", sizes.hidden)?;
        } else {
            build.tensors.remove("lm_head.weight");
        }
        Ok(())
    }
}

pub(super) fn take_weight(
    build: &mut Build<'_>,
    sizes: &Sizes,
    weight: &Weight,
    layer: &str,
    block: u64,
) -> Result<(), ConvertError> {
    let shape: Vec<u64> = weight.dims.iter().map(|dim| sizes.of(*dim)).collect();
    let source = build.take(&format!("{layer}{}.weight", weight.from), &shape)?;
    let recipe = changed(
        &source,
        &format!("blk.{block}.{}.weight", weight.to),
        weight.change,
        sizes,
    );
    build.recipes.push(recipe);
    let bias = format!("{layer}{}.bias", weight.from);
    if weight.bias == Bias::Always || build.has(&bias) {
        let source = build.take(&bias, &shape[..1])?;
        let recipe = changed_bias(
            &source,
            &format!("blk.{block}.{}.bias", weight.to),
            weight.change,
            sizes,
        );
        build.recipes.push(recipe);
    }
    Ok(())
}

fn changed(source: &Stored, name: &str, change: Change, sizes: &Sizes) -> Recipe {
    let rows = Rows::all(source);
    let spec = spec(name, &source.shape);
    match change {
        Change::None => Recipe::rows(spec, vec![rows]),
        Change::PlusOne => Recipe::rows(spec, vec![rows]).plus(1.0),
        Change::Interleaved => Recipe::rows(spec, vec![rows.interleaved(sizes.head_dim)]),
    }
}

/// A bias is one row; what happens to the rows of its matrix happens to its elements.
fn changed_bias(source: &Stored, name: &str, change: Change, sizes: &Sizes) -> Recipe {
    if change != Change::Interleaved {
        return changed(source, name, change, sizes);
    }
    let column = source.as_column();
    let recipe = changed(&column, name, change, sizes);
    recipe.flattened()
}
