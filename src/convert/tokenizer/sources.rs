//! Reading of the files that hold a tokenizer. Of several vocabularies the first of `tokenizer.json`, `tekken.json`,
//! `vocab.json` with `merges.txt`, and `vocab.txt` is used; a SentencePiece BPE model takes precedence over all of
//! them.

use std::path::Path;

use super::{
    files::TokenizerFiles, json::TokenizerJson, plain, reference::Reference, sentencepiece_proto, tekken, unigram,
};
use crate::convert::{ConvertError, files};

/// Bytes of the file with the vocabulary. What is parsed borrows from them.
#[derive(Debug)]
pub(super) enum VocabularySource {
    /// `tokenizer.json`.
    Json(Vec<u8>),
    /// `tekken.json`, Mistral's format.
    Tekken(Vec<u8>),
    /// `vocab.json` and `merges.txt`, GPT-2's format.
    Merges { vocab: Vec<u8>, merges: String },
    /// `vocab.txt`, BERT's format.
    Words(String),
    /// Absence of all these files; there may be a SentencePiece model.
    None,
}

/// Bytes that [`TokenizerFiles`] borrows from.
#[derive(Debug)]
pub(super) struct TokenizerBytes {
    source: VocabularySource,
    /// `tokenizer.model`, or `sentencepiece.bpe.model`, XLM-RoBERTa's name for it.
    sentencepiece: Option<Vec<u8>>,
    has_xlm_name: bool,
}

impl TokenizerBytes {
    pub(super) fn read(folder: &Path) -> Result<Self, ConvertError> {
        let file = |name: &str| files::read_if_there(&folder.join(name), files::MAX_TOKENIZER_BYTES);
        let text = |name: &str| files::text_if_there(&folder.join(name));
        let source = if let Some(bytes) = file("tokenizer.json")? {
            VocabularySource::Json(bytes)
        } else if let Some(bytes) = file("tekken.json")? {
            VocabularySource::Tekken(bytes)
        } else if let (Some(vocab), Some(merges)) = (file("vocab.json")?, text("merges.txt")?) {
            VocabularySource::Merges { vocab, merges }
        } else if let Some(words) = text("vocab.txt")? {
            VocabularySource::Words(words)
        } else {
            VocabularySource::None
        };
        let mut sentencepiece = file("tokenizer.model")?;
        let has_xlm_name = sentencepiece.is_none() && matches!(source, VocabularySource::None);
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

impl<'a> TokenizerFiles<'a> {
    pub(super) fn read(
        folder: &Path,
        bytes: &'a TokenizerBytes,
        notes: &mut Vec<String>,
    ) -> Result<Self, ConvertError> {
        let object =
            |name: &str| Ok::<_, ConvertError>(files::object_if_there(&folder.join(name))?.unwrap_or_default());
        let mut found = Self {
            config: object("tokenizer_config.json")?,
            added: object("added_tokens.json")?,
            generation: object("generation_config.json")?,
            model: object("config.json")?,
            ..Self::default()
        };
        // Old checkpoints have the special tokens only in this file.
        for (key, value) in object("special_tokens_map.json")? {
            found.config.entry(key).or_insert(value);
        }
        found.json = match &bytes.source {
            VocabularySource::Json(bytes) => Some(TokenizerJson::parse(bytes)?),
            VocabularySource::Tekken(bytes) => Some(tekken::read(bytes, &mut found.config)?),
            VocabularySource::Merges { vocab, merges } => Some(plain::from_merges(vocab, merges, &mut found, notes)?),
            VocabularySource::Words(words) => Some(plain::from_words(words, &mut found)?),
            VocabularySource::None => None,
        };
        if let Some(proto) = bytes.sentencepiece.as_deref() {
            match sentencepiece_proto::parse(proto) {
                Some(model) if model.is_bpe() => found.sentencepiece = Some(model),
                // Another program's file, or a unigram model, which `tokenizer.json` describes as well.
                _ if found.json.is_some() => {}
                Some(model) if model.is_unigram() => {
                    found.json = Some(unigram::from_model(&model, &mut found.config, bytes.has_xlm_name)?);
                }
                Some(_) => {
                    return Err(ConvertError::Tokenizer(
                        "its SentencePiece model is neither BPE nor unigram; choose a repository with GGUF files"
                            .to_owned(),
                    ));
                }
                None => {
                    return Err(ConvertError::Tokenizer(
                        "its tokenizer.model is not a SentencePiece model; choose a repository with GGUF files"
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
}
