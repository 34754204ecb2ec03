//! Decoders that differ little from Llama: Seed-OSS, EXAONE 4, ERNIE 4.5.

use super::{
    ModelBuilder,
    decoder::{ATTENTION, DecoderLayout, HEAD_NORMS, LayerWeight, MLP, NORMS, WeightChange},
    llama::LLAMA,
    olmo::POST_NORMS,
    rope,
    sizes::{HeadDim, ModelClass, WeightDim},
    window,
};
use crate::convert::ConvertError;

use WeightDim::Hidden;

const SEED_OSS: ModelClass = ModelClass {
    arch: "seed_oss",
    kv_heads: Some(8),
    head_dim: HeadDim::Or(128),
    context: 524_288,
    ..LLAMA
};
const EXAONE4: ModelClass = ModelClass {
    arch: "exaone4",
    kv_heads: Some(32),
    head_dim: HeadDim::IfSaid,
    epsilon: 1e-5,
    ..LLAMA
};
/// ERNIE's class itself rotates neighboring elements, like llama.cpp, so nothing is permuted.
const ERNIE4_5: ModelClass = ModelClass {
    arch: "ernie4_5",
    kv_heads: Some(2),
    head_dim: HeadDim::Or(128),
    context: 131_072,
    epsilon: 1e-5,
    theta: 500_000.0,
    ..LLAMA
};
/// Number of layers of EXAONE 4 32B. Only by it does llama.cpp tell the hybrid model, whose layers without a window do
/// not rotate.
const EXAONE4_HYBRID: u64 = 64;
const SEED_OSS_NORMS: &[LayerWeight] = &[
    LayerWeight::new("input_layernorm", "attn_norm", &[Hidden]),
    LayerWeight::new("post_attention_layernorm", "post_attention_norm", &[Hidden]),
];

fn decoder<'a>(class: ModelClass, layer: &'a [&'a [LayerWeight]]) -> DecoderLayout<'a> {
    DecoderLayout {
        class,
        layer,
        experts: None,
        last_norm: WeightChange::None,
        output: true,
    }
}

pub(super) fn seed_oss(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    decoder(SEED_OSS, &[SEED_OSS_NORMS, ATTENTION, MLP])
        .build(build)
        .map(drop)
}

pub(super) fn ernie4_5(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    decoder(ERNIE4_5, &[NORMS, ATTENTION, MLP]).build(build).map(drop)
}

pub(super) fn exaone4(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let sizes = decoder(EXAONE4, &[ATTENTION, HEAD_NORMS, POST_NORMS, MLP]).build(build)?;
    let vocabulary = build.vocabulary;
    build.put_integer("vocab_size", vocabulary)?;
    if build.config.find(&["sliding_window"]).is_some() && sizes.blocks != EXAONE4_HYBRID {
        return Err(ConvertError::Config(format!(
            "llama.cpp does not support EXAONE 4 with a sliding window and {} layers",
            sizes.blocks
        )));
    }
    window::keys(build, sizes.blocks, None)?;
    rope::llama3(build, EXAONE4.theta, sizes.head_dim)
}
