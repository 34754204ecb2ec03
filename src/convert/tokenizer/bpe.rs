//! Byte-level BPE: the tokenizers of GPT-2, Llama 3, Qwen and most others (`_set_vocab_gpt2` in llama.cpp's converter).

use super::{
    TokenType, TokenizerFiles, Vocabulary,
    json::TokenizerJson,
    looks_special,
    pre::{self, PreTokenizerCandidates},
    sentencepiece, texts_by_id,
};
use crate::convert::ConvertError;

/// The letter for a space in byte-level BPE.
const SPACE: &str = "\u{120}";

/// Makes the vocabulary of a `tokenizer.json` with a BPE model.
pub(super) fn vocabulary(
    files: &TokenizerFiles<'_>,
    json: &TokenizerJson<'_>,
    notes: &mut Vec<String>,
) -> Result<Vocabulary, ConvertError> {
    // The hash comes first: Gemma 3's tokenizer has byte fallback, too, but llama.cpp has a pre-tokenizer for it.
    let candidates = match files.reference.pre {
        Some(pre) => PreTokenizerCandidates {
            names: vec![pre],
            is_known: true,
        },
        // Llama 2's kind, not byte-level: U+2581 for spaces, and tokens such as `<0x0A>` for unknown bytes.
        None if json.model.byte_fallback == Some(true) => return sentencepiece::from_json(json),
        None => {
            let candidates = pre::candidates(json);
            if let Some(name) = candidates.names.first().filter(|_| candidates.is_known) {
                notes.push(format!(
                    "the tokenizer is not known by its output; its pre-tokenizer has the structure of {name:?}"
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
            // Gaps between ids get placeholders, because llama.cpp numbers tokens by position.
            None => (format!("[PAD{id}]").into_bytes(), TokenType::Unused),
        })
        .collect();
    for token in &json.added {
        let text = token.as_found(&files.reference);
        tokens[token.id as usize] = if token.special || looks_special(text) {
            (text.as_bytes().to_vec(), TokenType::Control)
        } else {
            (
                // With spaces: llama.cpp looks for added tokens in the text itself, before it replaces spaces.
                text.replace(sentencepiece::SPACE, " ").into_bytes(),
                TokenType::UserDefined,
            )
        };
    }
    // A space separates the two tokens of a merge, so spaces inside of a token are written as their letter.
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
