//! Capabilities of a model, derived from its header and chat template by Ollama's rules.

use crate::{
    gguf::{self, GgufHeader, GgufValue},
    inference::ModelCapability,
};

/// Architectures without a language model head. The usual sign of one is `pooling_type`, which some conversions lack.
const ENCODERS: &[&str] = &[
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "gemma-embedding",
    "llama-embed",
    "t5encoder",
];

/// Fill-in-the-middle tokens (prefix, suffix, middle): the metadata keys of their ids, new and old, and the token texts
/// by which llama.cpp recognizes them in a vocabulary without these keys.
const FILL_IN_THE_MIDDLE: [(&[&str], &[&str]); 3] = [
    (
        &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
];

/// Returns true if the vocabulary has a prefix, a suffix and a middle token.
fn fills_in_the_middle(header: &GgufHeader) -> bool {
    let vocabulary = header.get("tokenizer.ggml.tokens").and_then(GgufValue::as_strings);
    FILL_IN_THE_MIDDLE.iter().all(|(keys, spellings)| {
        keys.iter().any(|key| header.get(key).is_some())
            || vocabulary.is_some_and(|tokens| {
                tokens
                    .iter()
                    .any(|token| spellings.iter().any(|spelling| spelling.as_bytes() == token))
            })
    })
}

/// Returns the capabilities in the order of Ollama's `/api/show` for a model with a Jinja template.
pub(super) fn capabilities(header: &GgufHeader) -> Vec<ModelCapability> {
    let architecture = header.architecture();
    let template = gguf::chat_template(header).unwrap_or_default();
    let has = |text: &str| template.contains(text);
    let mut found = Vec::new();
    if has("tools") || has("tool_call") {
        found.push(ModelCapability::Tools);
    }
    if fills_in_the_middle(header) {
        found.push(ModelCapability::Insert);
    }
    let splits_reasoning = (has("content.split('</think>')") || has("content.split(\"</think>\")"))
        && !has("reasoning_content")
        && !has("<SPECIAL_12>");
    if (has("<think>") && has("</think>")) || splits_reasoning || matches!(architecture, "gptoss" | "gpt-oss") {
        found.push(ModelCapability::Thinking);
    }
    if header.hyperparameter("pooling_type").is_some() || ENCODERS.contains(&architecture) {
        found.push(ModelCapability::Embedding);
    } else {
        found.push(ModelCapability::Completion);
    }
    if header.hyperparameter("vision.block_count").is_some() {
        found.push(ModelCapability::Vision);
    }
    if header.hyperparameter("audio.block_count").is_some() {
        found.push(ModelCapability::Audio);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{Keys, header, text},
        *,
    };
    use crate::gguf::CHAT_TEMPLATE_KEY;

    #[test]
    fn capabilities_come_from_keys_and_the_template() {
        use ModelCapability::{Audio, Completion, Embedding, Insert, Thinking, Tools, Vision};
        let u = GgufValue::U32(1);
        let cases: Vec<(&str, &str, Keys, Vec<ModelCapability>)> = vec![
            ("llama", "", vec![], vec![Completion]),
            (
                "qwen3",
                "{% if tools %}<think></think>",
                vec![],
                vec![Tools, Thinking, Completion],
            ),
            ("llama", "message.tool_call", vec![], vec![Tools, Completion]),
            (
                "llama",
                "",
                vec![
                    ("tokenizer.ggml.fim_pre_token_id", u.clone()),
                    ("tokenizer.ggml.suffix_token_id", u.clone()),
                    ("tokenizer.ggml.fim_mid_token_id", u.clone()),
                ],
                vec![Insert, Completion],
            ),
            (
                "llama",
                "",
                vec![("tokenizer.ggml.fim_pre_token_id", u.clone())],
                vec![Completion],
            ),
            ("llama", "<think>", vec![], vec![Completion]),
            ("llama", "content.split('</think>')", vec![], vec![Thinking, Completion]),
            (
                "llama",
                "content.split(\"</think>\")",
                vec![],
                vec![Thinking, Completion],
            ),
            (
                "llama",
                "content.split('</think>') reasoning_content",
                vec![],
                vec![Completion],
            ),
            (
                "llama",
                "content.split('</think>') <SPECIAL_12>",
                vec![],
                vec![Completion],
            ),
            ("gpt-oss", "", vec![], vec![Thinking, Completion]),
            ("bert", "", vec![("bert.pooling_type", u.clone())], vec![Embedding]),
            ("bert", "", vec![], vec![Embedding]),
            (
                "qwen3",
                "",
                vec![("qwen3.pooling_type", GgufValue::U32(3))],
                vec![Embedding],
            ),
            (
                "gemma3",
                "",
                vec![("gemma3.vision.block_count", u.clone())],
                vec![Completion, Vision],
            ),
            (
                "gemma4",
                "",
                vec![("gemma4.audio.block_count", u)],
                vec![Completion, Audio],
            ),
        ];
        for (architecture, template, keys, expected) in cases {
            let mut metadata = vec![
                ("general.architecture", text(architecture)),
                (CHAT_TEMPLATE_KEY, text(template)),
            ];
            metadata.extend(keys);
            assert_eq!(
                capabilities(&header(metadata, vec![])),
                expected,
                "{architecture} {template}"
            );
        }
    }
}
