//! The tokenizer of a checkpoint as GGUF metadata.
//!
//! [`TokenizerFiles`] are what a checkpoint says of its tokenizer, in up to eight files. From them a [`Vocabulary`] is made, by
//! kind: byte-level BPE, WordPiece, SentencePiece's two. `special` finds the ids of special tokens and whether texts are framed
//! by them, `template` the chat templates, wherever they hide.

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

/// A vocabulary of ten million is a mistake.
const MAX_TOKENS: u64 = 4 << 20;

/// Types of tokens, as llama.cpp numbers them.
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

/// A token that was added to a trained vocabulary.
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
            normalized: !special,
            ..Self::default()
        }
    }
}

/// Tokens by id, with all that the engine must know of them.
#[derive(Debug)]
struct Vocabulary {
    /// `gpt2`, `bert`, `llama` or `t5`.
    model: &'static str,
    /// The pre-tokenizer; more where the first may be the wrong one.
    pre: Vec<&'static str>,
    /// Whether the first of them is one with the same structure.
    is_known: bool,
    tokens: Vec<(Vec<u8>, TokenType)>,
    scores: Option<Vec<f32>>,
    merges: Vec<String>,
    add_space_prefix: Option<bool>,
    /// More keys, without their common beginning.
    extra: Vec<(&'static str, GgufValue)>,
}

/// A tokenizer as metadata; the default is none.
#[derive(Debug, Default)]
pub(super) struct TokenizerMetadata {
    keys: Vec<(String, GgufValue)>,
    pre: Vec<&'static str>,
    /// Whether the structure of the first pre-tokenizer is that of the checkpoint's.
    pub(super) is_known: bool,
    /// Whether the checkpoint's own tokenizer puts a token in front of texts, if the files' keys do not say.
    begins: Option<bool>,
    cuts: Vec<(String, Vec<u32>)>,
}

/// The tokenizer in a folder, with `rows` tokens: as many as the embedding has rows.
pub(super) fn read(folder: &Path, rows: u64, notes: &mut Vec<String>) -> Result<TokenizerMetadata, ConvertError> {
    let bytes = TokenizerBytes::read(folder)?;
    let mut files = TokenizerFiles::read(folder, &bytes, notes)?;
    let mut vocabulary = files.vocabulary(notes)?;
    // What is written from here on takes as much memory as this.
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
    let frames = |key: &str| special.ggml.iter().any(|(known, _)| *known == key);
    let begins = files.reference.begins.filter(|_| !frames("add_bos_token"));
    for (key, value) in special.ggml {
        put(key, value);
    }
    keys.extend(special.own);
    keys.extend(template::metadata(folder, &files.config)?);
    Ok(TokenizerMetadata {
        keys,
        pre: vocabulary.pre,
        is_known: vocabulary.is_known,
        begins,
        cuts: files.reference.cuts,
    })
}

impl TokenizerMetadata {
    /// The keys of a file.
    pub(super) fn keys(&self) -> &[(String, GgufValue)] {
        &self.keys
    }

    /// How many pre-tokenizers there are to try.
    pub(super) fn candidates(&self) -> usize {
        self.pre.len()
    }

    /// Makes a pre-tokenizer that of the file.
    pub(super) fn choose(&mut self, candidate: usize) {
        let Some(name) = self.pre.get(candidate) else {
            return;
        };
        let key = "tokenizer.ggml.pre";
        if let Some((_, value)) = self.keys.iter_mut().find(|(other, _)| other == key) {
            *value = GgufValue::String((*name).to_owned());
        }
        // Some of them put a token in front of texts unless they are told not to.
        let key = "tokenizer.ggml.add_bos_token";
        self.keys.retain(|(other, _)| self.begins.is_none() || other != key);
        if let Some(begins) = self.begins.filter(|_| pre::adds_bos(name)) {
            self.keys.push((key.to_owned(), GgufValue::Bool(begins)));
        }
    }

    /// Texts on which engine and reference are compared. None where there is no reference.
    pub(super) fn texts(&self) -> Vec<String> {
        self.cuts.iter().map(|(text, _)| text.clone()).collect()
    }

    /// Compares what the engine made of the texts with what the checkpoint's own tokenizer makes of them.
    pub(super) fn check(&self, found: &[Vec<i32>]) -> TokenizerCheck {
        TokenizerCheck::new(&self.cuts, found, self.is_known)
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

/// Some models did not mark added tokens as special that are.
fn looks_special(text: &str) -> bool {
    let is_between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || is_between("<|", "|>")
        || is_between("<\u{ff5c}", "\u{ff5c}>")
        || is_between("<unused", ">")
}

/// The vocabulary of a `tokenizer.json`: texts by id, with the gaps closed by `None`.
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
    /// One token for each row of the embedding; rows beyond the tokenizer's tokens get placeholders.
    fn fit(&mut self, rows: u64) -> Result<(), ConvertError> {
        // Added tokens without a row, as that of Gemma 3's pictures in its models of text, can never be used.
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
        // In WordPiece's vocabulary every word has its mark.
        let mark = if self.model == "bert" { sentencepiece::SPACE } else { "" };
        for id in tokens..rows {
            let text = format!("{mark}[PAD{id}]").into_bytes();
            self.tokens.push((text, TokenType::Unused));
            if let Some(scores) = &mut self.scores {
                scores.push(sentencepiece::UNUSED_SCORE);
            }
        }
        // The engine aborts on a text that occurs twice.
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

    /// The id of a token with exactly this text.
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
