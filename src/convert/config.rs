//! `config.json`, in the spellings of transformers 4 and 5.
//!
//! transformers fills missing settings with the defaults of the configuration's class, so a converter must know these
//! defaults. Each one that is used becomes a note for the user, since another version of transformers may have another.

use std::{cell::RefCell, path::Path};

use serde_json::{Map, Value};

use super::{ConvertError, files, stored::ScaleBlock};

/// Largest integer setting. GGUF stores sizes in 32 bits.
const MAX_SIZE: u64 = i32::MAX as u64;

/// Contents of `config.json`, or of one of its objects.
#[derive(Debug)]
pub(super) struct CheckpointConfig {
    values: Map<String, Value>,
    /// Path of the object in the file, for example `vision_config.`; empty for the root.
    prefix: String,
    /// `architectures[0]`.
    architecture: String,
    quantization: Option<StoredQuantization>,
    // A cell, because a setting is read, and a default noted, through shared references.
    notes: RefCell<Vec<String>>,
}

/// Quantization of the stored weights, of the kinds that can be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredQuantization {
    /// Experts in MXFP4.
    Mxfp4,
    /// Matrices of E4M3 floats, with the size of the blocks that share a scale, if the configuration has one.
    Fp8(Option<ScaleBlock>),
}

impl StoredQuantization {
    /// Reads `quantization_config`. Any other method is refused.
    fn read(quantization: &Value) -> Result<Self, ConvertError> {
        match quantization.get("quant_method").and_then(Value::as_str) {
            Some("mxfp4") => Ok(Self::Mxfp4),
            Some("fp8") => match quantization.get("weight_block_size") {
                None | Some(Value::Null) => Ok(Self::Fp8(None)),
                Some(list) => {
                    let size = |at: usize| list.get(at).and_then(Value::as_u64).filter(|size| *size > 0);
                    match (size(0), size(1), size(2)) {
                        (Some(rows), Some(columns), None) => Ok(Self::Fp8(Some([rows, columns]))),
                        _ => Err(wrong("weight_block_size", list, "a number of rows and one of columns")),
                    }
                }
            },
            other => Err(ConvertError::Quantized(
                other.unwrap_or("quantization_config").to_owned(),
            )),
        }
    }
}

/// RoPE parameters, in the spelling of transformers 5.
#[derive(Debug)]
pub(super) struct RopeConfig {
    /// Parameters of layers with full attention.
    values: Map<String, Value>,
    /// Base frequency of layers with a sliding window, if it differs.
    pub(super) sliding_theta: Option<f64>,
}

impl CheckpointConfig {
    /// Reads the file of a checkpoint.
    pub(super) fn read(folder: &Path) -> Result<Self, ConvertError> {
        let path = folder.join("config.json");
        let Some(root) = files::object_if_there(&path)? else {
            return Err(ConvertError::Incomplete(format!(
                "{} has no config.json",
                folder.display()
            )));
        };
        Self::new(root)
    }

    /// Reads the file's text.
    pub(super) fn parse(json: &str) -> Result<Self, ConvertError> {
        match serde_json::from_str(json) {
            Ok(Value::Object(root)) => Self::new(root),
            Ok(_) => Err(ConvertError::Config("it is not an object".to_owned())),
            Err(error) => Err(ConvertError::Config(error.to_string())),
        }
    }

    fn new(root: Map<String, Value>) -> Result<Self, ConvertError> {
        let architecture = root
            .get("architectures")
            .and_then(|list| list.get(0))
            .and_then(Value::as_str)
            .map(str::to_owned);
        let Some(architecture) = architecture else {
            return Err(ConvertError::Config("it names no architecture".to_owned()));
        };
        // The class of the whole model has been read from the root, since `text_config` may name another one.
        let mut values = root;
        // Multimodal models keep the language model's settings in a separate object (`load_hparams` in the converter).
        if let Some(Value::Object(text)) = values.remove("text_config") {
            values.extend(text);
        }
        // After merging, so that the setting is found in the root and in `text_config`.
        let quantization = values.get("quantization_config").filter(|value| !value.is_null());
        let quantization = quantization.map(StoredQuantization::read).transpose()?;
        Ok(Self {
            values,
            prefix: String::new(),
            architecture,
            quantization,
            notes: RefCell::default(),
        })
    }

    pub(super) fn quantization(&self) -> Option<StoredQuantization> {
        self.quantization
    }

    /// Returns the configuration of a part of the model, for example `vision_config`.
    pub(super) fn part(&self, key: &str) -> Result<Self, ConvertError> {
        let values = self.find(&[key]).and_then(Value::as_object);
        Ok(Self {
            values: values.ok_or_else(|| self.missing(&[key]))?.clone(),
            prefix: format!("{}{key}.", self.prefix),
            architecture: self.architecture.clone(),
            quantization: self.quantization,
            notes: RefCell::default(),
        })
    }

    /// Returns the class of the model, for example `LlamaForCausalLM`.
    pub(super) fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Returns the first of these settings that is present and not null. Families and versions of transformers name
    /// settings differently.
    pub(super) fn find(&self, keys: &[&str]) -> Option<&Value> {
        let present = |key: &&str| self.values.get(*key).filter(|value| !value.is_null());
        keys.iter().find_map(present)
    }

    /// Returns true for an explicit `null`, which switches a feature off where a missing key means the class's default.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(Value::is_null)
    }

    /// Notes that the class's default was used.
    fn note(&self, keys: &[&str], default: impl std::fmt::Display) {
        self.notes.borrow_mut().push(format!(
            "config.json has no {}: the default of its class, {default}, was used",
            self.name(keys)
        ));
    }

    /// Adds another note for the user.
    pub(super) fn remark(&self, sentence: String) {
        self.notes.borrow_mut().push(sentence);
    }

    /// Returns the notes for the user, and forgets them.
    pub(super) fn take_notes(&self) -> Vec<String> {
        self.notes.take()
    }

    pub(super) fn optional_integer(&self, keys: &[&str]) -> Result<Option<u64>, ConvertError> {
        let Some(value) = self.find(keys) else {
            return Ok(None);
        };
        // Some tools write 1e6 or 512.0 where they mean an integer.
        let integer = value.as_u64().or_else(|| {
            let number = value
                .as_f64()
                .filter(|number| number.fract() == 0.0 && *number >= 0.0)?;
            (number <= MAX_SIZE as f64).then_some(number as u64)
        });
        match integer.filter(|number| *number <= MAX_SIZE) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(&self.name(keys), value, "an integer")),
        }
    }

    pub(super) fn integer(&self, keys: &[&str]) -> Result<u64, ConvertError> {
        self.optional_integer(keys)?.ok_or_else(|| self.missing(keys))
    }

    /// Returns an integer that must be at least 1.
    pub(super) fn count(&self, keys: &[&str]) -> Result<u64, ConvertError> {
        match self.integer(keys)? {
            0 => Err(ConvertError::Config(format!("{} is 0", self.name(keys)))),
            count => Ok(count),
        }
    }

    pub(super) fn integer_or(&self, keys: &[&str], default: u64) -> Result<u64, ConvertError> {
        Ok(self.optional_integer(keys)?.unwrap_or_else(|| {
            self.note(keys, default);
            default
        }))
    }

    pub(super) fn optional_number(&self, keys: &[&str]) -> Result<Option<f64>, ConvertError> {
        let Some(value) = self.find(keys) else {
            return Ok(None);
        };
        value
            .as_f64()
            .map(Some)
            .ok_or_else(|| wrong(&self.name(keys), value, "a number"))
    }

    pub(super) fn number_or(&self, keys: &[&str], default: f64) -> Result<f64, ConvertError> {
        Ok(self.optional_number(keys)?.unwrap_or_else(|| {
            self.note(keys, default);
            default
        }))
    }

    /// Returns the name of a setting for messages: the one that most files use.
    fn name(&self, keys: &[&str]) -> String {
        format!("{}{}", self.prefix, keys.first().copied().unwrap_or_default())
    }

    fn missing(&self, keys: &[&str]) -> ConvertError {
        ConvertError::Config(format!("it has no {}", self.name(keys)))
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.find(&[key]).and_then(Value::as_bool)
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> bool {
        self.flag(key).unwrap_or_else(|| {
            self.note(&[key], default);
            default
        })
    }

    pub(super) fn text(&self, keys: &[&str]) -> Option<&str> {
        self.find(keys).and_then(Value::as_str)
    }

    pub(super) fn text_or<'a>(&'a self, keys: &[&str], default: &'a str) -> &'a str {
        self.text(keys).unwrap_or_else(|| {
            self.note(keys, default);
            default
        })
    }

    /// Returns the RoPE parameters. `theta` is the class's default base frequency. transformers 4 has them in the root
    /// and `rope_scaling`, transformers 5 in `rope_parameters`, possibly one object for each kind of attention.
    pub(super) fn rope(&self, theta: f64) -> Result<RopeConfig, ConvertError> {
        let stored = self.find(&["rope_parameters"]).or_else(|| self.find(&["rope_scaling"]));
        let stored = stored.and_then(Value::as_object).cloned().unwrap_or_default();
        let inner = |key: &str| stored.get(key).and_then(Value::as_object).cloned();
        let sliding = inner("sliding_attention");
        let mut values = inner("full_attention").unwrap_or_else(|| stored.clone());
        let mut fill = |key: &str, value: Option<&Value>| {
            if let Some(value) = value.filter(|_| !values.contains_key(key)) {
                values.insert(key.to_owned(), value.clone());
            }
        };
        let global = [
            "global_rope_theta",
            "rope_global_theta",
            "rope_theta",
            "rotary_emb_base",
        ];
        fill("rope_theta", self.find(&global));
        // transformers 4 calls the type `type`.
        fill("rope_type", stored.get("type"));
        for key in ["partial_rotary_factor", "original_max_position_embeddings"] {
            fill(key, self.find(&[key]));
        }
        if !values.contains_key("rope_theta") {
            self.note(&["rope_theta"], theta);
            values.insert("rope_theta".to_owned(), Value::from(theta));
        }
        let local = [
            "local_rope_theta",
            "rope_local_theta",
            "swa_rope_theta",
            "rope_local_base_freq",
        ];
        let sliding_theta = match sliding {
            Some(sliding) => sliding.get("rope_theta").and_then(Value::as_f64),
            None => self.optional_number(&local)?,
        };
        Ok(RopeConfig { values, sliding_theta })
    }
}

impl RopeConfig {
    /// Returns the `rope_type`: `default`, `linear`, `yarn`, `llama3`, `longrope`, `dynamic` or another.
    pub(super) fn kind(&self) -> &str {
        match self.values.get("rope_type").and_then(Value::as_str) {
            // Multimodal RoPE (Qwen2-VL) rotates by several dimensions, but each of them in the default way.
            None | Some("mrope") => "default",
            // The name of LongRoPE in the first checkpoints of Phi 3.
            Some("su") => "longrope",
            Some(kind) => kind,
        }
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.values.get(key).and_then(Value::as_f64)
    }

    /// Returns a parameter that this type requires.
    pub(super) fn needed(&self, key: &str) -> Result<f64, ConvertError> {
        self.number(key)
            .filter(|number| number.is_finite())
            .ok_or_else(|| ConvertError::Config(format!("the RoPE type {:?} lacks {key}", self.kind())))
    }

    pub(super) fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        self.values.get(key)?.as_array()?.iter().map(Value::as_f64).collect()
    }
}

fn wrong(key: &str, value: &Value, expected: &str) -> ConvertError {
    let mut text = value.to_string();
    text.truncate(text.floor_char_boundary(40));
    ConvertError::Config(format!("{key} is {text}, not {expected}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::convert) fn config(text: &str) -> CheckpointConfig {
        CheckpointConfig::new(serde_json::from_str(text).unwrap()).unwrap()
    }

    fn error(text: &str) -> String {
        CheckpointConfig::new(serde_json::from_str(text).unwrap())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn text_models_inside_of_others() {
        let config = config(
            r#"{"architectures":["X"],"hidden_size":1,"dtype":"a","text_config":{"hidden_size":2,"n_layer":3e0,"eps":null}}"#,
        );
        assert_eq!(config.architecture(), "X");
        assert_eq!(config.integer(&["hidden_size"]).unwrap(), 2);
        assert_eq!(config.integer(&["num_hidden_layers", "n_layer"]).unwrap(), 3);
        assert_eq!(config.number_or(&["eps"], 0.5).unwrap(), 0.5);
        assert_eq!(
            config.take_notes(),
            ["config.json has no eps: the default of its class, 0.5, was used"]
        );
    }

    #[test]
    fn refused() {
        assert!(error("{}").contains("names no architecture"));
        assert!(error(r#"{"architectures":[1]}"#).contains("names no architecture"));
        for method in ["awq", "gptq", "bitsandbytes", "compressed-tensors", "modelopt"] {
            let text = format!(r#"{{"architectures":["X"],"quantization_config":{{"quant_method":"{method}"}}}}"#);
            let quantized = error(&text);
            assert!(
                quantized.contains(&format!("quantized already ({method})")),
                "{quantized}"
            );
        }
        let text = r#"{"architectures":["X"],"quantization_config":{"quant_method":"fp8","weight_block_size":[1,0]}}"#;
        assert!(error(text).contains("weight_block_size is [1,0]"));
        let config = config(r#"{"architectures":["X"],"a":-1,"b":"x","c":1e300,"d":0}"#);
        for key in ["a", "b", "c", "z"] {
            assert!(config.integer(&[key]).is_err(), "{key}");
        }
        assert!(config.count(&["d"]).is_err());
        assert!(config.optional_number(&["b"]).is_err());
    }

    #[test]
    fn rotations_of_both_generations() {
        let old = config(
            r#"{"architectures":["X"],"rope_theta":5e5,"rope_local_base_freq":1e4,
                "rope_scaling":{"type":"su","factor":8}}"#,
        );
        let rope = old.rope(1.0).unwrap();
        assert_eq!((rope.kind(), rope.sliding_theta), ("longrope", Some(1e4)));
        assert_eq!(
            (rope.number("rope_theta"), rope.number("factor")),
            (Some(5e5), Some(8.0))
        );
        let new = config(
            r#"{"architectures":["X"],"rope_parameters":{"full_attention":{"rope_theta":1e6,"rope_type":"linear"},
                "sliding_attention":{"rope_theta":1e4}}}"#,
        );
        let rope = new.rope(1.0).unwrap();
        assert_eq!((rope.kind(), rope.sliding_theta), ("linear", Some(1e4)));
        assert_eq!(rope.number("rope_theta"), Some(1e6));
        assert!(rope.needed("factor").is_err());
        let none = config(r#"{"architectures":["X"],"rope_scaling":null}"#);
        let rope = none.rope(7.0).unwrap();
        assert_eq!((rope.kind(), rope.number("rope_theta")), ("default", Some(7.0)));
        assert_eq!(none.take_notes().len(), 1);
    }
}
