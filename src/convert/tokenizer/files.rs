//! Contents of a checkpoint's tokenizer files, parsed, and the questions that several files answer together.

use serde_json::{Map, Value as Json};

use super::{Added, json::TokenizerJson, reference::Reference, sentencepiece_proto::SentencePieceModel};

/// Parsed tokenizer files of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct TokenizerFiles<'a> {
    /// `tokenizer.json`, or its equivalent made from other files.
    pub(super) json: Option<TokenizerJson<'a>>,
    /// Results of running the checkpoint's own tokenizer.
    pub(super) reference: Reference,
    /// `tokenizer.model`, if it is a BPE model.
    pub(super) sentencepiece: Option<SentencePieceModel<'a>>,
    /// `tokenizer_config.json`.
    pub(super) config: Map<String, Json>,
    /// `added_tokens.json`.
    pub(super) added: Map<String, Json>,
    /// `generation_config.json`.
    pub(super) generation: Map<String, Json>,
    /// `config.json`.
    pub(super) model: Map<String, Json>,
}

impl TokenizerFiles<'_> {
    /// Returns the added tokens of `tokenizer.json`.
    pub(super) fn added_by_json(&self) -> &[Added] {
        self.json.as_ref().map_or(&[], |json| &json.added)
    }

    /// Returns the added tokens of `tokenizer_config.json`, the only place where slow tokenizers have them.
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

    /// Returns the text of a special token, for example `bos`.
    pub(super) fn special(&self, kind: &str) -> Option<&str> {
        let entry = self.config.get(&format!("{kind}_token"))?;
        let text = entry.as_str().or_else(|| entry.get("content")?.as_str());
        text.filter(|text| !text.is_empty())
    }
}
