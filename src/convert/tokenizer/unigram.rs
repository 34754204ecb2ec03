//! SentencePiece's unigram model: the tokenizers of T5, XLM-RoBERTa and its descendants (bge-m3, e5).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value as Json, json};

use super::{
    Added, MAX_TOKENS, TokenType, Vocabulary,
    json::{TokenizerJson, TokenizerModel, Vocab},
    sentencepiece::is_byte,
    sentencepiece_proto::{ProtoPieceType, SentencePieceModel},
    texts_by_id,
};
use crate::{
    convert::ConvertError,
    gguf::{GgufArray, GgufValue},
};

/// Makes the vocabulary of a `tokenizer.json` with a unigram model.
pub(super) fn vocabulary(json: &TokenizerJson<'_>) -> Result<Vocabulary, ConvertError> {
    let Vocab::Scores(pieces) = &json.model.vocab else {
        return Err(ConvertError::Tokenizer(
            "the vocabulary of tokenizer.json is malformed".to_owned(),
        ));
    };
    let mut scores: Vec<f32> = pieces.iter().map(|(_, score)| *score as f32).collect();
    let pairs = pieces.iter().zip(0..).map(|((text, _), id)| (text.as_ref(), id));
    let texts = texts_by_id(pairs.chain(json.added.iter().map(|token| (token.text.as_str(), token.id))))?;
    // Added tokens have no score.
    scores.resize(texts.len(), 0.0);
    let has_bytes = json.model.byte_fallback == Some(true);
    let unknown = json.model.unk_id.filter(|id| *id < MAX_TOKENS);
    let mut tokens: Vec<(Vec<u8>, TokenType)> = texts
        .iter()
        .enumerate()
        .map(|(id, text)| match text {
            Some(text) if has_bytes && is_byte(text) => (text.as_bytes().to_vec(), TokenType::Byte),
            Some(text) => (text.as_bytes().to_vec(), TokenType::Normal),
            None => (format!("[PAD{id}]").into_bytes(), TokenType::Unused),
        })
        .collect();
    for token in &json.added {
        let kind = if token.special {
            TokenType::Control
        } else {
            TokenType::UserDefined
        };
        tokens[token.id as usize] = (token.text.clone().into_bytes(), kind);
    }
    if let Some(token) = unknown.and_then(|id| tokens.get_mut(id as usize)) {
        token.1 = TokenType::Unknown;
    }
    let normalizers = steps(&json.normalizer, "normalizers");
    let pre_tokenizers = steps(&json.pre_tokenizer, "pretokenizers");
    let is = |step: &Json, kind: &str| step.get("type").and_then(Json::as_str) == Some(kind);
    // Splitting at white space or replacing runs of spaces: both are `remove_extra_whitespaces` in llama.cpp.
    let collapses = pre_tokenizers.iter().any(|step| is(step, "WhitespaceSplit"))
        || normalizers
            .iter()
            .any(|step| is(step, "Replace") && step.pointer("/pattern/Regex") == Some(&" {2,}".into()));
    let prepends = pre_tokenizers.iter().any(|step| {
        let scheme = step.get("prepend_scheme").and_then(Json::as_str);
        // Files from before `prepend_scheme` have the flag, which defaults to true.
        let flag = step.get("add_prefix_space") != Some(&Json::Bool(false));
        is(step, "Metaspace") && scheme.map_or(flag, |scheme| scheme != "never")
    });
    let mut extra = vec![("remove_extra_whitespaces", GgufValue::Bool(collapses))];
    let table = normalizers.iter().find(|step| is(step, "Precompiled"));
    if let Some(table) = table.and_then(|step| step.get("precompiled_charsmap")?.as_str()) {
        let bytes = STANDARD
            .decode(table)
            .map_err(|_| ConvertError::Tokenizer("its precompiled_charsmap is not base64".to_owned()))?;
        if !bytes.is_empty() {
            extra.push(("precompiled_charsmap", GgufValue::Array(GgufArray::U8(bytes))));
        }
    }
    Ok(Vocabulary {
        model: "t5",
        pre: vec!["default"],
        is_known: true,
        tokens,
        scores: Some(scores),
        merges: Vec::new(),
        add_space_prefix: Some(prepends),
        extra,
    })
}

/// Returns a step, or the steps of a sequence.
fn steps<'a>(step: &'a Json, key: &str) -> Vec<&'a Json> {
    match step.get(key).and_then(Json::as_array) {
        Some(list) => list.iter().collect(),
        None => vec![step],
    }
}

/// Makes the `tokenizer.json` that transformers would make of a unigram model (`SpmConverter`). XLM-RoBERTa's puts four
/// special tokens in place of the first three pieces, and `<mask>` at the end (`XLMRobertaConverter`).
pub(super) fn from_model<'a>(
    model: &SentencePieceModel<'a>,
    config: &mut Map<String, Json>,
    has_xlm_name: bool,
) -> Result<TokenizerJson<'a>, ConvertError> {
    let class = config.get("tokenizer_class").and_then(Json::as_str).unwrap_or_default();
    let is_xlm = class.starts_with("XLMRoberta") || class.is_empty() && has_xlm_name;
    if has_xlm_name && !is_xlm {
        return Err(ConvertError::Tokenizer(format!(
            "it has no tokenizer.json, and how {class} numbers the pieces of its sentencepiece.bpe.model is not known"
        )));
    }
    let (adds_bos, adds_eos) = (class.starts_with("Llama"), class.starts_with("T5"));
    let mut found = TokenizerJson::default();
    let mut pieces = Vec::with_capacity(model.pieces.len() + 2);
    let mut control = Vec::new();
    let own = ["<s>", "<pad>", "</s>", "<unk>"];
    if is_xlm {
        pieces.extend(own.map(|text| (text.into(), 0.0)));
        control.extend(own);
    }
    // The first three pieces are `<unk>`, `<s>` and `</s>`. XLM-RoBERTa was trained with fairseq's numbers, in which
    // four tokens stand there, so that all other ids are one higher than in the file.
    for piece in &model.pieces[if is_xlm { 3.min(model.pieces.len()) } else { 0 }..] {
        let text = String::from_utf8_lossy(piece.text);
        if matches!(piece.kind, ProtoPieceType::Control | ProtoPieceType::UserDefined) {
            let is_special = piece.kind == ProtoPieceType::Control;
            found.added.push(Added::new(pieces.len() as u64, &text, is_special));
        }
        pieces.push((text, f64::from(piece.score)));
    }
    if is_xlm {
        control.push("<mask>");
        pieces.push(("<mask>".into(), 0.0));
    }
    for text in control {
        let id = pieces.iter().position(|(other, _)| other == text).unwrap_or_default();
        found.added.push(Added::new(id as u64, text, true));
    }
    let unknown = model
        .pieces
        .iter()
        .position(|piece| piece.kind == ProtoPieceType::Unknown);
    let table = (!model.table.is_empty())
        .then(|| json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(model.table)}));
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}",
                           "prepend_scheme": if model.add_dummy_prefix { "always" } else { "never" }, "split": true});
    found.decoder = metaspace.clone();
    if is_xlm {
        found.normalizer = table.unwrap_or_default();
        found.pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]});
    } else {
        let mut steps: Vec<Json> = table.into_iter().collect();
        steps.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
        steps.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u{2581}"}));
        found.normalizer = json!({"type": "Sequence", "normalizers": steps});
        found.pre_tokenizer = metaspace;
    }
    found.model = TokenizerModel {
        kind: Some("Unigram".to_owned()),
        vocab: Vocab::Scores(pieces),
        unk_id: if is_xlm { Some(3) } else { unknown.map(|id| id as u64) },
        byte_fallback: Some(model.pieces.iter().any(|piece| piece.kind == ProtoPieceType::Byte)),
        ..TokenizerModel::default()
    };
    let mut names = vec![("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>")];
    if is_xlm {
        names.extend([("pad", "<pad>"), ("cls", "<s>"), ("sep", "</s>"), ("mask", "<mask>")]);
    }
    for (kind, text) in names {
        config.entry(format!("{kind}_token")).or_insert_with(|| text.into());
    }
    if is_xlm {
        let pair = ["<s>", "A", "</s>", "</s>", "B", "</s>"];
        found.post_processor = found.template("<s>", "</s>", &["<s>", "A", "</s>"], &pair)?;
    } else {
        // llama.cpp defaults to T5's behavior for this model type: no BOS, but EOS.
        config.entry("add_bos_token").or_insert(adds_bos.into());
        config.entry("add_eos_token").or_insert(adds_eos.into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &Json) -> Result<Vocabulary, ConvertError> {
        vocabulary(&TokenizerJson::parse(json.to_string().as_bytes())?)
    }

    #[test]
    fn malformed_vocabularies() {
        for vocab in [json!(null), json!([1]), json!([["a"]]), json!([["a", "b"]])] {
            assert!(read(&json!({"model": {"vocab": vocab}})).is_err());
        }
        let bad = json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}, "model": {"vocab": []}});
        assert!(read(&bad).is_err());
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
            let found = read(&json).unwrap();
            assert_eq!(found.add_space_prefix, Some(prepends), "{json}");
            assert_eq!(
                found.extra,
                [("remove_extra_whitespaces", GgufValue::Bool(collapses))],
                "{json}"
            );
            assert_eq!(found.tokens[0], (b"<unk>".to_vec(), TokenType::Unknown));
            assert_eq!(found.scores, Some(vec![0.0, -1.5]));
        }
    }
}
