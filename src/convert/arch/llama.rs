//! Llama and its derivatives: Mistral, Ministral, Mixtral, SmolLM, SmolLM3, InternLM3, and the language model of
//! SmolVLM. llama.cpp rotates neighboring elements in all of them, so queries and keys are permuted.

use super::{
    ModelBuilder,
    decoder::{DecoderLayout, INTERLEAVED_ATTENTION, MLP, NORMS, WeightChange},
    experts::ExpertWeights,
    rope,
    sizes::{DecoderSizes, HeadDim, ModelClass, NormKind},
};
use crate::{convert::ConvertError, gguf::GgufValue};

pub(super) const LLAMA: ModelClass = ModelClass {
    arch: "llama",
    heads: None,
    kv_heads: None,
    head_dim: HeadDim::Always,
    context: 2048,
    epsilon: 1e-6,
    theta: 1e4,
    experts: None,
    norms: NormKind::Rms,
    final_norm: "norm",
};
/// Mistral 7B and later. Its sliding window is not exported, like in the converter: llama.cpp's `llama` has none.
const MISTRAL: ModelClass = ModelClass {
    kv_heads: Some(8),
    context: 131_072,
    ..LLAMA
};
/// Mistral Small 3.1 and later. Their vision encoder is left out.
const MISTRAL3: ModelClass = ModelClass {
    arch: "mistral3",
    ..MISTRAL
};
const MINISTRAL3: ModelClass = ModelClass {
    head_dim: HeadDim::Or(128),
    context: 262_144,
    epsilon: 1e-5,
    theta: 1e6,
    ..MISTRAL3
};
const INTERNLM3: ModelClass = ModelClass {
    kv_heads: Some(2),
    head_dim: HeadDim::Or(128),
    context: 32_768,
    epsilon: 1e-5,
    ..LLAMA
};
const MIXTRAL: ModelClass = ModelClass {
    kv_heads: Some(8),
    head_dim: HeadDim::IfSaid,
    context: 131_072,
    epsilon: 1e-5,
    theta: 1e6,
    experts: Some((8, 2)),
    ..LLAMA
};
/// SmolVLM2's `config.json` has no `num_attention_heads`.
const IDEFICS3: ModelClass = ModelClass {
    heads: Some(32),
    ..LLAMA
};
const SMOLLM3: ModelClass = ModelClass {
    arch: "smollm3",
    kv_heads: Some(4),
    head_dim: HeadDim::IfSaid,
    context: 32_768,
    theta: 2e6,
    ..LLAMA
};
/// Vocabulary size of small Granite and SmolLM models. llama.cpp's converter tells by it that no BOS token is added.
const UNFRAMED_VOCABULARY: u64 = 49_152;

pub(super) fn llama(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    dense(build, LLAMA).map(drop)
}

pub(super) fn mistral(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    dense(build, MISTRAL).map(drop)
}

pub(super) fn internlm3(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    dense(build, INTERNLM3).map(drop)
}

pub(super) fn mistral3(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let config = build.config;
    match config.text(&["model_type"]) {
        Some("ministral3") => {}
        // Shares the class with Mistral 3, but llama.cpp has another architecture for it.
        Some("mistral4") => return Err(ConvertError::Architecture("mistral4".to_owned())),
        _ => return dense(build, MISTRAL3).map(drop),
    }
    dense(build, MINISTRAL3)?;
    // Ministral 3 scales queries by position, like Llama 4. The factor is among its YaRN parameters.
    let rope = config.rope(MINISTRAL3.theta)?;
    if rope.kind() != "yarn" {
        return Err(ConvertError::Config(format!(
            "its RoPE scaling is {:?}, not \"yarn\"",
            rope.kind()
        )));
    }
    build.put_number("rope.scaling.yarn_log_multiplier", rope.needed("mscale_all_dim")?);
    build.put_number("attention.temperature_scale", rope.needed("llama_4_scaling_beta")?);
    Ok(())
}

pub(super) fn smollm3(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    // `no_rope_layers` has no key: llama.cpp hard-codes that every fourth layer does not rotate.
    dense(build, SMOLLM3).map(drop)
}

/// Builds the language model of Idefics 3 and SmolVLM.
pub(super) fn idefics3(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    // `text_config` was merged over the root, so this is the type of the language model if there is one.
    match build.config.text(&["model_type"]) {
        None | Some("llama" | "idefics3" | "smolvlm") => dense(build, IDEFICS3).map(drop),
        Some(other) => Err(ConvertError::Architecture(format!(
            "{} with {other}",
            build.config.architecture()
        ))),
    }
}

pub(super) fn mixtral(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let experts = ExpertWeights {
        router: "block_sparse_moe.gate",
        folder: "block_sparse_moe.experts",
        // Meta's names: `w1` is the gate, `w3` the up and `w2` the down projection.
        names: ["w1", "w3", "w2"],
        size_keys: &["intermediate_size"],
        count: 8,
    };
    let decoder = DecoderLayout {
        class: MIXTRAL,
        layer: &[NORMS, INTERLEAVED_ATTENTION],
        experts: Some(experts),
        last_norm: WeightChange::None,
        output: true,
    };
    let sizes = decoder.build(build)?;
    finish(build, &MIXTRAL, &sizes)
}

/// Builds a dense decoder with Llama's layers.
pub(super) fn dense(build: &mut ModelBuilder<'_>, class: ModelClass) -> Result<DecoderSizes, ConvertError> {
    let decoder = DecoderLayout {
        class,
        layer: &[NORMS, INTERLEAVED_ATTENTION, MLP],
        experts: None,
        last_norm: WeightChange::None,
        output: true,
    };
    let sizes = decoder.build(build)?;
    finish(build, &class, &sizes)?;
    Ok(sizes)
}

/// Puts the keys that only this family has, and the RoPE factors of Llama 3.1.
pub(super) fn finish(
    build: &mut ModelBuilder<'_>,
    class: &ModelClass,
    sizes: &DecoderSizes,
) -> Result<(), ConvertError> {
    let vocabulary = build.vocabulary;
    build.put_integer("vocab_size", vocabulary)?;
    build.put_integer("rope.dimension_count", sizes.head_dim)?;
    if vocabulary == UNFRAMED_VOCABULARY {
        build
            .keys
            .push(("tokenizer.ggml.add_bos_token".to_owned(), GgufValue::Bool(false)));
    }
    rope::llama3(build, class.theta, sizes.head_dim)
}
