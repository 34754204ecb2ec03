//! Descriptive metadata (`general.*` keys) from the model card, the name of the model and `generation_config.json`, by
//! the rules of `gguf-py`'s `Metadata` class, which llama.cpp's converter uses. llama.cpp needs none of them to run a
//! model.

mod front_matter;
mod name;

use std::path::Path;

use serde_json::Value as Json;

use self::{
    front_matter::FrontMatter,
    name::{NameParts, title},
};
use super::{ConvertError, TensorRecipe, files};
use crate::gguf::{GgufArray, GgufValue, TensorSpec};

/// Limit on base models and data sets. Merges of models name a dozen.
const MAX_SOURCES: usize = 64;
const HUB: &str = "https://huggingface.co/";

/// Keys after `general.`, and the keys of a card that set them; the first that is present is used.
const TEXTS: &[(&str, &[&str])] = &[
    ("author", &["author", "model_author", "model_creator"]),
    ("version", &["version", "model_version"]),
    ("organization", &["organization", "model_organization"]),
    ("finetune", &["finetune", "model_finetune"]),
    ("basename", &["basename", "model_basename", "model_type"]),
    ("description", &["description", "model_description"]),
    ("size_label", &["size_label", "model_size_label"]),
    ("license.name", &["license_name"]),
    ("license.link", &["license_link"]),
    ("source.url", &["url", "model_url"]),
    ("source.doi", &["doi", "model_doi"]),
    ("source.uuid", &["uuid", "model_uuid"]),
    ("source.repo_url", &["repo_url", "model_repo_url"]),
];
/// Keys after `general.sampling.`, and the keys of `generation_config.json`.
const NUMBERS: &[(&str, &str)] = &[
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("xtc_probability", "xtc_probability"),
    ("xtc_threshold", "xtc_threshold"),
    ("temp", "temperature"),
    ("penalty_repeat", "penalty_repeat"),
    ("mirostat_tau", "mirostat_tau"),
    ("mirostat_eta", "mirostat_eta"),
];
const INTEGERS: &[(&str, &str)] = &[
    ("top_k", "top_k"),
    ("penalty_last_n", "penalty_last_n"),
    ("mirostat", "mirostat"),
];

/// Returns the keys of a model. `name` stands in for what its card leaves out.
pub(super) fn metadata(
    folder: &Path,
    name: &str,
    recipes: &[TensorRecipe],
) -> Result<Vec<(String, GgufValue)>, ConvertError> {
    let card = files::bytes_if_there(&folder.join("README.md"))?.unwrap_or_default();
    // A card is free text: a byte that is not UTF-8 is no reason to refuse the model.
    let card = FrontMatter::parse(&String::from_utf8_lossy(&card));
    let generation = files::object_if_there(&folder.join("generation_config.json"))?.unwrap_or_default();
    let count = Count::of(recipes.iter().map(TensorRecipe::spec));
    let mut keys = described(&card, name, &count);
    for (key, from) in NUMBERS {
        // A number that overflows 32 bits would become infinity in the file.
        let number = generation.get(*from).and_then(Json::as_f64).map(|number| number as f32);
        if let Some(number) = number.filter(|number| number.is_finite()) {
            keys.push((format!("general.sampling.{key}"), GgufValue::F32(number)));
        }
    }
    for (key, from) in INTEGERS {
        let number = generation.get(*from).and_then(Json::as_i64);
        if let Some(number) = number.and_then(|number| i32::try_from(number).ok()) {
            keys.push((format!("general.sampling.{key}"), GgufValue::I32(number)));
        }
    }
    Ok(keys)
}

/// Returns the keys that describe the model itself.
fn described(card: &FrontMatter, name: &str, count: &Count) -> Vec<(String, GgufValue)> {
    let mut keys = Vec::new();
    let mut put = |key: &str, text: &str| {
        if !text.is_empty() {
            keys.push((format!("general.{key}"), GgufValue::String(text.to_owned())));
        }
    };
    let parts = NameParts::new(name, count.parameters);
    let first = |names: &[&str]| names.iter().find_map(|name| card.text(name)).map(str::to_owned);
    let of_name = || parts.name.as_deref().map(title);
    put(
        "name",
        &first(&["name", "model_name"]).or_else(of_name).unwrap_or_default(),
    );
    for (key, names) in TEXTS {
        let by_name = match *key {
            "version" => parts.version.clone(),
            "organization" => parts.organization.as_deref().map(title),
            "finetune" => parts.finetune.clone(),
            "basename" => parts.basename.clone(),
            "size_label" => parts.size_label.clone().or_else(|| count.label()),
            _ => None,
        };
        put(key, &first(names).or(by_name).unwrap_or_default());
    }
    // Cards may list several licenses, but the value of the key is one text.
    put("license", &card.list("license").unwrap_or_default().join(","));
    for (key, names) in [
        ("base_model", ["base_model", "base_models", "base_model_sources"]),
        ("dataset", ["datasets", "dataset", "dataset_sources"]),
    ] {
        if let Some(list) = names.iter().find_map(|name| card.list(name)) {
            sources(key, list, count.parameters, &mut keys);
        }
    }
    for (key, names) in [
        ("tags", ["tags", "pipeline_tag"]),
        ("languages", ["languages", "language"]),
    ] {
        let all = names.iter().filter_map(|name| card.list(name)).flatten();
        let all: Vec<&str> = all.map(String::as_str).collect();
        if !all.is_empty() {
            let list = GgufValue::Array(GgufArray::String(all.iter().collect()));
            keys.push((format!("general.{key}"), list));
        }
    }
    keys
}

/// Puts the base models or data sets of a model, each given by its name on the Hub or by a URL.
fn sources(key: &str, list: &[String], parameters: u64, keys: &mut Vec<(String, GgufValue)>) {
    let list = &list[..list.len().min(MAX_SOURCES)];
    keys.push((format!("general.{key}.count"), GgufValue::U32(list.len() as u32)));
    for (at, id) in list.iter().enumerate() {
        let mut put = |what: &str, text: Option<String>| {
            if let Some(text) = text {
                keys.push((format!("general.{key}.{at}.{what}"), GgufValue::String(text)));
            }
        };
        let is_address = ["http://", "https://", "ssh://"]
            .iter()
            .any(|start| id.starts_with(start));
        let on_hub = id
            .strip_prefix(HUB)
            .filter(|rest| rest.matches('/').count() == 1 && !rest.ends_with('/'));
        let parts = match (is_address, on_hub) {
            (false, _) => NameParts::new(id, parameters),
            (true, Some(id)) => NameParts::new(id, parameters),
            (true, None) => NameParts::default(),
        };
        let page = match (is_address, &parts.organization, &parts.name) {
            (true, ..) => Some(id.clone()),
            (false, Some(organization), Some(name)) => Some(format!("{HUB}{organization}/{name}")),
            _ => None,
        };
        put("name", parts.name.as_deref().map(title));
        put("version", parts.version);
        put("organization", parts.organization.as_deref().map(title));
        put("repo_url", page);
    }
}

/// Parameter counts of a model.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    parameters: u64,
    /// Parameters of one expert of each layer.
    expert: u64,
    /// Parameters outside of experts.
    shared: u64,
    /// Experts of a layer.
    experts: u64,
}

impl Count {
    fn of<'a>(tensors: impl Iterator<Item = &'a TensorSpec>) -> Self {
        let mut count = Self::default();
        let (mut experts, mut matrices) = (0u64, 0u64);
        for tensor in tensors {
            let size = tensor.dims.iter().fold(1, |all: u64, dim| all.saturating_mul(*dim));
            // The slowest dimension of expert tensors counts experts: the third of matrices, the second of biases.
            let outer = if tensor.name.contains(".bias") { 1 } else { 2 };
            let of_experts = tensor.dims.get(outer).filter(|_| tensor.dims.len() > 2);
            match of_experts.filter(|_| tensor.name.contains("_exps.")) {
                Some(number) => {
                    count.expert = count.expert.saturating_add(size / (*number).max(1));
                    experts = experts.saturating_add(*number);
                    matrices += 1;
                }
                None => count.shared = count.shared.saturating_add(size),
            }
            count.parameters = count.parameters.saturating_add(size);
        }
        count.experts = experts.checked_div(matrices).unwrap_or(0);
        count
    }

    /// Returns the size label, for example `135M` or `8x1.5B`.
    fn label(&self) -> Option<String> {
        match self.experts {
            _ if self.parameters == 0 => None,
            0 => Some(rounded(self.parameters)),
            experts => Some(format!(
                "{experts}x{}",
                rounded(self.shared.saturating_add(self.expert))
            )),
        }
    }
}

/// Rounds to at least two significant digits, for example `1.5B` (`model_weight_count_rounded_notation`).
fn rounded(count: u64) -> String {
    let count = count as f64;
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M")];
    let (scale, unit) = units
        .into_iter()
        .find(|(scale, _)| count > *scale)
        .unwrap_or((1e3, "K"));
    let scaled = count / scale;
    // Python's `round` rounds half to even.
    let whole = scaled.round_ties_even();
    let digits = if whole < 1.0 { 0 } else { format!("{whole:.0}").len() };
    format!("{scaled:.0$}{unit}", 2usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        folder: String,
        parameters: u64,
        card: String,
        keys: BTreeMap<String, Json>,
    }

    fn printed(value: &GgufValue) -> Json {
        match value {
            GgufValue::U32(number) => json!(number),
            GgufValue::String(text) => json!(text),
            GgufValue::Array(GgufArray::String(list)) => {
                list.iter().map(|text| json!(String::from_utf8_lossy(text))).collect()
            }
            other => panic!("an unexpected value {other:?}"),
        }
    }

    /// Compares with what llama.cpp's converter writes for the same cards and names (`fixtures/convert/make/cards.py`).
    #[test]
    fn cards_as_llama_cpp_reads_them() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../../fixtures/convert/cards.json")).unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let count = Count {
                parameters: case.parameters,
                shared: case.parameters,
                ..Count::default()
            };
            let found = described(&FrontMatter::parse(&case.card), &case.folder, &count);
            let found: BTreeMap<String, Json> =
                found.iter().map(|(key, value)| (key.clone(), printed(value))).collect();
            assert_eq!(found, case.keys, "{} {}", case.folder, case.card);
        }
    }

    #[test]
    fn sizes() {
        let spec = |name: &str, dims: &[u64]| TensorSpec::new(name, crate::gguf::GgmlType::F32, dims);
        let tensors = [
            spec("output.weight", &[1000, 1000]),
            spec("blk.0.ffn_up_exps.weight", &[500, 1000, 8]),
        ];
        let count = Count::of(tensors.iter());
        assert_eq!((count.parameters, count.expert, count.experts), (5_000_000, 500_000, 8));
        assert_eq!(count.label().as_deref(), Some("8x1.5M"));
        for (number, label) in [
            (134_515_008, "135M"),
            (7_241_732_096, "7.2B"),
            (999, "1.0K"),
            (400, "0.40K"),
            (30_000_000_000, "30B"),
        ] {
            assert_eq!(rounded(number), label);
        }
        assert_eq!(Count::default().label(), None);
    }

    #[test]
    fn how_to_sample() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": "x", "mirostat": 1e300}"#;
        fs::write(folder.path().join("generation_config.json"), config).unwrap();
        let keys = metadata(folder.path(), "", &[]).unwrap();
        let expected = [
            ("general.sampling.top_p", GgufValue::F32(0.95)),
            ("general.sampling.temp", GgufValue::F32(0.6)),
            ("general.sampling.top_k", GgufValue::I32(20)),
        ];
        assert_eq!(keys, expected.map(|(key, value)| (key.to_owned(), value)));
    }
}
