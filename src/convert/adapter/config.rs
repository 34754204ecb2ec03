//! `adapter_config.json` of the PEFT library (`LoraConfig`): which kind of LoRA was trained, and the scale of its
//! factors.

use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::{ConvertError, refuse};
use crate::convert::files;

const FILE: &str = "adapter_config.json";
/// Limits on the regular expressions of one file, and on the compiled size of one: the file is not trusted.
const MAX_PATTERNS: usize = 256;
const MAX_PATTERN_BYTES: usize = 1 << 20;
const MERGE: &str = "merge it into its base and serve that";
/// Settings of LoRA variants that add more than two factors for each matrix, which llama.cpp cannot apply.
const VARIANTS: [(&str, &str); 11] = [
    ("use_dora", "DoRA, which rescales whole matrices"),
    ("lora_bias", "with biases in addition to the factors"),
    ("use_qalora", "QA-LoRA, which pools its inputs"),
    ("layer_replication", "on layers that are repeated"),
    ("trainable_token_indices", "with new embeddings for some tokens"),
    ("modules_to_save", "with whole matrices in addition to the factors"),
    ("target_parameters", "on experts that are stored as one tensor"),
    (
        "alora_invocation_tokens",
        "aLoRA, which applies only to a part of the text",
    ),
    ("use_bdlora", "as block-diagonal factors"),
    ("arrow_config", "as one of several that are routed by Arrow"),
    ("kasa_config", "KaSA, which changes the base first"),
];
/// Initializations that subtract the initial product from the base's matrices: such an adapter fits only the changed
/// base.
const BASE_CHANGING_STARTS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Settings that conversion needs.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    /// `lora_alpha`: the product of the factors is multiplied with `alpha / rank`.
    pub(super) alpha: f64,
    /// `use_rslora`: the divisor is the square root of the rank instead.
    is_rank_stabilized: bool,
    /// `alpha_pattern`: alphas of modules whose names match. The first match counts.
    alphas: Vec<(Regex, f64)>,
}

impl AdapterConfig {
    /// Reads the file of a folder.
    pub(super) fn read(folder: &Path) -> Result<Self, ConvertError> {
        match files::object_if_there(&folder.join(FILE))? {
            Some(root) => Self::new(&root),
            None => Err(ConvertError::Incomplete(format!("{} has no {FILE}", folder.display()))),
        }
    }

    /// Parses the file's text.
    pub(super) fn parse(json: &str) -> Result<Self, ConvertError> {
        match serde_json::from_str(json) {
            Ok(Value::Object(root)) => Self::new(&root),
            Ok(_) => refuse(format!("its {FILE} is not an object")),
            Err(error) => refuse(format!("its {FILE} does not parse: {error}")),
        }
    }

    fn new(root: &Map<String, Value>) -> Result<Self, ConvertError> {
        let text = |key: &str| root.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = text("peft_type");
        if kind != "LORA" {
            return refuse(format!(
                "it is of the kind {kind:?}, and only \"LORA\" can be applied; {MERGE}"
            ));
        }
        if let Some((_, what)) = VARIANTS.iter().find(|(key, _)| is_used(root.get(*key))) {
            return refuse(format!("it was trained {what}, which cannot be applied; {MERGE}"));
        }
        let bias = text("bias");
        if !matches!(bias, "" | "none") {
            return refuse(format!(
                "it was trained with the base's biases ({bias:?}), which cannot be applied; {MERGE}"
            ));
        }
        let start = text("init_lora_weights");
        if BASE_CHANGING_STARTS.iter().any(|kind| start.starts_with(kind)) {
            return refuse(format!(
                "its training began with {start:?}, which changes the base; save it with path_initial_model_for_weight_conversion"
            ));
        }
        let alpha = number(root.get("lora_alpha"))?.filter(|alpha| *alpha > 0.0);
        let Some(alpha) = alpha else {
            return refuse(format!("its {FILE} has no lora_alpha above zero"));
        };
        Ok(Self {
            alpha,
            is_rank_stabilized: root.get("use_rslora") == Some(&Value::Bool(true)),
            alphas: alphas(root.get("alpha_pattern"))?,
        })
    }

    /// Returns the alpha of a module with factors of this rank, so that llama.cpp's scale `alpha / rank` is PEFT's. For
    /// rank-stabilized LoRA it is `alpha * sqrt(rank)`.
    pub(super) fn strength(&self, module: &str, rank: u64) -> f64 {
        let own = self.alphas.iter().find(|(pattern, _)| pattern.is_match(module));
        self.scaled(own.map_or(self.alpha, |(_, alpha)| *alpha), rank)
    }

    /// Returns the alpha of modules that no pattern matches.
    pub(super) fn usual_strength(&self, rank: u64) -> f64 {
        self.scaled(self.alpha, rank)
    }

    fn scaled(&self, alpha: f64, rank: u64) -> f64 {
        if self.is_rank_stabilized {
            alpha * (rank as f64).sqrt()
        } else {
            alpha
        }
    }
}

/// Returns true if a setting is more than its default: `null`, `false` or empty.
fn is_used(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    }
}

fn number(value: Option<&Value>) -> Result<Option<f64>, ConvertError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => refuse(format!("lora_alpha in its {FILE} is not a number")),
        },
    }
}

/// Reads `alpha_pattern`: regular expressions for the end of a module's name, each with an alpha.
fn alphas(value: Option<&Value>) -> Result<Vec<(Regex, f64)>, ConvertError> {
    let Some(Value::Object(map)) = value else {
        return Ok(Vec::new());
    };
    if map.len() > MAX_PATTERNS {
        return refuse(format!("its {FILE} has more than {MAX_PATTERNS} patterns"));
    }
    let one = |(text, alpha): (&String, &Value)| {
        // PEFT's own expression (`get_pattern_key`).
        let pattern = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{text})$"))
            .size_limit(MAX_PATTERN_BYTES)
            .build();
        match (pattern, number(Some(alpha))?) {
            (Ok(pattern), Some(alpha)) => Ok((pattern, alpha)),
            _ => refuse(format!("its {FILE} has an alpha_pattern that cannot be read: {text:?}")),
        }
    };
    // In the order of the file, which `serde_json` keeps (`preserve_order`): PEFT takes the first pattern that matches.
    map.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(more: Value) -> Result<AdapterConfig, String> {
        let mut root = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": false,
            "modules_to_save": null, "layer_replication": null, "target_parameters": [], "init_lora_weights": true});
        for (key, value) in more.as_object().unwrap() {
            root[key] = value.clone();
        }
        AdapterConfig::parse(&root.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn strengths() {
        let plain = config(json!({})).unwrap();
        assert_eq!(plain.strength("model.layers.0.mlp.up_proj", 4), 8.0);
        let rooted = config(json!({"use_rslora": true})).unwrap();
        assert_eq!((rooted.strength("x", 4), rooted.usual_strength(16)), (16.0, 32.0));
        let own = config(json!({"alpha_pattern": {"0.mlp.up_proj": 2, "up_proj|k_proj": 3.5, "model": 9}})).unwrap();
        assert_eq!(own.strength("model.layers.0.mlp.up_proj", 4), 2.0);
        assert_eq!(own.strength("model.layers.10.mlp.up_proj", 4), 3.5);
        assert_eq!(own.strength("k_proj", 4), 3.5);
        assert_eq!(own.strength("model.layers.0.mlp.down_proj", 4), 8.0);
    }

    #[test]
    fn refused() {
        for (more, part) in [
            (json!({"peft_type": "LOHA"}), "\"LOHA\""),
            (json!({"peft_type": null}), "only \"LORA\""),
            (json!({"use_dora": true}), "DoRA"),
            (json!({"lora_bias": true}), "biases in addition"),
            (json!({"bias": "lora_only"}), "biases (\"lora_only\")"),
            (json!({"modules_to_save": ["lm_head"]}), "whole matrices"),
            (
                json!({"target_parameters": ["experts.down_proj"]}),
                "experts that are stored as one tensor",
            ),
            (json!({"trainable_token_indices": {"embed_tokens": [1]}}), "some tokens"),
            (json!({"alora_invocation_tokens": [1]}), "aLoRA"),
            (json!({"init_lora_weights": "pissa_niter_4"}), "changes the base"),
            (json!({"lora_alpha": 0}), "no lora_alpha"),
            (json!({"lora_alpha": "x"}), "is not a number"),
            (json!({"alpha_pattern": {"(": 1}}), "cannot be read"),
            (json!({"alpha_pattern": {"a": null}}), "cannot be read"),
        ] {
            let error = config(more.clone()).unwrap_err();
            assert!(error.contains(part), "{more}: {error}");
        }
        assert!(
            AdapterConfig::parse("[]")
                .unwrap_err()
                .to_string()
                .contains("not an object")
        );
        assert!(
            AdapterConfig::parse("{")
                .unwrap_err()
                .to_string()
                .contains("does not parse")
        );
    }
}
