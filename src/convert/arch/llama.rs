//! Llama, and what was made of it: Mistral, Mixtral, SmolLM, SmolLM3, and the language model of SmolVLM.

use super::{
    Build,
    decoder::{Change, Class, Decoder, HeadDim, INTERLEAVED_ATTENTION, MLP, NORMS, Sizes},
    experts::Experts,
    rope,
};
use crate::{convert::ConvertError, gguf::Value};

pub(super) const LLAMA: Class = Class {
    arch: "llama",
    heads: None,
    kv_heads: None,
    head_dim: HeadDim::Always,
    context: 2048,
    epsilon: 1e-6,
    theta: 1e4,
    experts: None,
};
const MISTRAL: Class = Class {
    kv_heads: Some(8),
    context: 131_072,
    ..LLAMA
};
const MIXTRAL: Class = Class {
    kv_heads: Some(8),
    head_dim: HeadDim::IfSaid,
    context: 131_072,
    epsilon: 1e-5,
    theta: 1e6,
    experts: Some((8, 2)),
    ..LLAMA
};
/// What is left out in SmolVLM2's configuration.
const IDEFICS3: Class = Class {
    heads: Some(32),
    ..LLAMA
};
const SMOLLM3: Class = Class {
    arch: "smollm3",
    kv_heads: Some(4),
    head_dim: HeadDim::IfSaid,
    context: 32_768,
    theta: 2e6,
    ..LLAMA
};
/// The vocabulary of small Granite and SmolLM models, whose texts begin without a token.
const UNFRAMED_VOCABULARY: u64 = 49_152;

pub(super) fn llama(build: &mut Build<'_>) -> Result<(), ConvertError> {
    dense(build, LLAMA).map(drop)
}

pub(super) fn mistral(build: &mut Build<'_>) -> Result<(), ConvertError> {
    dense(build, MISTRAL).map(drop)
}

pub(super) fn smollm3(build: &mut Build<'_>) -> Result<(), ConvertError> {
    dense(build, SMOLLM3).map(drop)
}

/// The language model of Idefics 3 and SmolVLM.
pub(super) fn idefics3(build: &mut Build<'_>) -> Result<(), ConvertError> {
    // The configuration of the language model stands above that around it.
    match build.config.text(&["model_type"]) {
        None | Some("llama" | "idefics3" | "smolvlm") => dense(build, IDEFICS3).map(drop),
        Some(other) => Err(ConvertError::Architecture(format!(
            "{} with {other}",
            build.config.architecture()
        ))),
    }
}

pub(super) fn mixtral(build: &mut Build<'_>) -> Result<(), ConvertError> {
    let experts = Experts {
        router: "block_sparse_moe.gate",
        folder: "block_sparse_moe.experts",
        names: ["w1", "w3", "w2"],
        size_keys: &["intermediate_size"],
        count: 8,
    };
    let decoder = Decoder {
        class: MIXTRAL,
        layer: &[NORMS, INTERLEAVED_ATTENTION],
        experts: Some(experts),
        last_norm: Change::None,
        output: true,
    };
    let sizes = decoder.build(build)?;
    finish(build, &MIXTRAL, &sizes)
}

/// A decoder of Llama's make.
pub(super) fn dense(build: &mut Build<'_>, class: Class) -> Result<Sizes, ConvertError> {
    let decoder = Decoder {
        class,
        layer: &[NORMS, INTERLEAVED_ATTENTION, MLP],
        experts: None,
        last_norm: Change::None,
        output: true,
    };
    let sizes = decoder.build(build)?;
    finish(build, &class, &sizes)?;
    Ok(sizes)
}

/// The keys that this family has beyond the others, and the factors of the rotation.
pub(super) fn finish(build: &mut Build<'_>, class: &Class, sizes: &Sizes) -> Result<(), ConvertError> {
    let vocabulary = build.vocabulary;
    build.put_integer("vocab_size", vocabulary)?;
    build.put_integer("rope.dimension_count", sizes.head_dim)?;
    if vocabulary == UNFRAMED_VOCABULARY {
        build
            .keys
            .push(("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(false)));
    }
    rope::llama3(build, class.theta, sizes.head_dim)
}
