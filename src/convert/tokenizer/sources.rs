//! The files that hold a tokenizer, of which a checkpoint has some.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{
    Added,
    json::TokenizerJson,
    plain,
    reference::Reference,
    sentencepiece::{self, SentencePiece},
    tekken, unigram,
};
use crate::convert::{ConvertError, files};

/// The bytes of the file with the vocabulary, from which what was read of it borrows.
#[derive(Debug)]
pub(super) enum Source {
    /// `tokenizer.json`.
    Json(Vec<u8>),
    /// `tekken.json`, Mistral's own.
    Tekken(Vec<u8>),
    /// `vocab.json` and `merges.txt`, as GPT-2 had them.
    Merges { vocab: Vec<u8>, merges: String },
    /// `vocab.txt`, as BERT had it.
    Words(String),
    /// There is a model of SentencePiece, or nothing.
    None,
}

/// What a checkpoint says of its tokenizer.
#[derive(Debug, Default)]
pub(super) struct Files<'a> {
    /// `tokenizer.json`, or what stands for it.
    pub(super) json: Option<TokenizerJson<'a>>,
    /// What the reference implementation makes of it.
    pub(super) reference: Reference,
    /// `tokenizer.model`, if it is a model of BPE.
    pub(super) sentencepiece: Option<SentencePiece<'a>>,
    /// `tokenizer_config.json`.
    pub(super) config: Map<String, Json>,
    /// `added_tokens.json`.
    pub(super) added: Map<String, Json>,
    pub(super) generation: Map<String, Json>,
    pub(super) model: Map<String, Json>,
}

/// All bytes that [`Files`] borrows from.
#[derive(Debug)]
pub(super) struct Bytes {
    source: Source,
    /// `tokenizer.model`, or the name that XLM-RoBERTa has for it.
    sentencepiece: Option<Vec<u8>>,
    has_xlm_name: bool,
}

impl Bytes {
    pub(super) fn read(folder: &Path) -> Result<Self, ConvertError> {
        let file = |name: &str| files::read_if_there(&folder.join(name), files::MAX_TOKENIZER_BYTES);
        let text = |name: &str| files::text_if_there(&folder.join(name));
        let source = if let Some(bytes) = file("tokenizer.json")? {
            Source::Json(bytes)
        } else if let Some(bytes) = file("tekken.json")? {
            Source::Tekken(bytes)
        } else if let (Some(vocab), Some(merges)) = (file("vocab.json")?, text("merges.txt")?) {
            Source::Merges { vocab, merges }
        } else if let Some(words) = text("vocab.txt")? {
            Source::Words(words)
        } else {
            Source::None
        };
        let mut sentencepiece = file("tokenizer.model")?;
        let has_xlm_name = sentencepiece.is_none() && matches!(source, Source::None);
        if has_xlm_name {
            sentencepiece = file("sentencepiece.bpe.model")?;
        }
        Ok(Self {
            source,
            sentencepiece,
            has_xlm_name,
        })
    }
}

impl<'a> Files<'a> {
    pub(super) fn read(folder: &Path, bytes: &'a Bytes, notes: &mut Vec<String>) -> Result<Self, ConvertError> {
        let object =
            |name: &str| Ok::<_, ConvertError>(files::object_if_there(&folder.join(name))?.unwrap_or_default());
        let mut found = Self {
            config: object("tokenizer_config.json")?,
            added: object("added_tokens.json")?,
            generation: object("generation_config.json")?,
            model: object("config.json")?,
            ..Self::default()
        };
        // Old checkpoints have the names of special tokens there alone.
        for (key, value) in object("special_tokens_map.json")? {
            found.config.entry(key).or_insert(value);
        }
        found.json = match &bytes.source {
            Source::Json(bytes) => Some(TokenizerJson::parse(bytes)?),
            Source::Tekken(bytes) => Some(tekken::read(bytes, &mut found.config)?),
            Source::Merges { vocab, merges } => Some(plain::byte_level(vocab, merges, &mut found, notes)?),
            Source::Words(words) => Some(plain::word_piece(words, &mut found)?),
            Source::None => None,
        };
        if let Some(proto) = bytes.sentencepiece.as_deref() {
            match sentencepiece::parse(proto) {
                Some(model) if model.is_bpe() => found.sentencepiece = Some(model),
                // Some other program's file, or one whose kind the other file describes as well.
                _ if found.json.is_some() => {}
                Some(model) if model.is_unigram() => {
                    found.json = Some(unigram::from_model(&model, &mut found.config, bytes.has_xlm_name)?);
                }
                Some(_) => {
                    return Err(ConvertError::Tokenizer(
                        "the model of SentencePiece is neither BPE nor unigram; choose a repository with GGUF files"
                            .to_owned(),
                    ));
                }
                None => {
                    return Err(ConvertError::Tokenizer(
                        "its tokenizer.model is not one of SentencePiece; choose a repository with GGUF files"
                            .to_owned(),
                    ));
                }
            }
        }
        if let Some(json) = &found.json {
            found.reference = Reference::ask(json)?;
        }
        Ok(found)
    }

    /// Tokens that `tokenizer.json` added to its vocabulary.
    pub(super) fn added_by_json(&self) -> &[Added] {
        self.json.as_ref().map_or(&[], |json| &json.added)
    }

    /// Tokens that `tokenizer_config.json` added, which old slow tokenizers had there alone.
    pub(super) fn added_by_config(&self) -> Vec<Added> {
        let list = self.config.get("added_tokens_decoder").and_then(Json::as_object);
        list.into_iter()
            .flatten()
            .filter_map(|(id, token)| {
                let token: Added = serde_json::from_value(token.clone()).ok()?;
                Some(Added {
                    id: id.parse().ok()?,
                    ..token
                })
            })
            .collect()
    }

    /// The text of a kind of special token, as `bos`.
    pub(super) fn special(&self, kind: &str) -> Option<&str> {
        let entry = self.config.get(&format!("{kind}_token"))?;
        let text = entry.as_str().or_else(|| entry.get("content")?.as_str());
        text.filter(|text| !text.is_empty())
    }
}
