//! Gemma 1, 2 and 3, and EmbeddingGemma. `GemmaRMSNorm` multiplies with `1 + weight`, so one is added to the norms; the
//! output matrix is always the embedding.

use super::{
    ModelBuilder,
    decoder::{ATTENTION, DecoderLayout, LayerWeight, MLP, WeightChange},
    llama::LLAMA,
    pooling,
    sizes::{HeadDim, ModelClass, WeightDim},
};
use crate::{convert::ConvertError, gguf::GgufValue};

use WeightDim::{Head, Hidden};

const GEMMA: ModelClass = ModelClass {
    arch: "gemma",
    kv_heads: Some(16),
    head_dim: HeadDim::Or(256),
    context: 8192,
    ..LLAMA
};
const GEMMA2: ModelClass = ModelClass {
    arch: "gemma2",
    kv_heads: Some(4),
    ..GEMMA
};
const GEMMA3: ModelClass = ModelClass {
    arch: "gemma3",
    heads: Some(8),
    kv_heads: Some(4),
    context: 131_072,
    theta: 1e6,
    ..GEMMA
};
/// EmbeddingGemma, an encoder: attention is not causal.
const GEMMA_EMBEDDING: ModelClass = ModelClass {
    arch: "gemma-embedding",
    ..GEMMA3
};
/// RoPE base frequency of Gemma 3's layers with a sliding window.
const GEMMA3_LOCAL_THETA: f64 = 1e4;
/// Default sliding window of Gemma 2 and 3, in tokens.
const WINDOW: u64 = 4096;

const fn norm(from: &'static str, to: &'static str) -> LayerWeight {
    LayerWeight::new(from, to, &[Hidden]).changed(WeightChange::PlusOne)
}

const TWO_NORMS: &[LayerWeight] = &[
    norm("input_layernorm", "attn_norm"),
    norm("post_attention_layernorm", "ffn_norm"),
];
const FOUR_NORMS: &[LayerWeight] = &[
    norm("input_layernorm", "attn_norm"),
    norm("post_attention_layernorm", "post_attention_norm"),
    norm("pre_feedforward_layernorm", "ffn_norm"),
    norm("post_feedforward_layernorm", "post_ffw_norm"),
];
const HEAD_NORMS: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_norm", "attn_q_norm", &[Head]).changed(WeightChange::PlusOne),
    LayerWeight::new("self_attn.k_norm", "attn_k_norm", &[Head]).changed(WeightChange::PlusOne),
];

fn decode(build: &mut ModelBuilder<'_>, class: ModelClass, layer: &[&[LayerWeight]]) -> Result<(), ConvertError> {
    let decoder = DecoderLayout {
        class,
        layer,
        experts: None,
        last_norm: WeightChange::PlusOne,
        output: false,
    };
    decoder.build(build)?;
    build
        .keys
        // Gemma's tokenizer adds no space before a text (`GemmaModel.set_vocab`).
        .push(("tokenizer.ggml.add_space_prefix".to_owned(), GgufValue::Bool(false)));
    Ok(())
}

pub(super) fn gemma(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    decode(build, GEMMA, &[TWO_NORMS, ATTENTION, MLP])
}

pub(super) fn gemma2(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    // Two settings have no key. llama.cpp gives a window to every other layer, and derives `query_pre_attn_scalar` from
    // the number of layers.
    decode(build, GEMMA2, &[FOUR_NORMS, ATTENTION, MLP])?;
    let config = build.config;
    build.put_number(
        "attn_logit_softcapping",
        config.number_or(&["attn_logit_softcapping"], 50.0)?,
    );
    build.put_number(
        "final_logit_softcapping",
        config.number_or(&["final_logit_softcapping"], 30.0)?,
    );
    build.put_integer(
        "attention.sliding_window",
        config.integer_or(&["sliding_window"], WINDOW)?,
    )
}

pub(super) fn gemma3(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    build_gemma3(build, GEMMA3)
}

pub(super) fn embedding(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    if build.config.flag("use_bidirectional_attention") == Some(false) {
        return Err(ConvertError::Config(
            "a Gemma3TextModel with causal attention is not supported by llama.cpp".to_owned(),
        ));
    }
    // `attention.causal` is not written: in this architecture llama.cpp always lets tokens attend to later ones.
    build_gemma3(build, GEMMA_EMBEDDING)?;
    let hidden = build.config.count(&["hidden_size"])?;
    pooling::with_dense(build, hidden)
}

fn build_gemma3(build: &mut ModelBuilder<'_>, class: ModelClass) -> Result<(), ConvertError> {
    let config = build.config;
    if config.find(&["attn_logit_softcapping"]).is_some() {
        return Err(ConvertError::Config(
            "attn_logit_softcapping is set, which Gemma 3 does not have".to_owned(),
        ));
    }
    // `query_pre_attn_scalar` has no key: llama.cpp derives it from the number of layers.
    decode(build, class, &[FOUR_NORMS, ATTENTION, HEAD_NORMS, MLP])?;
    if let Some(cap) = config.optional_number(&["final_logit_softcapping"])? {
        build.put_number("final_logit_softcapping", cap);
    }
    // If it is set, `rope::keys` has written it.
    if config.rope(GEMMA3.theta)?.sliding_theta.is_none() {
        let theta = config.number_or(&["rope_local_base_freq"], GEMMA3_LOCAL_THETA)?;
        build.put_number("rope.freq_base_swa", theta);
    }
    let pattern = config.optional_integer(&["sliding_window_pattern", "_sliding_window_pattern"])?;
    // A period of 1 means that no layer has a window.
    if pattern != Some(1) {
        build.put_integer(
            "attention.sliding_window",
            config.integer_or(&["sliding_window"], WINDOW)?,
        )?;
    }
    // llama.cpp defaults to every sixth layer without a window; the key is written only for another period.
    if let Some(pattern) = pattern.filter(|pattern| !matches!(pattern, 1 | 6)) {
        build.put_integer("attention.sliding_window_pattern", pattern)?;
    }
    Ok(())
}
