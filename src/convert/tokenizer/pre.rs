//! Which of llama.cpp's pre-tokenizers cuts texts as this tokenizer does.

use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::pre_table::{BY_HASH, TEXT};
use crate::convert::ConvertError;

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The reference implementation, without the cutting and padding that some files ask for.
pub(super) fn reference(bytes: &[u8]) -> Result<Tokenizer, ConvertError> {
    let failed = |error: tokenizers::Error| ConvertError::Tokenizer(format!("tokenizer.json does not load: {error}"));
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(failed)?;
    tokenizer.with_truncation(None).map_err(failed)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// The pre-tokenizer of a tokenizer that llama.cpp's converter knows.
pub(super) fn by_hash(reference: &Tokenizer) -> Result<Option<&'static str>, ConvertError> {
    let encoding = reference
        .encode(TEXT, true)
        .map_err(|error| ConvertError::Tokenizer(format!("a text cannot be encoded: {error}")))?;
    // As Python prints a list, which is how Rust prints a slice, too.
    let hash = Sha256::digest(format!("{:?}", encoding.get_ids()));
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let found = BY_HASH.binary_search_by(|(known, _)| (*known).cmp(&hash));
    Ok(found.ok().map(|at| BY_HASH[at].1))
}

/// One step of a pre-tokenizer.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Split(&'a str),
    /// Every digit is a word.
    Digits,
    /// The expression of GPT-2.
    Gpt2,
    Other,
}

/// The pre-tokenizer of a tokenizer with another vocabulary but the structure of a known one.
pub(super) fn by_structure(json: &Json) -> Result<&'static str, ConvertError> {
    let mut steps = Vec::new();
    collect(json.get("pre_tokenizer").unwrap_or(&Json::Null), 0, &mut steps);
    let ignores_merges = json.pointer("/model/ignore_merges") == Some(&Json::Bool(true));
    match steps.as_slice() {
        [Step::Gpt2] => Ok("gpt-2"),
        [Step::Digits, Step::Gpt2] => Ok("smollm"),
        [Step::Split(QWEN2)] => Ok("qwen2"),
        [Step::Split(QWEN35)] => Ok("qwen35"),
        // The same expression, but only the first takes whole words that are tokens as they are.
        [Step::Split(LLAMA3)] if ignores_merges => Ok("llama-bpe"),
        [Step::Split(LLAMA3)] => Ok("smaug-bpe"),
        _ => Err(ConvertError::Tokenizer(
            "llama.cpp has no pre-tokenizer that is known to cut texts as this one does; choose a repository with GGUF \
             files"
                .to_owned(),
        )),
    }
}

fn collect<'a>(step: &'a Json, depth: u32, out: &mut Vec<Step<'a>>) {
    let flag = |key: &str, default| step.get(key).and_then(Json::as_bool).unwrap_or(default);
    match step.get("type").and_then(Json::as_str) {
        Some("Sequence") if depth < 4 => {
            let inner = step.get("pretokenizers").and_then(Json::as_array);
            inner
                .into_iter()
                .flatten()
                .for_each(|step| collect(step, depth + 1, out));
        }
        Some("Split") => out.push(match step.pointer("/pattern/Regex").and_then(Json::as_str) {
            Some(pattern) if !flag("invert", false) => Step::Split(pattern),
            _ => Step::Other,
        }),
        Some("Digits") if flag("individual_digits", false) => out.push(Step::Digits),
        // Without its expression it only turns bytes into letters, which the engine always does.
        Some("ByteLevel") if flag("add_prefix_space", false) => out.push(Step::Other),
        Some("ByteLevel") if flag("use_regex", true) => out.push(Step::Gpt2),
        Some("ByteLevel") => {}
        _ => out.push(Step::Other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(BY_HASH.is_sorted_by(|one, two| one.0 < two.0));
        assert_eq!(BY_HASH.len(), 96);
        // The text of llama.cpp's converter, to the last byte.
        assert_eq!(
            hex(TEXT.as_bytes()),
            "a36179c1e2b1cfcfbfad1dc779addad2ffc778201e4cf0d538bddeafa2c526da"
        );
    }

    fn hex(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Ollama recognises the same expressions by the beginnings of these hashes.
    #[test]
    fn the_expressions_are_the_published_ones() {
        for (pattern, hash) in [(QWEN2, "1ff7f410"), (QWEN35, "00431aed"), (LLAMA3, "d98f9631")] {
            assert!(hex(pattern.as_bytes()).starts_with(hash), "{pattern}");
        }
    }

    #[test]
    fn structures() {
        let level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
        let sequence = |steps: Vec<Json>| json!({"type": "Sequence", "pretokenizers": steps});
        let digits = json!({"type": "Digits", "individual_digits": true});
        for (pre_tokenizer, ignores, expected) in [
            (level(true), false, Some("gpt-2")),
            (sequence(vec![digits.clone(), level(true)]), false, Some("smollm")),
            (sequence(vec![split(QWEN2), level(false)]), false, Some("qwen2")),
            (sequence(vec![split(LLAMA3), level(false)]), true, Some("llama-bpe")),
            (sequence(vec![split(LLAMA3), level(false)]), false, Some("smaug-bpe")),
            (sequence(vec![split(r"\s+"), level(false)]), false, None),
            (sequence(vec![level(true), digits]), false, None),
            (level(false), false, None),
            (json!(null), false, None),
            (json!({"type": "ByteLevel", "add_prefix_space": true}), false, None),
        ] {
            let json = json!({"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": ignores}});
            assert_eq!(by_structure(&json).ok(), expected, "{json}");
        }
    }
}
