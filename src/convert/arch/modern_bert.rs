//! ModernBERT: BERT with rotary positions, GeGLU, and a sliding window in two of three layers.

use serde_json::Value as Json;

use super::{ModelBuilder, classifier, pooling, rope};
use crate::{convert::ConvertError, gguf::GgufValue};

const GLOBAL_THETA: f64 = 160_000.0;
const LOCAL_THETA: f64 = 10_000.0;

pub(super) fn modern_bert(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    build.arch = "modern-bert";
    let config = build.config;
    let hidden = config.count(&["hidden_size"])?;
    let inner = config.count(&["intermediate_size"])?;
    let heads = config.count(&["num_attention_heads"])?;
    let blocks = build.blocks(&["num_hidden_layers"])?;
    let context = config.integer_or(&["max_position_embeddings"], 8192)?;
    let epsilon = config.number_or(&["layer_norm_eps", "norm_eps"], 1e-5)?;
    build.put_integer("block_count", blocks)?;
    build.put_integer("context_length", context)?;
    build.put_integer("embedding_length", hidden)?;
    build.put_integer("feed_forward_length", inner)?;
    build.put_integer("attention.head_count", heads)?;
    build.put_number("attention.layer_norm_epsilon", epsilon);
    build.put("attention.causal", GgufValue::Bool(false));
    rope::keys(build, GLOBAL_THETA, context)?;
    if config.rope(GLOBAL_THETA)?.sliding_theta.is_none() {
        build.put_number(
            "rope.freq_base_swa",
            config.number_or(&["local_rope_theta"], LOCAL_THETA)?,
        );
    }
    build.put("rope.scaling.type", GgufValue::String("none".to_owned()));
    build.put_integer(
        "attention.sliding_window",
        config.integer_or(&["local_attention"], 128)?,
    )?;
    let every = every(build)?;
    build.put_integer("attention.sliding_window_pattern", every)?;
    if let Some(kind) = config.text(&["hidden_activation"]) {
        build.put("hidden_activation", GgufValue::String(kind.to_owned()));
    }
    let is_classifier = classifier::is_classifier(config);
    if is_classifier {
        classifier_keys(build)?;
    } else {
        pooling::keys(build)?;
    }
    // `[CLS]` and `[SEP]` are BOS and EOS here. The converter always sets the three flags.
    for frame in ["bos", "eos", "sep"] {
        let key = format!("tokenizer.ggml.add_{frame}_token");
        build.keys.push((key, GgufValue::Bool(true)));
    }

    headless(build, is_classifier);
    build.take_embedding("embeddings.tok_embeddings.weight", hidden)?;
    let vocabulary = build.vocabulary;
    build.put_integer("vocab_size", vocabulary)?;
    build.copy("embeddings.norm", "token_embd_norm", &[hidden])?;
    for block in 0..blocks {
        let (from, to) = (format!("layers.{block}."), format!("blk.{block}."));
        // `layers.0.attn_norm` is `nn.Identity`: the embedding has just been normed.
        if block > 0 {
            build.copy(&format!("{from}attn_norm"), &format!("{to}attn_norm"), &[hidden])?;
        }
        for (part, name, shape) in [
            ("attn.Wqkv", "attn_qkv", &[3 * hidden, hidden][..]),
            ("attn.Wo", "attn_output", &[hidden, hidden]),
            ("mlp_norm", "ffn_norm", &[hidden]),
            ("mlp.Wi", "ffn_up", &[2 * inner, hidden]),
            ("mlp.Wo", "ffn_down", &[hidden, inner]),
        ] {
            build.copy(&format!("{from}{part}"), &format!("{to}{name}"), shape)?;
        }
    }
    build.copy("final_norm", "output_norm", &[hidden])?;
    if is_classifier {
        build.copy("head.dense", "cls", &[hidden, hidden])?;
        build.copy("head.norm", "cls.norm", &[hidden])?;
        classifier::take(build, "classifier", hidden)?;
    }
    Ok(())
}

/// Puts the pooling before the head: the first token, or the mean of all tokens.
fn classifier_keys(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let config = build.config;
    if let Some(other) = config.text(&["classifier_activation"]).filter(|name| *name != "gelu") {
        return Err(ConvertError::Config(format!(
            "classifier_activation is {other:?}, which llama.cpp does not support"
        )));
    }
    let kind = match config.text_or(&["classifier_pooling"], "cls") {
        "cls" => pooling::CLS,
        "mean" => pooling::MEAN,
        other => return Err(ConvertError::Config(format!("classifier_pooling is {other:?}"))),
    };
    // Always written: without the key llama.cpp takes the mean, but the class defaults to the first token.
    build.put_integer("classifier.pooling_type", kind)
}

/// Returns the period of layers without a window, the first layer being one of them.
fn every(build: &ModelBuilder<'_>) -> Result<u64, ConvertError> {
    let types = build.config.find(&["layer_types"]).and_then(Json::as_array);
    let Some(types) = types.filter(|_| build.config.find(&["global_attn_every_n_layers"]).is_none()) else {
        return build.config.integer_or(&["global_attn_every_n_layers"], 3);
    };
    let is_global = |kind: &Json| kind.as_str() == Some("full_attention");
    let next = types.iter().skip(1).position(is_global);
    let every = next.map_or(types.len(), |next| next + 1);
    let fits = types
        .iter()
        .enumerate()
        .all(|(at, kind)| is_global(kind) == at.is_multiple_of(every));
    if every == 0 || !fits {
        return Err(ConvertError::Config(
            "layer_types has no regular period, which llama.cpp requires".to_owned(),
        ));
    }
    Ok(every as u64)
}

/// Removes the prefix of the class and, unless the model is a classifier, the heads.
fn headless(build: &mut ModelBuilder<'_>, is_classifier: bool) {
    let tensors = std::mem::take(&mut build.tensors);
    for (name, tensor) in tensors {
        let short = name.strip_prefix("model.").unwrap_or(&name);
        if is_classifier || !["head.", "decoder."].iter().any(|head| short.starts_with(head)) {
            build.tensors.insert(short.to_owned(), tensor);
        }
    }
}
