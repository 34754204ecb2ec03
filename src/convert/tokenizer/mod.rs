//! The tokenizer of a checkpoint as GGUF metadata (`tokenizer.*` keys).
//!
//! A checkpoint describes its tokenizer in up to eight files, which [`TokenizerFiles`] holds. From them a
//! [`Vocabulary`] is made: `bpe` for byte-level BPE, `wordpiece`, `sentencepiece` and `unigram`. llama.cpp implements
//! pre-tokenizers by name, so `pre` finds the name for the checkpoint's. `special` finds the ids of special tokens and
//! which of them are added to texts, `template` the chat templates. `reference` runs the checkpoint's own tokenizer on
//! sample texts, and `check` compares llama.cpp's output with it.

mod bpe;
mod byte_level;
mod check;
mod files;
mod json;
mod plain;
mod pre;
mod pre_families;
mod pre_hashes;
mod reference;
mod sentencepiece;
mod sentencepiece_proto;
mod sources;
mod special;
mod tekken;
mod template;
mod unigram;
mod wordpiece;

use std::{collections::HashMap, path::Path};

pub use check::TokenizerCheck;

use serde::Deserialize;

use self::{files::TokenizerFiles, sources::TokenizerBytes};
use super::ConvertError;
use crate::gguf::{GgufArray, GgufValue, StringArray};

/// Sanity limit on the size of a vocabulary. Published ones have fewer than 300,000 tokens.
const MAX_TOKENS: u64 = 4 << 20;

/// Type of a token, with the values of llama.cpp's `enum llama_token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// Token that was added to a trained vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Added {
    #[serde(default)]
    id: u64,
    #[serde(rename = "content")]
    text: String,
    #[serde(default)]
    special: bool,
    #[serde(default = "yes")]
    normalized: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

fn yes() -> bool {
    true
}

impl Added {
    fn new(id: u64, text: &str, special: bool) -> Self {
        Self {
            id,
            text: text.to_owned(),
            special,
            // The default of `AddedToken` in the `tokenizers` crate.
            normalized: !special,
            ..Self::default()
        }
    }
}

/// Vocabulary: tokens by id, and everything that llama.cpp needs to use them.
#[derive(Debug)]
struct Vocabulary {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE), `bert` (WordPiece), `llama` (SentencePiece BPE) or `t5`
    /// (unigram).
    model: &'static str,
    /// Names of pre-tokenizers to try, the likeliest first.
    pre: Vec<&'static str>,
    /// True when the first of them has the structure of the checkpoint's.
    is_known: bool,
    /// Bytes, because SentencePiece tokens need not be UTF-8.
    tokens: Vec<(Vec<u8>, TokenType)>,
    scores: Option<Vec<f32>>,
    merges: Vec<String>,
    add_space_prefix: Option<bool>,
    /// Further keys, without `tokenizer.ggml.`.
    extra: Vec<(&'static str, GgufValue)>,
}

/// Tokenizer as metadata. The default, without any key, is that of a projector.
#[derive(Debug, Default)]
pub(super) struct TokenizerMetadata {
    keys: Vec<(String, GgufValue)>,
    pre: Vec<&'static str>,
    /// True when the first pre-tokenizer has the structure of the checkpoint's.
    pub(super) is_known: bool,
    /// True when the checkpoint's own tokenizer adds BOS; `None` if a key says so already.
    adds_bos: Option<bool>,
    /// Sample texts and their expected token ids.
    samples: Vec<(String, Vec<u32>)>,
}

/// Reads the tokenizer in a folder. `rows` is the number of rows of the token embedding, which llama.cpp requires to be
/// the size of the vocabulary.
pub(super) fn read(folder: &Path, rows: u64, notes: &mut Vec<String>) -> Result<TokenizerMetadata, ConvertError> {
    let bytes = TokenizerBytes::read(folder)?;
    let mut files = TokenizerFiles::read(folder, &bytes, notes)?;
    let mut vocabulary = files.vocabulary(notes)?;
    // Freed here, because the metadata below needs as much memory again.
    if let Some(json) = &mut files.json {
        json.model = json::TokenizerModel::default();
    }
    vocabulary.fit(rows)?;
    let mut keys = Vec::new();
    let mut put = |key: &str, value: GgufValue| keys.push((format!("tokenizer.ggml.{key}"), value));
    put("model", GgufValue::String(vocabulary.model.to_owned()));
    put(
        "pre",
        GgufValue::String(vocabulary.pre.first().copied().unwrap_or("default").to_owned()),
    );
    let special = special::metadata(&files, &vocabulary, notes);
    let tokens: StringArray = vocabulary.tokens.iter().map(|(text, _)| text).collect();
    let types = vocabulary.tokens.iter().map(|(_, kind)| *kind as i32).collect();
    vocabulary.tokens = Vec::new();
    put("tokens", GgufValue::Array(GgufArray::String(tokens)));
    if let Some(scores) = vocabulary.scores {
        put("scores", GgufValue::Array(GgufArray::F32(scores)));
    }
    put("token_type", GgufValue::Array(GgufArray::I32(types)));
    // `gguf-py` writes no empty arrays.
    if !vocabulary.merges.is_empty() {
        put(
            "merges",
            GgufValue::Array(GgufArray::String(vocabulary.merges.iter().collect())),
        );
    }
    if let Some(flag) = vocabulary.add_space_prefix {
        put("add_space_prefix", GgufValue::Bool(flag));
    }
    for (key, value) in vocabulary.extra {
        put(key, value);
    }
    let has_key = |key: &str| special.ggml.iter().any(|(known, _)| *known == key);
    let adds_bos = files.reference.adds_bos.filter(|_| !has_key("add_bos_token"));
    for (key, value) in special.ggml {
        put(key, value);
    }
    keys.extend(special.own);
    keys.extend(template::metadata(folder, &files.config)?);
    Ok(TokenizerMetadata {
        keys,
        pre: vocabulary.pre,
        is_known: vocabulary.is_known,
        adds_bos,
        samples: files.reference.samples,
    })
}

impl TokenizerMetadata {
    pub(super) fn keys(&self) -> &[(String, GgufValue)] {
        &self.keys
    }

    /// Returns the number of pre-tokenizers to try.
    pub(super) fn candidates(&self) -> usize {
        self.pre.len()
    }

    /// Selects one of the pre-tokenizers.
    pub(super) fn choose(&mut self, candidate: usize) {
        let Some(name) = self.pre.get(candidate) else {
            return;
        };
        let key = "tokenizer.ggml.pre";
        if let Some((_, value)) = self.keys.iter_mut().find(|(other, _)| other == key) {
            *value = GgufValue::String((*name).to_owned());
        }
        // llama.cpp adds BOS by default for some pre-tokenizers, so the key must be written for these, and only for
        // these.
        let key = "tokenizer.ggml.add_bos_token";
        self.keys.retain(|(other, _)| self.adds_bos.is_none() || other != key);
        if let Some(adds_bos) = self.adds_bos.filter(|_| pre::adds_bos(name)) {
            self.keys.push((key.to_owned(), GgufValue::Bool(adds_bos)));
        }
    }

    /// Returns the texts on which the tokenizers are compared; none if the reference implementation cannot run.
    pub(super) fn texts(&self) -> Vec<String> {
        self.samples.iter().map(|(text, _)| text.clone()).collect()
    }

    /// Compares llama.cpp's token ids of these texts with those of the checkpoint's own tokenizer.
    pub(super) fn check(&self, found: &[Vec<i32>]) -> TokenizerCheck {
        TokenizerCheck::new(&self.samples, found, self.is_known)
    }
}

impl TokenizerFiles<'_> {
    fn vocabulary(&self, notes: &mut Vec<String>) -> Result<Vocabulary, ConvertError> {
        if let Some(model) = &self.sentencepiece {
            return sentencepiece::from_model(self, model);
        }
        let Some(json) = &self.json else {
            return Err(ConvertError::Tokenizer(
                "the checkpoint has none of tokenizer.json, tokenizer.model, tekken.json, vocab.json with merges.txt, \
                 and vocab.txt"
                    .to_owned(),
            ));
        };
        match json.model.kind() {
            "BPE" => bpe::vocabulary(self, json, notes),
            "WordPiece" => wordpiece::vocabulary(self, json),
            "Unigram" => unigram::vocabulary(json),
            other => Err(ConvertError::Tokenizer(format!(
                "its model is of type {other:?}, which is not supported yet"
            ))),
        }
    }
}

/// Returns true for added tokens that are special although they are not marked so (`does_token_look_special` in
/// llama.cpp's converter).
fn looks_special(text: &str) -> bool {
    let is_between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || is_between("<|", "|>")
        || is_between("<\u{ff5c}", "\u{ff5c}>")
        || is_between("<unused", ">")
}

/// Sorts tokens by id. Ids without a token are `None`.
fn texts_by_id<'a>(pairs: impl Iterator<Item = (&'a str, u64)>) -> Result<Vec<Option<&'a str>>, ConvertError> {
    let mut texts = Vec::new();
    for (text, id) in pairs {
        if id >= MAX_TOKENS {
            return Err(ConvertError::Tokenizer(format!("the token {text:?} has the id {id}")));
        }
        let id = id as usize;
        if texts.len() <= id {
            texts.resize(id + 1, None);
        }
        if texts[id].replace(text).is_some_and(|other| other != text) {
            return Err(ConvertError::Tokenizer(format!("two tokens have the id {id}")));
        }
    }
    Ok(texts)
}

impl Vocabulary {
    /// Makes the vocabulary as long as the embedding has rows. Embeddings are often padded to a multiple of 64 or 128:
    /// rows beyond the tokenizer's tokens get placeholders `[PAD<id>]`, like in llama.cpp's converter.
    fn fit(&mut self, rows: u64) -> Result<(), ConvertError> {
        // Added tokens without a row can never be used, for example Gemma 3's image token in its text-only models.
        let is_added = |kind| matches!(kind, TokenType::Control | TokenType::UserDefined | TokenType::Unused);
        while self.tokens.len() as u64 > rows && self.tokens.last().is_some_and(|(_, kind)| is_added(*kind)) {
            self.tokens.pop();
            self.scores.as_mut().map(Vec::pop);
        }
        let tokens = self.tokens.len() as u64;
        if tokens > rows || rows > MAX_TOKENS {
            return Err(ConvertError::Tokenizer(format!(
                "it has {tokens} tokens, but the weights have rows for {rows}"
            )));
        }
        // In llama.cpp's WordPiece vocabularies every word begins with U+2581.
        let mark = if self.model == "bert" { sentencepiece::SPACE } else { "" };
        for id in tokens..rows {
            let text = format!("{mark}[PAD{id}]").into_bytes();
            self.tokens.push((text, TokenType::Unused));
            if let Some(scores) = &mut self.scores {
                scores.push(sentencepiece::UNUSED_SCORE);
            }
        }
        // llama.cpp aborts on a text that occurs twice.
        let mut seen = HashMap::with_capacity(self.tokens.len());
        for (id, (text, _)) in self.tokens.iter().enumerate() {
            if let Some(other) = seen.insert(text, id) {
                let text = String::from_utf8_lossy(text);
                return Err(ConvertError::Tokenizer(format!(
                    "the tokens {other} and {id} are both {text:?}"
                )));
            }
        }
        Ok(())
    }

    /// Returns the id of the token with exactly this text.
    fn id(&self, text: &str) -> Option<u64> {
        let at = self.tokens.iter().position(|(token, _)| token == text.as_bytes());
        at.map(|at| at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_fill_what_the_embedding_has_more() {
        let mut vocabulary = Vocabulary {
            model: "llama",
            pre: vec!["default"],
            is_known: true,
            tokens: vec![(b"a".to_vec(), TokenType::Normal)],
            scores: Some(vec![0.0]),
            merges: Vec::new(),
            add_space_prefix: None,
            extra: Vec::new(),
        };
        vocabulary.fit(3).unwrap();
        assert_eq!(vocabulary.tokens[2], (b"[PAD2]".to_vec(), TokenType::Unused));
        assert_eq!(vocabulary.scores.as_ref().unwrap().len(), 3);
        assert_eq!(vocabulary.id("[PAD1]"), Some(1));
        vocabulary.fit(2).unwrap();
        assert_eq!(
            (vocabulary.tokens.len(), vocabulary.scores.as_ref().unwrap().len()),
            (2, 2)
        );
        assert!(vocabulary.fit(0).unwrap_err().to_string().contains("1 tokens"));
        vocabulary.fit(3).unwrap();
        vocabulary.tokens[2].0 = b"a".to_vec();
        assert!(vocabulary.fit(3).unwrap_err().to_string().contains("both \"a\""));
    }

    #[test]
    fn ids_are_bounded_and_unique() {
        assert_eq!(
            texts_by_id([("b", 2), ("a", 0)].into_iter()).unwrap(),
            [Some("a"), None, Some("b")]
        );
        assert!(texts_by_id([("a", u64::MAX)].into_iter()).is_err());
        assert!(texts_by_id([("a", 1), ("b", 1)].into_iter()).is_err());
    }

    #[test]
    fn special_by_its_looks() {
        for text in ["<|im_start|>", "<pad>", "<unused99>", "<\u{ff5c}end\u{ff5c}>"] {
            assert!(looks_special(text), "{text}");
        }
        for text in ["<tool_call>", "<unused", "|>"] {
            assert!(!looks_special(text), "{text}");
        }
    }
}
