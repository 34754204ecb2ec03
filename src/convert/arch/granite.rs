//! IBM's Granite 3, dense and as a mixture of experts: Llama with four multipliers.

use super::{
    ModelBuilder,
    decoder::{DecoderLayout, INTERLEAVED_ATTENTION, NORMS, WeightChange},
    experts::take_fused,
    llama::{self, LLAMA},
    sizes::{DecoderSizes, HeadDim, ModelClass},
    spec,
};
use crate::convert::{ConvertError, TensorRecipe, parts::StoredRows};

const GRANITE: ModelClass = ModelClass {
    arch: "granite",
    head_dim: HeadDim::Never,
    ..LLAMA
};
const GRANITE_MOE: ModelClass = ModelClass {
    arch: "granitemoe",
    experts: Some((8, 2)),
    ..GRANITE
};

pub(super) fn granite(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    llama::dense(build, GRANITE)?;
    multipliers(build)
}

pub(super) fn granite_moe(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let decoder = DecoderLayout {
        class: GRANITE_MOE,
        layer: &[NORMS, INTERLEAVED_ATTENTION],
        experts: None,
        last_norm: WeightChange::None,
        output: true,
    };
    let sizes = decoder.build(build)?;
    llama::finish(build, &GRANITE_MOE, &sizes)?;
    let count = build.config.integer_or(&["num_local_experts"], 8)?;
    for block in 0..sizes.blocks {
        let moe = format!("model.layers.{block}.block_sparse_moe.");
        let router = build.take(&format!("{moe}router.layer.weight"), &[count, sizes.hidden])?;
        build.add(&format!("blk.{block}.ffn_gate_inp.weight"), &router);
        let names = [
            format!("{moe}input_linear.weight"),
            format!("{moe}output_linear.weight"),
        ];
        take_fused(
            build,
            block,
            [&names[0], &names[1]],
            [count, sizes.feed_forward, sizes.hidden],
        )?;
    }
    shared(build, &sizes)?;
    multipliers(build)
}

/// Takes the shared expert, which every token uses, if there is one. Rows of the gate come before those of up.
fn shared(build: &mut ModelBuilder<'_>, sizes: &DecoderSizes) -> Result<(), ConvertError> {
    let Some(inner) = build
        .config
        .optional_integer(&["shared_intermediate_size"])?
        .filter(|inner| *inner > 0)
    else {
        return Ok(());
    };
    build.put_integer("expert_shared_feed_forward_length", inner)?;
    for block in 0..sizes.blocks {
        let layer = format!("model.layers.{block}.shared_mlp.");
        let both = build.take(&format!("{layer}input_linear.weight"), &[2 * inner, sizes.hidden])?;
        for (to, first) in [("ffn_gate_shexp", 0), ("ffn_up_shexp", inner)] {
            let spec = spec(&format!("blk.{block}.{to}.weight"), &[inner, sizes.hidden]);
            let rows = StoredRows::some(&both, first, inner, 1);
            build.recipes.push(TensorRecipe::rows(spec, vec![rows]));
        }
        let down = build.take(&format!("{layer}output_linear.weight"), &[sizes.hidden, inner])?;
        build.add(&format!("blk.{block}.ffn_down_shexp.weight"), &down);
    }
    Ok(())
}

/// Puts the four multipliers (`GraniteModel.set_gguf_parameters`).
fn multipliers(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    for (from, to) in [
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        // llama.cpp divides Granite's logits by this number, but multiplies those of Command R, which has the same key.
        ("logits_scaling", "logit_scale"),
    ] {
        let number = build.config.number_or(&[from], 1.0)?;
        build.put_number(to, number);
    }
    Ok(())
}
