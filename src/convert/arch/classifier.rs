//! Heads of classifiers and rerankers: a score for each label instead of a vector.

use serde_json::Value as Json;

use super::ModelBuilder;
use crate::{
    convert::{ConvertError, config::CheckpointConfig},
    gguf::{GgufArray, GgufValue},
};

/// `LLAMA_POOLING_TYPE_RANK`.
const RANK: u64 = 4;

/// Returns true if the checkpoint's class has such a head.
pub(super) fn is_classifier(config: &CheckpointConfig) -> bool {
    config.architecture().ends_with("ForSequenceClassification")
}

/// Puts the keys of a head. llama.cpp takes the number of its outputs from the number of labels.
pub(super) fn keys<'a>(
    build: &mut ModelBuilder<'_>,
    labels: impl IntoIterator<Item = &'a str>,
) -> Result<(), ConvertError> {
    // Without this key, which the converter writes only for Qwen 3, llama.cpp returns embeddings instead of scores.
    build.put_integer("pooling_type", RANK)?;
    let labels = GgufArray::String(labels.into_iter().collect());
    build.put("classifier.output_labels", GgufValue::Array(labels));
    Ok(())
}

/// Takes the last layer of the head, `[labels, hidden]`, and puts the keys.
pub(super) fn take(build: &mut ModelBuilder<'_>, from: &str, hidden: u64) -> Result<(), ConvertError> {
    let weight = build.take_any(&format!("{from}.weight"))?;
    let [count, columns] = weight.shape[..] else {
        return Err(ConvertError::Weights(format!(
            "the tensor {:?} is not a matrix",
            weight.name
        )));
    };
    if columns != hidden {
        return Err(ConvertError::Weights(format!(
            "the tensor {:?} has {columns} columns, but config.json asks for {hidden}",
            weight.name
        )));
    }
    build.add("cls.output.weight", &weight);
    let bias = build.take(&format!("{from}.bias"), &[count])?;
    build.add("cls.output.bias", &bias);
    let labels = labels(build.config, count)?;
    keys(build, labels.iter().map(String::as_str))
}

/// Returns the names of the labels, by default `LABEL_0` and so on, like transformers.
fn labels(config: &CheckpointConfig, count: u64) -> Result<Vec<String>, ConvertError> {
    let Some(said) = config.find(&["id2label"]).and_then(Json::as_object) else {
        return Ok((0..count).map(|label| format!("LABEL_{label}")).collect());
    };
    let name = |label: u64| said.get(&label.to_string()).and_then(Json::as_str).map(str::to_owned);
    let labels: Option<Vec<String>> = (0..count).map(name).collect();
    // transformers sizes the head by `id2label`: another number of rows means that one of them is wrong.
    labels.filter(|labels| labels.len() == said.len()).ok_or_else(|| {
        ConvertError::Config(format!(
            "id2label has {} labels, but the weights have {count}, numbered from 0",
            said.len()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::config::tests::config;

    #[test]
    fn labels_in_the_order_of_their_numbers() {
        let text = r#"{"architectures":["X"],"id2label":{"1":"b","0":"a","2":"c"}}"#;
        assert_eq!(labels(&config(text), 3).unwrap(), ["a", "b", "c"]);
        assert!(labels(&config(text), 2).is_err());
        assert!(labels(&config(text), 4).is_err());
        let none = config(r#"{"architectures":["X"]}"#);
        assert_eq!(labels(&none, 2).unwrap(), ["LABEL_0", "LABEL_1"]);
    }
}
