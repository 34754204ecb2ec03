//! Byte-level BPE: the tokenizers of GPT-2, Llama 3, Qwen and most others.

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use super::{Files, TokenType, Vocabulary, looks_special, pre, sentencepiece, texts_by_id, vocabulary_pairs};
use crate::convert::ConvertError;

/// What a space is in the alphabet of byte-level BPE.
const SPACE: &str = "\u{120}";

/// The vocabulary of a `tokenizer.json` whose model is BPE.
pub(super) fn vocabulary(files: &Files, json: &Json, notes: &mut Vec<String>) -> Result<Vocabulary, ConvertError> {
    let reference = pre::reference(&files.bytes)?;
    let pre = match pre::by_hash(&reference)? {
        Some(pre) => pre,
        // Llama 2's kind: whole texts, spaces as U+2581, bytes for what is unknown.
        None if json.pointer("/model/byte_fallback") == Some(&Json::Bool(true)) => {
            return sentencepiece::from_json(files, json);
        }
        None => {
            let pre = pre::by_structure(json)?;
            notes.push(format!(
                "the tokenizer is not one that is known by its output; its structure is that of {pre:?}"
            ));
            pre
        }
    };
    let added = files.added_by_json();
    let pairs = vocabulary_pairs(json)?.chain(added.iter().map(|token| (token.text.as_str(), token.id)));
    let texts = texts_by_id(pairs)?;
    let mut tokens: Vec<(Vec<u8>, TokenType)> = texts
        .iter()
        .enumerate()
        .map(|(id, text)| match text {
            Some(text) => (text.as_bytes().to_vec(), TokenType::Normal),
            None => (format!("[PAD{id}]").into_bytes(), TokenType::Unused),
        })
        .collect();
    for token in &added {
        // The engine looks for these texts in texts that were not normalised.
        let text = if token.normalized {
            token.text.clone()
        } else {
            normalized(&reference, &token.text)?
        };
        tokens[token.id as usize] = if token.special || looks_special(&text) {
            (text.into_bytes(), TokenType::Control)
        } else {
            (
                text.replace(sentencepiece::SPACE, " ").into_bytes(),
                TokenType::UserDefined,
            )
        };
    }
    Ok(Vocabulary {
        model: "gpt2",
        pre: pre.to_owned(),
        tokens,
        scores: None,
        merges: merges(json)?,
        add_space_prefix: None,
        extra: Vec::new(),
    })
}

/// A text as it comes out of the tokenizer again.
fn normalized(reference: &Tokenizer, text: &str) -> Result<String, ConvertError> {
    let failed = |error: tokenizers::Error| ConvertError::Tokenizer(format!("{text:?} cannot be encoded: {error}"));
    let encoding = reference.encode(text, false).map_err(failed)?;
    reference.decode(encoding.get_ids(), false).map_err(failed)
}

/// Merges by rank, each as two texts with a space between. Both generations of files are read.
pub(super) fn merges(json: &Json) -> Result<Vec<String>, ConvertError> {
    let wrong = || ConvertError::Tokenizer("the merges of tokenizer.json are malformed".to_owned());
    let list = json
        .pointer("/model/merges")
        .and_then(Json::as_array)
        .ok_or_else(wrong)?;
    list.iter()
        .map(|merge| match merge {
            Json::String(merge) => Ok(merge.clone()),
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(left), Json::String(right)] => {
                    Ok(format!("{} {}", left.replace(' ', SPACE), right.replace(' ', SPACE)))
                }
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_of_both_generations() {
        let json = serde_json::json!({"model": {"merges": ["a b", ["c", "d e"]]}});
        assert_eq!(merges(&json).unwrap(), ["a b", "c d\u{120}e"]);
        for wrong in [
            serde_json::json!([1]),
            serde_json::json!([["a"]]),
            serde_json::json!({}),
        ] {
            assert!(merges(&serde_json::json!({"model": {"merges": wrong}})).is_err());
        }
    }
}
