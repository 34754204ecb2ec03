//! The checkpoint's own tokenizer, run by the reference implementation (the `tokenizers` crate).
//!
//! It is built from the borrowed vocabulary, since the crate would parse the file into a tree of JSON values twice. All
//! questions are asked at once, so that its memory is freed before the metadata is assembled.

use std::{borrow::Cow, collections::HashMap};

use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    models::{
        bpe::{self, BPE},
        unigram::Unigram,
        wordpiece::WordPiece,
    },
};

use super::{
    Added, check,
    json::{TokenizerJson, TokenizerModel, Vocab},
    pre_hashes::{BY_HASH, TEXT},
};
use crate::{convert::ConvertError, stdx::hex};

/// Answers of the reference implementation.
#[derive(Debug, Default)]
pub(super) struct Reference {
    /// Name of the pre-tokenizer, if llama.cpp's converter recognizes the tokenizer by its output
    /// (`get_vocab_base_pre`).
    pub(super) pre: Option<&'static str>,
    /// Added tokens that are not normalized, encoded and decoded again, by id.
    pub(super) round_trips: HashMap<u64, String>,
    /// True when a token is added before texts.
    pub(super) adds_bos: Option<bool>,
    /// Sample texts and their token ids.
    pub(super) samples: Vec<(String, Vec<u32>)>,
}

impl Reference {
    /// Builds the tokenizer and asks everything.
    pub(super) fn ask(json: &TokenizerJson<'_>) -> Result<Self, ConvertError> {
        let tokenizer = build(json)?;
        let mut round_trips = HashMap::new();
        for token in json.added.iter().filter(|token| !token.normalized) {
            let ids = encode(&tokenizer, &token.text, false)?;
            let text = tokenizer.decode(&ids, false);
            round_trips.insert(token.id, text.map_err(|error| failed(&token.text, &error))?);
        }
        let mut samples = Vec::new();
        for text in check::texts(&json.added) {
            let ids = encode(&tokenizer, &text, false)?;
            samples.push((text, ids));
        }
        let (bare, framed) = (encode(&tokenizer, "x", false)?, encode(&tokenizer, "x", true)?);
        Ok(Self {
            // A token may be added before or after the text: only one before changes its beginning.
            adds_bos: Some(framed.len() > bare.len() && !framed.starts_with(&bare)),
            // With special tokens, like the converter: the tokenizers of Llama 3 that add BOS are known by it.
            pre: by_hash(&encode(&tokenizer, TEXT, true)?),
            round_trips,
            samples,
        })
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, adds_special: bool) -> Result<Vec<u32>, ConvertError> {
    let encoding = tokenizer.encode(text, adds_special);
    Ok(encoding.map_err(|error| failed(text, &error))?.get_ids().to_vec())
}

fn failed(text: &str, error: &tokenizers::Error) -> ConvertError {
    ConvertError::Tokenizer(format!("{text:?} cannot be encoded: {error}"))
}

/// Returns the pre-tokenizer whose hash these ids of the test text have.
fn by_hash(ids: &[u32]) -> Option<&'static str> {
    // Python's `str(list)`, which the converter hashes, happens to be the format of Rust's Debug.
    let hash = Sha256::digest(format!("{ids:?}"));
    let hash = hex::encode(hash);
    let found = BY_HASH.binary_search_by(|(known, _)| (*known).cmp(&hash));
    found.ok().map(|at| BY_HASH[at].1)
}

/// Builds the tokenizer, without the truncation and padding that some files ask for: they would change the ids.
fn build(json: &TokenizerJson<'_>) -> Result<Tokenizer, ConvertError> {
    let wrong = |error: tokenizers::Error| ConvertError::Tokenizer(format!("its tokenizer does not load: {error}"));
    let mut tokenizer = Tokenizer::new(model(&json.model)?);
    tokenizer
        .with_normalizer(step::<NormalizerWrapper>("normalizer", &json.normalizer)?)
        .map_err(wrong)?;
    tokenizer.with_pre_tokenizer(step::<PreTokenizerWrapper>("pre-tokenizer", &json.pre_tokenizer)?);
    tokenizer.with_post_processor(step::<PostProcessorWrapper>("post-processor", &json.post_processor)?);
    tokenizer.with_decoder(step::<DecoderWrapper>("decoder", &json.decoder)?);
    // The order matters: tokens that are not in the vocabulary get consecutive ids.
    let added = json.added.iter().map(|token| AddedToken {
        content: token.text.clone(),
        single_word: token.single_word,
        lstrip: token.lstrip,
        rstrip: token.rstrip,
        normalized: token.normalized,
        special: token.special,
    });
    tokenizer.add_tokens(added).map_err(wrong)?;
    Ok(tokenizer)
}

fn step<T: DeserializeOwned>(what: &str, json: &Json) -> Result<Option<T>, ConvertError> {
    serde_json::from_value(json.clone())
        .map_err(|error| ConvertError::Tokenizer(format!("its {what} is not supported: {error}")))
}

fn model(model: &TokenizerModel<'_>) -> Result<ModelWrapper, ConvertError> {
    let wrong = |error: tokenizers::Error| ConvertError::Tokenizer(format!("its vocabulary does not load: {error}"));
    match model.kind() {
        "BPE" => Ok(bpe(model)?.into()),
        "WordPiece" => {
            let mut builder = WordPiece::builder().vocab(ids(model)?);
            if let Some(text) = &model.unk_token {
                builder = builder.unk_token(text.clone());
            }
            if let Some(prefix) = &model.continuing_subword_prefix {
                builder = builder.continuing_subword_prefix(prefix.clone());
            }
            if let Some(most) = model.max_input_chars_per_word.and_then(|most| most.try_into().ok()) {
                builder = builder.max_input_chars_per_word(most);
            }
            Ok(builder.build().map_err(wrong)?.into())
        }
        "Unigram" => {
            let Vocab::Scores(list) = &model.vocab else {
                return Err(ConvertError::Tokenizer("its vocabulary has no scores".to_owned()));
            };
            let list: Vec<(String, f64)> = list.iter().map(|(text, score)| (text.to_string(), *score)).collect();
            let unknown = model.unk_id.map(|id| usize::try_from(id).unwrap_or(usize::MAX));
            let unigram = Unigram::from(list, unknown, model.byte_fallback.unwrap_or_default());
            Ok(unigram.map_err(wrong)?.into())
        }
        other => Err(ConvertError::Tokenizer(format!(
            "its model is of type {other:?}, which is not supported yet"
        ))),
    }
}

fn ids(model: &TokenizerModel<'_>) -> Result<bpe::Vocab, ConvertError> {
    model
        .ids()?
        .map(|(text, id)| {
            let id = u32::try_from(id);
            let id = id.map_err(|_| ConvertError::Tokenizer(format!("the id of the token {text:?} is too large")))?;
            Ok((text.to_owned(), id))
        })
        .collect()
}

fn bpe(model: &TokenizerModel<'_>) -> Result<BPE, ConvertError> {
    let vocab = ids(model)?;
    let prefix = model.continuing_subword_prefix.clone().unwrap_or_default();
    let merges = model.merges()?;
    // The builder does not check this, and would panic.
    for (left, right) in merges {
        let rest = right.get(prefix.len()..);
        let is_known = |text: &str| vocab.contains_key(text);
        let made = rest.map(|rest| format!("{left}{rest}"));
        if !is_known(left) || !is_known(right) || !made.is_some_and(|made| is_known(&made)) {
            return Err(ConvertError::Tokenizer(format!(
                "the merge of {left:?} and {right:?} is not one of tokens of the vocabulary"
            )));
        }
    }
    let owned = |text: &Cow<'_, str>| text.to_string();
    let merges = merges.iter().map(|(left, right)| (owned(left), owned(right)));
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, merges.collect())
        .fuse_unk(model.fuse_unk.unwrap_or_default())
        .byte_fallback(model.byte_fallback.unwrap_or_default())
        .ignore_merges(model.ignore_merges.unwrap_or_default())
        // Only some texts are encoded: a cache would cost memory for nothing.
        .cache_capacity(0);
    if let Some(text) = &model.unk_token {
        builder = builder.unk_token(text.clone());
    }
    if model.continuing_subword_prefix.is_some() {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = &model.end_of_word_suffix {
        builder = builder.end_of_word_suffix(suffix.clone());
    }
    builder
        .build()
        .map_err(|error| ConvertError::Tokenizer(format!("its vocabulary does not load: {error}")))
}

impl Added {
    /// Returns the text that llama.cpp must look for: it searches before normalization, so a token that the normalizer
    /// changes is replaced by its decoded form (`get_vocab_base` in the converter).
    pub(super) fn as_found<'a>(&'a self, reference: &'a Reference) -> &'a str {
        reference.round_trips.get(&self.id).unwrap_or(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(BY_HASH.is_sorted_by(|one, two| one.0 < two.0));
        assert_eq!(BY_HASH.len(), 96);
        // The text of llama.cpp's converter, to the last byte.
        let hash = hex::encode(Sha256::digest(TEXT));
        assert_eq!(hash, "a36179c1e2b1cfcfbfad1dc779addad2ffc778201e4cf0d538bddeafa2c526da");
    }

    /// The builder of the reference implementation would panic.
    #[test]
    fn merges_that_make_no_token() {
        for (prefix, merges) in [
            ("", r#"[["a", "b"], ["ab", "ab"]]"#),
            ("", r#"[["a", "c"]]"#),
            ("##", r#"[["a", "b"]]"#),
            ("\u{e9}", r#"[["a", "b\u00e9"]]"#),
        ] {
            let text = format!(
                r#"{{"model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1, "ab": 2, "b\u00e9": 3}}, "merges": {merges},
                     "continuing_subword_prefix": {prefix:?}}}}}"#
            );
            let json = TokenizerJson::parse(text.as_bytes()).unwrap();
            let error = Reference::ask(&json).unwrap_err().to_string();
            assert!(error.contains("the merge of"), "{error}");
        }
    }

    #[test]
    fn one_answer() {
        let text = r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
            "added_tokens": [{"id": 3, "content": "<x>", "normalized": false}]}"#;
        let reference = Reference::ask(&TokenizerJson::parse(text.as_bytes()).unwrap()).unwrap();
        assert_eq!(reference.pre, None);
        assert_eq!(reference.round_trips[&3], "<x>");
        let (text, ids) = reference.samples.last().unwrap();
        assert_eq!((text.as_str(), ids.as_slice()), ("one <x>two<x> three", &[3, 3][..]));
    }
}
