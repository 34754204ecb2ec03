//! Ollama's descriptions of its models, converted to cards.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::or_default;
use crate::inference::{ModelCapability, ModelCard, ModelDetails, ModelFacts, ResidentModel, TensorFacts};

/// Time left above which a model counts as resident forever: Ollama writes a date centuries ahead for it.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Reply of `/api/tags` and `/api/ps`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ModelListing {
    #[serde(deserialize_with = "or_default")]
    pub(super) models: Vec<ListedModel>,
}

/// Model of a listing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListedModel {
    name: String,
    modified_at: Option<String>,
    expires_at: Option<String>,
    size: u64,
    size_vram: u64,
    digest: String,
    context_length: u32,
    details: Details,
    #[serde(deserialize_with = "or_default")]
    capabilities: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    parent_model: String,
    family: String,
    #[serde(deserialize_with = "or_default")]
    families: Vec<String>,
    quantization_level: String,
    context_length: u32,
    embedding_length: u32,
}

/// Reply of `/api/show`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ShownModel {
    template: String,
    license: String,
    system: String,
    parameters: String,
    modified_at: Option<String>,
    details: Details,
    #[serde(deserialize_with = "or_default")]
    capabilities: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    model_info: Map<String, Value>,
    projector_info: Option<Map<String, Value>>,
    #[serde(deserialize_with = "or_default")]
    tensors: Vec<Tensor>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tensor {
    name: String,
    r#type: String,
    #[serde(deserialize_with = "or_default")]
    shape: Vec<u64>,
}

impl ListedModel {
    pub(super) fn into_card(self) -> ModelCard {
        let parent_model = self.details.parent_model.clone();
        let facts = self.details.facts(self.capabilities);
        ModelCard {
            name: self.name,
            modified_at: time(self.modified_at.as_deref()),
            size_bytes: self.size,
            digest: self.digest,
            facts,
            parent_model,
        }
    }

    pub(super) fn into_resident(self) -> ResidentModel {
        let expires_at = time(self.expires_at.as_deref());
        let is_never = expires_at
            .duration_since(SystemTime::now())
            .is_ok_and(|left| left > FOREVER);
        let (size_bytes, device_bytes, context_length) = (self.size, self.size_vram, self.context_length);
        ResidentModel {
            card: self.into_card(),
            size_bytes,
            device_bytes,
            expires_at: (!is_never).then_some(expires_at),
            context_length,
        }
    }
}

impl Details {
    fn facts(self, capabilities: Vec<String>) -> ModelFacts {
        ModelFacts {
            architecture: self.family,
            families: self.families,
            parameter_count: 0,
            quantization: self.quantization_level,
            context_length: self.context_length,
            embedding_length: self.embedding_length,
            capabilities: capabilities.iter().filter_map(|word| capability(word)).collect(),
        }
    }
}

impl ShownModel {
    /// Converts to a card, without size and digest, which the reply lacks.
    pub(super) fn into_card(self, name: &str) -> ModelCard {
        let parent_model = self.details.parent_model.clone();
        let mut facts = self.details.facts(self.capabilities);
        let number = |key: &str| self.model_info.get(key).and_then(Value::as_u64).unwrap_or(0);
        if let Some(Value::String(architecture)) = self.model_info.get("general.architecture") {
            facts.architecture.clone_from(architecture);
        }
        let small = |name: &str| u32::try_from(number(&format!("{}.{name}", facts.architecture))).unwrap_or(u32::MAX);
        (facts.context_length, facts.embedding_length) = (small("context_length"), small("embedding_length"));
        facts.parameter_count = number("general.parameter_count");
        ModelCard {
            name: name.to_owned(),
            modified_at: time(self.modified_at.as_deref()),
            size_bytes: 0,
            digest: String::new(),
            facts,
            parent_model,
        }
    }

    pub(super) fn into_details(mut self, name: &str) -> ModelDetails {
        let parameter = |line: &str| {
            let (key, value) = line.split_once(char::is_whitespace)?;
            Some((key.to_owned(), value.trim().to_owned()))
        };
        let tensor = |tensor: Tensor| TensorFacts {
            name: tensor.name,
            element_type: tensor.r#type,
            shape: tensor.shape,
        };
        ModelDetails {
            from: name.to_owned(),
            // Ollama adds the messages of its models itself.
            messages: Vec::new(),
            template: std::mem::take(&mut self.template),
            license: std::mem::take(&mut self.license),
            system: std::mem::take(&mut self.system),
            parameters: self.parameters.lines().filter_map(parameter).collect(),
            model_info: self.model_info.clone(),
            projector_info: self.projector_info.take(),
            tensors: std::mem::take(&mut self.tensors).into_iter().map(tensor).collect(),
            card: self.into_card(name),
        }
    }
}

/// Parses a capability; `None` for an unknown one (`image`, or one of a later version).
fn capability(word: &str) -> Option<ModelCapability> {
    use ModelCapability::{Audio, Completion, Embedding, Insert, Thinking, Tools, Vision};
    [Completion, Tools, Thinking, Embedding, Vision, Audio, Insert]
        .into_iter()
        .find(|capability| capability.as_str() == word)
}

fn time(text: Option<&str>) -> SystemTime {
    text.and_then(|text| text.parse::<jiff::Timestamp>().ok()?.try_into().ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOW: &str = r#"{"license":"MIT","modelfile":"FROM x","parameters":"stop                           \"a b\"\nnum_ctx                        4096","template":"{{ .Prompt }}","details":{"parent_model":"","format":"gguf","family":"llama","families":null,"parameter_size":"134.52M","quantization_level":"Q4_1"},"model_info":{"general.architecture":"llama","general.parameter_count":134515008,"llama.context_length":8192,"llama.embedding_length":576,"tokenizer.ggml.tokens":null},"tensors":[{"name":"t","type":"F32","shape":[576]}],"capabilities":["completion","tools","image"],"modified_at":"2026-11-23T06:50:34.5+02:00"}"#;

    fn show() -> ShownModel {
        serde_json::from_str(SHOW).unwrap()
    }

    #[test]
    fn a_shown_model_becomes_a_card() {
        let card = show().into_card("m");
        assert_eq!(card.name, "m");
        assert_eq!(
            card.modified_at,
            SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_409_434_500)
        );
        let expected = ModelFacts {
            architecture: "llama".into(),
            families: Vec::new(),
            parameter_count: 134_515_008,
            quantization: "Q4_1".into(),
            context_length: 8192,
            embedding_length: 576,
            capabilities: vec![ModelCapability::Completion, ModelCapability::Tools],
        };
        assert_eq!(card.facts, expected);
    }

    #[test]
    fn the_rest_of_it_becomes_details() {
        let details = show().into_details("m");
        assert_eq!(
            (details.license.as_str(), details.template.as_str()),
            ("MIT", "{{ .Prompt }}")
        );
        let parameters: Vec<(&str, &str)> = details
            .parameters
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        assert_eq!(parameters, [("stop", "\"a b\""), ("num_ctx", "4096")]);
        assert_eq!(
            (details.tensors.len(), details.tensors[0].element_type.as_str()),
            (1, "F32")
        );
        assert_eq!(details.card.facts.context_length, 8192);
    }

    #[test]
    fn a_server_that_says_less_is_understood() {
        let card = serde_json::from_str::<ShownModel>("{}").unwrap().into_card("m");
        assert_eq!(card.facts, ModelFacts::default());
        assert!(
            serde_json::from_str::<ModelListing>(r#"{"models":null}"#)
                .unwrap()
                .models
                .is_empty()
        );
    }

    #[test]
    fn a_loaded_model_expires_or_never_does() {
        let listing: ModelListing = serde_json::from_str(
            r#"{"models":[{"name":"a","size":10,"size_vram":4,"digest":"d","expires_at":"2026-11-23T06:50:34Z","context_length":4096,"details":{"family":"llama"}},{"name":"b","expires_at":"2318-08-20T00:00:00Z"}]}"#,
        )
        .unwrap();
        let resident: Vec<ResidentModel> = listing.models.into_iter().map(ListedModel::into_resident).collect();
        assert_eq!((resident[0].size_bytes, resident[0].device_bytes), (10, 4));
        assert!(resident[0].expires_at.is_some());
        assert_eq!(resident[0].card.facts.architecture, "llama");
        assert_eq!(resident[1].expires_at, None);
    }
}
