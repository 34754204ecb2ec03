//! Metadata and tensors of a model as `/api/show` prints them.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::{first_shard, parameter_count};
use crate::{
    gguf::{CHAT_TEMPLATE_KEY, GgufArray, GgufHeader, GgufValue},
    inference::TensorFacts,
};

const PARAMETER_COUNT_KEY: &str = "general.parameter_count";
/// Metadata keys that `/api/show` leaves out of `model_info`.
const NOT_SHOWN: &[&str] = &["general.name", CHAT_TEMPLATE_KEY];

/// Returns `model_info` of `/api/show` for a model in one or more shards: all metadata except name and chat template,
/// sorted by key, and the parameter count. Arrays are null unless `verbose`.
#[must_use]
pub fn model_info(shards: &[GgufHeader], verbose: bool) -> Map<String, Json> {
    let Some(header) = first_shard(shards) else {
        return Map::new();
    };
    let mut sorted: BTreeMap<&str, Json> = header
        .metadata
        .iter()
        .filter(|(key, _)| !NOT_SHOWN.contains(key))
        .map(|(key, value)| (key, to_json(value, verbose)))
        .collect();
    sorted.insert(PARAMETER_COUNT_KEY, parameter_count(shards).into());
    sorted.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Returns the tensors of a file in the order of its header.
#[must_use]
pub fn tensor_facts(header: &GgufHeader) -> Vec<TensorFacts> {
    let facts = header.tensors.iter().map(|tensor| TensorFacts {
        name: tensor.name.clone(),
        element_type: tensor.element_type.name().to_owned(),
        shape: tensor.dims.clone(),
    });
    facts.collect()
}

fn to_json(value: &GgufValue, verbose: bool) -> Json {
    match value {
        GgufValue::U8(x) => (*x).into(),
        GgufValue::I8(x) => (*x).into(),
        GgufValue::U16(x) => (*x).into(),
        GgufValue::I16(x) => (*x).into(),
        GgufValue::U32(x) => (*x).into(),
        GgufValue::I32(x) => (*x).into(),
        GgufValue::U64(x) => (*x).into(),
        GgufValue::I64(x) => (*x).into(),
        GgufValue::F32(x) => f32_to_json(*x),
        GgufValue::F64(x) => (*x).into(),
        GgufValue::Bool(x) => (*x).into(),
        GgufValue::String(text) => text.as_str().into(),
        GgufValue::Array(_) if !verbose => Json::Null,
        GgufValue::Array(array) => array_to_json(array),
    }
}

fn array_to_json(array: &GgufArray) -> Json {
    fn list<T: Copy + Into<Json>>(list: &[T]) -> Json {
        list.iter().map(|x| (*x).into()).collect()
    }
    match array {
        GgufArray::U8(x) => list(x),
        GgufArray::I8(x) => list(x),
        GgufArray::U16(x) => list(x),
        GgufArray::I16(x) => list(x),
        GgufArray::U32(x) => list(x),
        GgufArray::I32(x) => list(x),
        GgufArray::U64(x) => list(x),
        GgufArray::I64(x) => list(x),
        GgufArray::F32(x) => x.iter().map(|x| f32_to_json(*x)).collect(),
        GgufArray::F64(x) => list(x),
        GgufArray::Bool(x) => list(x),
        GgufArray::String(x) => x.iter().map(String::from_utf8_lossy).collect(),
    }
}

/// Converts through the shortest decimal text of the `f32`, so that 1e-5 does not become 0.000009999999747378752. NaN
/// and infinity, which JSON cannot represent, become null.
fn f32_to_json(x: f32) -> Json {
    x.to_string().parse::<f64>().map_or(Json::Null, Json::from)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{header, smollm},
        *,
    };

    #[test]
    fn show() {
        let expected = concat!(
            r#"{"general.architecture":"llama","general.file_type":3,"general.languages":null,"#,
            r#""general.parameter_count":2304,"llama.attention.layer_norm_rms_epsilon":0.00001,"#,
            r#""llama.context_length":8192,"llama.embedding_length":576,"llama.rope.freq_base":100000,"#,
            r#""tokenizer.ggml.add_bos_token":false,"tokenizer.ggml.bos_token_id":1,"tokenizer.ggml.eos_token_id":2,"#,
            r#""tokenizer.ggml.padding_token_id":3,"tokenizer.ggml.tokens":null}"#
        );
        let info = model_info(&[smollm()], false);
        assert_eq!(crate::go::encode::to_string(&info).unwrap(), expected);
        let verbose = model_info(&[smollm()], true);
        assert_eq!(verbose["general.languages"], serde_json::json!(["en"]));
        assert_eq!(tensor_facts(&smollm())[1].shape, [576, 3]);
        assert_eq!(tensor_facts(&smollm())[1].element_type, "Q8_0");
    }

    #[test]
    fn numbers_without_json_spelling_are_null() {
        let odd = header(
            vec![("a", GgufValue::F32(f32::NAN)), ("b", GgufValue::F64(f64::INFINITY))],
            vec![],
        );
        let info = model_info(&[odd], true);
        assert_eq!((&info["a"], &info["b"]), (&Json::Null, &Json::Null));
    }
}
