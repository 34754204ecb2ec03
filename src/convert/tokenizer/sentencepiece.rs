//! SentencePiece BPE, the tokenizer of Llama 2, Mistral and Gemma: from its own `tokenizer.model`, a protocol buffer
//! (`sentencepiece_model.proto`), or from a `tokenizer.json` that was made from one.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::{
    Added, TokenType, TokenizerFiles, Vocabulary,
    json::TokenizerJson,
    looks_special,
    sentencepiece_proto::{MAX_PIECES, ProtoPieceType, SentencePieceModel},
    texts_by_id,
};
use crate::convert::ConvertError;

/// The character that stands for a space in a vocabulary.
pub(super) const SPACE: &str = "\u{2581}";
/// Score of placeholders, which no text becomes.
pub(super) const UNUSED_SCORE: f32 = -10000.0;
/// Score of added tokens. They are found before scores matter (`_create_vocab_sentencepiece` in llama.cpp's converter).
const ADDED_SCORE: f32 = -1000.0;
/// Score of tokens that no merge makes.
const UNREACHABLE_SCORE: f32 = -1e6;
/// Makes the vocabulary of a BPE `tokenizer.model`.
pub(super) fn from_model(
    files: &TokenizerFiles<'_>,
    model: &SentencePieceModel<'_>,
) -> Result<Vocabulary, ConvertError> {
    let pieces = &model.pieces;
    let mut tokens: Vec<(Vec<u8>, TokenType)> = Vec::with_capacity(pieces.len());
    let mut scores = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let kind = match piece.kind {
            ProtoPieceType::Unknown => TokenType::Unknown,
            ProtoPieceType::Control => TokenType::Control,
            ProtoPieceType::Unused => TokenType::Unused,
            ProtoPieceType::Byte => TokenType::Byte,
            // Like in the converter, user-defined pieces count only if `tokenizer_config.json` lists them.
            ProtoPieceType::Normal | ProtoPieceType::UserDefined => TokenType::Normal,
        };
        tokens.push((piece.text.to_vec(), kind));
        scores.push(piece.score);
    }
    let added = files
        .added
        .iter()
        .filter_map(|(text, id)| Some(Added::new(id.as_u64()?, text, false)));
    for token in added {
        add(
            &mut tokens,
            &mut scores,
            token.id,
            (token.text.into_bytes(), TokenType::UserDefined),
        )?;
    }
    // Second, so that it overrides `added_tokens.json`, which does not say which tokens are special.
    for token in files.added_by_config() {
        let typed = typed(token.special, &token.text);
        add(&mut tokens, &mut scores, token.id, typed)?;
    }
    let from_config = files.config.get("add_prefix_space").and_then(Json::as_bool);
    Ok(Vocabulary {
        model: "llama",
        pre: vec!["default"],
        is_known: true,
        tokens,
        scores: Some(scores),
        merges: Vec::new(),
        // llama.cpp defaults to true, so only false is written.
        add_space_prefix: from_config.or((!model.add_dummy_prefix).then_some(false)),
        extra: Vec::new(),
    })
}

/// Returns an added token as it is stored: control tokens verbatim, others with spaces.
fn typed(special: bool, text: &str) -> (Vec<u8>, TokenType) {
    if special || looks_special(text) {
        (text.as_bytes().to_vec(), TokenType::Control)
    } else {
        // llama.cpp looks for added tokens in the text itself, before it replaces spaces.
        (text.replace(SPACE, " ").into_bytes(), TokenType::UserDefined)
    }
}

/// Puts an added token at its id, after the trained ones or in place of one of them.
fn add(
    tokens: &mut Vec<(Vec<u8>, TokenType)>,
    scores: &mut Vec<f32>,
    id: u64,
    token: (Vec<u8>, TokenType),
) -> Result<(), ConvertError> {
    if id >= MAX_PIECES as u64 {
        return Err(ConvertError::Tokenizer(format!("an added token has the id {id}")));
    }
    let id = id as usize;
    for gap in tokens.len()..=id {
        tokens.push((format!("[PAD{gap}]").into_bytes(), TokenType::Unused));
        scores.push(UNUSED_SCORE);
    }
    tokens[id] = token;
    scores[id] = ADDED_SCORE;
    Ok(())
}

/// Makes the vocabulary of a `tokenizer.json` that was made from a SentencePiece BPE model.
///
/// That form has no scores. But llama.cpp merges the pair with the highest score first, and the file lists merges in
/// the order of their scores, so the negated rank of the merge that makes a token restores the order.
pub(super) fn from_json(json: &TokenizerJson<'_>) -> Result<Vocabulary, ConvertError> {
    let pairs = json
        .model
        .ids()?
        .chain(json.added.iter().map(|token| (token.text.as_str(), token.id)));
    let texts = texts_by_id(pairs)?;
    let mut ranks = HashMap::new();
    for (rank, (left, right)) in json.model.merges()?.iter().enumerate() {
        // Several merges may make a token. The first of them has the highest priority.
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let unknown = json.model.unk_token.as_deref();
    let mut tokens = Vec::with_capacity(texts.len());
    let mut scores = Vec::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        let (kind, score) = match text {
            None => (TokenType::Unused, UNUSED_SCORE),
            Some(text) if Some(*text) == unknown => (TokenType::Unknown, 0.0),
            Some(text) if is_byte(text) => (TokenType::Byte, 0.0),
            Some(text) => match ranks.get(*text) {
                Some(rank) => (TokenType::Normal, -(*rank as f32)),
                None => (TokenType::Normal, UNREACHABLE_SCORE),
            },
        };
        let text = text.map_or_else(|| format!("[PAD{id}]"), str::to_owned);
        tokens.push((text.into_bytes(), kind));
        scores.push(score);
    }
    for token in &json.added {
        let at = token.id as usize;
        // `<unk>` is an added token, too, but must keep its type.
        if tokens[at].1 != TokenType::Unknown {
            tokens[at] = typed(token.special, &token.text);
        }
        scores[at] = 0.0;
    }
    Ok(Vocabulary {
        model: "llama",
        pre: vec!["default"],
        is_known: true,
        tokens,
        scores: Some(scores),
        merges: Vec::new(),
        add_space_prefix: Some(prepends_space(json)),
        extra: Vec::new(),
    })
}

/// Returns true for a token that stands for a byte, for example `<0x0A>`.
pub(super) fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Returns true if the normalizer or the pre-tokenizer adds a space before a text.
fn prepends_space(json: &TokenizerJson<'_>) -> bool {
    let normalizer = &json.normalizer;
    let inner = normalizer.get("normalizers").and_then(Json::as_array);
    let mut all = std::iter::once(normalizer).chain(inner.into_iter().flatten());
    let prepends = all.any(|one| one.get("type").and_then(Json::as_str) == Some("Prepend"));
    let scheme = json.pre_tokenizer.get("prepend_scheme").and_then(Json::as_str);
    prepends || matches!(scheme, Some("always" | "first"))
}

#[cfg(test)]
mod tests {
    use super::{super::sentencepiece_proto::parse, *};

    const MODEL: &[u8] = include_bytes!("../../../fixtures/convert/tokenizers/spm/tokenizer.model");

    #[test]
    fn a_model_of_sentencepiece() {
        let model = parse(MODEL).unwrap();
        assert_eq!((model.pieces.len(), model.kind, model.add_dummy_prefix), (292, 2, true));
        assert_eq!(
            (model.pieces[0].text, model.pieces[0].kind),
            (&b"<unk>"[..], ProtoPieceType::Unknown)
        );
        assert_eq!(
            (model.pieces[13].text, model.pieces[13].kind),
            (&b"<0x0A>"[..], ProtoPieceType::Byte)
        );
        let vocabulary = from_model(&TokenizerFiles::default(), &model).unwrap();
        assert_eq!(vocabulary.add_space_prefix, None);
        assert_eq!(vocabulary.tokens[1], (b"<s>".to_vec(), TokenType::Control));
        assert_eq!(vocabulary.scores.unwrap().len(), 292);
    }

    #[test]
    fn scores_from_the_order_of_merges() {
        let json = serde_json::json!({
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}]},
            "model": {
                "unk_token": "<unk>",
                "vocab": {"<unk>": 0, "<s>": 1, "<0x41>": 2, "a": 3, "b": 4, "ab": 5, "ba": 6},
                "merges": [["b", "a"], ["a", "b"]],
            },
            "added_tokens": [
                {"id": 0, "content": "<unk>", "special": true},
                {"id": 1, "content": "<s>", "special": true},
            ],
        });
        let text = json.to_string();
        let vocabulary = from_json(&TokenizerJson::parse(text.as_bytes()).unwrap()).unwrap();
        assert_eq!(vocabulary.scores.unwrap(), [0.0, 0.0, 0.0, -1e6, -1e6, -1.0, 0.0]);
        let kinds: Vec<TokenType> = vocabulary.tokens.iter().map(|(_, kind)| *kind).collect();
        use TokenType::{Byte, Control, Normal, Unknown};
        assert_eq!(kinds, [Unknown, Control, Byte, Normal, Normal, Normal, Normal]);
        assert_eq!(vocabulary.add_space_prefix, Some(true));
    }
}
