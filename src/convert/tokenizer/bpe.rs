//! Byte-level BPE: the tokenizers of GPT-2, Llama 3, Qwen and most others.

use super::{
    TokenType, TokenizerFiles, Vocabulary,
    json::TokenizerJson,
    looks_special,
    pre::{self, PreTokenizerCandidates},
    sentencepiece, texts_by_id,
};
use crate::convert::ConvertError;

/// What a space is in the alphabet of byte-level BPE.
const SPACE: &str = "\u{120}";

/// The vocabulary of a `tokenizer.json` whose model is BPE.
pub(super) fn vocabulary(
    files: &TokenizerFiles<'_>,
    json: &TokenizerJson<'_>,
    notes: &mut Vec<String>,
) -> Result<Vocabulary, ConvertError> {
    let candidates = match files.reference.pre {
        Some(pre) => PreTokenizerCandidates {
            names: vec![pre],
            is_known: true,
        },
        // Llama 2's kind: whole texts, spaces as U+2581, bytes for what is unknown.
        None if json.model.byte_fallback == Some(true) => return sentencepiece::from_json(json),
        None => {
            let candidates = pre::candidates(json);
            if let Some(name) = candidates.names.first().filter(|_| candidates.is_known) {
                notes.push(format!(
                    "the tokenizer is not one that is known by its output; its structure is that of {name:?}"
                ));
            }
            candidates
        }
    };
    let pairs = json
        .model
        .ids()?
        .chain(json.added.iter().map(|token| (token.text.as_str(), token.id)));
    let texts = texts_by_id(pairs)?;
    let mut tokens: Vec<(Vec<u8>, TokenType)> = texts
        .iter()
        .enumerate()
        .map(|(id, text)| match text {
            Some(text) => (text.as_bytes().to_vec(), TokenType::Normal),
            None => (format!("[PAD{id}]").into_bytes(), TokenType::Unused),
        })
        .collect();
    for token in &json.added {
        let text = token.as_found(&files.reference);
        tokens[token.id as usize] = if token.special || looks_special(text) {
            (text.as_bytes().to_vec(), TokenType::Control)
        } else {
            (
                text.replace(sentencepiece::SPACE, " ").into_bytes(),
                TokenType::UserDefined,
            )
        };
    }
    let merges = json.model.merges()?.iter();
    let merges = merges.map(|(left, right)| format!("{} {}", left.replace(' ', SPACE), right.replace(' ', SPACE)));
    Ok(Vocabulary {
        model: "gpt2",
        pre: candidates.names,
        is_known: candidates.is_known,
        tokens,
        scores: None,
        merges: merges.collect(),
        add_space_prefix: None,
        extra: Vec::new(),
    })
}
