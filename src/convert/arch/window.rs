//! Sliding-window attention: which layers attend only to the last tokens.

use serde_json::Value as Json;

use super::ModelBuilder;
use crate::{
    convert::{ConvertError, config::CheckpointConfig},
    gguf::{GgufArray, GgufValue},
};

/// Default period: three layers with a window, then one without (`Cohere2Config`, `Olmo3Config`).
const EVERY: u64 = 4;

/// Puts the keys of the window (in tokens) and of the layers that have it. `default` is the class's window; without any
/// window no key is put.
pub(super) fn keys(build: &mut ModelBuilder<'_>, blocks: u64, default: Option<u64>) -> Result<(), ConvertError> {
    let config = build.config;
    let window = match default.filter(|_| !config.is_null("sliding_window")) {
        Some(default) => Some(config.integer_or(&["sliding_window"], default)?),
        None => config.optional_integer(&["sliding_window"])?,
    };
    let Some(window) = window else {
        return Ok(());
    };
    let pattern = pattern(config, blocks)?;
    build.put_integer("attention.sliding_window", window)?;
    build.put(
        "attention.sliding_window_pattern",
        GgufValue::Array(GgufArray::Bool(pattern)),
    );
    Ok(())
}

/// Returns for each layer whether it has a window. Configurations spell it in three ways: a list of layer types, a
/// string of letters that repeats (`LLLG`, L for local), or the period after which one layer has none.
pub(super) fn pattern(config: &CheckpointConfig, blocks: u64) -> Result<Vec<bool>, ConvertError> {
    if let Some(types) = config.find(&["layer_types"]).and_then(Json::as_array) {
        let pattern: Vec<bool> = types
            .iter()
            .map(|kind| kind.as_str() == Some("sliding_attention"))
            .collect();
        if pattern.len() as u64 == blocks {
            return Ok(pattern);
        }
        return Err(ConvertError::Config(format!(
            "layer_types has {} entries, not one for each of the {blocks} layers",
            pattern.len()
        )));
    }
    let layers = 0..blocks as usize;
    if let Some(letters) = config.text(&["sliding_window_pattern"]).filter(|text| !text.is_empty()) {
        let letters = letters.as_bytes();
        return Ok(layers.map(|layer| letters[layer % letters.len()] == b'L').collect());
    }
    let every = match config.optional_integer(&["sliding_window_pattern"])? {
        Some(0) => return Ok(vec![false; layers.len()]),
        Some(every) => every,
        None => EVERY,
    };
    Ok(layers
        .map(|layer| !(layer + 1).is_multiple_of(every as usize))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::config::tests::config;

    #[test]
    fn patterns_of_every_spelling() {
        let found = |rest: &str, blocks| pattern(&config(&format!(r#"{{"architectures":["X"]{rest}}}"#)), blocks);
        assert_eq!(found("", 5).unwrap(), [true, true, true, false, true]);
        let said = r#","sliding_window_pattern":"LG""#;
        assert_eq!(found(said, 3).unwrap(), [true, false, true]);
        assert_eq!(found(r#","sliding_window_pattern":2"#, 3).unwrap(), [true, false, true]);
        assert_eq!(found(r#","sliding_window_pattern":0"#, 2).unwrap(), [false, false]);
        let types = r#","layer_types":["full_attention","sliding_attention"]"#;
        assert_eq!(found(types, 2).unwrap(), [false, true]);
        assert!(found(types, 3).is_err());
    }
}
