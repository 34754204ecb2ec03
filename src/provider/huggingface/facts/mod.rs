//! Facts of a model, derived from its GGUF headers: the numbers of a listing, the capabilities, and the metadata that
//! `/api/show` prints.
//!
//! The rules are Ollama's, so that a file looks the same in both programs. The provider of hf: names caches the facts
//! with the rest of a header; `hubllama show` derives them itself when no daemon is running.

mod capabilities;
mod model_info;

use self::capabilities::capabilities;
pub use self::model_info::{model_info, tensor_facts};
use crate::{
    gguf::{GgufHeader, GgufValue, file_type_name},
    inference::{ModelCapability, ModelFacts},
};

/// Returns the facts of a model from the headers of all its shards. Metadata comes from the first shard, parameters
/// are summed over all of them.
#[must_use]
pub fn model_facts(shards: &[GgufHeader]) -> ModelFacts {
    let Some(header) = first_shard(shards) else {
        return ModelFacts::default();
    };
    let architecture = header.architecture();
    let quantization = header
        .get("general.file_type")
        .and_then(GgufValue::as_u64)
        .and_then(file_type_name);
    let families = if architecture.is_empty() {
        Vec::new()
    } else {
        vec![architecture.to_owned()]
    };
    ModelFacts {
        architecture: architecture.to_owned(),
        families,
        parameter_count: parameter_count(shards),
        quantization: quantization.unwrap_or("unknown").to_owned(),
        context_length: length(header, "context_length"),
        embedding_length: length(header, "embedding_length"),
        capabilities: capabilities(header),
    }
}

/// Adds the family and the capabilities that a projector (`mmproj` file) contributes.
pub fn add_projector(facts: &mut ModelFacts, projector: &GgufHeader) {
    let flag = |key| projector.get(key).and_then(GgufValue::as_bool);
    let projector_type = ["clip.projector_type", "clip.audio.projector_type"]
        .into_iter()
        .find_map(|key| projector.get(key))
        .and_then(GgufValue::as_str);
    // Gemma 3n's file contains an audio encoder that llama.cpp cannot run.
    let audio = flag("clip.has_audio_encoder") == Some(true) && projector_type != Some("gemma3nv");
    // Older projectors do not have the key, and all of them are vision encoders.
    let vision = flag("clip.has_vision_encoder").unwrap_or(!audio);
    if !facts.families.iter().any(|family| family == "clip") {
        facts.families.push("clip".to_owned());
    }
    for (present, capability) in [(vision, ModelCapability::Vision), (audio, ModelCapability::Audio)] {
        if present && !facts.capabilities.contains(&capability) {
            facts.capabilities.push(capability);
        }
    }
}

/// Returns the shard with the lowest number. Only that one has the model's metadata.
fn first_shard(shards: &[GgufHeader]) -> Option<&GgufHeader> {
    shards
        .iter()
        .min_by_key(|header| header.split().map_or(0, |split| split.number))
}

fn parameter_count(shards: &[GgufHeader]) -> u64 {
    let tensors = shards.iter().flat_map(|header| &header.tensors);
    tensors.fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
}

fn length(header: &GgufHeader, suffix: &str) -> u32 {
    let value = header
        .hyperparameter(suffix)
        .and_then(GgufValue::as_u64)
        .unwrap_or_default();
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::slice;

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::gguf::{CHAT_TEMPLATE_KEY, GgmlType, GgufArray, GgufLayout, GgufSplit, TensorSpec};

    pub(super) type Keys = Vec<(&'static str, GgufValue)>;

    pub(super) fn header(metadata: Keys, tensors: Vec<TensorSpec>) -> GgufHeader {
        let metadata = metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let plan = GgufLayout::new(metadata, tensors).unwrap();
        GgufHeader::read(plan.header(), plan.file_len()).unwrap()
    }

    pub(super) fn text(text: &str) -> GgufValue {
        GgufValue::String(text.to_owned())
    }

    /// A header with the keys of a recorded `/api/show` reply, in another order.
    pub(super) fn smollm() -> GgufHeader {
        let metadata = vec![
            (
                "tokenizer.ggml.tokens",
                GgufValue::Array(GgufArray::String(
                    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].iter().collect(),
                )),
            ),
            ("general.architecture", text("llama")),
            ("general.name", text("Smollm2 135M")),
            (
                "general.languages",
                GgufValue::Array(GgufArray::String(["en"].iter().collect())),
            ),
            ("general.file_type", GgufValue::U32(3)),
            ("llama.context_length", GgufValue::U32(8192)),
            ("llama.embedding_length", GgufValue::U32(576)),
            ("llama.attention.layer_norm_rms_epsilon", GgufValue::F32(1e-5)),
            ("llama.rope.freq_base", GgufValue::F32(100_000.0)),
            ("tokenizer.ggml.add_bos_token", GgufValue::Bool(false)),
            ("tokenizer.ggml.bos_token_id", GgufValue::U32(1)),
            ("tokenizer.ggml.eos_token_id", GgufValue::U32(2)),
            ("tokenizer.ggml.padding_token_id", GgufValue::U32(3)),
            (CHAT_TEMPLATE_KEY, text("{{ messages }}")),
        ];
        let tensors = vec![
            TensorSpec::new("output_norm.weight", GgmlType::F32, [576]),
            TensorSpec::new("token_embd.weight", GgmlType::Q8_0, [576, 3]),
        ];
        header(metadata, tensors)
    }

    #[test]
    fn a_listing_line() {
        let expected = ModelFacts {
            architecture: "llama".to_owned(),
            families: vec!["llama".to_owned()],
            parameter_count: 576 * 4,
            quantization: "Q4_1".to_owned(),
            context_length: 8192,
            embedding_length: 576,
            capabilities: vec![ModelCapability::Completion],
        };
        assert_eq!(model_facts(&[smollm()]), expected);
        assert_eq!(model_facts(&[header(vec![], vec![])]).quantization, "unknown");
    }

    #[test]
    fn a_projector_adds_senses() {
        use ModelCapability::{Audio, Completion, Vision};
        let cases: Vec<(Keys, Vec<ModelCapability>)> = vec![
            (vec![], vec![Completion, Vision]),
            (
                vec![("clip.has_vision_encoder", GgufValue::Bool(true))],
                vec![Completion, Vision],
            ),
            (
                vec![("clip.has_audio_encoder", GgufValue::Bool(true))],
                vec![Completion, Audio],
            ),
            (
                vec![
                    ("clip.has_vision_encoder", GgufValue::Bool(true)),
                    ("clip.has_audio_encoder", GgufValue::Bool(true)),
                ],
                vec![Completion, Vision, Audio],
            ),
            (
                vec![
                    ("clip.has_audio_encoder", GgufValue::Bool(true)),
                    ("clip.projector_type", text("gemma3nv")),
                ],
                vec![Completion, Vision],
            ),
        ];
        for (keys, expected) in cases {
            let mut facts = model_facts(&[smollm()]);
            add_projector(&mut facts, &header(keys.clone(), vec![]));
            assert_eq!(
                (facts.capabilities, facts.families),
                (expected, vec!["llama".into(), "clip".into()]),
                "{keys:?}"
            );
        }
    }

    #[test]
    fn shards_are_one_model() {
        let shard = |number: u16, keys: Keys| {
            let mut metadata = vec![
                ("split.no", GgufValue::U16(number)),
                ("split.count", GgufValue::U16(2)),
                ("split.tensors.count", GgufValue::I32(2)),
            ];
            metadata.extend(keys);
            header(
                metadata,
                vec![TensorSpec::new(format!("t{number}"), GgmlType::F16, [10, 10])],
            )
        };
        let shards = [
            shard(1, vec![]),
            shard(0, vec![("general.architecture", text("llama"))]),
        ];
        assert_eq!(
            shards[0].split(),
            Some(GgufSplit {
                number: 1,
                count: 2,
                tensors: 2
            })
        );
        let facts = model_facts(&shards);
        assert_eq!((facts.architecture.as_str(), facts.parameter_count), ("llama", 200));
        assert_eq!(model_info(&shards, false)["general.parameter_count"], 200);
        assert_eq!(model_facts(&[]), ModelFacts::default());
    }

    #[test]
    fn no_damaged_header_makes_it_panic() {
        let metadata = smollm().metadata;
        let tensors = vec![TensorSpec::new("token_embd.weight", GgmlType::Q8_0, [32, 3])];
        let metadata = metadata.iter().map(|(key, value)| (key.to_owned(), value.clone()));
        let plan = GgufLayout::new(metadata.collect(), tensors).unwrap();
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..20_000 {
            let mut damaged = plan.header().to_vec();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..damaged.len());
                damaged[at] = if random.random() {
                    random.random()
                } else {
                    damaged[at] ^ (1 << random.random_range(0..8))
                };
            }
            if let Ok(header) = GgufHeader::read(damaged.as_slice(), plan.file_len()) {
                let _ = model_facts(slice::from_ref(&header));
                let _ = model_info(slice::from_ref(&header), true);
            }
        }
    }
}
