//! Nomic BERT: BERT with rotary positions and SwiGLU, and its variant with a mixture of experts and GELU.

use super::{ModelBuilder, bert, pooling, rope, spec};
use crate::{
    convert::{
        ConvertError, TensorRecipe,
        config::CheckpointConfig,
        parts::{StoredColumns, StoredRows},
    },
    gguf::GgufValue,
};

const THETA: f64 = 1000.0;
/// Default of `max_trained_positions`.
const TRAINED_POSITIONS: u64 = 2048;

#[derive(Clone, Copy, Debug)]
struct EncoderSizes {
    hidden: u64,
    inner: u64,
}

/// Layers with experts: one in `every`, beginning with the second.
#[derive(Clone, Copy, Debug)]
struct MixtureLayers {
    every: u64,
    count: u64,
}

pub(super) fn nomic_bert(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let config = build.config;
    let every = config.optional_integer(&["moe_every_n_layers"])?.unwrap_or(0);
    let experts = match every {
        0 => None,
        every => Some(MixtureLayers {
            every,
            count: config.count(&["num_experts", "num_local_experts"])?,
        }),
    };
    build.arch = if experts.is_some() {
        "nomic-bert-moe"
    } else {
        "nomic-bert"
    };
    check_variant(config, experts.is_some())?;
    let sizes = EncoderSizes {
        hidden: config.count(&["n_embd", "hidden_size"])?,
        inner: config.count(&["n_inner", "intermediate_size"])?,
    };
    let blocks = build.blocks(&["n_layer", "num_hidden_layers"])?;
    let context = context(config)?;
    build.put_integer("block_count", blocks)?;
    build.put_integer("context_length", context)?;
    build.put_integer("embedding_length", sizes.hidden)?;
    build.put_integer("feed_forward_length", sizes.inner)?;
    let heads = config.count(&["n_head", "num_attention_heads"])?;
    build.put_integer("attention.head_count", heads)?;
    let epsilon = config.number_or(&["layer_norm_epsilon", "layer_norm_eps"], 1e-12)?;
    build.put_number("attention.layer_norm_epsilon", epsilon);
    build.put("attention.causal", GgufValue::Bool(false));
    rope::keys(build, THETA, context)?;
    if let Some(experts) = &experts {
        let used = config.count(&["moe_top_k"])?;
        build.put_integer("moe_every_n_layers", experts.every)?;
        build.put_integer("expert_count", experts.count)?;
        build.put_integer("expert_used_count", used)?;
    }
    pooling::keys(build)?;
    let types = config.integer_or(&["type_vocab_size"], 2)?;
    // llama.cpp refuses the architecture without this key.
    let types_key = "tokenizer.ggml.token_type_count".to_owned();
    build.keys.push((types_key, GgufValue::U32(types as u32)));

    bert::headless(build, None);
    build.take_embedding("embeddings.word_embeddings.weight", sizes.hidden)?;
    build.copy(
        "embeddings.token_type_embeddings",
        "token_types",
        &[types, sizes.hidden],
    )?;
    norm(build, "emb_ln", "token_embd_norm", sizes.hidden)?;
    for block in 0..blocks {
        let (from, to) = (format!("encoder.layers.{block}."), format!("blk.{block}."));
        let matrices = [
            ("attn.Wqkv", "attn_qkv", [3 * sizes.hidden, sizes.hidden]),
            ("attn.out_proj", "attn_output", [sizes.hidden, sizes.hidden]),
        ];
        take(build, &matrices, &from, &to)?;
        // llama.cpp decides by the same remainder which layers have experts.
        match &experts {
            Some(experts) if block % experts.every == 1 => mixture(build, &sizes, experts.count, &from, &to)?,
            _ => feed_forward(build, &sizes, experts.is_some(), &from, &to)?,
        }
        norm(
            build,
            &format!("{from}norm1"),
            &format!("{to}attn_output_norm"),
            sizes.hidden,
        )?;
        norm(
            build,
            &format!("{from}norm2"),
            &format!("{to}layer_output_norm"),
            sizes.hidden,
        )?;
    }
    Ok(())
}

/// Refuses variants of the class that llama.cpp does not support.
fn check_variant(config: &CheckpointConfig, is_mixture: bool) -> Result<(), ConvertError> {
    let activation = config.text(&["activation_function"]).unwrap_or("swiglu");
    let is_known = activation == if is_mixture { "gelu" } else { "swiglu" }
        && !config.flag("prenorm").unwrap_or(false)
        && !config.flag("causal").unwrap_or(false)
        && !config.flag("rotary_emb_interleaved").unwrap_or(false)
        && config.optional_number(&["rotary_emb_fraction"])?.unwrap_or(1.0) == 1.0
        && config.find(&["rotary_emb_scale_base"]).is_none()
        && !config.flag("moe_normalize_expert_weights").unwrap_or(false);
    if is_known {
        return Ok(());
    }
    Err(ConvertError::Config(
        "its activation, norms or RoPE parameters are not those that llama.cpp supports for this architecture"
            .to_owned(),
    ))
}

/// Returns the context length. `n_positions` is longer than what the published models were trained with
/// (`NomicBertModel.set_gguf_parameters`).
fn context(config: &CheckpointConfig) -> Result<u64, ConvertError> {
    let Some(positions) = config.optional_integer(&["n_positions"])? else {
        return config.integer_or(&["max_position_embeddings"], TRAINED_POSITIONS);
    };
    let trained = config.optional_integer(&["max_trained_positions"])?;
    match (positions, trained.unwrap_or(TRAINED_POSITIONS)) {
        // nomic-embed-text-v1 and v1.5.
        (8192, TRAINED_POSITIONS) => Ok(TRAINED_POSITIONS),
        // nomic-embed-text-v2-moe.
        (2048, TRAINED_POSITIONS) => Ok(512),
        (positions, trained) => Ok(positions.min(trained)),
    }
}

fn norm(build: &mut ModelBuilder<'_>, from: &str, to: &str, hidden: u64) -> Result<(), ConvertError> {
    bert::both(build, from, to, &[hidden])
}

/// Takes matrices, and their biases if they are stored. Only the mixture has them.
fn take(
    build: &mut ModelBuilder<'_>,
    matrices: &[(&str, &str, [u64; 2])],
    from: &str,
    to: &str,
) -> Result<(), ConvertError> {
    for (part, name, shape) in matrices {
        let (from, to) = (format!("{from}{part}"), format!("{to}{name}"));
        if build.has(&format!("{from}.bias")) {
            bert::both(build, &from, &to, shape)?;
        } else {
            build.copy(&from, &to, shape)?;
        }
    }
    Ok(())
}

fn feed_forward(
    build: &mut ModelBuilder<'_>,
    sizes: &EncoderSizes,
    is_mixture: bool,
    from: &str,
    to: &str,
) -> Result<(), ConvertError> {
    let (up, down) = ([sizes.inner, sizes.hidden], [sizes.hidden, sizes.inner]);
    if is_mixture {
        let matrices = [("mlp.fc1", "ffn_up", up), ("mlp.fc2", "ffn_down", down)];
        return take(build, &matrices, from, to);
    }
    let matrices = [
        ("mlp.fc11", "ffn_up", up),
        ("mlp.fc12", "ffn_gate", up),
        ("mlp.fc2", "ffn_down", down),
    ];
    take(build, &matrices, from, to)
}

/// Takes the experts of a layer. Both matrices are stored as `[experts * inner, hidden]`, so the second is transposed
/// for each expert.
fn mixture(
    build: &mut ModelBuilder<'_>,
    sizes: &EncoderSizes,
    count: u64,
    from: &str,
    to: &str,
) -> Result<(), ConvertError> {
    let EncoderSizes { hidden, inner } = *sizes;
    build.copy(
        &format!("{from}mlp.router.layer"),
        &format!("{to}ffn_gate_inp"),
        &[count, hidden],
    )?;
    // llama.cpp has no tensor for it and its converter skips it, too. It is zero in the published models.
    build.tensors.remove(&format!("{from}mlp.experts.bias"));
    let stored = [count * inner, hidden];
    let up = build.take(&format!("{from}mlp.experts.mlp.w1"), &stored)?;
    let spec_of = |name: &str, shape: &[u64]| spec(&format!("{to}{name}.weight"), shape);
    let recipe = TensorRecipe::rows(
        spec_of("ffn_up_exps", &[count, inner, hidden]),
        vec![StoredRows::all(&up)],
    );
    build.recipes.push(recipe);
    let down = build.take(&format!("{from}mlp.experts.mlp.w2"), &stored)?;
    let parts = (0..count).map(|expert| StoredColumns::all(&down, expert * inner..(expert + 1) * inner));
    let recipe = TensorRecipe::columns(spec_of("ffn_down_exps", &[count, hidden, inner]), parts.collect());
    build.recipes.push(recipe);
    Ok(())
}
