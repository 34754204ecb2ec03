//! Phi 3 and Phi 4 mini. Queries, keys and values are one fused matrix, gate and up another; both stay fused in the
//! file.

use super::{
    ModelBuilder,
    decoder::{DecoderLayout, LayerWeight, NORMS, WeightChange},
    llama::LLAMA,
    sizes::{HeadDim, ModelClass, WeightDim},
};
use crate::convert::{ConvertError, TensorRecipe};

use WeightDim::{FeedForward, GateUp, Hidden, Qkv, Query};

const PHI3: ModelClass = ModelClass {
    arch: "phi3",
    head_dim: HeadDim::Never,
    context: 4096,
    epsilon: 1e-5,
    ..LLAMA
};
const LAYER: &[LayerWeight] = &[
    LayerWeight::new("self_attn.qkv_proj", "attn_qkv", &[Qkv, Hidden]),
    LayerWeight::new("self_attn.o_proj", "attn_output", &[Hidden, Query]),
    LayerWeight::new("mlp.gate_up_proj", "ffn_up", &[GateUp, Hidden]),
    LayerWeight::new("mlp.down_proj", "ffn_down", &[Hidden, FeedForward]),
];

pub(super) fn phi3(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let decoder = DecoderLayout {
        class: PHI3,
        layer: &[NORMS, LAYER],
        experts: None,
        last_norm: WeightChange::None,
        output: true,
    };
    let sizes = decoder.build(build)?;
    // llama.cpp recognizes LongRoPE by the factor tensors, and the converter's `Phi3MiniModel` writes no type.
    build.keys.retain(|(key, _)| key != "phi3.rope.scaling.type");
    let config = build.config;
    let rope = config.rope(PHI3.theta)?;
    let original = match rope.number("original_max_position_embeddings") {
        Some(original) if original >= 1.0 => original,
        Some(original) => return Err(ConvertError::Config(format!("its original context is {original}"))),
        None => config.integer_or(&["original_max_position_embeddings"], PHI3.context)? as f64,
    };
    let rotated = rope.number("partial_rotary_factor").unwrap_or(1.0) * sizes.hidden as f64;
    let rotated = rotated as u64 / sizes.heads;
    build.put_integer("rope.scaling.original_context_length", original as u64)?;
    build.put_integer("rope.dimension_count", rotated)?;
    // Always written, like in the converter; 0 means no window. llama.cpp ignores the size of the window so far and
    // lets Phi 3 attend to all tokens.
    let window = config.optional_integer(&["sliding_window"])?.unwrap_or(0);
    build.put_integer("attention.sliding_window", window)?;

    let Some(long) = rope.numbers("long_factor") else {
        return Ok(());
    };
    let short = rope.numbers("short_factor").unwrap_or_default();
    if long.len() as u64 != rotated / 2 || short.len() != long.len() {
        return Err(ConvertError::Config(format!(
            "the RoPE parameters have {} long and {} short factors, not {} of each",
            long.len(),
            short.len(),
            rotated / 2
        )));
    }
    let context = config.integer_or(&["max_position_embeddings"], PHI3.context)?;
    let scale = context as f64 / original;
    // Attention factor: sqrt(1 + ln(s) / ln(original)) with s = context / original (LongRoPE,
    // `_compute_longrope_parameters`).
    let factor = match rope.kind() {
        _ if scale <= 1.0 => 1.0,
        "longrope" => (1.0 + scale.ln() / original.ln()).sqrt(),
        "yarn" => 0.1 * scale.ln() + 1.0,
        other => {
            return Err(ConvertError::Config(format!(
                "RoPE scaling {other:?} has no long factors"
            )));
        }
    };
    build.put_number("rope.scaling.attn_factor", factor);
    for (name, factors) in [("rope_factors_long.weight", long), ("rope_factors_short.weight", short)] {
        let factors = factors.into_iter().map(|factor| factor as f32).collect();
        build.recipes.push(TensorRecipe::values(name, factors));
    }
    Ok(())
}
