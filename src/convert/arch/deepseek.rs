//! DeepSeek 2 and 3: multi-head latent attention (MLA), whose KV cache holds compressed keys and values, and a mixture
//! of experts after a few dense layers.

use super::{ModelBuilder, experts::ExpertWeights, rope, sizes::DecoderSizes, spec};
use crate::{
    convert::{
        ConvertError, TensorRecipe,
        parts::{StoredColumns, StoredRows},
    },
    gguf::GgufValue,
};

/// Defaults of a class that only this family has.
#[derive(Clone, Copy, Debug)]
struct DeepseekClass {
    experts: u64,
    /// Experts that a token uses. `None` if the configuration must say it.
    used: Option<u64>,
    expert_feed_forward: u64,
    shared: u64,
    /// Leading dense layers.
    dense: u64,
    /// Groups of experts, and how many of them a token may use.
    groups: Option<(u64, u64)>,
    scale: f64,
    /// True when the weights of the chosen experts are scaled to a sum of one.
    normalizes: bool,
    gating: &'static str,
    context: u64,
}

const V2: DeepseekClass = DeepseekClass {
    experts: 64,
    used: None,
    expert_feed_forward: 1407,
    shared: 2,
    dense: 0,
    groups: None,
    scale: 1.0,
    normalizes: false,
    gating: "softmax",
    context: 2048,
};
const V3: DeepseekClass = DeepseekClass {
    experts: 256,
    used: Some(8),
    expert_feed_forward: 2048,
    shared: 1,
    dense: 3,
    groups: Some((8, 4)),
    scale: 2.5,
    normalizes: true,
    gating: "sigmoid",
    context: 4096,
};
const THETA: f64 = 1e4;
/// Numbers of layers by which llama.cpp tells the Lite models, which do not compress queries. It requires
/// `attention.q_lora_rank` for most others (`is_lite` in `models/deepseek2.cpp`).
const NEVER_COMPRESSED: [u64; 2] = [26, 27];

/// Sizes of latent attention.
#[derive(Clone, Copy, Debug)]
struct Latent {
    /// Rank of compressed queries (`q_lora_rank`); `None` if they are not compressed.
    query_rank: Option<u64>,
    /// Rank of compressed keys and values (`kv_lora_rank`).
    rank: u64,
    /// Elements of a head's query and key that are rotated (`qk_rope_head_dim`).
    rotated: u64,
    /// Elements that are not rotated (`qk_nope_head_dim`).
    plain: u64,
    /// Elements of a head's value (`v_head_dim`).
    value: u64,
}

impl Latent {
    fn read(build: &ModelBuilder<'_>) -> Result<Self, ConvertError> {
        let config = build.config;
        // `q_lora_rank` cannot tell: the Lite models set it to null, which is taken for the default of the class.
        let is_compressed = build.has("model.layers.0.self_attn.q_a_proj.weight");
        let query_rank = is_compressed.then(|| config.integer_or(&["q_lora_rank"], 1536));
        Ok(Self {
            query_rank: query_rank.transpose()?,
            rank: config.integer_or(&["kv_lora_rank"], 512)?,
            rotated: config.integer_or(&["qk_rope_head_dim"], 64)?,
            plain: config.integer_or(&["qk_nope_head_dim"], 128)?,
            value: config.integer_or(&["v_head_dim"], 128)?,
        })
    }
}

pub(super) fn v2(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    deepseek(build, &V2)
}

pub(super) fn v3(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    deepseek(build, &V3)
}

fn deepseek(build: &mut ModelBuilder<'_>, class: &DeepseekClass) -> Result<(), ConvertError> {
    build.arch = "deepseek2";
    let config = build.config;
    if config.flag("rope_interleave") == Some(false) {
        return Err(ConvertError::Config(
            "rope_interleave is false, which llama.cpp does not support for this architecture".to_owned(),
        ));
    }
    let latent = Latent::read(build)?;
    let heads = config.count(&["num_attention_heads"])?;
    let sizes = DecoderSizes {
        blocks: build.blocks(&["num_hidden_layers"])?,
        hidden: config.count(&["hidden_size"])?,
        feed_forward: config.count(&["intermediate_size"])?,
        heads,
        kv_heads: heads,
        head_dim: latent.plain + latent.rotated,
    };
    let dense = config.integer_or(&["first_k_dense_replace"], class.dense)?;
    attention_keys(build, &sizes, &latent, class.context)?;
    build.put_integer("leading_dense_block_count", dense)?;
    let shared = expert_keys(build, class)?;

    without_predictors(build, sizes.blocks);
    build.take_embedding("model.embed_tokens.weight", sizes.hidden)?;
    let vocabulary = build.vocabulary;
    build.put_integer("vocab_size", vocabulary)?;
    for block in 0..sizes.blocks {
        let (from, to) = (format!("model.layers.{block}."), format!("blk.{block}."));
        attention(build, &sizes, &latent, &format!("{from}self_attn."), &to)?;
        for (norm, name) in [
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ] {
            build.copy(&format!("{from}{norm}"), &format!("{to}{name}"), &[sizes.hidden])?;
        }
        if block < dense {
            feed_forward(build, &sizes, sizes.feed_forward, &format!("{from}mlp."), &to, "")?;
            continue;
        }
        let experts = ExpertWeights {
            router: "mlp.gate",
            folder: "mlp.experts",
            names: ["gate_proj", "up_proj", "down_proj"],
            size_keys: &["moe_intermediate_size"],
            count: class.experts,
        };
        experts.take(build, &sizes, &from, block)?;
        feed_forward(
            build,
            &sizes,
            shared,
            &format!("{from}mlp.shared_experts."),
            &to,
            "_shexp",
        )?;
        // DeepSeek 3 adds a learned bias to the scores by which experts are chosen. V2 has none.
        let correction = format!("{from}mlp.gate.e_score_correction_bias");
        if build.has(&correction) {
            let source = build.take_any(&correction)?;
            build.add(&format!("{to}exp_probs_b.bias"), &source);
        }
    }
    build.copy("model.norm", "output_norm", &[sizes.hidden])?;
    // A stored copy of a tied embedding is dropped, like in the converter.
    if config.flag("tie_word_embeddings") == Some(true) {
        build.tensors.remove("lm_head.weight");
    }
    build.take_output("lm_head.weight", sizes.hidden)
}

fn attention_keys(
    build: &mut ModelBuilder<'_>,
    sizes: &DecoderSizes,
    latent: &Latent,
    context: u64,
) -> Result<(), ConvertError> {
    let config = build.config;
    let context = config.integer_or(&["max_position_embeddings"], context)?;
    build.put_integer("block_count", sizes.blocks)?;
    build.put_integer("context_length", context)?;
    build.put_integer("embedding_length", sizes.hidden)?;
    build.put_integer("feed_forward_length", sizes.feed_forward)?;
    build.put_integer("attention.head_count", sizes.heads)?;
    // In compressed form MLA is multi-query attention: one latent key-value head for all query heads.
    build.put_integer("attention.head_count_kv", 1)?;
    let epsilon = config.number_or(&["rms_norm_eps"], 1e-6)?;
    build.put_number("attention.layer_norm_rms_epsilon", epsilon);
    match latent.query_rank {
        Some(rank) => build.put_integer("attention.q_lora_rank", rank)?,
        None if NEVER_COMPRESSED.contains(&sizes.blocks) => {}
        None => build.put_integer("attention.q_lora_rank", 0)?,
    }
    build.put_integer("attention.kv_lora_rank", latent.rank)?;
    build.put_integer("attention.key_length", latent.rank + latent.rotated)?;
    build.put_integer("attention.value_length", latent.rank)?;
    build.put_integer("attention.key_length_mla", latent.plain + latent.rotated)?;
    build.put_integer("attention.value_length_mla", latent.value)?;
    build.put_integer("rope.dimension_count", latent.rotated)?;
    rope::keys(build, THETA, context)?;
    // Unlike other architectures (`mistral3`, for example), deepseek2 stores a tenth of the value, for historical
    // reasons (`[TAG_DEEPSEEK2_YARN_LOG_MUL_FIX]` in llama.cpp).
    if let Some(scale) = config.rope(THETA)?.number("mscale_all_dim") {
        build.put_number("rope.scaling.yarn_log_multiplier", 0.1 * scale);
    }
    Ok(())
}

/// Puts the keys of the mixture; returns the inner size of all shared experts together.
fn expert_keys(build: &mut ModelBuilder<'_>, class: &DeepseekClass) -> Result<u64, ConvertError> {
    let config = build.config;
    let used = match class.used {
        Some(default) => config.integer_or(&["num_experts_per_tok"], default)?,
        None => config.count(&["num_experts_per_tok"])?,
    };
    let inner = config.integer_or(&["moe_intermediate_size"], class.expert_feed_forward)?;
    let shared = config.integer_or(&["n_shared_experts"], class.shared)?;
    let count = config.integer_or(&["n_routed_experts", "num_local_experts"], class.experts)?;
    build.put_integer("expert_count", count)?;
    build.put_integer("expert_used_count", used)?;
    build.put_integer("expert_feed_forward_length", inner)?;
    build.put_integer("expert_shared_count", shared)?;
    let scale = config.number_or(&["routed_scaling_factor"], class.scale)?;
    build.put_number("expert_weights_scale", scale);
    if config.flag_or("norm_topk_prob", class.normalizes) {
        build.put("expert_weights_norm", GgufValue::Bool(true));
    }
    // With greedy routing the groups of the configuration have no effect, but llama.cpp would use them.
    if config.text(&["topk_method"]) != Some("greedy") {
        let default = class.groups;
        group_key(build, "n_group", "expert_group_count", default.map(|(count, _)| count))?;
        group_key(
            build,
            "topk_group",
            "expert_group_used_count",
            default.map(|(_, used)| used),
        )?;
    }
    let function = match config.text_or(&["scoring_func"], class.gating) {
        "softmax" => 1,
        "sigmoid" => 2,
        other => {
            return Err(ConvertError::Config(format!(
                "its scoring_func is {other:?}, which llama.cpp does not support"
            )));
        }
    };
    // Always written: without the key llama.cpp assumes softmax for all but a few models.
    build.put_integer("expert_gating_func", function)?;
    Ok(shared * inner)
}

/// Puts a number of groups. An explicit `null` means that there are none, unlike a missing key.
fn group_key(build: &mut ModelBuilder<'_>, from: &str, to: &str, default: Option<u64>) -> Result<(), ConvertError> {
    let config = build.config;
    let number = match default.filter(|_| !config.is_null(from)) {
        Some(default) => Some(config.integer_or(&[from], default)?),
        None => config.optional_integer(&[from])?,
    };
    number.map_or(Ok(()), |number| build.put_integer(to, number))
}

/// Removes the layers after the last one: multi-token prediction (MTP), which is not used.
fn without_predictors(build: &mut ModelBuilder<'_>, blocks: u64) {
    build.tensors.retain(|name, _| {
        let layer = name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split('.').next());
        let layer = layer.and_then(|number| number.parse::<u64>().ok());
        layer.is_none_or(|layer| layer < blocks)
    });
}

/// Takes the attention of a layer. `kv_b_proj` `[heads * (plain + value), rank]` is split into the keys of each head,
/// transposed to `[heads, rank, plain]`, and the values `[heads, value, rank]`.
fn attention(
    build: &mut ModelBuilder<'_>,
    sizes: &DecoderSizes,
    latent: &Latent,
    from: &str,
    to: &str,
) -> Result<(), ConvertError> {
    let (hidden, heads) = (sizes.hidden, sizes.heads);
    let query = heads * sizes.head_dim;
    let mut copy =
        |one: &str, two: &str, shape: &[u64]| build.copy(&format!("{from}{one}"), &format!("{to}{two}"), shape);
    // No rows are permuted: DeepSeek stores rotated elements as neighbors, as llama.cpp rotates them
    // (`LLAMA_ROPE_TYPE_NORM`).
    match latent.query_rank {
        Some(rank) => {
            copy("q_a_proj", "attn_q_a", &[rank, hidden])?;
            copy("q_a_layernorm", "attn_q_a_norm", &[rank])?;
            copy("q_b_proj", "attn_q_b", &[query, rank])?;
        }
        None => copy("q_proj", "attn_q", &[query, hidden])?,
    }
    copy(
        "kv_a_proj_with_mqa",
        "attn_kv_a_mqa",
        &[latent.rank + latent.rotated, hidden],
    )?;
    copy("kv_a_layernorm", "attn_kv_a_norm", &[latent.rank])?;
    copy("o_proj", "attn_output", &[hidden, heads * latent.value])?;

    // llama.cpp multiplies queries with the transposed keys instead of decompressing keys (MLA's "absorb" trick).
    let each = latent.plain + latent.value;
    let both = build.take(&format!("{from}kv_b_proj.weight"), &[heads * each, latent.rank])?;
    let keys = (0..heads).map(|head| StoredColumns::all(&both, head * each..head * each + latent.plain));
    let spec_of = |name: &str, shape: &[u64]| spec(&format!("{to}{name}.weight"), shape);
    let recipe = TensorRecipe::columns(spec_of("attn_k_b", &[heads, latent.rank, latent.plain]), keys.collect());
    build.recipes.push(recipe);
    let values = (0..heads).map(|head| StoredRows::some(&both, head * each + latent.plain, latent.value, 1));
    let recipe = TensorRecipe::rows(
        spec_of("attn_v_b", &[heads, latent.value, latent.rank]),
        values.collect(),
    );
    build.recipes.push(recipe);
    Ok(())
}

fn feed_forward(
    build: &mut ModelBuilder<'_>,
    sizes: &DecoderSizes,
    inner: u64,
    from: &str,
    to: &str,
    suffix: &str,
) -> Result<(), ConvertError> {
    for (part, name, shape) in [
        ("gate_proj", "ffn_gate", [inner, sizes.hidden]),
        ("up_proj", "ffn_up", [inner, sizes.hidden]),
        ("down_proj", "ffn_down", [sizes.hidden, inner]),
    ] {
        build.copy(&format!("{from}{part}"), &format!("{to}{name}{suffix}"), &shape)?;
    }
    Ok(())
}
