//! Refusal of files on which llama.cpp aborts or crashes instead of returning an error.
//!
//! Each rule mirrors an assertion or a crash of the pinned version. Files that llama.cpp itself refuses with an error
//! (missing keys, unknown architectures, wrong shapes) are left to it. The rules are not complete, which is one reason
//! why models run in separate processes; but a refusal here has a useful message.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{ALIGNMENT_KEY, GgmlType, GgufHeader, GgufValue, StringArray, TensorInfo};

/// `LLAMA_MAX_LAYERS`.
const MAX_BLOCKS: u64 = 512;
/// `LLAMA_MAX_EXPERTS`.
const MAX_EXPERTS: u64 = 1024;
/// Smallest alignment. Smaller ones fail an assertion when the file is mapped.
const MIN_ALIGNMENT: u64 = 8;
/// Values of `rope.scaling.type`. Any other fails an assertion.
const ROPE_SCALING_TYPES: &[&str] = &["none", "linear", "yarn", "longrope"];
/// Architectures in which every layer has attention, so that no layer may have 0 key-value heads. In others (recurrent,
/// hybrid, pruned) a 0 marks a layer without attention.
const ATTENTION_ONLY: &[&str] = &[
    "command-r",
    "gemma",
    "gemma2",
    "gemma3",
    "granite",
    "granitemoe",
    "internlm2",
    "llama",
    "mistral3",
    "olmo2",
    "phi2",
    "phi3",
    "phimoe",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen3moe",
    "qwen3vl",
    "qwen3vlmoe",
    "smollm3",
    "stablelm",
    "starcoder2",
];
/// Token id -1, which some converters write for "no such token".
const NO_TOKEN: u64 = u32::MAX as u64;

/// Reason why a file must not be given to llama.cpp.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the model file is damaged or was converted wrongly: {0}; choose another conversion")]
pub struct GgufRefusal(String);

/// Checks a header before its file is given to llama.cpp.
///
/// # Errors
/// The first reason why llama.cpp would crash on the file.
pub fn precheck(header: &GgufHeader) -> Result<(), GgufRefusal> {
    if header.alignment < MIN_ALIGNMENT {
        return refuse(format!(
            "{ALIGNMENT_KEY} is {}, the least is {MIN_ALIGNMENT}",
            header.alignment
        ));
    }
    // Projectors are loaded by other code (`mtmd`), to which the rules below do not apply.
    if header.architecture() == "clip" {
        return Ok(());
    }
    blocks(header)?;
    experts(header)?;
    attention(header)?;
    tokenizer(header)?;
    header.tensors.iter().try_for_each(tensor_type)
}

fn refuse<T>(reason: String) -> Result<T, GgufRefusal> {
    Err(GgufRefusal(reason))
}

fn integer(header: &GgufHeader, suffix: &str) -> Option<u64> {
    header.hyperparameter(suffix).and_then(GgufValue::as_u64)
}

fn blocks(header: &GgufHeader) -> Result<(), GgufRefusal> {
    let Some(blocks) = integer(header, "block_count") else {
        return Ok(());
    };
    if blocks == 0 || blocks > MAX_BLOCKS {
        return refuse(format!("block_count is {blocks}, not 1 to {MAX_BLOCKS}"));
    }
    match integer(header, "nextn_predict_layers") {
        Some(extra) if extra > blocks => refuse(format!("nextn_predict_layers is {extra} with {blocks} blocks")),
        _ => Ok(()),
    }
}

fn experts(header: &GgufHeader) -> Result<(), GgufRefusal> {
    let mut count = integer(header, "expert_count").unwrap_or_default();
    let used = header
        .hyperparameter("expert_used_count")
        .map(GgufValue::integers)
        .unwrap_or_default();
    // The number may differ between layers; llama.cpp's assertions are on the largest.
    let mut used = used.into_iter().max().unwrap_or_default();
    // Dense Hunyuan files say one expert; llama.cpp resets the counts of these architectures before its assertions.
    if count <= 1 && matches!(header.architecture(), "hunyuan-dense" | "hunyuan_vl") {
        (count, used) = (0, 0);
    }
    if count > MAX_EXPERTS {
        return refuse(format!("expert_count is {count}, the limit is {MAX_EXPERTS}"));
    }
    if used > count || (count > 0 && used == 0) {
        return refuse(format!("expert_used_count is {used} with {count} experts"));
    }
    let groups = integer(header, "expert_group_count").unwrap_or_default();
    let groups_used = integer(header, "expert_group_used_count").unwrap_or_default();
    // The assertions of `load_hparams` on `n_expert_groups`.
    let groups_fit = match groups {
        0 => true,
        1 => count > 1,
        _ => groups < count && count.is_multiple_of(groups) && (1..groups).contains(&groups_used),
    };
    if !groups_fit {
        return refuse(format!(
            "expert_group_count is {groups} ({groups_used} used) with {count} experts"
        ));
    }
    Ok(())
}

fn attention(header: &GgufHeader) -> Result<(), GgufRefusal> {
    if let Some(kind) = header.hyperparameter("rope.scaling.type").and_then(GgufValue::as_str)
        && !ROPE_SCALING_TYPES.contains(&kind)
    {
        return refuse(format!("rope.scaling.type is {kind:?}"));
    }
    for suffix in [
        "attention.layer_norm_rms_epsilon",
        "attention.layer_norm_epsilon",
        "attention.group_norm_epsilon",
    ] {
        if let Some(epsilon) = header.hyperparameter(suffix).and_then(GgufValue::as_f64)
            && (epsilon.is_nan() || epsilon < 0.0)
        {
            return refuse(format!("{suffix} is {epsilon}"));
        }
    }
    if ATTENTION_ONLY.contains(&header.architecture())
        && let Some(heads) = header.hyperparameter("attention.head_count_kv")
        && heads.integers().contains(&0)
    {
        return refuse("attention.head_count_kv contains 0".to_owned());
    }
    Ok(())
}

fn tokenizer(header: &GgufHeader) -> Result<(), GgufRefusal> {
    let model = header.get("tokenizer.ggml.model").and_then(GgufValue::as_str);
    if let Some(none @ ("none" | "no_vocab")) = model {
        return refuse(format!("it has no tokenizer (tokenizer.ggml.model is {none:?})"));
    }
    let Some(tokens) = header.get("tokenizer.ggml.tokens").and_then(GgufValue::as_strings) else {
        return Ok(());
    };
    let mut seen = HashSet::with_capacity(tokens.len());
    // llama.cpp renames empty tokens, so they may occur several times.
    if let Some(twice) = tokens
        .iter()
        .filter(|token| !token.is_empty())
        .find(|token| !seen.insert(*token))
    {
        return refuse(format!("the token {:?} occurs twice", String::from_utf8_lossy(twice)));
    }
    if model == Some("llama") && !tokens.iter().any(is_byte_token) {
        return refuse("its tokenizer has no byte tokens for characters outside the vocabulary".to_owned());
    }
    for name in ["bos", "eos"] {
        let id = header
            .get(&format!("tokenizer.ggml.{name}_token_id"))
            .and_then(GgufValue::as_u64);
        if let Some(id) = id.filter(|id| *id != NO_TOKEN && !in_vocabulary(tokens, *id)) {
            return refuse(format!(
                "the {name} token is {id}, but there are {} tokens",
                tokens.len()
            ));
        }
    }
    Ok(())
}

fn in_vocabulary(tokens: &StringArray, id: u64) -> bool {
    id < tokens.len() as u64
}

/// Returns true for a byte token: `<0x0A>`, or the raw byte, which llama.cpp looks for next.
fn is_byte_token(token: &[u8]) -> bool {
    token.len() == 1 || (token.len() == 6 && token.starts_with(b"<0x") && token.ends_with(b">"))
}

fn tensor_type(tensor: &TensorInfo) -> Result<(), GgufRefusal> {
    let TensorInfo {
        name,
        element_type,
        dims,
        ..
    } = tensor;
    let is_vector = dims.iter().skip(1).all(|dim| *dim == 1);
    if name.ends_with("_norm.weight") && is_vector && *element_type != GgmlType::F32 {
        return refuse(format!("the norm {name:?} is {}, not F32", element_type.name()));
    }
    let cannot_multiply = matches!(
        element_type,
        GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64 | GgmlType::Q8_1 | GgmlType::Q8_K
    );
    // DeepSeek 4's table from tokens to experts. It is looked up, not multiplied.
    let is_table = name.ends_with("ffn_gate_tid2eid.weight");
    if name.ends_with(".weight") && cannot_multiply && !is_table {
        return refuse(format!(
            "the weights {name:?} are {}, which llama.cpp cannot multiply",
            element_type.name()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgufArray, GgufLayout, TensorSpec};

    type Keys = Vec<(&'static str, GgufValue)>;

    fn text(text: &str) -> GgufValue {
        GgufValue::String(text.to_owned())
    }

    fn tokens(list: &[&str]) -> GgufValue {
        GgufValue::Array(GgufArray::String(list.iter().collect()))
    }

    /// Checks a valid header of this architecture with some keys replaced or added.
    fn check(architecture: &str, changes: Keys, extra: Option<TensorSpec>) -> Result<(), GgufRefusal> {
        let mut metadata = vec![
            ("general.architecture".to_owned(), text(architecture)),
            (format!("{architecture}.block_count"), GgufValue::U32(2)),
            (format!("{architecture}.attention.head_count_kv"), GgufValue::U32(2)),
            (
                format!("{architecture}.attention.layer_norm_rms_epsilon"),
                GgufValue::F32(1e-5),
            ),
            ("tokenizer.ggml.model".to_owned(), text("gpt2")),
            (
                "tokenizer.ggml.tokens".to_owned(),
                tokens(&["a", "b", "", "", "<0x0A>"]),
            ),
            ("tokenizer.ggml.bos_token_id".to_owned(), GgufValue::U32(1)),
        ];
        for (key, value) in changes {
            let key = key.replace('$', architecture);
            metadata.retain(|(name, _)| *name != key);
            metadata.push((key, value));
        }
        let mut tensors = vec![
            TensorSpec::new("token_embd.weight", GgmlType::Q4_K, [256, 5]),
            TensorSpec::new("blk.0.attn_norm.weight", GgmlType::F32, [256]),
        ];
        tensors.extend(extra);
        let plan = GgufLayout::new(metadata, tensors).unwrap();
        precheck(&GgufHeader::read(plan.header(), plan.file_len()).unwrap())
    }

    #[test]
    fn keys() {
        let list = |list: &[i32]| GgufValue::Array(GgufArray::I32(list.to_vec()));
        let u = GgufValue::U32;
        let sound: &[(&str, Keys)] = &[
            ("llama", vec![]),
            (
                "llama",
                vec![("$.block_count", u(512)), ("$.nextn_predict_layers", u(1))],
            ),
            ("llama", vec![("$.expert_count", u(8)), ("$.expert_used_count", u(2))]),
            ("llama", vec![("$.expert_count", u(0)), ("$.expert_used_count", u(0))]),
            (
                "glm4moe",
                vec![
                    ("$.expert_count", u(8)),
                    ("$.expert_used_count", list(&[0, 2])),
                    ("$.expert_group_count", u(1)),
                ],
            ),
            (
                "deepseek2",
                vec![
                    ("$.expert_count", u(256)),
                    ("$.expert_used_count", u(8)),
                    ("$.expert_group_count", u(8)),
                    ("$.expert_group_used_count", u(4)),
                ],
            ),
            ("hunyuan-dense", vec![("$.expert_count", u(1))]),
            ("llama", vec![("$.rope.scaling.type", text("yarn"))]),
            ("granitehybrid", vec![("$.attention.head_count_kv", list(&[0, 4, 0]))]),
            ("lfm2", vec![("$.attention.head_count_kv", list(&[0, 8]))]),
            ("mamba", vec![("$.attention.head_count_kv", u(0))]),
            ("deci", vec![("$.attention.head_count_kv", list(&[0, 8]))]),
            (
                "llama",
                vec![("$.attention.layer_norm_rms_epsilon", GgufValue::F32(0.0))],
            ),
            ("llama", vec![("tokenizer.ggml.bos_token_id", u(u32::MAX))]),
            ("llama", vec![("tokenizer.ggml.eos_token_id", GgufValue::I32(-1))]),
            ("llama", vec![("tokenizer.ggml.model", text("llama"))]),
            ("llama", vec![("general.alignment", u(8))]),
            ("clip", vec![("$.block_count", u(0))]),
        ];
        for (architecture, changes) in sound {
            assert_eq!(
                check(architecture, changes.clone(), None),
                Ok(()),
                "{architecture} {changes:?}"
            );
        }

        let broken: &[(&str, Keys, &str)] = &[
            ("llama", vec![("$.block_count", u(0))], "block_count"),
            ("llama", vec![("$.block_count", u(513))], "block_count"),
            ("llama", vec![("$.nextn_predict_layers", u(3))], "nextn_predict_layers"),
            ("llama", vec![("$.expert_count", u(8))], "expert_used_count"),
            ("llama", vec![("$.expert_used_count", u(8))], "expert_used_count"),
            (
                "llama",
                vec![("$.expert_count", u(8)), ("$.expert_used_count", u(9))],
                "expert_used_count",
            ),
            (
                "llama",
                vec![("$.expert_count", u(1025)), ("$.expert_used_count", u(9))],
                "expert_count",
            ),
            ("llama", vec![("$.expert_group_count", u(1))], "expert_group_count"),
            (
                "llama",
                vec![
                    ("$.expert_count", u(8)),
                    ("$.expert_used_count", u(2)),
                    ("$.expert_group_count", u(3)),
                    ("$.expert_group_used_count", u(1)),
                ],
                "expert_group_count",
            ),
            (
                "llama",
                vec![("$.rope.scaling.type", text("dynamic"))],
                "rope.scaling.type",
            ),
            ("llama", vec![("$.attention.head_count_kv", u(0))], "head_count_kv"),
            (
                "qwen3",
                vec![("$.attention.head_count_kv", list(&[4, 0]))],
                "head_count_kv",
            ),
            (
                "llama",
                vec![("$.attention.layer_norm_rms_epsilon", GgufValue::F32(f32::NAN))],
                "epsilon is NaN",
            ),
            (
                "llama",
                vec![("$.attention.layer_norm_rms_epsilon", GgufValue::F32(-1.0))],
                "epsilon is -1",
            ),
            (
                "bert",
                vec![("$.attention.layer_norm_epsilon", GgufValue::F32(-1.0))],
                "epsilon is -1",
            ),
            (
                "llama",
                vec![("tokenizer.ggml.tokens", tokens(&["a", "b", "a"]))],
                "\"a\" occurs twice",
            ),
            ("llama", vec![("tokenizer.ggml.model", text("none"))], "no tokenizer"),
            (
                "llama",
                vec![("tokenizer.ggml.model", text("no_vocab"))],
                "no tokenizer",
            ),
            (
                "llama",
                vec![
                    ("tokenizer.ggml.model", text("llama")),
                    ("tokenizer.ggml.tokens", tokens(&["<s>", "ab"])),
                ],
                "byte tokens",
            ),
            (
                "llama",
                vec![("tokenizer.ggml.bos_token_id", u(5))],
                "the bos token is 5",
            ),
            (
                "llama",
                vec![("tokenizer.ggml.eos_token_id", u(9))],
                "the eos token is 9",
            ),
            ("llama", vec![("general.alignment", u(4))], "general.alignment"),
        ];
        for (architecture, changes, expected) in broken {
            let sentence = check(architecture, changes.clone(), None).unwrap_err().to_string();
            assert!(sentence.contains(expected), "{expected:?} in {sentence:?}");
        }
    }

    #[test]
    fn tensors() {
        let cases = [
            ("blk.1.attn_norm.weight", GgmlType::BF16, vec![256], false),
            ("blk.1.attn_norm.weight", GgmlType::F16, vec![256, 1], false),
            // A matrix whose name only looks like that of a norm.
            ("blk.1.ssm_norm.weight", GgmlType::F16, vec![256, 4], true),
            ("output.weight", GgmlType::I8, vec![256, 5], false),
            ("output.weight", GgmlType::Q8_K, vec![256, 5], false),
            ("output.weight", GgmlType::F64, vec![256, 5], false),
            ("output.weight", GgmlType::MXFP4, vec![256, 5], true),
            ("output.weight", GgmlType::IQ2_XXS, vec![256, 5], true),
            ("d2t", GgmlType::I64, vec![256], true),
            ("blk.0.ffn_gate_tid2eid.weight", GgmlType::I32, vec![6, 5], true),
            ("rope_freqs.weight", GgmlType::F32, vec![64], true),
        ];
        for (name, kind, dims, sound) in cases {
            let result = check("llama", vec![], Some(TensorSpec::new(name, kind, dims)));
            assert_eq!(result.is_ok(), sound, "{name} {kind:?}: {result:?}");
        }
    }
}
