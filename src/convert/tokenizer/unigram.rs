//! SentencePiece's unigram model, as XLM-RoBERTa and its children have it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value as Json;

use super::{Files, MAX_TOKENS, TokenType, Vocabulary, texts_by_id};
use crate::{
    convert::ConvertError,
    gguf::{Array, Value},
};

/// The vocabulary of a `tokenizer.json` whose model is a unigram model.
pub(super) fn vocabulary(files: &Files, json: &Json) -> Result<Vocabulary, ConvertError> {
    let malformed = || ConvertError::Tokenizer("the vocabulary of tokenizer.json is malformed".to_owned());
    let pieces = json
        .pointer("/model/vocab")
        .and_then(Json::as_array)
        .ok_or_else(malformed)?;
    let mut pairs = Vec::with_capacity(pieces.len());
    let mut scores = Vec::with_capacity(pieces.len());
    for (id, piece) in pieces.iter().enumerate() {
        let text = piece.get(0).and_then(Json::as_str).ok_or_else(malformed)?;
        let score = piece.get(1).and_then(Json::as_f64).ok_or_else(malformed)?;
        pairs.push((text, id as u64));
        scores.push(score as f32);
    }
    let added = files.added_by_json();
    pairs.extend(added.iter().map(|token| (token.text.as_str(), token.id)));
    let texts = texts_by_id(pairs.into_iter())?;
    scores.resize(texts.len(), 0.0);
    let unknown = json
        .pointer("/model/unk_id")
        .and_then(Json::as_u64)
        .filter(|id| *id < MAX_TOKENS);
    let mut tokens: Vec<(Vec<u8>, TokenType)> = texts
        .iter()
        .enumerate()
        .map(|(id, text)| match text {
            Some(text) => (text.as_bytes().to_vec(), TokenType::Normal),
            None => (format!("[PAD{id}]").into_bytes(), TokenType::Unused),
        })
        .collect();
    for token in added {
        let kind = if token.special {
            TokenType::Control
        } else {
            TokenType::UserDefined
        };
        tokens[token.id as usize] = (token.text.into_bytes(), kind);
    }
    if let Some(token) = unknown.and_then(|id| tokens.get_mut(id as usize)) {
        token.1 = TokenType::Unknown;
    }
    let normalizers = steps(json.get("normalizer"), "normalizers");
    let pre_tokenizers = steps(json.get("pre_tokenizer"), "pretokenizers");
    let is = |step: &Json, kind: &str| step.get("type").and_then(Json::as_str) == Some(kind);
    // Either cuts at every white space, or makes one space of several.
    let collapses = pre_tokenizers.iter().any(|step| is(step, "WhitespaceSplit"))
        || normalizers
            .iter()
            .any(|step| is(step, "Replace") && step.pointer("/pattern/Regex") == Some(&" {2,}".into()));
    let prepends = pre_tokenizers.iter().any(|step| {
        let scheme = step.get("prepend_scheme").and_then(Json::as_str);
        // Old files have a flag instead, which is on by default.
        let flag = step.get("add_prefix_space") != Some(&Json::Bool(false));
        is(step, "Metaspace") && scheme.map_or(flag, |scheme| scheme != "never")
    });
    let mut extra = vec![("remove_extra_whitespaces", Value::Bool(collapses))];
    let table = normalizers.iter().find(|step| is(step, "Precompiled"));
    if let Some(table) = table.and_then(|step| step.get("precompiled_charsmap")?.as_str()) {
        let bytes = STANDARD
            .decode(table)
            .map_err(|_| ConvertError::Tokenizer("its table of characters is malformed".to_owned()))?;
        if !bytes.is_empty() {
            extra.push(("precompiled_charsmap", Value::Array(Array::U8(bytes))));
        }
    }
    Ok(Vocabulary {
        model: "t5",
        pre: "default".to_owned(),
        tokens,
        scores: Some(scores),
        merges: Vec::new(),
        add_space_prefix: Some(prepends),
        extra,
    })
}

/// A step, or all steps of a sequence.
fn steps<'a>(step: Option<&'a Json>, key: &str) -> Vec<&'a Json> {
    match step.and_then(|step| step.get(key)?.as_array()) {
        Some(list) => list.iter().collect(),
        None => step.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn malformed_vocabularies() {
        let files = Files::default();
        for vocab in [json!(null), json!([1]), json!([["a"]]), json!([["a", "b"]])] {
            assert!(vocabulary(&files, &json!({"model": {"vocab": vocab}})).is_err());
        }
        let bad = json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}, "model": {"vocab": []}});
        assert!(vocabulary(&files, &bad).is_err());
    }

    #[test]
    fn white_space() {
        for (pre_tokenizer, prepends, collapses) in [
            (json!({"type": "Metaspace", "prepend_scheme": "always"}), true, false),
            (json!({"type": "Metaspace", "add_prefix_space": true}), true, false),
            (json!({"type": "Metaspace", "prepend_scheme": "never"}), false, false),
            (
                json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace"}]}),
                true,
                true,
            ),
        ] {
            let json =
                json!({"pre_tokenizer": pre_tokenizer, "model": {"vocab": [["<unk>", 0], ["a", -1.5]], "unk_id": 0}});
            let found = vocabulary(&Files::default(), &json).unwrap();
            assert_eq!(found.add_space_prefix, Some(prepends), "{json}");
            assert_eq!(
                found.extra,
                [("remove_extra_whitespaces", Value::Bool(collapses))],
                "{json}"
            );
            assert_eq!(found.tokens[0], (b"<unk>".to_vec(), TokenType::Unknown));
            assert_eq!(found.scores, Some(vec![0.0, -1.5]));
        }
    }
}
