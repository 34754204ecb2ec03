//! Decoders with LayerNorm instead of RMSNorm: StarCoder 2, StableLM, Phi 2, Command R and Cohere 2.

use super::{
    ModelBuilder,
    decoder::{ATTENTION, DecoderLayout, LayerWeight, MLP, NORMS, WeightChange},
    llama::LLAMA,
    sizes::{DecoderSizes, HeadDim, ModelClass, NormKind, WeightDim},
    spec, window,
};
use crate::{
    convert::{ConvertError, TensorRecipe, parts::StoredRows},
    gguf::GgufValue,
};

use WeightDim::{FeedForward, Head, Heads, Hidden, Key, KeyHeads, Query};

const STARCODER2: ModelClass = ModelClass {
    arch: "starcoder2",
    kv_heads: Some(2),
    head_dim: HeadDim::Never,
    context: 4096,
    epsilon: 1e-5,
    norms: NormKind::Layer,
    ..LLAMA
};
const STABLELM: ModelClass = ModelClass {
    arch: "stablelm",
    kv_heads: Some(32),
    ..STARCODER2
};
const PHI2: ModelClass = ModelClass {
    arch: "phi2",
    kv_heads: None,
    context: 2048,
    final_norm: "final_layernorm",
    ..STARCODER2
};
const COMMAND_R: ModelClass = ModelClass {
    arch: "command-r",
    kv_heads: None,
    head_dim: HeadDim::IfSaid,
    context: 8192,
    theta: 500_000.0,
    ..STARCODER2
};
const COHERE2: ModelClass = ModelClass {
    arch: "cohere2",
    head_dim: HeadDim::Always,
    theta: 1e4,
    ..COMMAND_R
};
const ONE_NORM: &[LayerWeight] = &[LayerWeight::new("input_layernorm", "attn_norm", &[Hidden])];
const BIASED_ATTENTION: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_proj", "attn_q", &[Query, Hidden]).biased(),
    LayerWeight::new("self_attn.k_proj", "attn_k", &[Key, Hidden]).biased(),
    LayerWeight::new("self_attn.v_proj", "attn_v", &[Key, Hidden]).biased(),
];
const STARCODER2_LAYER: &[LayerWeight] = &[
    LayerWeight::new("self_attn.o_proj", "attn_output", &[Hidden, Query]).biased(),
    LayerWeight::new("mlp.c_fc", "ffn_up", &[FeedForward, Hidden]).biased(),
    LayerWeight::new("mlp.c_proj", "ffn_down", &[Hidden, FeedForward]).biased(),
];
const PHI2_LAYER: &[LayerWeight] = &[
    LayerWeight::new("self_attn.dense", "attn_output", &[Hidden, Query]).biased(),
    LayerWeight::new("mlp.fc1", "ffn_up", &[FeedForward, Hidden]).biased(),
    LayerWeight::new("mlp.fc2", "ffn_down", &[Hidden, FeedForward]).biased(),
];
const COMMAND_R_NORMS: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_norm", "attn_q_norm", &[Heads, Head]),
    LayerWeight::new("self_attn.k_norm", "attn_k_norm", &[KeyHeads, Head]),
];
/// Number of layers from which on llama.cpp expects norms of heads (`models/command-r.cpp`): that of Command R+.
const COMMAND_R_PLUS: u64 = 64;

fn decode(
    build: &mut ModelBuilder<'_>,
    class: ModelClass,
    layer: &[&[LayerWeight]],
    output: bool,
) -> Result<DecoderSizes, ConvertError> {
    let decoder = DecoderLayout {
        class,
        layer,
        experts: None,
        last_norm: WeightChange::None,
        output,
    };
    decoder.build(build)
}

pub(super) fn starcoder2(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    decode(build, STARCODER2, &[NORMS, BIASED_ATTENTION, STARCODER2_LAYER], true).map(drop)
}

pub(super) fn phi2(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let sizes = decode(build, PHI2, &[ONE_NORM, BIASED_ATTENTION, PHI2_LAYER], true)?;
    put_rotary_dimensions(build, &sizes, 0.5)?;
    // The tokenizer has a BOS token but does not add it (`Phi2Model.set_gguf_parameters`).
    let key = "tokenizer.ggml.add_bos_token".to_owned();
    build.keys.push((key, GgufValue::Bool(false)));
    Ok(())
}

pub(super) fn stablelm(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let config = build.config;
    let is_parallel = config.flag_or("use_parallel_residual", false);
    let norms = if is_parallel { ONE_NORM } else { NORMS };
    let sizes = decode(build, STABLELM, &[norms, ATTENTION, MLP], true)?;
    build.put("use_parallel_residual", GgufValue::Bool(is_parallel));
    if config.flag("qk_layernorm") == Some(true) {
        for block in 0..sizes.blocks {
            head_norms(build, &sizes, block, "q_layernorm", "attn_q_norm", sizes.heads)?;
            head_norms(build, &sizes, block, "k_layernorm", "attn_k_norm", sizes.kv_heads)?;
        }
    }
    put_rotary_dimensions(build, &sizes, 0.25)
}

/// Stacks the norms of all heads, `[head_dim]` each, into `[heads, head_dim]` (`StableLMModel._stack_qk_norm`).
fn head_norms(
    build: &mut ModelBuilder<'_>,
    sizes: &DecoderSizes,
    block: u64,
    from: &str,
    to: &str,
    heads: u64,
) -> Result<(), ConvertError> {
    let mut parts = Vec::new();
    for head in 0..heads {
        let name = format!("model.layers.{block}.self_attn.{from}.norms.{head}.weight");
        parts.push(StoredRows::all(&build.take(&name, &[sizes.head_dim])?));
    }
    let spec = spec(&format!("blk.{block}.{to}.weight"), &[heads, sizes.head_dim]);
    build.recipes.push(TensorRecipe::rows(spec, parts));
    Ok(())
}

/// Puts the number of elements of a head that are rotated: `partial_rotary_factor * head_dim`.
fn put_rotary_dimensions(build: &mut ModelBuilder<'_>, sizes: &DecoderSizes, default: f64) -> Result<(), ConvertError> {
    let said = build.config.rope(LLAMA.theta)?.number("partial_rotary_factor");
    let part = match said {
        Some(part) => part,
        None => build.config.number_or(&["partial_rotary_factor"], default)?,
    };
    build.put_integer("rope.dimension_count", (part * sizes.head_dim as f64) as u64)
}

pub(super) fn command_r(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let config = build.config;
    let has_norms = config.flag("use_qk_norm") == Some(true);
    let norms: &[LayerWeight] = if has_norms { COMMAND_R_NORMS } else { &[] };
    let sizes = decode(build, COMMAND_R, &[ONE_NORM, ATTENTION, norms, MLP], false)?;
    if has_norms != (sizes.blocks >= COMMAND_R_PLUS) {
        return Err(ConvertError::Config(format!(
            "use_qk_norm is {has_norms}, which llama.cpp does not expect of a model with {} layers",
            sizes.blocks
        )));
    }
    // Command R was trained with longer texts than `max_position_embeddings` says (`CommandR2Model` of the converter).
    if let Some(context) = config.optional_integer(&["model_max_length"])? {
        // The decoder has put the shorter context, and a key must not occur twice.
        let key = "command-r.context_length";
        build.keys.retain(|(name, _)| name != key);
        build.put_integer("context_length", context)?;
    }
    unscaled(build)
}

pub(super) fn cohere2(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let config = build.config;
    let sizes = decode(build, COHERE2, &[ONE_NORM, ATTENTION, MLP], false)?;
    let vocabulary = build.vocabulary;
    build.put_integer("vocab_size", vocabulary)?;
    // The pattern matters for more than attention: in llama.cpp only layers with a window rotate
    // (`models/cohere2.cpp`).
    window::keys(build, sizes.blocks, Some(4096))?;
    let part = config.optional_number(&["rotary_pct"])?.unwrap_or(1.0);
    build.put_integer("rope.dimension_count", (part * sizes.head_dim as f64) as u64)?;
    unscaled(build)
}

/// Puts the logit scale. Positions are never scaled in this family.
fn unscaled(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let scale = build.config.number_or(&["logit_scale"], 0.0625)?;
    build.put_number("logit_scale", scale);
    // For a configuration with scaled positions this key occurs twice, so that the writer refuses the file.
    build.put("rope.scaling.type", GgufValue::String("none".to_owned()));
    Ok(())
}
