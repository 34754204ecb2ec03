//! The files that hold a tokenizer, of which a checkpoint has some.

use std::path::Path;

use super::{files::TokenizerFiles, json::TokenizerJson, plain, reference::Reference, sentencepiece, tekken, unigram};
use crate::convert::{ConvertError, files};

/// The bytes of the file with the vocabulary, from which what was read of it borrows.
#[derive(Debug)]
pub(super) enum VocabularySource {
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

/// All bytes that [`TokenizerFiles`] borrows from.
#[derive(Debug)]
pub(super) struct TokenizerBytes {
    source: VocabularySource,
    /// `tokenizer.model`, or the name that XLM-RoBERTa has for it.
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
        // Old checkpoints have the names of special tokens there alone.
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
            match sentencepiece::parse(proto) {
                Some(model) if model.is_bpe() => found.sentencepiece = Some(model),
                // Some other program's file, or one whose kind the other file describes as well.
                _ if found.json.is_some() => {}
                Some(model) if model.is_unigram() => {
                    found.json = Some(unigram::from_model(&model, &mut found.config, bytes.has_xlm_name)?);
                }
                Some(_) => {
                    return Err(ConvertError::Tokenizer(
                        "the model of SentencePieceModel is neither BPE nor unigram; choose a repository with GGUF files"
                            .to_owned(),
                    ));
                }
                None => {
                    return Err(ConvertError::Tokenizer(
                        "its tokenizer.model is not one of SentencePieceModel; choose a repository with GGUF files"
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
