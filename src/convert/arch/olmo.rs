//! OLMo 2, OLMo 3 and OLMoE. OLMo 2 and 3 norm the output of attention and feed-forward instead of the input.

use super::{
    ModelBuilder,
    decoder::{ATTENTION, DecoderLayout, LayerWeight, MLP, NORMS, WeightChange},
    experts::ExpertWeights,
    llama::LLAMA,
    qwen::check_expert_normalization,
    sizes::{DecoderSizes, HeadDim, ModelClass, WeightDim},
    window,
};
use crate::{convert::ConvertError, gguf::GgufValue};

use WeightDim::{Hidden, Key, Query};

const OLMO2: ModelClass = ModelClass {
    arch: "olmo2",
    head_dim: HeadDim::IfSaid,
    epsilon: 1e-5,
    ..LLAMA
};
const OLMO3: ModelClass = ModelClass {
    theta: 500_000.0,
    ..OLMO2
};
const OLMOE: ModelClass = ModelClass {
    arch: "olmoe",
    context: 4096,
    experts: Some((64, 8)),
    ..OLMO2
};
/// Norms over all heads at once: `[n_head * head_dim]`, not `[head_dim]`.
const QUERY_NORMS: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_norm", "attn_q_norm", &[Query]),
    LayerWeight::new("self_attn.k_norm", "attn_k_norm", &[Key]),
];
/// Norms after attention and feed-forward.
pub(super) const POST_NORMS: &[LayerWeight] = &[
    LayerWeight::new("post_attention_layernorm", "post_attention_norm", &[Hidden]),
    LayerWeight::new("post_feedforward_layernorm", "post_ffw_norm", &[Hidden]),
];

pub(super) fn olmo2(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    decode(build, OLMO2).map(drop)
}

pub(super) fn olmo3(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let sizes = decode(build, OLMO3)?;
    window::keys(build, sizes.blocks, Some(4096))
}

fn decode(build: &mut ModelBuilder<'_>, class: ModelClass) -> Result<DecoderSizes, ConvertError> {
    let decoder = DecoderLayout {
        class,
        layer: &[ATTENTION, QUERY_NORMS, POST_NORMS, MLP],
        experts: None,
        last_norm: WeightChange::None,
        output: true,
    };
    decoder.build(build)
}

pub(super) fn olmoe(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    check_expert_normalization(build, false)?;
    let experts = ExpertWeights {
        router: "mlp.gate",
        folder: "mlp.experts",
        names: ["gate_proj", "up_proj", "down_proj"],
        size_keys: &["intermediate_size"],
        count: 64,
    };
    let decoder = DecoderLayout {
        class: OLMOE,
        layer: &[NORMS, ATTENTION, QUERY_NORMS],
        experts: Some(experts),
        last_norm: WeightChange::None,
        output: true,
    };
    let sizes = decoder.build(build)?;
    if sizes.heads != sizes.kv_heads {
        return Err(ConvertError::Config(
            "llama.cpp cannot load OLMoE with fewer key-value heads than query heads".to_owned(),
        ));
    }
    // `OlmoeRMSNorm` is built without the configured epsilon, so it always uses 1e-5 (`OlmoeModel` of the converter,
    // too).
    let key = "olmoe.attention.layer_norm_rms_epsilon";
    build.keys.retain(|(name, _)| name != key);
    build.keys.push((key.to_owned(), GgufValue::F32(1e-5)));
    Ok(())
}
