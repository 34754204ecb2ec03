//! What a header says of a model: the numbers of a listing, its capabilities, and everything `/api/show` prints.
//!
//! The rules are Ollama's, so that a file looks the same whichever of the two serves it.

use std::collections::BTreeMap;
use std::slice;

use serde_json::Value as Json;

use super::{Array, Header, Value, file_type_name};
use crate::inference::{Capability, ModelFacts, TensorFacts};

const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
const PARAMETER_COUNT: &str = "general.parameter_count";
/// Keys that `/api/show` leaves out of `model_info`.
const NOT_SHOWN: &[&str] = &["general.name", CHAT_TEMPLATE];
/// Architectures without a head that generates text. Some conversions lack the pooling type that says so.
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

/// How fill-in-the-middle tokens are marked: keys of their ids, new and old, and the spellings by which llama.cpp knows them in a
/// vocabulary whose file does not say.
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

/// Whether the vocabulary has a prefix, a suffix and a middle token.
fn fills_in_the_middle(header: &Header) -> bool {
    let vocabulary = header.get("tokenizer.ggml.tokens").and_then(Value::as_strings);
    FILL_IN_THE_MIDDLE.iter().all(|(keys, spellings)| {
        keys.iter().any(|key| header.get(key).is_some())
            || vocabulary.is_some_and(|tokens| {
                tokens
                    .iter()
                    .any(|token| spellings.iter().any(|spelling| spelling.as_bytes() == token))
            })
    })
}

/// What the header of a whole file says.
#[must_use]
pub fn facts(header: &Header) -> ModelFacts {
    facts_of_shards(slice::from_ref(header))
}

/// What the headers of all shards of one model say together. Metadata is that of the first shard, elements are summed.
#[must_use]
pub fn facts_of_shards(shards: &[Header]) -> ModelFacts {
    let Some(header) = first_shard(shards) else {
        return ModelFacts::default();
    };
    let architecture = header.architecture();
    let quantization = header
        .get("general.file_type")
        .and_then(Value::as_u64)
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

/// Adds what a projector (`mmproj` file) contributes.
pub fn add_projector(facts: &mut ModelFacts, projector: &Header) {
    let flag = |key| projector.get(key).and_then(Value::as_bool);
    let kind = ["clip.projector_type", "clip.audio.projector_type"]
        .into_iter()
        .find_map(|key| projector.get(key));
    // Gemma 3n's audio encoder is in the file, but nothing can run it.
    let hears = flag("clip.has_audio_encoder") == Some(true) && kind.and_then(Value::as_str) != Some("gemma3nv");
    let sees = flag("clip.has_vision_encoder").unwrap_or(!hears);
    if !facts.families.iter().any(|family| family == "clip") {
        facts.families.push("clip".to_owned());
    }
    for (present, capability) in [(sees, Capability::Vision), (hears, Capability::Audio)] {
        if present && !facts.capabilities.contains(&capability) {
            facts.capabilities.push(capability);
        }
    }
}

/// The default chat template (Jinja).
#[must_use]
pub fn chat_template(header: &Header) -> Option<&str> {
    header.get(CHAT_TEMPLATE).and_then(Value::as_str)
}

/// The text of the token that begins a sequence.
#[must_use]
pub fn bos_token(header: &Header) -> Option<String> {
    token_text(header, "bos")
}

/// The text of the token that ends a sequence.
#[must_use]
pub fn eos_token(header: &Header) -> Option<String> {
    token_text(header, "eos")
}

/// The text of a special token by its name in keys: `bos`, `eos`, `eot`, `padding`, `unknown` …
#[must_use]
pub fn token_text(header: &Header, name: &str) -> Option<String> {
    let id = header.get(&format!("tokenizer.ggml.{name}_token_id"))?.as_u64()?;
    let bytes = header
        .get("tokenizer.ggml.tokens")?
        .as_strings()?
        .get(usize::try_from(id).ok()?)?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

/// `model_info` of `/api/show`: every key but the name and the chat template, sorted, plus the parameter count. Lists
/// are null unless `verbose`.
#[must_use]
pub fn model_info(header: &Header, verbose: bool) -> serde_json::Map<String, Json> {
    model_info_of_shards(slice::from_ref(header), verbose)
}

/// [`model_info`] of a model in several files.
#[must_use]
pub fn model_info_of_shards(shards: &[Header], verbose: bool) -> serde_json::Map<String, Json> {
    let Some(header) = first_shard(shards) else {
        return serde_json::Map::new();
    };
    let mut sorted: BTreeMap<&str, Json> = header
        .metadata
        .iter()
        .filter(|(key, _)| !NOT_SHOWN.contains(key))
        .map(|(key, value)| (key, to_json(value, verbose)))
        .collect();
    sorted.insert(PARAMETER_COUNT, parameter_count(shards).into());
    sorted.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Every tensor, in the order of the file.
#[must_use]
pub fn tensors(header: &Header) -> Vec<TensorFacts> {
    let facts = header.tensors.iter().map(|tensor| TensorFacts {
        name: tensor.name.clone(),
        element_type: tensor.element_type.name().to_owned(),
        shape: tensor.dims.clone(),
    });
    facts.collect()
}

/// A number of parameters as listings show it: `8.0B`, `7B`, `134.52M`, `300K`.
#[must_use]
pub fn parameter_size(parameters: u64) -> String {
    let scaled = |unit: u64, decimals: usize, letter: char| {
        let decimals = if parameters.is_multiple_of(unit) { 0 } else { decimals };
        format!("{:.decimals$}{letter}", parameters as f64 / unit as f64)
    };
    match parameters {
        1_000_000_000.. => scaled(1_000_000_000, 1, 'B'),
        1_000_000.. => scaled(1_000_000, 2, 'M'),
        1_000.. => scaled(1_000, 0, 'K'),
        few => few.to_string(),
    }
}

/// The shard that holds the metadata; the others have little more than their number.
fn first_shard(shards: &[Header]) -> Option<&Header> {
    shards
        .iter()
        .min_by_key(|header| header.split().map_or(0, |split| split.number))
}

fn parameter_count(shards: &[Header]) -> u64 {
    let tensors = shards.iter().flat_map(|header| &header.tensors);
    tensors.fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
}

fn length(header: &Header, suffix: &str) -> u32 {
    let value = header
        .hyperparameter(suffix)
        .and_then(Value::as_u64)
        .unwrap_or_default();
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// In the order in which Ollama's `/api/show` lists them for a model that comes with a Jinja template.
fn capabilities(header: &Header) -> Vec<Capability> {
    let architecture = header.architecture();
    let template = chat_template(header).unwrap_or_default();
    let has = |text: &str| template.contains(text);
    let mut found = Vec::new();
    if has("tools") || has("tool_call") {
        found.push(Capability::Tools);
    }
    if fills_in_the_middle(header) {
        found.push(Capability::Insert);
    }
    let splits_reasoning = (has("content.split('</think>')") || has("content.split(\"</think>\")"))
        && !has("reasoning_content")
        && !has("<SPECIAL_12>");
    if (has("<think>") && has("</think>")) || splits_reasoning || matches!(architecture, "gptoss" | "gpt-oss") {
        found.push(Capability::Thinking);
    }
    if header.hyperparameter("pooling_type").is_some() || ENCODERS.contains(&architecture) {
        found.push(Capability::Embedding);
    } else {
        found.push(Capability::Completion);
    }
    if header.hyperparameter("vision.block_count").is_some() {
        found.push(Capability::Vision);
    }
    if header.hyperparameter("audio.block_count").is_some() {
        found.push(Capability::Audio);
    }
    found
}

fn to_json(value: &Value, verbose: bool) -> Json {
    match value {
        Value::U8(x) => (*x).into(),
        Value::I8(x) => (*x).into(),
        Value::U16(x) => (*x).into(),
        Value::I16(x) => (*x).into(),
        Value::U32(x) => (*x).into(),
        Value::I32(x) => (*x).into(),
        Value::U64(x) => (*x).into(),
        Value::I64(x) => (*x).into(),
        Value::F32(x) => f32_to_json(*x),
        Value::F64(x) => (*x).into(),
        Value::Bool(x) => (*x).into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(_) if !verbose => Json::Null,
        Value::Array(array) => array_to_json(array),
    }
}

fn array_to_json(array: &Array) -> Json {
    fn list<T: Copy + Into<Json>>(list: &[T]) -> Json {
        list.iter().map(|x| (*x).into()).collect()
    }
    match array {
        Array::U8(x) => list(x),
        Array::I8(x) => list(x),
        Array::U16(x) => list(x),
        Array::I16(x) => list(x),
        Array::U32(x) => list(x),
        Array::I32(x) => list(x),
        Array::U64(x) => list(x),
        Array::I64(x) => list(x),
        Array::F32(x) => x.iter().map(|x| f32_to_json(*x)).collect(),
        Array::F64(x) => list(x),
        Array::Bool(x) => list(x),
        Array::String(x) => x.iter().map(String::from_utf8_lossy).collect(),
    }
}

/// The `f64` with the shortest digits that name this `f32`: 1e-5, not 0.000009999999747378752. JSON has no NaN and no
/// infinity; they become null.
fn f32_to_json(x: f32) -> Json {
    x.to_string().parse::<f64>().map_or(Json::Null, Json::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, Plan, TensorSpec};

    type Keys = Vec<(&'static str, Value)>;

    fn header(metadata: Keys, tensors: Vec<TensorSpec>) -> Header {
        let metadata = metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let plan = Plan::new(metadata, tensors).unwrap();
        Header::read(plan.header(), plan.file_len()).unwrap()
    }

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    /// The keys that a recording of a real `/api/show` has, in another order.
    fn smollm() -> Header {
        let metadata = vec![
            (
                "tokenizer.ggml.tokens",
                Value::Array(Array::String(
                    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].iter().collect(),
                )),
            ),
            ("general.architecture", text("llama")),
            ("general.name", text("Smollm2 135M")),
            (
                "general.languages",
                Value::Array(Array::String(["en"].iter().collect())),
            ),
            ("general.file_type", Value::U32(3)),
            ("llama.context_length", Value::U32(8192)),
            ("llama.embedding_length", Value::U32(576)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(100_000.0)),
            ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eos_token_id", Value::U32(2)),
            ("tokenizer.ggml.padding_token_id", Value::U32(3)),
            (CHAT_TEMPLATE, text("{{ messages }}")),
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
            capabilities: vec![Capability::Completion],
        };
        assert_eq!(facts(&smollm()), expected);
        assert_eq!(facts(&header(vec![], vec![])).quantization, "unknown");
    }

    #[test]
    fn show() {
        let expected = concat!(
            r#"{"general.architecture":"llama","general.file_type":3,"general.languages":null,"#,
            r#""general.parameter_count":2304,"llama.attention.layer_norm_rms_epsilon":0.00001,"#,
            r#""llama.context_length":8192,"llama.embedding_length":576,"llama.rope.freq_base":100000,"#,
            r#""tokenizer.ggml.add_bos_token":false,"tokenizer.ggml.bos_token_id":1,"tokenizer.ggml.eos_token_id":2,"#,
            r#""tokenizer.ggml.padding_token_id":3,"tokenizer.ggml.tokens":null}"#
        );
        let info = model_info(&smollm(), false);
        assert_eq!(crate::go::encode::to_string(&info).unwrap(), expected);
        let verbose = model_info(&smollm(), true);
        assert_eq!(verbose["general.languages"], serde_json::json!(["en"]));
        assert_eq!(tensors(&smollm())[1].shape, [576, 3]);
        assert_eq!(tensors(&smollm())[1].element_type, "Q8_0");
    }

    #[test]
    fn numbers_without_json_spelling_are_null() {
        let odd = header(
            vec![("a", Value::F32(f32::NAN)), ("b", Value::F64(f64::INFINITY))],
            vec![],
        );
        let info = model_info(&odd, true);
        assert_eq!((&info["a"], &info["b"]), (&Json::Null, &Json::Null));
    }

    #[test]
    fn special_tokens() {
        assert_eq!(bos_token(&smollm()).as_deref(), Some("<|im_start|>"));
        assert_eq!(eos_token(&smollm()).as_deref(), Some("<|im_end|>"));
        assert_eq!(token_text(&smollm(), "padding"), None);
        assert_eq!(token_text(&smollm(), "unknown"), None);
        assert_eq!(chat_template(&smollm()), Some("{{ messages }}"));
    }

    #[test]
    fn capabilities_come_from_keys_and_the_template() {
        use Capability::{Audio, Completion, Embedding, Insert, Thinking, Tools, Vision};
        let u = Value::U32(1);
        let cases: Vec<(&str, &str, Keys, Vec<Capability>)> = vec![
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
                vec![("qwen3.pooling_type", Value::U32(3))],
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
                (CHAT_TEMPLATE, text(template)),
            ];
            metadata.extend(keys);
            assert_eq!(
                facts(&header(metadata, vec![])).capabilities,
                expected,
                "{architecture} {template}"
            );
        }
    }

    #[test]
    fn a_projector_adds_senses() {
        use Capability::{Audio, Completion, Vision};
        let cases: Vec<(Keys, Vec<Capability>)> = vec![
            (vec![], vec![Completion, Vision]),
            (
                vec![("clip.has_vision_encoder", Value::Bool(true))],
                vec![Completion, Vision],
            ),
            (
                vec![("clip.has_audio_encoder", Value::Bool(true))],
                vec![Completion, Audio],
            ),
            (
                vec![
                    ("clip.has_vision_encoder", Value::Bool(true)),
                    ("clip.has_audio_encoder", Value::Bool(true)),
                ],
                vec![Completion, Vision, Audio],
            ),
            (
                vec![
                    ("clip.has_audio_encoder", Value::Bool(true)),
                    ("clip.projector_type", text("gemma3nv")),
                ],
                vec![Completion, Vision],
            ),
        ];
        for (keys, expected) in cases {
            let mut facts = facts(&smollm());
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
                ("split.no", Value::U16(number)),
                ("split.count", Value::U16(2)),
                ("split.tensors.count", Value::I32(2)),
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
            Some(super::super::Split {
                number: 1,
                count: 2,
                tensors: 2
            })
        );
        let facts = facts_of_shards(&shards);
        assert_eq!((facts.architecture.as_str(), facts.parameter_count), ("llama", 200));
        assert_eq!(model_info_of_shards(&shards, false)[PARAMETER_COUNT], 200);
        assert_eq!(facts_of_shards(&[]), ModelFacts::default());
    }

    #[test]
    fn parameter_sizes() {
        for (count, expected) in [
            (8_030_261_248, "8.0B"),
            (134_515_008, "134.52M"),
            (7_000_000_000, "7B"),
            (137_000_000, "137M"),
            (999_999_999, "1000.00M"),
            (22_567_000, "22.57M"),
            (300_000, "300K"),
            (1_500, "2K"),
            (999, "999"),
            (0, "0"),
        ] {
            assert_eq!(parameter_size(count), expected);
        }
    }
}
