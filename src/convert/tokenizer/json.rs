//! `tokenizer.json`, the format of the `tokenizers` crate. Its vocabulary borrows from the file's bytes: the largest
//! files have a quarter of a million tokens and half a million merges, which as a tree of JSON values would take twenty
//! times the size of the file.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value as Json, json, value::RawValue};

use super::{Added, MAX_TOKENS};
use crate::convert::ConvertError;

/// Limit on the JSON of one step before or after the model. The longest published one, a table of characters, has 320
/// kB.
const MAX_STEP_BYTES: usize = 8 << 20;
/// Limit on merges. The largest published vocabularies have two merges for each token.
pub(super) const MAX_MERGES: usize = 3 * MAX_TOKENS as usize;

/// Contents of a `tokenizer.json`.
#[derive(Debug, Default)]
pub(super) struct TokenizerJson<'a> {
    pub(super) normalizer: Json,
    pub(super) pre_tokenizer: Json,
    pub(super) post_processor: Json,
    pub(super) decoder: Json,
    pub(super) added: Vec<Added>,
    pub(super) model: TokenizerModel<'a>,
}

/// Model, which splits words into tokens. Each kind of model has some of the fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TokenizerModel<'a> {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(borrow)]
    pub(super) vocab: Vocab<'a>,
    #[serde(borrow)]
    pub(super) merges: Option<MergeList<'a>>,
    pub(super) unk_token: Option<String>,
    pub(super) unk_id: Option<u64>,
    pub(super) byte_fallback: Option<bool>,
    pub(super) ignore_merges: Option<bool>,
    pub(super) fuse_unk: Option<bool>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    pub(super) max_input_chars_per_word: Option<u64>,
}

/// Vocabulary of a model.
#[derive(Debug, Default)]
pub(super) enum Vocab<'a> {
    #[default]
    None,
    /// Texts and ids, in the order of the file.
    Ids(Vec<(Cow<'a, str>, u64)>),
    /// Texts and scores by id.
    Scores(Vec<(Cow<'a, str>, f64)>),
}

/// Two tokens that are merged.
pub(super) type MergePair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Merges by priority.
#[derive(Debug, Default)]
pub(super) struct MergeList<'a>(pub(super) Vec<MergePair<'a>>);

/// Top level of the file.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    added_tokens: Option<Bounded<Added>>,
    #[serde(borrow, default)]
    model: TokenizerModel<'a>,
}

impl TokenizerJson<'_> {
    /// Returns the id of a token.
    pub(super) fn id(&self, text: &str) -> Result<u64, ConvertError> {
        let added = self.added.iter().find(|token| token.text == text).map(|token| token.id);
        let in_model = || {
            let mut ids = self.model.ids().ok()?;
            ids.find(|(token, _)| *token == text).map(|(_, id)| id)
        };
        added
            .or_else(in_model)
            .ok_or_else(|| ConvertError::Tokenizer(format!("the special token {text:?} is not in its vocabulary")))
    }

    /// Returns a `TemplateProcessing` post-processor that adds the special tokens `first` and `last`. In the items of
    /// `single` and `pair`, `A` and `B` stand for the texts.
    pub(super) fn template(
        &self,
        first: &str,
        last: &str,
        single: &[&str],
        pair: &[&str],
    ) -> Result<Json, ConvertError> {
        let item = |text: &&str| match *text {
            "A" | "B" => json!({"Sequence": {"id": text, "type_id": 0}}),
            text => json!({"SpecialToken": {"id": text, "type_id": 0}}),
        };
        let items = |list: &[&str]| Json::Array(list.iter().map(item).collect());
        let token = |text: &str| Ok::<_, ConvertError>(json!({"id": text, "ids": [self.id(text)?], "tokens": [text]}));
        Ok(json!({
            "type": "TemplateProcessing",
            "single": items(single),
            "pair": items(pair),
            "special_tokens": {first: token(first)?, last: token(last)?},
        }))
    }
}

impl<'a> TokenizerJson<'a> {
    /// Parses a `tokenizer.json`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ConvertError> {
        let wrong = |reason: String| ConvertError::Tokenizer(format!("tokenizer.json is malformed: {reason}"));
        let file: File<'a> = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        let step = |raw: Option<&RawValue>| match raw.map(RawValue::get) {
            None => Ok(Json::Null),
            Some(text) if text.len() > MAX_STEP_BYTES => Err(wrong("a step has more than 8 MiB".to_owned())),
            Some(text) => serde_json::from_str(text).map_err(|error| wrong(error.to_string())),
        };
        Ok(Self {
            normalizer: step(file.normalizer)?,
            pre_tokenizer: step(file.pre_tokenizer)?,
            post_processor: step(file.post_processor)?,
            decoder: step(file.decoder)?,
            added: file.added_tokens.map(|list| list.0).unwrap_or_default(),
            model: file.model,
        })
    }
}

impl<'a> TokenizerModel<'a> {
    /// Returns the kind of model. Old BPE and WordPiece files have no `type`.
    pub(super) fn kind(&self) -> &str {
        match &self.kind {
            Some(kind) => kind,
            None if self.merges.is_some() => "BPE",
            None if self.continuing_subword_prefix.is_some() => "WordPiece",
            None => "unknown",
        }
    }

    /// Iterates over tokens and their ids.
    pub(super) fn ids(&self) -> Result<impl Iterator<Item = (&str, u64)> + Clone, ConvertError> {
        match &self.vocab {
            Vocab::Ids(list) => Ok(list.iter().map(|(text, id)| (text.as_ref(), *id))),
            _ => Err(ConvertError::Tokenizer("tokenizer.json has no vocabulary".to_owned())),
        }
    }

    /// Returns the merges by priority.
    pub(super) fn merges(&self) -> Result<&[MergePair<'a>], ConvertError> {
        let merges = self.merges.as_ref().map(|merges| merges.0.as_slice());
        merges.ok_or_else(|| ConvertError::Tokenizer("tokenizer.json has no merges".to_owned()))
    }
}

/// Text that is borrowed unless it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// List of at most [`MAX_TOKENS`] items.
struct Bounded<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = Bounded<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    check_count::<A::Error>(list.len(), MAX_TOKENS as usize)?;
                    list.push(item);
                }
                Ok(Bounded(list))
            }
        }

        deserializer.deserialize_seq(Items(PhantomData))
    }
}

fn check_count<E: serde::de::Error>(count: usize, most: usize) -> Result<(), E> {
    if count < most {
        return Ok(());
    }
    Err(E::custom(format!("a list has more than {most} items")))
}

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Tokens<'a> {
            type Value = Vocab<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts and ids, or a list of texts and scores")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Vocab::None)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some((Text(text), id)) = map.next_entry::<Text<'a>, u64>()? {
                    check_count::<A::Error>(list.len(), MAX_TOKENS as usize)?;
                    list.push((text, id));
                }
                Ok(Vocab::Ids(list))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some((Text(text), score)) = items.next_element::<(Text<'a>, f64)>()? {
                    check_count::<A::Error>(list.len(), MAX_TOKENS as usize)?;
                    list.push((text, score));
                }
                Ok(Vocab::Scores(list))
            }
        }

        deserializer.deserialize_any(Tokens(PhantomData))
    }
}

/// Merge in the old spelling, `"a b"`, or the new one, `["a", "b"]`. `None` is a comment.
struct Merge<'a>(Option<MergePair<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MergeVisitor<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for MergeVisitor<'a> {
            type Value = Merge<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge of two texts")
            }

            fn visit_borrowed_str<E: serde::de::Error>(self, line: &'de str) -> Result<Self::Value, E> {
                let pair = split_merge(line).map_err(E::custom)?;
                Ok(Merge(pair.map(|(left, right)| (left.into(), right.into()))))
            }

            fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Self::Value, E> {
                // A merge with escapes cannot borrow from the file.
                let pair = split_merge(line).map_err(E::custom)?;
                Ok(Merge(pair.map(|(left, right)| {
                    (left.to_owned().into(), right.to_owned().into())
                })))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut next = || items.next_element::<Text<'a>>();
                match (next()?, next()?, next()?) {
                    (Some(left), Some(right), None) => Ok(Merge(Some((left.0, right.0)))),
                    _ => Err(A::Error::custom("a merge has other than two texts")),
                }
            }
        }

        deserializer.deserialize_any(MergeVisitor(PhantomData))
    }
}

/// Splits a line of `merges.txt`, or a merge of an old file; `None` for the comment with the version.
pub(super) fn split_merge(line: &str) -> Result<Option<(&str, &str)>, String> {
    if line.starts_with("#version") {
        return Ok(None);
    }
    match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok(Some((left, right))),
        _ => Err(format!("{line:?} is no merge of two texts")),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for MergeList<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Pairs<'a> {
            type Value = MergeList<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Merge(pair)) = items.next_element()? {
                    check_count::<A::Error>(list.len(), MAX_MERGES)?;
                    list.extend(pair);
                }
                Ok(MergeList(list))
            }
        }

        deserializer.deserialize_seq(Pairs(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_of_both_generations() {
        let text = r##"{"model": {"merges": ["#version: 0.2", "a b", ["c", "d e"], "\u0120 f"]}}"##;
        let json = TokenizerJson::parse(text.as_bytes()).unwrap();
        let merges = json.model.merges().unwrap();
        assert_eq!(
            merges,
            [
                ("a".into(), "b".into()),
                ("c".into(), "d e".into()),
                ("\u{120}".into(), "f".into())
            ]
        );
        assert!(matches!(merges[0], (Cow::Borrowed(_), Cow::Borrowed(_))));
        for wrong in [
            "[1]",
            r#"[["a"]]"#,
            r#"[["a", "b", "c"]]"#,
            r#"["a"]"#,
            r#"["a b c"]"#,
            "{}",
        ] {
            let text = format!(r#"{{"model": {{"merges": {wrong}}}}}"#);
            assert!(TokenizerJson::parse(text.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn vocabularies_of_both_kinds() {
        let text = r#"{"model": {"type": "BPE", "vocab": {"a": 0, "\n": 1}, "merges": []}, "added_tokens": null}"#;
        let json = TokenizerJson::parse(text.as_bytes()).unwrap();
        assert_eq!(json.model.kind(), "BPE");
        assert_eq!(json.model.ids().unwrap().collect::<Vec<_>>(), [("a", 0), ("\n", 1)]);
        let text =
            r#"{"model": {"vocab": [["a", 0], ["b", -1.5]]}, "decoder": {"type": "Metaspace"}, "version": "1.0"}"#;
        let json = TokenizerJson::parse(text.as_bytes()).unwrap();
        assert_eq!(json.model.kind(), "unknown");
        assert!(matches!(&json.model.vocab, Vocab::Scores(list) if list[1] == ("b".into(), -1.5)));
        assert!(json.model.ids().is_err());
        assert_eq!(json.decoder["type"], "Metaspace");
        for wrong in [
            "[]",
            r#"{"model": {"vocab": {"a": -1}}}"#,
            r#"{"model": {"vocab": {"a": 1.5}}}"#,
            r#"{"model": {"vocab": [["a"]]}}"#,
            r#"{"model": 1}"#,
            r#"{"added_tokens": [{"id": 1}]}"#,
        ] {
            assert!(TokenizerJson::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
