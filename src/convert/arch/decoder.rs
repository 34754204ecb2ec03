//! Decoders as most families define them: a stack of equal layers, with tensors named as in Llama. A family lists the
//! weights of one layer as [`LayerWeight`]s; [`DecoderLayout::build`] takes them from every layer and writes the common
//! keys (`TextModel.set_gguf_parameters` in llama.cpp's converter).

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

/// Change of a weight on its way into the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightChange {
    None,
    /// The two halves of every head are interleaved; see [`RowOrder::Interleaved`](crate::convert::parts::RowOrder).
    Interleaved,
    /// Adds one to every element: the norms of Gemma are stored as the difference from one.
    PlusOne,
}

/// Rule for the bias next to a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    IfStored,
    Always,
}

/// Weight that every layer has.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerWeight {
    /// Name in the checkpoint after `model.layers.N.`, without `.weight`.
    from: &'static str,
    /// Name in the file after `blk.N.`, without `.weight`.
    to: &'static str,
    /// Shape, slowest dimension first.
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

/// Attention of architectures for which llama.cpp rotates elements that are half a head apart (`LLAMA_ROPE_TYPE_NEOX`),
/// as transformers does.
pub(super) const ATTENTION: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_proj", "attn_q", &[Query, Hidden]),
    LayerWeight::new("self_attn.k_proj", "attn_k", &[Key, Hidden]),
    LayerWeight::new("self_attn.v_proj", "attn_v", &[Key, Hidden]),
    LayerWeight::new("self_attn.o_proj", "attn_output", &[Hidden, Query]),
];
/// Attention of architectures for which llama.cpp rotates neighboring elements (`LLAMA_ROPE_TYPE_NORM`): the rows of
/// queries and keys are permuted, so that the rotated pairs become neighbors.
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

/// Description of a decoder: its class, and the weights of one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecoderLayout<'a> {
    pub(super) class: ModelClass,
    /// Weights of every layer, in groups that families share.
    pub(super) layer: &'a [&'a [LayerWeight]],
    /// Experts of every layer, if it has some.
    pub(super) experts: Option<ExpertWeights>,
    /// Change of the norm after the last layer.
    pub(super) last_norm: WeightChange,
    /// False if the output matrix is always the embedding, even when the checkpoint stores one.
    pub(super) output: bool,
}

impl DecoderLayout<'_> {
    /// Takes all weights and puts all keys that decoders have in common.
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
        // The converter writes these keys if the configuration has a `head_dim` once defaults are filled in. llama.cpp
        // would compute the same values, but the files are to be equal.
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
        // A class without a head (`LlamaModel`) has no `model.` before its names.
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
        // Some LayerNorm models have a bias here.
        let bias = format!("{name}.bias");
        if build.has(&bias) {
            let source = build.take(&bias, &[sizes.hidden])?;
            build.add("output_norm.bias", &source);
        }
        if self.output {
            build.take_output("lm_head.weight", sizes.hidden)?;
        } else {
            // Dropped, not refused: some checkpoints store a copy of the embedding.
            build.tensors.remove("lm_head.weight");
        }
        Ok(())
    }
}

/// Takes one weight of a layer and its bias. `layer` is the beginning of its name in the checkpoint.
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

/// Makes a bias. Its elements are permuted like the rows of its weight.
fn changed_bias(source: &StoredTensor, name: &str, change: WeightChange, sizes: &DecoderSizes) -> TensorRecipe {
    if change != WeightChange::Interleaved {
        return changed(source, name, change, sizes);
    }
    let column = source.as_column();
    let recipe = changed(&column, name, change, sizes);
    recipe.flattened()
}
