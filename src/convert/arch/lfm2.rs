//! LFM 2: a hybrid of layers with short convolutions and layers with attention.

use serde_json::Value as Json;

use super::{
    ModelBuilder,
    decoder::{self, LayerWeight},
    llama::LLAMA,
    rope,
    sizes::{DecoderSizes, HeadDim, ModelClass, WeightDim},
    spec,
};
use crate::{
    convert::{ConvertError, TensorRecipe, config::CheckpointConfig, parts::StoredRows},
    gguf::{GgufArray, GgufValue},
};

use WeightDim::{FeedForward, Head, Hidden, Key, Query};

const LFM2: ModelClass = ModelClass {
    arch: "lfm2",
    kv_heads: Some(8),
    head_dim: HeadDim::IfSaid,
    context: 128_000,
    epsilon: 1e-5,
    theta: 1e6,
    ..LLAMA
};
/// Weights of every layer.
const EVERY: &[LayerWeight] = &[
    LayerWeight::new("operator_norm", "attn_norm", &[Hidden]),
    LayerWeight::new("ffn_norm", "ffn_norm", &[Hidden]),
    LayerWeight::new("feed_forward.w1", "ffn_gate", &[FeedForward, Hidden]),
    LayerWeight::new("feed_forward.w3", "ffn_up", &[FeedForward, Hidden]),
    LayerWeight::new("feed_forward.w2", "ffn_down", &[Hidden, FeedForward]),
];
/// Weights of a layer with attention.
const ATTENTION: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_proj", "attn_q", &[Query, Hidden]),
    LayerWeight::new("self_attn.k_proj", "attn_k", &[Key, Hidden]),
    LayerWeight::new("self_attn.v_proj", "attn_v", &[Key, Hidden]),
    LayerWeight::new("self_attn.out_proj", "attn_output", &[Hidden, Query]),
    LayerWeight::new("self_attn.q_layernorm", "attn_q_norm", &[Head]),
    LayerWeight::new("self_attn.k_layernorm", "attn_k_norm", &[Head]),
];

pub(super) fn lfm2(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    build.arch = LFM2.arch;
    let config = build.config;
    let mut sizes = DecoderSizes::read(build, &LFM2)?;
    sizes.feed_forward = feed_forward(config)?;
    let attends = attending(config, sizes.blocks)?;
    let context = config.integer_or(&["max_position_embeddings"], LFM2.context)?;
    let window = config.integer_or(&["conv_L_cache"], 3)?;
    build.put_integer("block_count", sizes.blocks)?;
    build.put_integer("context_length", context)?;
    build.put_integer("embedding_length", sizes.hidden)?;
    build.put_integer("feed_forward_length", sizes.feed_forward)?;
    build.put_integer("attention.head_count", sizes.heads)?;
    // An array with 0 for layers without attention: by it llama.cpp tells the two kinds.
    let heads = attends
        .iter()
        .map(|attends| if *attends { sizes.kv_heads as i32 } else { 0 });
    build.put(
        "attention.head_count_kv",
        GgufValue::Array(GgufArray::I32(heads.collect())),
    );
    let epsilon = config.number_or(&["norm_eps", "rms_norm_eps"], LFM2.epsilon)?;
    build.put_number("attention.layer_norm_rms_epsilon", epsilon);
    build.put_integer("shortconv.l_cache", window)?;
    rope::keys(build, LFM2.theta, context)?;

    build.take_embedding("model.embed_tokens.weight", sizes.hidden)?;
    let vocabulary = build.vocabulary;
    build.put_integer("vocab_size", vocabulary)?;
    // The norm after the last layer, in spite of its name. llama.cpp keeps the misnomer for files that have it
    // (`LLM_TENSOR_OUTPUT_NORM_LFM2`).
    let norm = build.take("model.embedding_norm.weight", &[sizes.hidden])?;
    build.add("token_embd_norm.weight", &norm);
    for (block, attends) in (0..sizes.blocks).zip(attends) {
        let layer = format!("model.layers.{block}.");
        for weight in EVERY {
            decoder::take_weight(build, &sizes, weight, &layer, block)?;
        }
        if attends {
            for weight in ATTENTION {
                decoder::take_weight(build, &sizes, weight, &layer, block)?;
            }
        } else {
            convolution(build, &sizes, window, &layer, block)?;
        }
    }
    build.take_output("lm_head.weight", sizes.hidden)
}

/// Takes the weights of a layer with a convolution of `window` tokens.
fn convolution(
    build: &mut ModelBuilder<'_>,
    sizes: &DecoderSizes,
    window: u64,
    layer: &str,
    block: u64,
) -> Result<(), ConvertError> {
    let hidden = sizes.hidden;
    for (from, shape) in [("in_proj", [3 * hidden, hidden]), ("out_proj", [hidden, hidden])] {
        let source = build.take(&format!("{layer}conv.{from}.weight"), &shape)?;
        build.add(&format!("blk.{block}.shortconv.{from}.weight"), &source);
    }
    // PyTorch's depthwise kernel `[hidden, 1, window]` is squeezed to `[hidden, window]`.
    let kernels = build.take(&format!("{layer}conv.conv.weight"), &[hidden, 1, window])?;
    let spec = spec(&format!("blk.{block}.shortconv.conv.weight"), &[hidden, window]);
    build
        .recipes
        .push(TensorRecipe::rows(spec, vec![StoredRows::all(&kernels)]));
    Ok(())
}

/// Returns for each layer whether it has attention.
fn attending(config: &CheckpointConfig, blocks: u64) -> Result<Vec<bool>, ConvertError> {
    let list = |key: &str| config.find(&[key]).and_then(Json::as_array);
    let attends: Vec<bool> = if let Some(types) = list("layer_types") {
        types
            .iter()
            .map(|kind| kind.as_str() == Some("full_attention"))
            .collect()
    } else if let Some(layers) = list("full_attn_idxs") {
        (0..blocks)
            .map(|block| layers.iter().any(|layer| layer.as_u64() == Some(block)))
            .collect()
    } else {
        Vec::new()
    };
    if attends.len() as u64 != blocks {
        return Err(ConvertError::Config(format!(
            "layer_types has {} entries, not one for each of the {blocks} layers",
            attends.len()
        )));
    }
    Ok(attends)
}

/// Returns the inner size of the feed-forward network. The class shrinks the configured size to 2/3, scales it and
/// rounds it up (`Lfm2MLP`, `_add_feed_forward_length` of the converter).
fn feed_forward(config: &CheckpointConfig) -> Result<u64, ConvertError> {
    let said = config.count(&["block_ff_dim", "intermediate_size"])?;
    if config.flag("block_auto_adjust_ff_dim") == Some(false) {
        return Ok(said);
    }
    let multiple = config.integer_or(&["block_multiple_of"], 256)?.max(1);
    let factor = config.optional_number(&["block_ffn_dim_multiplier"])?.unwrap_or(1.0);
    let size = (factor * (2 * said / 3) as f64) as u64;
    Ok(size.next_multiple_of(multiple))
}
