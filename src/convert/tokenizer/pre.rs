//! Finding llama.cpp's pre-tokenizer for a tokenizer that its converter does not recognize, for example that of a
//! fine-tuned model with added tokens: by comparing the steps of the pre-tokenizer with those of known families.

use std::{borrow::Cow, collections::HashSet};

use serde_json::Value as Json;

use super::{
    json::TokenizerJson,
    pre_families::{FAMILIES, PreTokenizerFamily, PreTokenizerStep},
};

pub(super) use super::pre_families::QWEN2;

/// Pre-tokenizers to try.
#[derive(Debug)]
pub(super) struct PreTokenizerCandidates {
    /// Names, the likeliest first.
    pub(super) names: Vec<&'static str>,
    /// True when the first has the same steps. If not, only a comparison on sample texts can choose.
    pub(super) is_known: bool,
}

/// Returns the candidates for a tokenizer: those with the same steps, then all others.
pub(super) fn candidates(json: &TokenizerJson<'_>) -> PreTokenizerCandidates {
    let mut patterns = Vec::new();
    collect(&json.pre_tokenizer, 0, &mut patterns);
    let steps: Vec<PreTokenizerStep<'_>> = patterns.iter().map(RespelledStep::step).collect();
    let ignores_merges = json.model.ignore_merges == Some(true);
    let fits = |family: &&PreTokenizerFamily| family.steps == steps.as_slice();
    let mut families: Vec<&PreTokenizerFamily> = FAMILIES.iter().collect();
    // Families with the same steps may differ in `ignore_merges`, for example llama-bpe and smaug-bpe.
    families.sort_by_key(|family| (!fits(family), family.ignores_merges != ignores_merges));
    PreTokenizerCandidates {
        is_known: families.first().is_some_and(fits),
        names: {
            let mut seen = HashSet::new();
            let names = families.into_iter().map(|family| family.name);
            names.filter(|name| seen.insert(*name)).collect()
        },
    }
}

/// Returns true if llama.cpp adds BOS by default for this pre-tokenizer.
pub(super) fn adds_bos(name: &str) -> bool {
    FAMILIES.iter().any(|family| family.name == name && family.adds_bos)
}

/// Step whose regular expression has been respelled as in the table, and so may own it.
enum RespelledStep<'a> {
    Split(Cow<'a, str>),
    Other(PreTokenizerStep<'static>),
}

impl RespelledStep<'_> {
    fn step(&self) -> PreTokenizerStep<'_> {
        match self {
            Self::Split(pattern) => PreTokenizerStep::Split(pattern),
            Self::Other(step) => step.clone(),
        }
    }
}

/// Collects the steps of a pre-tokenizer, nested sequences included.
fn collect<'a>(step: &'a Json, depth: u32, out: &mut Vec<RespelledStep<'a>>) {
    /// Sanity limit. No known pre-tokenizer has more than six steps.
    const MAX_STEPS: usize = 16;
    if out.len() == MAX_STEPS {
        return;
    }
    let flag = |key: &str, default| step.get(key).and_then(Json::as_bool).unwrap_or(default);
    let text = |pointer: &str| step.pointer(pointer).and_then(Json::as_str);
    let is_isolated = text("/behavior").is_none_or(|behavior| behavior == "Isolated") && !flag("invert", false);
    out.push(match text("/type") {
        // The depth is bounded, because the file is not trusted.
        Some("Sequence") if depth < 4 => {
            let inner = step.get("pretokenizers").and_then(Json::as_array);
            inner
                .into_iter()
                .flatten()
                .for_each(|step| collect(step, depth + 1, out));
            return;
        }
        Some("Split") => match text("/pattern/Regex") {
            Some(pattern) if is_isolated => RespelledStep::Split(spelled(pattern)),
            _ => RespelledStep::Other(PreTokenizerStep::Other),
        },
        Some("Digits") if flag("individual_digits", false) => RespelledStep::Other(PreTokenizerStep::Digits),
        Some("Digits") => RespelledStep::Other(PreTokenizerStep::DigitRuns),
        Some("Punctuation") if text("/behavior") == Some("Contiguous") => {
            RespelledStep::Other(PreTokenizerStep::Punctuation)
        }
        Some("ByteLevel") if flag("add_prefix_space", false) => RespelledStep::Other(PreTokenizerStep::Other),
        Some("ByteLevel") if flag("use_regex", true) => RespelledStep::Other(PreTokenizerStep::Gpt2),
        // Without its regular expression this step only writes bytes as letters, which llama.cpp always does.
        Some("ByteLevel") => return,
        _ => RespelledStep::Other(PreTokenizerStep::Other),
    });
}

/// Spells a regular expression as the table does: `\\r` and `\\n` escaped, contractions with `(?i:`.
fn spelled(pattern: &str) -> Cow<'_, str> {
    const EXPANDED: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
    if !pattern.contains(['\r', '\n']) && !pattern.contains(EXPANDED) {
        return pattern.into();
    }
    let pattern = pattern.replace('\r', r"\r").replace('\n', r"\n");
    pattern.replace(EXPANDED, "(?i:'s|'t|'re|'ve|'m|'ll|'d)").into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::convert::tokenizer::pre_families::{LLAMA3, QWEN35};

    fn hex(bytes: &[u8]) -> String {
        crate::stdx::hex::encode(Sha256::digest(bytes))
    }

    fn level(regex: bool) -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex})
    }

    fn split(pattern: &str) -> Json {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"})
    }

    fn sequence(steps: Vec<Json>) -> Json {
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    /// Ollama recognizes the same families by these hashes of the concatenated expressions.
    #[test]
    fn the_expressions_are_the_published_ones() {
        for (name, hash) in [
            ("qwen2", "1ff7f410"),
            ("qwen35", "00431aed"),
            ("llama-bpe", "d98f9631"),
            ("deepseek-llm", "03df5c58"),
            ("deepseek-coder", "21cde974"),
        ] {
            let family = FAMILIES.iter().find(|family| family.name == name).unwrap();
            let patterns = family.steps.iter().filter_map(|step| match step {
                PreTokenizerStep::Split(pattern) => Some(*pattern),
                _ => None,
            });
            let mut all: String = patterns.collect();
            if name.starts_with("deepseek") {
                all = all.replace(r"\r", "\r").replace(r"\n", "\n");
            }
            assert!(hex(all.as_bytes()).starts_with(hash), "{name}");
        }
    }

    #[test]
    fn structures() {
        let digits = json!({"type": "Digits", "individual_digits": true});
        for (pre_tokenizer, ignores, expected) in [
            (level(true), false, Some("gpt-2")),
            (sequence(vec![digits.clone(), level(true)]), false, Some("smollm")),
            (sequence(vec![split(QWEN2), level(false)]), false, Some("qwen2")),
            (sequence(vec![split(QWEN35), level(false)]), false, Some("qwen35")),
            (sequence(vec![split(LLAMA3), level(false)]), true, Some("llama-bpe")),
            (sequence(vec![split(LLAMA3), level(false)]), false, Some("smaug-bpe")),
            (sequence(vec![split(r"\s+"), level(false)]), false, None),
            (sequence(vec![level(true), digits]), false, None),
            (level(false), false, None),
            (json!(null), false, None),
            (json!({"type": "ByteLevel", "add_prefix_space": true}), false, None),
        ] {
            let text = json!({"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": ignores}}).to_string();
            let found = candidates(&TokenizerJson::parse(text.as_bytes()).unwrap());
            assert_eq!(found.is_known.then(|| found.names[0]), expected, "{text}");
            assert!(found.names.contains(&"gpt-2") && found.names.len() > 20);
        }
    }

    #[test]
    fn every_family_is_found_by_its_own_structure() {
        for family in FAMILIES {
            let steps = family.steps.iter().map(|step| match step {
                // Some files have literal line ends.
                PreTokenizerStep::Split(pattern) => split(&pattern.replace(r"\r", "\r").replace(r"\n", "\n")),
                PreTokenizerStep::Digits => json!({"type": "Digits", "individual_digits": true}),
                PreTokenizerStep::DigitRuns => json!({"type": "Digits", "individual_digits": false}),
                PreTokenizerStep::Punctuation => json!({"type": "Punctuation", "behavior": "Contiguous"}),
                PreTokenizerStep::Gpt2 => level(true),
                PreTokenizerStep::Other => unreachable!("no family has an unknown step"),
            });
            let steps = sequence(steps.chain([level(false)]).collect());
            let model = json!({"ignore_merges": family.ignores_merges});
            let text = json!({"pre_tokenizer": steps, "model": model}).to_string();
            let found = candidates(&TokenizerJson::parse(text.as_bytes()).unwrap());
            assert_eq!((found.is_known, found.names[0]), (true, family.name));
        }
    }

    #[test]
    fn contractions_that_are_spelled_out() {
        let pattern = QWEN2.replace(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        );
        assert_ne!(pattern, QWEN2);
        assert_eq!(spelled(&pattern), QWEN2);
    }
}
