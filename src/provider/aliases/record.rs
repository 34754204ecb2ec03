//! Record of an alias: its name, its model and the settings that it adds.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{
    go::template::GoTemplate,
    inference::{LoadOptions, Message, ModelCapability, ModelCard, ModelDetails, ModelFacts, SamplingOptions},
    stdx::hex,
};

/// Model derived from another by `/api/create` or `/api/copy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelAlias {
    /// Plain name with its tag, as listed.
    pub name: String,
    /// Canonical hf: name of the model.
    pub model: String,
    /// Name that it was created from; empty for a copy of an hf: model, which has no parent in Ollama's terms.
    #[serde(default)]
    pub parent_model: String,
    #[serde(with = "time")]
    pub modified_at: SystemTime,
    #[serde(default)]
    pub settings: AliasSettings,
}

/// Settings that an alias adds to its model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AliasSettings {
    /// System prompt, or empty.
    pub system: String,
    /// Go template for the prompt; empty for the template of the model.
    pub template: String,
    /// Texts of licenses; none for those of the model.
    pub license: Vec<String>,
    /// Parameters as the client spelled them, to be shown.
    pub parameters: Map<String, Value>,
    /// Decoded parameters of sampling.
    pub sampling: SamplingOptions,
    /// Decoded parameters of loading.
    pub load: LoadOptions,
    /// Messages that are put before every conversation.
    pub messages: Vec<Message>,
}

/// Part of an alias that Ollama would store as a separate layer. Clients see its digest in the progress of a creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsLayer {
    /// sha256 of the content as 64 lower-case hex digits.
    pub digest: String,
    pub size_bytes: u64,
}

impl AliasSettings {
    /// Returns the layers of the settings, in Ollama's order.
    #[must_use]
    pub fn layers(&self) -> Vec<SettingsLayer> {
        let Self {
            system,
            template,
            license,
            parameters,
            sampling: _,
            load: _,
            messages,
        } = self;
        let json = |is_there: bool, value: serde_json::Result<Vec<u8>>| value.ok().filter(|_| is_there);
        let texts = [template, system].into_iter().chain(license);
        texts
            .filter(|text| !text.is_empty())
            .map(|text| text.as_bytes().to_vec())
            .chain(json(!parameters.is_empty(), serde_json::to_vec(parameters)))
            .chain(json(!messages.is_empty(), serde_json::to_vec(messages)))
            .map(|content| SettingsLayer {
                digest: sha256(&content),
                size_bytes: content.len() as u64,
            })
            .collect()
    }
}

impl ModelAlias {
    /// Returns the card for listings, derived from that of the model; `None` stands for a model whose files are gone.
    #[must_use]
    pub fn card(&self, model: Option<&ModelCard>) -> ModelCard {
        let layers = self.settings.layers();
        let model = model.cloned().unwrap_or_else(missing);
        let mut facts = model.facts;
        // As in Ollama, a template that uses the suffix can fill in the middle. A model whose files are gone stays
        // without capabilities.
        if !facts.capabilities.is_empty()
            && !facts.capabilities.contains(&ModelCapability::Insert)
            && GoTemplate::parse(&self.settings.template).is_ok_and(|template| template.uses("suffix"))
        {
            facts.capabilities.push(ModelCapability::Insert);
        }
        // In Ollama a copy has the digest of its model, so that listings show them as one.
        let is_copy = layers.is_empty() && self.parent_model.is_empty();
        let digest = if is_copy {
            model.digest
        } else {
            let parts = [&model.digest, &self.model, &self.parent_model].into_iter();
            let parts = parts.chain(layers.iter().map(|layer| &layer.digest));
            sha256(parts.map(String::as_str).collect::<Vec<_>>().join("\n").as_bytes())
        };
        ModelCard {
            name: self.name.clone(),
            modified_at: self.modified_at,
            size_bytes: model.size_bytes + layers.iter().map(|layer| layer.size_bytes).sum::<u64>(),
            digest,
            facts,
            parent_model: self.parent_model.clone(),
        }
    }

    /// Returns the details for `/api/show`, derived from those of the model.
    #[must_use]
    pub fn details(&self, model: ModelDetails) -> ModelDetails {
        let AliasSettings {
            system,
            template,
            license,
            parameters,
            messages,
            ..
        } = &self.settings;
        let or = |own: &str, otherwise: String| if own.is_empty() { otherwise } else { own.to_owned() };
        let mut shown = model.parameters;
        shown.retain(|(name, _)| !parameters.contains_key(name));
        for (name, value) in parameters {
            match value {
                Value::Array(items) => shown.extend(items.iter().map(|item| (name.clone(), item.to_string()))),
                value => shown.push((name.clone(), value.to_string())),
            }
        }
        // The sort is stable: several values of one name, such as `stop`, keep their order.
        shown.sort_by(|(a, _), (b, _)| a.cmp(b));
        ModelDetails {
            card: self.card(Some(&model.card)),
            from: self.model.clone(),
            template: or(template, model.template),
            license: or(&license.join("\n"), model.license),
            system: or(system, model.system),
            parameters: shown,
            messages: messages.clone(),
            model_info: model.model_info,
            projector_info: model.projector_info,
            tensors: model.tensors,
        }
    }
}

/// Returns the card of a model whose files are gone.
fn missing() -> ModelCard {
    ModelCard {
        name: String::new(),
        modified_at: SystemTime::UNIX_EPOCH,
        size_bytes: 0,
        digest: "0".repeat(64),
        facts: ModelFacts {
            quantization: "unknown".into(),
            ..ModelFacts::default()
        },
        parent_model: String::new(),
    }
}

/// Returns the sha256 of content as 64 lower-case hex digits.
pub(super) fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// Serialization of a time as RFC 3339, which is readable in the file.
mod time {
    use std::time::SystemTime;

    use jiff::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::stdx::timestamp::rfc3339_utc;

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339_utc(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        let timestamp: Timestamp = text.parse().map_err(D::Error::custom)?;
        timestamp.try_into().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn model() -> ModelCard {
        ModelCard {
            name: "hf:o/r:Q4_K_M".into(),
            modified_at: SystemTime::UNIX_EPOCH,
            size_bytes: 1000,
            digest: "a".repeat(64),
            facts: ModelFacts {
                capabilities: vec![ModelCapability::Completion],
                ..ModelFacts::default()
            },
            parent_model: String::new(),
        }
    }

    fn alias(settings: AliasSettings) -> ModelAlias {
        ModelAlias {
            name: "mario:latest".into(),
            model: "hf:o/r:Q4_K_M".into(),
            parent_model: "hf:o/r:Q4_K_M".into(),
            modified_at: SystemTime::UNIX_EPOCH + Duration::new(1_795_416_634, 24_460_257),
            settings,
        }
    }

    fn parameters(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let mut picture = Message::text("user", "hi");
        picture.media.push(b"\x00\xff".to_vec());
        let alias = alias(AliasSettings {
            system: "S".into(),
            parameters: parameters(json!({"temperature": 0.2, "stop": ["X"]})),
            sampling: SamplingOptions {
                temperature: Some(0.2),
                ..SamplingOptions::default()
            },
            messages: vec![picture, Message::text("assistant", "it's me")],
            ..AliasSettings::default()
        });
        let text = serde_json::to_string(&alias).unwrap();
        assert_eq!(serde_json::from_str::<ModelAlias>(&text).unwrap(), alias);
        assert!(
            text.contains("\"2026-11-23T06:50:34.024460257Z\"") && text.contains("\"AP8=\""),
            "{text}"
        );
        // Members that a later version writes must not make the record unreadable.
        let bare = r#"{"name":"a:latest","model":"hf:o/r:Q4","modified_at":"2026-11-23T06:50:34Z","later":1}"#;
        assert_eq!(
            serde_json::from_str::<ModelAlias>(bare).unwrap().settings,
            AliasSettings::default()
        );
    }

    #[test]
    fn a_record_of_an_earlier_version_keeps_its_settings() {
        // Written by version 0.1.0. The names are the file's format, whatever the fields are called here.
        let text = r#"{"name":"mario:latest","model":"hf:o/r:Q4_K_M","parent_model":"hf:o/r:Q4_K_M",
            "modified_at":"2026-11-23T06:50:34.024460257Z","settings":{"system":"S","template":"","license":["MIT"],
            "parameters":{"num_ctx":2048},"sampling":{"num_predict":5,"top_k":3,"stop":["X"]},
            "load":{"num_ctx":2048,"num_gpu":1,"use_mmap":false},"messages":[{"role":"user","content":"hi"}]}}"#;
        let expected = alias(AliasSettings {
            system: "S".into(),
            license: vec!["MIT".into()],
            parameters: parameters(json!({"num_ctx": 2048})),
            sampling: SamplingOptions {
                num_predict: Some(5),
                top_k: Some(3),
                stop: Some(vec!["X".into()]),
                ..SamplingOptions::default()
            },
            load: LoadOptions {
                context_length: Some(2048),
                num_gpu: Some(1),
                use_mmap: Some(false),
                ..LoadOptions::default()
            },
            messages: vec![Message::text("user", "hi")],
            ..AliasSettings::default()
        });
        assert_eq!(serde_json::from_str::<ModelAlias>(text).unwrap(), expected);
    }

    #[test]
    fn a_copy_is_the_same_model_and_anything_else_is_not() {
        let mut copy = alias(AliasSettings::default());
        copy.parent_model.clear();
        let card = copy.card(Some(&model()));
        assert_eq!((card.digest, card.size_bytes), (model().digest, 1000));

        let child = alias(AliasSettings::default()).card(Some(&model()));
        let other = AliasSettings {
            system: "four".into(),
            ..AliasSettings::default()
        };
        let changed = alias(other).card(Some(&model()));
        assert_eq!(changed.size_bytes, 1004);
        assert_eq!(changed.parent_model, "hf:o/r:Q4_K_M");
        assert!(changed.digest != child.digest && child.digest != model().digest && child.digest.len() == 64);
    }

    #[test]
    fn without_its_files_it_is_still_listed() {
        let card = alias(AliasSettings::default()).card(None);
        assert_eq!(
            (card.name.as_str(), card.size_bytes, card.digest.len()),
            ("mario:latest", 0, 64)
        );
        assert_eq!(card.facts.quantization, "unknown");
    }

    #[test]
    fn details_are_the_models_with_what_the_alias_says() {
        let of_model = ModelDetails {
            card: model(),
            from: "hf:o/r:Q4_K_M".into(),
            template: "{{ jinja }}".into(),
            license: "apache-2.0".into(),
            system: "of the configuration".into(),
            parameters: vec![("num_ctx".into(), "99".into()), ("stop".into(), "\"a\"".into())],
            messages: Vec::new(),
            model_info: Map::new(),
            projector_info: None,
            tensors: Vec::new(),
        };
        let plain = alias(AliasSettings::default()).details(of_model.clone());
        assert_eq!(
            (plain.template.as_str(), plain.license.as_str()),
            ("{{ jinja }}", "apache-2.0")
        );
        let details = alias(AliasSettings {
            system: "S".into(),
            license: vec!["MIT".into(), "more".into()],
            parameters: parameters(json!({"temperature": 0.2, "stop": ["X", "Y"]})),
            ..AliasSettings::default()
        })
        .details(of_model);
        assert_eq!((details.system.as_str(), details.license.as_str()), ("S", "MIT\nmore"));
        let shown: Vec<(&str, &str)> = details
            .parameters
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("num_ctx", "99"),
                ("stop", "\"X\""),
                ("stop", "\"Y\""),
                ("temperature", "0.2")
            ]
        );
    }
}
