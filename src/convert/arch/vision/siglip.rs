//! SigLIP, the image encoder of Gemma 3, Idefics 3 and SmolVLM.

use super::{CHANNELS, Encoder, VisionContext, check_activation, keys, take_both};
use crate::{
    convert::{
        ConvertError, TensorRecipe,
        arch::{ModelBuilder, spec},
        parts::StoredRows,
    },
    gguf::{GgmlType, GgufValue},
};

/// Default mean and deviation of the preprocessors' classes: they map pixels to -1 to 1.
const HALVES: [[f64; 3]; 2] = [[0.5; 3]; 2];

/// Puts the keys of the encoder, with `default` for what the configuration leaves out, and takes its tensors below
/// `prefix`.
pub(super) fn siglip(
    build: &mut ModelBuilder<'_>,
    context: &VisionContext<'_>,
    prefix: &str,
    projector: &str,
    default: Encoder,
) -> Result<Encoder, ConvertError> {
    check_activation(build, &["gelu", "gelu_new", "gelu_pytorch_tanh"])?;
    let config = build.config;
    let encoder = Encoder {
        blocks: build.blocks_or(&["num_hidden_layers"], default.blocks)?,
        width: config.integer_or(&["hidden_size"], default.width)?,
        feed_forward: config.integer_or(&["intermediate_size"], default.feed_forward)?,
        heads: config.integer_or(&["num_attention_heads"], default.heads)?,
        image: config.integer_or(&["image_size"], default.image)?,
        patch: config.integer_or(&["patch_size"], default.patch)?,
        epsilon: config.number_or(&["layer_norm_eps"], default.epsilon)?,
    };
    keys(build, context, &encoder, projector, HALVES)?;
    build.put("use_gelu", GgufValue::Bool(true));

    let Encoder {
        width,
        feed_forward,
        patch,
        ..
    } = encoder;
    // The image is a square of whole patches, each with its own position.
    let side = encoder.image / patch;
    for (from, to, shape) in [
        ("patch_embedding", "v.patch_embd", &[width, CHANNELS, patch, patch][..]),
        ("position_embedding", "v.position_embd", &[side * side, width]),
    ] {
        let source = build.take(&format!("{prefix}embeddings.{from}.weight"), shape)?;
        let recipe = TensorRecipe::rows(spec(&format!("{to}.weight"), shape), vec![StoredRows::all(&source)]);
        // The converter keeps `.embeddings.` tensors in F32: they are small, and every later layer depends on them.
        build.recipes.push(recipe.pinned(GgmlType::F32));
    }
    let bias = build.take(&format!("{prefix}embeddings.patch_embedding.bias"), &[width])?;
    build.add("v.patch_embd.bias", &bias);
    for block in 0..encoder.blocks {
        for (from, to, shape) in [
            ("layer_norm1", "ln1", &[width][..]),
            ("layer_norm2", "ln2", &[width]),
            ("self_attn.q_proj", "attn_q", &[width, width]),
            ("self_attn.k_proj", "attn_k", &[width, width]),
            ("self_attn.v_proj", "attn_v", &[width, width]),
            ("self_attn.out_proj", "attn_out", &[width, width]),
            ("mlp.fc1", "ffn_up", &[feed_forward, width]),
            ("mlp.fc2", "ffn_down", &[width, feed_forward]),
        ] {
            let from = format!("{prefix}encoder.layers.{block}.{from}");
            take_both(build, &from, &format!("v.blk.{block}.{to}"), shape)?;
        }
    }
    take_both(build, &format!("{prefix}post_layernorm"), "v.post_ln", &[width])?;
    Ok(encoder)
}
