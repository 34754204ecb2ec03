//! Qwen 2 and 3: dense, as mixtures of experts, as embedding models and rerankers, and the language model of Qwen2-VL.

use super::{
    ModelBuilder,
    decoder::{ATTENTION, DecoderLayout, HEAD_NORMS, LayerWeight, MLP, NORMS, WeightChange},
    experts::ExpertWeights,
    llama::LLAMA,
    pooling, reranker,
    sizes::{HeadDim, ModelClass, WeightDim},
};
use crate::{
    convert::ConvertError,
    gguf::{GgufArray, GgufValue},
};

use WeightDim::{Hidden, Key, Query};

const QWEN2: ModelClass = ModelClass {
    arch: "qwen2",
    kv_heads: Some(32),
    head_dim: HeadDim::IfSaid,
    context: 32_768,
    ..LLAMA
};
const QWEN2_MOE: ModelClass = ModelClass {
    arch: "qwen2moe",
    kv_heads: Some(16),
    experts: Some((60, 4)),
    ..QWEN2
};
const QWEN2_VL: ModelClass = ModelClass {
    arch: "qwen2vl",
    heads: Some(64),
    kv_heads: Some(8),
    epsilon: 1e-5,
    theta: 1e6,
    ..QWEN2
};
const QWEN3: ModelClass = ModelClass {
    arch: "qwen3",
    head_dim: HeadDim::Or(128),
    ..QWEN2
};
const QWEN3_MOE: ModelClass = ModelClass {
    arch: "qwen3moe",
    kv_heads: Some(4),
    experts: Some((128, 8)),
    ..QWEN2
};
/// Length of `rope.dimension_sections`: llama.cpp always reads four.
const MROPE_SECTIONS: usize = 4;
/// Attention with biases on queries, keys and values, which Qwen 2 always has.
const BIASED_ATTENTION: &[LayerWeight] = &[
    LayerWeight::new("self_attn.q_proj", "attn_q", &[Query, Hidden]).biased(),
    LayerWeight::new("self_attn.k_proj", "attn_k", &[Key, Hidden]).biased(),
    LayerWeight::new("self_attn.v_proj", "attn_v", &[Key, Hidden]).biased(),
    LayerWeight::new("self_attn.o_proj", "attn_output", &[Hidden, Query]),
];
const EXPERTS: ExpertWeights = ExpertWeights {
    router: "mlp.gate",
    folder: "mlp.experts",
    names: ["gate_proj", "up_proj", "down_proj"],
    size_keys: &["moe_intermediate_size"],
    count: 128,
};

fn decoder<'a>(class: ModelClass, layer: &'a [&'a [LayerWeight]], experts: Option<ExpertWeights>) -> DecoderLayout<'a> {
    DecoderLayout {
        class,
        layer,
        experts,
        last_norm: WeightChange::None,
        output: true,
    }
}

pub(super) fn qwen2(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    decoder(QWEN2, &[NORMS, BIASED_ATTENTION, MLP], None).build(build)?;
    pooling::keys(build)
}

/// Builds the language model of Qwen2-VL and Qwen2.5-VL. A position in a picture has three dimensions (time, height and
/// width); `mrope_section` says how many frequencies each of them gets.
pub(super) fn qwen2_vl(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    decoder(QWEN2_VL, &[NORMS, BIASED_ATTENTION, MLP], None).build(build)?;
    let rope = build.config.rope(QWEN2_VL.theta)?;
    let sections = rope
        .numbers("mrope_section")
        .filter(|sections| sections.len() <= MROPE_SECTIONS);
    let Some(mut sections) = sections else {
        return Err(ConvertError::Config(
            "its RoPE parameters have no mrope_section of at most four numbers".to_owned(),
        ));
    };
    // Qwen2-VL has three sections; the fourth stays unused.
    sections.resize(MROPE_SECTIONS, 0.0);
    let sections = sections.into_iter().map(|section| section as i32).collect();
    build.put("rope.dimension_sections", GgufValue::Array(GgufArray::I32(sections)));
    Ok(())
}

pub(super) fn qwen3(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let mut decoder = decoder(QWEN3, &[NORMS, ATTENTION, HEAD_NORMS, MLP], None);
    if !reranker::is_reranker(build) {
        decoder.build(build)?;
        return pooling::keys(build);
    }
    // Of the output matrix (or the tied embedding) only two rows are needed, so it is not written itself.
    let output = build.tensors.get("lm_head.weight").cloned();
    decoder.output = false;
    decoder.build(build)?;
    match output.or_else(|| build.embedding.take()) {
        Some(output) => reranker::head(build, &output),
        None => Ok(()),
    }
}

pub(super) fn qwen3_moe(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    check_all_layers_have_experts(build)?;
    check_expert_normalization(build, true)?;
    decoder(QWEN3_MOE, &[NORMS, ATTENTION, HEAD_NORMS], Some(EXPERTS)).build(build)?;
    let inner = build.config.count(EXPERTS.size_keys)?;
    build.put_integer("expert_feed_forward_length", inner)
}

pub(super) fn qwen2_moe(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    check_all_layers_have_experts(build)?;
    check_expert_normalization(build, false)?;
    // Qwen1.5-MoE and Qwen2-MoE add an expert that every token uses, with its own gate.
    let experts = ExpertWeights { count: 60, ..EXPERTS };
    let sizes = decoder(QWEN2_MOE, &[NORMS, BIASED_ATTENTION], Some(experts)).build(build)?;
    let shared = build.config.count(&["shared_expert_intermediate_size"])?;
    for block in 0..sizes.blocks {
        let layer = format!("model.layers.{block}.mlp.");
        for (from, to, shape) in [
            ("shared_expert.gate_proj", "ffn_gate_shexp", [shared, sizes.hidden]),
            ("shared_expert.up_proj", "ffn_up_shexp", [shared, sizes.hidden]),
            ("shared_expert.down_proj", "ffn_down_shexp", [sizes.hidden, shared]),
            // llama.cpp expects a vector. For ggml a matrix of one row is one.
            ("shared_expert_gate", "ffn_gate_inp_shexp", [1, sizes.hidden]),
        ] {
            let source = build.take(&format!("{layer}{from}.weight"), &shape)?;
            build.add(&format!("blk.{block}.{to}.weight"), &source);
        }
    }
    let inner = build.config.count(experts.size_keys)?;
    build.put_integer("expert_feed_forward_length", inner)?;
    build.put_integer("expert_shared_feed_forward_length", shared)
}

/// Refuses models in which some layers have no experts: llama.cpp's `qwen2moe` and `qwen3moe` have none such.
fn check_all_layers_have_experts(build: &ModelBuilder<'_>) -> Result<(), ConvertError> {
    let step = build.config.optional_integer(&["decoder_sparse_step"])?.unwrap_or(1);
    let dense = build.config.find(&["mlp_only_layers"]).and_then(|list| list.as_array());
    if step != 1 || dense.is_some_and(|list| !list.is_empty()) {
        return Err(ConvertError::Config(
            "some layers have no experts, which llama.cpp cannot load for this architecture".to_owned(),
        ));
    }
    Ok(())
}

/// Checks `norm_topk_prob`, whether the weights of the chosen experts are scaled to a sum of one. llama.cpp hard-codes
/// it for each architecture.
pub(super) fn check_expert_normalization(build: &ModelBuilder<'_>, expected: bool) -> Result<(), ConvertError> {
    // All these classes default to false.
    if build.config.flag("norm_topk_prob").unwrap_or(false) != expected {
        return Err(ConvertError::Config(format!(
            "norm_topk_prob is not {expected}, which llama.cpp takes for granted for this architecture"
        )));
    }
    Ok(())
}
