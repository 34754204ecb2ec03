//! BERT, RoBERTa and XLM-RoBERTa, as embedding models or as classifiers and rerankers. Heads for other tasks, such as
//! masked language modeling, are left out.

use super::{ModelBuilder, classifier, pooling, spec};
use crate::{
    convert::{ConvertError, TensorRecipe, parts::StoredRows},
    gguf::GgufValue,
};

/// Names in the checkpoint and in the file. Each has a weight and a bias.
const LAYER: &[(&str, &str)] = &[
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("intermediate.dense", "ffn_up"),
    ("output.dense", "ffn_down"),
    ("output.LayerNorm", "layer_output_norm"),
];

/// Layer before the last of a classifier. BERT's class calls it a pooler.
const BERT_HEAD: &str = "pooler.dense";
const ROBERTA_HEAD: &str = "classifier.dense";

pub(super) fn bert(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    encoder(build, 0, BERT_HEAD, "classifier")
}

/// Builds RoBERTa. Its positions begin after the id of the padding token, so the rows of the position embedding before
/// that are unused and the context is shorter by as many (`RobertaModel` of the converter).
pub(super) fn roberta(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let padding = build.config.integer_or(&["pad_token_id"], 1)?;
    encoder(build, padding + 1, ROBERTA_HEAD, "classifier.out_proj")
}

fn encoder(build: &mut ModelBuilder<'_>, first_position: u64, head: &str, output: &str) -> Result<(), ConvertError> {
    build.arch = "bert";
    let config = build.config;
    if let Some(kind) = config
        .text(&["position_embedding_type"])
        .filter(|kind| *kind != "absolute")
    {
        return Err(ConvertError::Config(format!(
            "position_embedding_type is {kind:?}, not \"absolute\""
        )));
    }
    let hidden = config.count(&["hidden_size"])?;
    let inner = config.count(&["intermediate_size"])?;
    let heads = config.count(&["num_attention_heads"])?;
    let blocks = build.blocks(&["num_hidden_layers"])?;
    let positions = config.integer_or(&["max_position_embeddings"], 512)?;
    let Some(context) = positions.checked_sub(first_position).filter(|context| *context > 0) else {
        return Err(ConvertError::Config(format!(
            "{positions} positions of which the first is {first_position}"
        )));
    };
    let types = config.integer_or(&["type_vocab_size"], 2)?;
    let epsilon = config.number_or(&["layer_norm_eps"], 1e-12)?;
    build.put_integer("block_count", blocks)?;
    build.put_integer("context_length", context)?;
    build.put_integer("embedding_length", hidden)?;
    build.put_integer("feed_forward_length", inner)?;
    build.put_integer("attention.head_count", heads)?;
    build.put_number("attention.layer_norm_epsilon", epsilon);
    build.put("attention.causal", GgufValue::Bool(false));
    let is_classifier = classifier::is_classifier(config);
    if !is_classifier {
        pooling::keys(build)?;
    }
    // llama.cpp refuses the architecture without this key.
    let types_key = "tokenizer.ggml.token_type_count".to_owned();
    build.keys.push((types_key, GgufValue::U32(types as u32)));

    let head = is_classifier.then_some(head);
    headless(build, head);
    build.take_embedding("embeddings.word_embeddings.weight", hidden)?;
    let source = build.take("embeddings.position_embeddings.weight", &[positions, hidden])?;
    let used = StoredRows::some(&source, first_position, context, 1);
    let recipe = TensorRecipe::rows(spec("position_embd.weight", &[context, hidden]), vec![used]);
    build.recipes.push(recipe);
    // llama.cpp adds only the first row, as if every token belonged to the first of two texts.
    let source = build.take("embeddings.token_type_embeddings.weight", &[types, hidden])?;
    build.add("token_types.weight", &source);
    both(build, "embeddings.LayerNorm", "token_embd_norm", &[hidden])?;
    for block in 0..blocks {
        for (from, to) in LAYER {
            let shape: &[u64] = match *to {
                "ffn_up" => &[inner, hidden],
                "ffn_down" => &[hidden, inner],
                norm if norm.ends_with("norm") => &[hidden],
                _ => &[hidden, hidden],
            };
            both(
                build,
                &format!("encoder.layer.{block}.{from}"),
                &format!("blk.{block}.{to}"),
                shape,
            )?;
        }
    }
    if let Some(head) = head {
        // llama.cpp's converter leaves this layer out of BERT's classifiers, and llama.cpp then computes other scores.
        both(build, head, "cls", &[hidden, hidden])?;
        classifier::take(build, output, hidden)?;
    }
    Ok(())
}

/// Removes all heads but `head` and the prefix of the class, and renames `gamma` and `beta` of old checkpoints to
/// `weight` and `bias`.
pub(super) fn headless(build: &mut ModelBuilder<'_>, head: Option<&str>) {
    let tensors = std::mem::take(&mut build.tensors);
    for (name, tensor) in tensors {
        let short = name.strip_prefix("bert.").or_else(|| name.strip_prefix("roberta."));
        let short = short.unwrap_or(&name);
        let is_head = ["pooler.", "cls.predictions.", "cls.seq_relationship.", "lm_head."]
            .iter()
            .any(|other| short.starts_with(other));
        if is_head && head.is_none_or(|head| !short.starts_with(head)) {
            continue;
        }
        let short = match (short.strip_suffix(".gamma"), short.strip_suffix(".beta")) {
            (Some(stem), _) => format!("{stem}.weight"),
            (_, Some(stem)) => format!("{stem}.bias"),
            _ => short.to_owned(),
        };
        build.tensors.insert(short, tensor);
    }
}

/// Takes a weight of this shape and its bias.
pub(super) fn both(build: &mut ModelBuilder<'_>, from: &str, to: &str, shape: &[u64]) -> Result<(), ConvertError> {
    for (part, shape) in [("weight", shape), ("bias", &shape[..1])] {
        let source = build.take(&format!("{from}.{part}"), shape)?;
        build.add(&format!("{to}.{part}"), &source);
    }
    Ok(())
}
