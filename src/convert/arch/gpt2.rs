//! GPT-2. Its `Conv1D` layers store matrices as `[in, out]`, the transpose of what all other models do.

use super::{ModelBuilder, spec};
use crate::convert::{ConvertError, TensorRecipe, parts::StoredColumns};

pub(super) fn gpt2(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    build.arch = "gpt2";
    let config = build.config;
    let hidden = config.count(&["n_embd", "hidden_size"])?;
    let heads = config.count(&["n_head", "num_attention_heads"])?;
    let blocks = build.blocks(&["n_layer", "num_hidden_layers"])?;
    // transformers 5 no longer writes `n_ctx`, which llama.cpp's converter requires.
    let context = config.integer_or(&["n_positions", "n_ctx"], 1024)?;
    let inner = config.optional_integer(&["n_inner"])?.unwrap_or(4 * hidden);
    let epsilon = config.number_or(&["layer_norm_epsilon"], 1e-5)?;
    build.put_integer("block_count", blocks)?;
    build.put_integer("context_length", context)?;
    build.put_integer("embedding_length", hidden)?;
    build.put_integer("feed_forward_length", inner)?;
    build.put_integer("attention.head_count", heads)?;
    build.put_number("attention.layer_norm_epsilon", epsilon);

    // A class without a head (`GPT2Model`) has no `transformer.` before its names.
    let prefix = if build.has("wte.weight") { "" } else { "transformer." };
    build.take_embedding(&format!("{prefix}wte.weight"), hidden)?;
    let positions = build.take(&format!("{prefix}wpe.weight"), &[context, hidden])?;
    build.add("position_embd.weight", &positions);
    for block in 0..blocks {
        let layer = format!("{prefix}h.{block}.");
        for (from, to, shape) in [
            ("attn.c_attn", "attn_qkv", [hidden, 3 * hidden]),
            ("attn.c_proj", "attn_output", [hidden, hidden]),
            ("mlp.c_fc", "ffn_up", [hidden, inner]),
            ("mlp.c_proj", "ffn_down", [inner, hidden]),
        ] {
            let source = build.take(&format!("{layer}{from}.weight"), &shape)?;
            let spec = spec(&format!("blk.{block}.{to}.weight"), &[shape[1], shape[0]]);
            let columns = StoredColumns::all(&source, 0..shape[0]);
            build.recipes.push(TensorRecipe::columns(spec, vec![columns]));
            let bias = build.take(&format!("{layer}{from}.bias"), &shape[1..])?;
            build.add(&format!("blk.{block}.{to}.bias"), &bias);
        }
        for (from, to) in [("ln_1", "attn_norm"), ("ln_2", "ffn_norm")] {
            norm(build, &format!("{layer}{from}"), &format!("blk.{block}.{to}"), hidden)?;
        }
    }
    norm(build, &format!("{prefix}ln_f"), "output_norm", hidden)?;
    build.take_output("lm_head.weight", hidden)
}

fn norm(build: &mut ModelBuilder<'_>, from: &str, to: &str, hidden: u64) -> Result<(), ConvertError> {
    for part in ["weight", "bias"] {
        let source = build.take(&format!("{from}.{part}"), &[hidden])?;
        build.add(&format!("{to}.{part}"), &source);
    }
    Ok(())
}
