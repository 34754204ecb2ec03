//! The tokenizer of a checkpoint as GGUF metadata.
//!
//! [`Files`] are what a checkpoint says of its tokenizer, in up to eight files. From them a [`Vocabulary`] is made, by
//! kind: byte-level BPE, WordPiece, SentencePiece's two. `special` finds the ids of special tokens and whether texts are framed
//! by them, `template` the chat templates, wherever they hide.

mod bpe;
mod check;
mod pre;
mod pre_table;
mod sentencepiece;
mod special;
mod template;
mod unigram;
mod wordpiece;

use std::{collections::HashMap, path::Path};

pub use check::reference_tokens;

use serde_json::{Map, Value as Json};

use super::{ConvertError, files};
use crate::gguf::{Array, Strings, Value};

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

/// Which of several readings of the same files an architecture wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// `tokenizer.json` even where there is a `tokenizer.model`.
    pub(super) ignores_sentencepiece: bool,
}

/// What a checkpoint says of its tokenizer.
#[derive(Debug, Default)]
struct Files {
    /// `tokenizer.json`.
    json: Option<Json>,
    /// Its bytes, for the reference implementation.
    bytes: Vec<u8>,
    /// `tokenizer.model`.
    sentencepiece: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    config: Map<String, Json>,
    /// `added_tokens.json`.
    added: Map<String, Json>,
    generation: Map<String, Json>,
    model: Map<String, Json>,
}

/// A token that was added to a trained vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Added {
    id: u64,
    text: String,
    special: bool,
    normalized: bool,
}

/// Tokens by id, with all that the engine must know of them.
#[derive(Debug)]
struct Vocabulary {
    /// `gpt2`, `bert`, `llama` or `t5`.
    model: &'static str,
    pre: String,
    tokens: Vec<(Vec<u8>, TokenType)>,
    scores: Option<Vec<f32>>,
    merges: Vec<String>,
    add_space_prefix: Option<bool>,
    /// More keys, without their common beginning.
    extra: Vec<(&'static str, Value)>,
}

/// The metadata of the tokenizer in a folder, with `rows` tokens: as many as the embedding has rows.
pub(super) fn metadata(
    folder: &Path,
    rows: u64,
    choice: Choice,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Value)>, ConvertError> {
    let files = Files::read(folder)?;
    let mut vocabulary = files.vocabulary(choice, notes)?;
    vocabulary.fit(rows)?;
    let mut out = Vec::new();
    let mut put = |key: &str, value: Value| out.push((format!("tokenizer.ggml.{key}"), value));
    put("model", Value::String(vocabulary.model.to_owned()));
    put("pre", Value::String(vocabulary.pre.clone()));
    let tokens: Strings = vocabulary.tokens.iter().map(|(text, _)| text).collect();
    put("tokens", Value::Array(Array::String(tokens)));
    if let Some(scores) = &vocabulary.scores {
        put("scores", Value::Array(Array::F32(scores.clone())));
    }
    let types = vocabulary.tokens.iter().map(|(_, kind)| *kind as i32).collect();
    put("token_type", Value::Array(Array::I32(types)));
    if !vocabulary.merges.is_empty() {
        put(
            "merges",
            Value::Array(Array::String(vocabulary.merges.iter().collect())),
        );
    }
    if let Some(flag) = vocabulary.add_space_prefix {
        put("add_space_prefix", Value::Bool(flag));
    }
    for (key, value) in std::mem::take(&mut vocabulary.extra) {
        put(key, value);
    }
    for (key, value) in special::metadata(&files, &vocabulary, notes) {
        put(key, value);
    }
    out.extend(template::metadata(folder, &files.config)?);
    Ok(out)
}

impl Files {
    fn read(folder: &Path) -> Result<Self, ConvertError> {
        let object =
            |name: &str| Ok::<_, ConvertError>(files::object_if_there(&folder.join(name))?.unwrap_or_default());
        let path = folder.join("tokenizer.json");
        let bytes = files::read_if_there(&path, files::MAX_TOKENIZER_BYTES)?.unwrap_or_default();
        let json = match bytes.is_empty() {
            true => None,
            false => {
                Some(serde_json::from_slice(&bytes).map_err(|error| ConvertError::damaged(&path, error.to_string()))?)
            }
        };
        let sentencepiece = files::read_if_there(&folder.join("tokenizer.model"), files::MAX_TOKENIZER_BYTES)?;
        Ok(Self {
            json,
            bytes,
            sentencepiece,
            config: object("tokenizer_config.json")?,
            added: object("added_tokens.json")?,
            generation: object("generation_config.json")?,
            model: object("config.json")?,
        })
    }

    fn vocabulary(&self, choice: Choice, notes: &mut Vec<String>) -> Result<Vocabulary, ConvertError> {
        if let Some(proto) = self.sentencepiece.as_deref().filter(|_| !choice.ignores_sentencepiece) {
            return sentencepiece::from_model(self, proto);
        }
        let Some(json) = &self.json else {
            return Err(ConvertError::Tokenizer(
                "the checkpoint has neither a tokenizer.json nor a tokenizer.model".to_owned(),
            ));
        };
        let model = json.pointer("/model").unwrap_or(&Json::Null);
        let kind = model.get("type").and_then(Json::as_str);
        match kind {
            Some("BPE") => bpe::vocabulary(self, json, notes),
            Some("WordPiece") => wordpiece::vocabulary(self, json),
            Some("Unigram") => unigram::vocabulary(self, json),
            // Old files of BPE and WordPiece do not say what they are.
            None if model.get("merges").is_some() => bpe::vocabulary(self, json, notes),
            None if model.get("continuing_subword_prefix").is_some() => wordpiece::vocabulary(self, json),
            other => Err(ConvertError::Tokenizer(format!(
                "tokenizer.json holds a model of type {:?}, which is not supported yet",
                other.unwrap_or("unknown")
            ))),
        }
    }

    /// Tokens that `tokenizer.json` added to its vocabulary.
    fn added_by_json(&self) -> Vec<Added> {
        let list = self.json.as_ref().and_then(|json| json.get("added_tokens")?.as_array());
        list.into_iter()
            .flatten()
            .filter_map(|token| {
                Some(Added {
                    id: token.get("id")?.as_u64()?,
                    ..added(token)?
                })
            })
            .collect()
    }

    /// Tokens that `tokenizer_config.json` added, which old slow tokenizers had there alone.
    fn added_by_config(&self) -> Vec<Added> {
        let list = self.config.get("added_tokens_decoder").and_then(Json::as_object);
        list.into_iter()
            .flatten()
            .filter_map(|(id, token)| {
                Some(Added {
                    id: id.parse().ok()?,
                    ..added(token)?
                })
            })
            .collect()
    }
}

fn added(token: &Json) -> Option<Added> {
    let flag = |key: &str, default| token.get(key).and_then(Json::as_bool).unwrap_or(default);
    Some(Added {
        id: 0,
        text: token.get("content")?.as_str()?.to_owned(),
        special: flag("special", false),
        normalized: flag("normalized", true),
    })
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

/// The pairs of `model.vocab`, an object from text to id.
fn vocabulary_pairs(json: &Json) -> Result<impl Iterator<Item = (&str, u64)>, ConvertError> {
    let object = json.pointer("/model/vocab").and_then(Json::as_object);
    let Some(object) = object.filter(|object| object.values().all(Json::is_u64)) else {
        return Err(ConvertError::Tokenizer("tokenizer.json has no vocabulary".to_owned()));
    };
    Ok(object
        .iter()
        .filter_map(|(text, id)| Some((text.as_str(), id.as_u64()?))))
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
            pre: "default".to_owned(),
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
