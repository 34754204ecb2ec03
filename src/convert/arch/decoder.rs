//! What nearly all decoders share: a stack of equal layers, named as Llama's.

use super::{
    ModelBuilder,
    experts::ExpertWeights,
    rope,
    sizes::{DecoderSizes, HeadDim, ModelClass, NormKind, WeightDim},
    spec,
};
use crate::{
    convert::{ConvertError, TensorRecipe, parts::StoredRows, stored::StoredTensor},
    gguf::GgufValue,
};

/// How a tensor's rows or numbers are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightChange {
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
pub(super) struct LayerWeight {
    /// Below the layer's name in the checkpoint, without `.weight`.
    from: &'static str,
    /// Below `blk.N`, without `.weight`.
    to: &'static str,
    /// Slowest dimension first.
    dims: &'static [WeightDim],
    change: WeightChange,
    bias: Bias,
}

impl LayerWeight {
    pub(super) const fn new(from: &'static str, to: &'static str, dims: &'static [WeightDim]) -> Self {
        Self {
            from,
            to,
            dims,
            change: WeightChange::None,
            bias: Bias::IfStored,
        }
    }

    pub(super) const fn biased(mut self) -> Self {
        self.bias = Bias::Always;
        self
    }

    pub(super) const fn changed(mut self, change: WeightChange) -> Self {
        self.change = change;
        self
    }
}

use WeightDim::{FeedForward, Head, Hidden, Key, Query};

/// As llama.cpp rotates pairs that are half a head apart, like the checkpoint.
pub(super) const ATTENTION: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_proj", "attn_q", &[Query, Hidden]),
    LayerWeight::new("self_attn.k_proj", "attn_k", &[Key, Hidden]),
    LayerWeight::new("self_attn.v_proj", "attn_v", &[Key, Hidden]),
    LayerWeight::new("self_attn.o_proj", "attn_output", &[Hidden, Query]),
];
/// As llama.cpp rotates neighbours.
pub(super) const INTERLEAVED_ATTENTION: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_proj", "attn_q", &[Query, Hidden]).changed(WeightChange::Interleaved),
    LayerWeight::new("self_attn.k_proj", "attn_k", &[Key, Hidden]).changed(WeightChange::Interleaved),
    LayerWeight::new("self_attn.v_proj", "attn_v", &[Key, Hidden]),
    LayerWeight::new("self_attn.o_proj", "attn_output", &[Hidden, Query]),
];
pub(super) const HEAD_NORMS: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_norm", "attn_q_norm", &[Head]),
    LayerWeight::new("self_attn.k_norm", "attn_k_norm", &[Head]),
];
pub(super) const NORMS: &[LayerWeight] = &[
    LayerWeight::new("input_layernorm", "attn_norm", &[Hidden]),
    LayerWeight::new("post_attention_layernorm", "ffn_norm", &[Hidden]),
];
pub(super) const MLP: &[LayerWeight] = &[
    LayerWeight::new("mlp.gate_proj", "ffn_gate", &[FeedForward, Hidden]),
    LayerWeight::new("mlp.up_proj", "ffn_up", &[FeedForward, Hidden]),
    LayerWeight::new("mlp.down_proj", "ffn_down", &[Hidden, FeedForward]),
];

/// A whole decoder.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecoderLayout<'a> {
    pub(super) class: ModelClass,
    /// Tensors of every layer.
    pub(super) layer: &'a [&'a [LayerWeight]],
    /// Experts of every layer.
    pub(super) experts: Option<ExpertWeights>,
    /// What is added to the last norm.
    pub(super) last_norm: WeightChange,
    /// Whether a stored output matrix is used.
    pub(super) output: bool,
}

impl DecoderLayout<'_> {
    /// All keys and tensors that decoders have in common.
    pub(super) fn build(&self, build: &mut ModelBuilder<'_>) -> Result<DecoderSizes, ConvertError> {
        build.arch = self.class.arch;
        let sizes = DecoderSizes::read(build, &self.class)?;
        self.keys(build, &sizes)?;
        self.tensors(build, &sizes)?;
        Ok(sizes)
    }

    fn keys(&self, build: &mut ModelBuilder<'_>, sizes: &DecoderSizes) -> Result<(), ConvertError> {
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
            NormKind::Rms => (&["rms_norm_eps", "norm_eps"][..], "attention.layer_norm_rms_epsilon"),
            NormKind::Layer => (
                &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"][..],
                "attention.layer_norm_epsilon",
            ),
        };
        let epsilon = config.number_or(keys, self.class.epsilon)?;
        build.put_number(name, epsilon);
        if config.flag("is_causal") == Some(false) {
            build.put("attention.causal", GgufValue::Bool(false));
        }
        if let Some((experts, used)) = self.class.experts {
            let experts = config.integer_or(&["num_local_experts", "num_experts", "n_routed_experts"], experts)?;
            let used = config.integer_or(&["num_experts_per_tok", "num_experts_per_token"], used)?;
            build.put_integer("expert_count", experts)?;
            build.put_integer("expert_used_count", used)?;
        }
        rope::keys(build, self.class.theta, context)
    }

    fn tensors(&self, build: &mut ModelBuilder<'_>, sizes: &DecoderSizes) -> Result<(), ConvertError> {
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
    build: &mut ModelBuilder<'_>,
    sizes: &DecoderSizes,
    weight: &LayerWeight,
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

fn changed(source: &StoredTensor, name: &str, change: WeightChange, sizes: &DecoderSizes) -> TensorRecipe {
    let rows = StoredRows::all(source);
    let spec = spec(name, &source.shape);
    match change {
        WeightChange::None => TensorRecipe::rows(spec, vec![rows]),
        WeightChange::PlusOne => TensorRecipe::rows(spec, vec![rows]).plus(1.0),
        WeightChange::Interleaved => TensorRecipe::rows(spec, vec![rows.interleaved(sizes.head_dim)]),
    }
}

/// A bias is one row; what happens to the rows of its matrix happens to its elements.
fn changed_bias(source: &StoredTensor, name: &str, change: WeightChange, sizes: &DecoderSizes) -> TensorRecipe {
    if change != WeightChange::Interleaved {
        return changed(source, name, change, sizes);
    }
    let column = source.as_column();
    let recipe = changed(&column, name, change, sizes);
    recipe.flattened()
}
