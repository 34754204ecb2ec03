//! WordPiece: the tokenizers of BERT and its descendants.

use super::{
    TokenType, TokenizerFiles, Vocabulary, json::TokenizerJson, looks_special, sentencepiece::SPACE, texts_by_id,
};
use crate::convert::ConvertError;

/// llama.cpp's name for BERT's tokenizer. Its WordPiece implementation ignores the name.
const DEFAULT_PRE: &str = "jina-v2-en";

/// Makes the vocabulary of a `tokenizer.json` with a WordPiece model.
pub(super) fn vocabulary(files: &TokenizerFiles<'_>, json: &TokenizerJson<'_>) -> Result<Vocabulary, ConvertError> {
    let prefix = json.model.continuing_subword_prefix.as_deref().unwrap_or("##");
    let pairs = json
        .model
        .ids()?
        .chain(json.added.iter().map(|token| (token.text.as_str(), token.id)));
    let texts = texts_by_id(pairs)?;
    let mut tokens: Vec<(Vec<u8>, TokenType)> = texts
        .iter()
        .enumerate()
        .map(|(id, text)| match text {
            // WordPiece marks continuations (`##ing`); llama.cpp marks beginnings (`\u{2581}play`) instead.
            Some(text) => match text.strip_prefix(prefix) {
                Some(rest) => (rest.as_bytes().to_vec(), TokenType::Normal),
                None => (format!("{SPACE}{text}").into_bytes(), TokenType::Normal),
            },
            None => (format!("{SPACE}[PAD{id}]").into_bytes(), TokenType::Unused),
        })
        .collect();
    for token in &json.added {
        tokens[token.id as usize] = if token.special || looks_special(&token.text) {
            (token.text.clone().into_bytes(), TokenType::Control)
        } else {
            (format!("{SPACE}{}", token.text).into_bytes(), TokenType::UserDefined)
        };
    }
    Ok(Vocabulary {
        model: "bert",
        pre: vec![files.reference.pre.unwrap_or(DEFAULT_PRE)],
        is_known: true,
        tokens,
        scores: None,
        merges: Vec::new(),
        add_space_prefix: None,
        extra: Vec::new(),
    })
}
