//! Contents of a checkpoint's tokenizer files, parsed, and the questions that several files answer together.

use serde_json::{Map, Value as Json};

use super::{Added, json::TokenizerJson, reference::Reference, sentencepiece::SentencePieceModel};

/// What a checkpoint says of its tokenizer.
#[derive(Debug, Default)]
pub(super) struct TokenizerFiles<'a> {
    /// `tokenizer.json`, or what stands for it.
    pub(super) json: Option<TokenizerJson<'a>>,
    /// What the reference implementation makes of it.
    pub(super) reference: Reference,
    /// `tokenizer.model`, if it is a model of BPE.
    pub(super) sentencepiece: Option<SentencePieceModel<'a>>,
    /// `tokenizer_config.json`.
    pub(super) config: Map<String, Json>,
    /// `added_tokens.json`.
    pub(super) added: Map<String, Json>,
    pub(super) generation: Map<String, Json>,
    pub(super) model: Map<String, Json>,
}

impl TokenizerFiles<'_> {
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
