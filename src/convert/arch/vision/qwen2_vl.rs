//! Vision encoder and projector of Qwen2-VL and Qwen2.5-VL: images of any size, two by two patches become one embedding
//! (`Qwen2VLVisionModel` in llama.cpp's converter).

use serde_json::Value as Json;

use super::{CHANNELS, Encoder, VisionContext, check_activation, keys, take_both};
use crate::{
    convert::{
        ConvertError, TensorRecipe,
        arch::{ModelBuilder, spec},
        parts::StoredRows,
    },
    gguf::GgufValue,
};

/// Default mean and deviation of the preprocessor's class: those of CLIP's training images.
const CLIP: [[f64; 3]; 2] = [
    [0.481_454_66, 0.457_827_5, 0.408_210_73],
    [0.268_629_54, 0.261_302_58, 0.275_777_11],
];
/// Epsilon of the norms. The classes hard-code it.
const EPSILON: f64 = 1e-6;
/// Images may have any size, but `clip.vision.image_size` is required: the converter's default.
const IMAGE: u64 = 560;
/// Patches on a side that become one embedding, and consecutive frames that become one. llama.cpp supports no other
/// numbers.
const MERGE: u64 = 2;
/// Side in pixels of the window to which most layers of Qwen2.5-VL restrict attention. llama.cpp supports no other
/// number.
const WINDOW: u64 = 112;

pub(super) fn qwen2_vl(build: &mut ModelBuilder<'_>, context: &VisionContext<'_>) -> Result<(), ConvertError> {
    check_activation(build, &["quick_gelu"])?;
    let config = build.config;
    let width = config.integer_or(&["embed_dim"], 1280)?;
    let feed_forward = width.saturating_mul(config.integer_or(&["mlp_ratio"], 4)?);
    let encoder = Encoder {
        blocks: build.blocks_or(&["depth"], 32)?,
        width,
        // The converter writes the language model's width here, because `hidden_size` means that in this configuration;
        // llama.cpp does not use the key. Kept for identical files.
        feed_forward: context.hidden,
        heads: config.integer_or(&["num_heads"], 16)?,
        image: config.optional_integer(&["image_size"])?.unwrap_or(IMAGE),
        patch: config.integer_or(&["patch_size"], 14)?,
        epsilon: EPSILON,
    };
    keys(build, context, &encoder, "qwen2vl_merger", CLIP)?;
    let layer = LayerTensors {
        norm_parts: &["weight", "bias"],
        mlp: &[
            ("fc1", "ffn_up", [feed_forward, width]),
            ("fc2", "ffn_down", [width, feed_forward]),
        ],
    };
    tensors(build, context, &encoder, &layer)
}

pub(super) fn qwen2_5_vl(build: &mut ModelBuilder<'_>, context: &VisionContext<'_>) -> Result<(), ConvertError> {
    check_activation(build, &["silu"])?;
    let config = build.config;
    let width = config.count(&["hidden_size"])?;
    let feed_forward = config.integer_or(&["intermediate_size"], 3420)?;
    let encoder = Encoder {
        blocks: build.blocks_or(&["depth"], 32)?,
        width,
        feed_forward,
        heads: config.integer_or(&["num_heads"], 16)?,
        image: config.optional_integer(&["image_size"])?.unwrap_or(IMAGE),
        patch: config.integer_or(&["patch_size"], 14)?,
        epsilon: EPSILON,
    };
    keys(build, context, &encoder, "qwen2.5vl_merger", CLIP)?;
    build.put("use_silu", GgufValue::Bool(true));
    build.put_integer("vision.n_wa_pattern", full_attention_step(build)?)?;
    let layer = LayerTensors {
        norm_parts: &["weight"],
        mlp: &[
            ("gate_proj", "ffn_gate", [feed_forward, width]),
            ("up_proj", "ffn_up", [feed_forward, width]),
            ("down_proj", "ffn_down", [width, feed_forward]),
        ],
    };
    tensors(build, context, &encoder, &layer)
}

/// Returns the period of layers that attend to the whole image; the others attend within windows.
fn full_attention_step(build: &ModelBuilder<'_>) -> Result<u64, ConvertError> {
    expect(build, "window_size", WINDOW)?;
    let said = build.config.find(&["fullatt_block_indexes"]).and_then(Json::as_array);
    let layers: Option<Vec<u64>> = match said {
        Some(list) => list.iter().map(Json::as_u64).collect(),
        None => Some(vec![7, 15, 23, 31]),
    };
    let layers = layers.unwrap_or_default();
    let step = layers.first().map_or(0, |first| first.saturating_add(1));
    let are_even = (1..)
        .zip(&layers)
        .all(|(nth, layer)| layer.checked_add(1) == step.checked_mul(nth));
    if step == 0 || !are_even {
        return Err(ConvertError::Config(format!(
            "the layers {layers:?} attend to the whole image, but llama.cpp requires them to be equally spaced"
        )));
    }
    Ok(step)
}

/// Refuses a setting for which llama.cpp has a fixed value.
fn expect(build: &ModelBuilder<'_>, key: &str, number: u64) -> Result<(), ConvertError> {
    match build.config.optional_integer(&[key])? {
        Some(other) if other != number => Err(ConvertError::Config(format!(
            "{key} is {other}, but llama.cpp supports only {number}"
        ))),
        _ => Ok(()),
    }
}

/// Tensors of one layer by which the two generations differ.
struct LayerTensors<'a> {
    /// Parts of a norm: Qwen2-VL has LayerNorm with a bias, Qwen2.5-VL has RMSNorm.
    norm_parts: &'a [&'a str],
    /// Feed-forward matrices: their names in the checkpoint and in the file, and their shapes.
    mlp: &'a [(&'a str, &'a str, [u64; 2])],
}

fn tensors(
    build: &mut ModelBuilder<'_>,
    context: &VisionContext<'_>,
    encoder: &Encoder,
    layer: &LayerTensors<'_>,
) -> Result<(), ConvertError> {
    expect(build, "spatial_merge_size", MERGE)?;
    expect(build, "temporal_patch_size", MERGE)?;
    let width = encoder.width;
    patches(build, encoder)?;
    let norm = |build: &mut ModelBuilder<'_>, from: &str, to: &str| {
        for part in layer.norm_parts {
            let source = build.take(&format!("{from}.{part}"), &[width])?;
            build.add(&format!("{to}.{part}"), &source);
        }
        Ok::<_, ConvertError>(())
    };
    for block in 0..encoder.blocks {
        let (from, to) = (format!("visual.blocks.{block}"), format!("v.blk.{block}"));
        norm(build, &format!("{from}.norm1"), &format!("{to}.ln1"))?;
        norm(build, &format!("{from}.norm2"), &format!("{to}.ln2"))?;
        attention(build, &from, &to, width)?;
        for (weight, name, shape) in layer.mlp {
            take_both(build, &format!("{from}.mlp.{weight}"), &format!("{to}.{name}"), shape)?;
        }
    }
    norm(build, "visual.merger.ln_q", "v.post_ln")?;
    let merged = width * MERGE * MERGE;
    take_both(build, "visual.merger.mlp.0", "mm.0", &[merged, merged])?;
    // `mlp.1` is the activation, which has no weights.
    take_both(build, "visual.merger.mlp.2", "mm.2", &[context.hidden, merged])
}

/// Takes the patch embedding, a 3D convolution `[width, channels, time, patch, patch]`. ggml has only 2D convolutions:
/// it is split into one kernel for each of the two frames.
fn patches(build: &mut ModelBuilder<'_>, encoder: &Encoder) -> Result<(), ConvertError> {
    let Encoder { width, patch, .. } = *encoder;
    let source = build.take(
        "visual.patch_embed.proj.weight",
        &[width, CHANNELS, MERGE, patch, patch],
    )?;
    // Each row is one kernel of `patch` by `patch`. The frames alternate, so every second row belongs to the same
    // frame.
    let pictures = source.merged(2);
    for (time, name) in (0..).zip(["v.patch_embd.weight", "v.patch_embd.weight.1"]) {
        let rows = StoredRows::some(&pictures, time, width * CHANNELS, MERGE);
        let recipe = TensorRecipe::rows(spec(name, &[width * CHANNELS, patch * patch]), vec![rows]);
        build.recipes.push(recipe.reshaped(&[patch, patch, CHANNELS, width]));
    }
    Ok(())
}

/// Takes the attention of a layer, whose fused matrix `[3 * width, width]` is split into queries, keys and values.
fn attention(build: &mut ModelBuilder<'_>, from: &str, to: &str, width: u64) -> Result<(), ConvertError> {
    let weight = build.take(&format!("{from}.attn.qkv.weight"), &[3 * width, width])?;
    let bias = build.take(&format!("{from}.attn.qkv.bias"), &[3 * width])?.as_column();
    for (third, name) in (0..).zip(["attn_q", "attn_k", "attn_v"]) {
        let rows = |source| vec![StoredRows::some(source, third * width, width, 1)];
        let weight = TensorRecipe::rows(spec(&format!("{to}.{name}.weight"), &[width, width]), rows(&weight));
        let bias = TensorRecipe::rows(spec(&format!("{to}.{name}.bias"), &[width, 1]), rows(&bias));
        build.recipes.extend([weight, bias.flattened()]);
    }
    take_both(
        build,
        &format!("{from}.attn.proj"),
        &format!("{to}.attn_out"),
        &[width, width],
    )
}
