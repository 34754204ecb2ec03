//! Special tokens: their ids, which of them are added to texts, and which of them end an answer (`SpecialVocab` in
//! llama.cpp's `gguf-py`, and beyond it all end tokens of `generation_config.json`).

use std::collections::HashMap;

use serde_json::Value as Json;

use super::{TokenizerFiles, Vocabulary};
use crate::gguf::{END_TOKENS_KEY, GgufValue};

/// Kinds of special tokens: the name in `tokenizer_config.json` and the key in GGUF. `seperator` is the format's own
/// spelling.
const KINDS: &[(&str, &str)] = &[
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    ("sep", "seperator_token_id"),
    ("pad", "padding_token_id"),
    ("mask", "mask_token_id"),
    ("eot", "eot_token_id"),
    ("eom", "eom_token_id"),
];
/// Keys for adding special tokens to texts.
const ADDED_TOKENS: &[(&str, &str)] = &[
    ("bos", "add_bos_token"),
    ("eos", "add_eos_token"),
    ("sep", "add_sep_token"),
];
/// Kinds of tokens that end an answer for llama.cpp.
const ENDS: [&str; 3] = ["eos", "eot", "eom"];

/// Limit on end tokens beyond those with a key. llama.cpp returns a metadata value only up to a fixed length, which a
/// list of so many ids fits into.
const MAX_ENDS: usize = 24;

/// Keys of special tokens.
#[derive(Debug)]
pub(super) struct SpecialTokenKeys {
    /// Keys of the format, without `tokenizer.ggml.`.
    pub(super) ggml: Vec<(&'static str, GgufValue)>,
    /// Own keys, for what the format has no key for.
    pub(super) own: Vec<(String, GgufValue)>,
}

/// Special tokens found so far, by kind.
#[derive(Default)]
struct SpecialTokens {
    texts: HashMap<&'static str, String>,
    /// Flag by token kind: true when the token is added to texts.
    added: HashMap<&'static str, bool>,
    ids: HashMap<&'static str, u64>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

/// Returns the keys of special tokens.
pub(super) fn metadata(
    files: &TokenizerFiles<'_>,
    vocabulary: &Vocabulary,
    notes: &mut Vec<String>,
) -> SpecialTokenKeys {
    let mut found = SpecialTokens::default();
    for kind in ["bos", "eos", "unk", "sep", "pad", "mask", "cls"] {
        if let Some(text) = files.special(kind) {
            found.texts.insert(kind, text.to_owned());
        }
    }
    if let Some(json) = &files.json {
        // BERT-like tokenizers name CLS and SEP, but no BOS and EOS.
        found.stand_in("bos", "cls");
        found.stand_in("eos", "sep");
        match json.post_processor.get("processors").and_then(Json::as_array) {
            Some(list) => list.iter().for_each(|processor| found.read_processor(processor)),
            None => found.read_processor(&json.post_processor),
        }
        found.read_normalizer(&json.normalizer, 0);
    }
    // Explicit settings override what the post-processor does, like in `SpecialVocab`.
    for (kind, _) in ADDED_TOKENS {
        let key = format!("add_{kind}_token");
        if let Some(flag) = files.config.get(&key).and_then(Json::as_bool) {
            found.added.insert(kind, flag);
        }
    }
    found.find_ids(files, vocabulary);
    let ends = found.find_ends(files, vocabulary, notes);
    let own = (!ends.is_empty()).then(|| (END_TOKENS_KEY.to_owned(), GgufValue::String(ends.join(","))));
    SpecialTokenKeys {
        ggml: found.keys(),
        own: own.into_iter().collect(),
    }
}

impl SpecialTokens {
    /// Uses the token of one kind for another that has none.
    fn stand_in(&mut self, kind: &'static str, other: &'static str) {
        if !self.texts.contains_key(kind)
            && let Some(text) = self.texts.get(other).cloned()
        {
            self.texts.insert(kind, text);
        }
    }

    fn is(&self, kind: &str, text: &str) -> bool {
        self.texts.get(kind).is_some_and(|known| known == text)
    }

    fn read_processor(&mut self, processor: &Json) {
        match processor.get("type").and_then(Json::as_str) {
            Some("RobertaProcessing" | "BertProcessing") => {
                let text = |key: &str| processor.get(key)?.get(0)?.as_str().map(str::to_owned);
                for (kind, key) in [("bos", "cls"), ("eos", "sep"), ("sep", "sep")] {
                    self.added.insert(kind, true);
                    if let Some(text) = text(key) {
                        self.texts.entry(kind).or_insert(text);
                    }
                }
            }
            Some("TemplateProcessing") => self.read_template(processor),
            _ => {}
        }
    }

    /// Reads a `TemplateProcessing` post-processor, for example `[CLS] A [SEP]` and for pairs `[CLS] A [SEP] B [SEP]`.
    fn read_template(&mut self, processor: &Json) {
        let items = |key: &str| {
            processor
                .get(key)
                .and_then(Json::as_array)
                .map_or(&[][..], Vec::as_slice)
        };
        let special = |item: Option<&Json>| item?.pointer("/SpecialToken/id")?.as_str().map(str::to_owned);
        let single = items("single");
        let (first, last) = match single {
            [first, .., last] => (special(Some(first)), special(Some(last))),
            _ => (None, None),
        };
        if let Some(first) = &first {
            self.texts.entry("bos").or_insert_with(|| first.clone());
            let is_known = self.is("bos", first) || self.is("cls", first);
            self.added.insert("bos", is_known);
        }
        if let Some(last) = &last {
            // The template's last token is EOS. If the configuration names another one, that is the end of a turn.
            if let Some(old) = self.texts.insert("eos", last.clone()).filter(|old| old != last) {
                self.texts.entry("eot").or_insert(old);
            }
            self.added.insert("eos", true);
        }
        let mut pair = items("pair");
        if first.is_some() && special(pair.first()) == first {
            pair = &pair[1..];
        }
        if last.is_some() && special(pair.last()) == last {
            pair = &pair[..pair.len() - 1];
        }
        let sequence = |item: Option<&Json>| item?.pointer("/Sequence/id")?.as_str().map(str::to_owned);
        let is_pair = sequence(pair.first()).as_deref() == Some("A") && sequence(pair.last()).as_deref() == Some("B");
        if is_pair && pair.len() > 2 {
            let between = &pair[1..pair.len() - 1];
            let separates =
                |item: Option<&Json>| special(item).is_some_and(|text| self.is("sep", &text) || self.is("eos", &text));
            // If EOS follows every text, it separates the texts already, unless a second token follows it.
            let adds = separates(between.first()) && last.is_none() || between.len() == 2 && separates(between.get(1));
            self.added.insert("sep", adds);
        }
    }

    fn read_normalizer(&mut self, normalizer: &Json, depth: u32) {
        let flag = |key: &str| normalizer.get(key).and_then(Json::as_bool);
        match normalizer.get("type").and_then(Json::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                self.lowercase = flag("lowercase").or(self.lowercase);
                self.strip_accents = flag("strip_accents").or(self.strip_accents);
            }
            // The depth is bounded, because the file is not trusted.
            Some("Sequence") if depth < 4 => {
                let inner = normalizer.get("normalizers").and_then(Json::as_array);
                inner
                    .into_iter()
                    .flatten()
                    .for_each(|normalizer| self.read_normalizer(normalizer, depth + 1));
            }
            _ => {}
        }
    }

    fn find_ids(&mut self, files: &TokenizerFiles<'_>, vocabulary: &Vocabulary) {
        let of_config = files.added_by_config();
        let added = || files.added_by_json().iter().chain(&of_config);
        let count = vocabulary.tokens.len() as u64;
        for (kind, _) in KINDS {
            let by_text = self.texts.get(kind).and_then(|text| {
                let added = added().find(|token| token.text == *text).map(|token| token.id);
                added.or_else(|| vocabulary.id(text))
            });
            let by_number = || {
                let key = format!("{kind}_token_id");
                let of_text = || files.model.get("text_config")?.get(&key)?.as_u64();
                files.model.get(&key).and_then(Json::as_u64).or_else(of_text)
            };
            // llama.cpp would replace an id outside of the vocabulary by a default.
            // The text takes precedence over the ids in `config.json`, like in `SpecialVocab`.
            if let Some(id) = by_text.or_else(by_number).filter(|id| *id < count) {
                self.ids.insert(kind, id);
            }
        }
    }

    /// Collects the end tokens of all files. The format has keys for three of them; if there are more, returns all ids
    /// for [`END_TOKENS_KEY`], else none.
    fn find_ends(
        &mut self,
        files: &TokenizerFiles<'_>,
        vocabulary: &Vocabulary,
        notes: &mut Vec<String>,
    ) -> Vec<String> {
        let of_text = files.model.get("text_config").and_then(|text| text.get("eos_token_id"));
        let named = [
            files.generation.get("eos_token_id"),
            files.model.get("eos_token_id"),
            of_text,
        ];
        let named = named.into_iter().flatten();
        let named = named.flat_map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice));
        let count = vocabulary.tokens.len() as u64;
        let named = named.filter_map(Json::as_u64).filter(|id| *id < count);
        let mut more = Vec::new();
        for id in named {
            let mut known = ENDS.iter().filter_map(|kind| self.ids.get(kind));
            if known.any(|known| *known == id) || more.contains(&id) {
                continue;
            }
            match ENDS.iter().find(|kind| !self.ids.contains_key(*kind)) {
                // Any of the three keys will do: llama.cpp stops at their tokens alike.
                Some(kind) => {
                    self.ids.insert(kind, id);
                }
                None if more.len() == MAX_ENDS => {
                    notes.push(format!(
                        "the checkpoint names more than {MAX_ENDS} additional end tokens; some are ignored"
                    ));
                    break;
                }
                None => more.push(id),
            }
        }
        if !self.ids.contains_key("eos") {
            notes.push("no file of the checkpoint names the token that ends a text".to_owned());
        }
        if more.is_empty() {
            return Vec::new();
        }
        let all = ENDS.iter().filter_map(|kind| self.ids.get(kind)).chain(&more);
        all.map(u64::to_string).collect()
    }

    fn keys(self) -> Vec<(&'static str, GgufValue)> {
        let ids = KINDS.iter().filter_map(|(kind, key)| {
            let id = u32::try_from(*self.ids.get(kind)?).ok()?;
            Some((*key, GgufValue::U32(id)))
        });
        let frames = ADDED_TOKENS
            .iter()
            .filter_map(|(kind, key)| Some((*key, GgufValue::Bool(*self.added.get(kind)?))));
        let normalizer = [
            ("normalizer.lowercase", self.lowercase),
            ("normalizer.strip_accents", self.strip_accents),
        ];
        let normalizer = normalizer
            .into_iter()
            .filter_map(|(key, flag)| Some((key, GgufValue::Bool(flag?))));
        ids.chain(frames).chain(normalizer).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::convert::tokenizer::{TokenType, json::TokenizerJson};

    /// Stands for our own key.
    const OWN: &str = "own";

    fn keys(
        config: Json,
        json: Json,
        model: Json,
        generation: Json,
    ) -> (HashMap<&'static str, GgufValue>, Vec<String>) {
        let object = |value: Json| value.as_object().cloned().unwrap_or_default();
        let text = json.to_string();
        let files = TokenizerFiles {
            json: Some(TokenizerJson::parse(text.as_bytes()).unwrap()),
            config: object(config),
            model: object(model),
            generation: object(generation),
            ..TokenizerFiles::default()
        };
        let tokens = ["a", "<s>", "</s>", "<end>", "<more>", "<last>"];
        let vocabulary = Vocabulary {
            model: "gpt2",
            pre: vec!["gpt-2"],
            is_known: true,
            tokens: tokens
                .map(|text| (text.as_bytes().to_vec(), TokenType::Normal))
                .to_vec(),
            scores: None,
            merges: Vec::new(),
            add_space_prefix: None,
            extra: Vec::new(),
        };
        let mut notes = Vec::new();
        let found = metadata(&files, &vocabulary, &mut notes);
        let own = found.own.into_iter().map(|(_, value)| (OWN, value));
        (found.ggml.into_iter().chain(own).collect(), notes)
    }

    #[test]
    fn all_ends_of_an_answer() {
        let (keys, notes) = keys(
            json!({"eos_token": {"content": "<end>"}}),
            json!({}),
            json!({"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 99}),
            json!({"eos_token_id": [3, 4, 5, 99]}),
        );
        assert_eq!(keys["eos_token_id"], GgufValue::U32(3));
        assert_eq!(keys["eot_token_id"], GgufValue::U32(4));
        assert_eq!(keys["eom_token_id"], GgufValue::U32(5));
        assert_eq!(keys["bos_token_id"], GgufValue::U32(1));
        assert!(!keys.contains_key("padding_token_id"), "it is out of range");
        assert_eq!(keys[OWN], GgufValue::String("3,4,5,2".to_owned()));
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn no_end_is_said() {
        let (keys, notes) = keys(json!({}), json!({}), json!({}), json!({}));
        assert!(keys.is_empty());
        assert!(notes[0].contains("ends a text"));
    }

    #[test]
    fn frames() {
        let special = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let sequence = |text: &str| json!({"Sequence": {"id": text, "type_id": 0}});
        let template = |single: Vec<Json>, pair: Vec<Json>| {
            json!({"post_processor": {"type": "Sequence", "processors": [
                {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": single, "pair": pair}]}})
        };
        let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
        let (found, _) = keys(
            config.clone(),
            template(
                vec![special("<s>"), sequence("A")],
                vec![special("<s>"), sequence("A"), special("<s>"), sequence("B")],
            ),
            json!({}),
            json!({}),
        );
        assert_eq!(found["add_bos_token"], GgufValue::Bool(true));
        assert_eq!(found["add_sep_token"], GgufValue::Bool(false));
        assert!(!found.contains_key("add_eos_token"));

        let (found, _) = keys(
            config.clone(),
            template(
                vec![special("<s>"), sequence("A"), special("<end>")],
                vec![
                    special("<s>"),
                    sequence("A"),
                    special("<end>"),
                    special("<end>"),
                    sequence("B"),
                    special("<end>"),
                ],
            ),
            json!({}),
            json!({}),
        );
        assert_eq!(found["add_eos_token"], GgufValue::Bool(true));
        assert_eq!(found["eos_token_id"], GgufValue::U32(3));
        assert_eq!(found["eot_token_id"], GgufValue::U32(2));
        assert_eq!(found["add_sep_token"], GgufValue::Bool(true));

        let (found, _) = keys(
            json!({"add_bos_token": false}),
            json!({"post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]},
                   "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "StripAccents"}]}}),
            json!({}),
            json!({}),
        );
        assert_eq!(
            found["add_bos_token"],
            GgufValue::Bool(false),
            "the configuration has the last word"
        );
        assert_eq!(found["seperator_token_id"], GgufValue::U32(2));
        assert_eq!(found["bos_token_id"], GgufValue::U32(1));
        assert_eq!(found["normalizer.lowercase"], GgufValue::Bool(true));
        assert_eq!(found["normalizer.strip_accents"], GgufValue::Bool(true));
    }
}
