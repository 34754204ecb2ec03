//! Vocabularies in plain files, from before `tokenizer.json`: GPT-2's `vocab.json` with `merges.txt`, and BERT's
//! `vocab.txt`. The steps around the model are those of the tokenizer's class in transformers
//! (`convert_slow_tokenizer.py`).

use std::{borrow::Cow, collections::HashMap};

use serde_json::{Value as Json, json};

use super::{
    Added, MAX_TOKENS, byte_level,
    files::TokenizerFiles,
    json::{MergeList, TokenizerJson, TokenizerModel, Vocab, split_merge},
    pre,
};
use crate::convert::ConvertError;

/// Special tokens that become added tokens.
const KINDS: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// Makes a byte-level tokenizer of `vocab.json` and `merges.txt`. Defaults of its class are added to the files'
/// configuration.
pub(super) fn from_merges<'a>(
    vocab: &'a [u8],
    merges: &'a str,
    files: &mut TokenizerFiles<'_>,
    notes: &mut Vec<String>,
) -> Result<TokenizerJson<'a>, ConvertError> {
    let wrong = |error: String| ConvertError::Tokenizer(format!("its vocab.json or merges.txt is malformed: {error}"));
    let vocab: Vocab<'a> = serde_json::from_slice(vocab).map_err(|error| wrong(error.to_string()))?;
    let mut pairs = Vec::new();
    for line in merges.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        let pair = split_merge(line).map_err(&wrong)?;
        pairs.extend(pair.map(|(left, right)| (Cow::Borrowed(left), Cow::Borrowed(right))));
    }
    let class = files.config.get("tokenizer_class").and_then(Json::as_str);
    // A class and its fast variant have the same files and defaults.
    let class = class.unwrap_or_default().trim_end_matches("Fast").to_owned();
    let default = |files: &mut TokenizerFiles<'_>, kind: &str, text: &str| {
        files
            .config
            .entry(format!("{kind}_token"))
            .or_insert_with(|| text.into());
    };
    let prefixes = files
        .config
        .get("add_prefix_space")
        .and_then(Json::as_bool)
        .unwrap_or(false);
    let mut found = TokenizerJson {
        decoder: byte_level::decoder(),
        model: TokenizerModel {
            kind: Some("BPE".to_owned()),
            vocab,
            merges: Some(MergeList(pairs)),
            ..TokenizerModel::default()
        },
        ..TokenizerJson::default()
    };
    let is_roberta = matches!(class.as_str(), "RobertaTokenizer" | "LongformerTokenizer");
    if class == "Qwen2Tokenizer" {
        found.normalizer = json!({"type": "NFC"});
        found.pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pre::QWEN2}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": prefixes, "trim_offsets": true, "use_regex": false},
        ]});
        default(files, "eos", "<|endoftext|>");
        default(files, "pad", "<|endoftext|>");
    } else {
        if class.is_empty() {
            notes.push("no file of the checkpoint names its tokenizer's class; GPT-2's is assumed".to_owned());
        }
        found.pre_tokenizer =
            json!({"type": "ByteLevel", "add_prefix_space": prefixes, "trim_offsets": true, "use_regex": true});
        if is_roberta {
            for (kind, text) in [
                ("bos", "<s>"),
                ("eos", "</s>"),
                ("sep", "</s>"),
                ("cls", "<s>"),
                ("unk", "<unk>"),
            ] {
                default(files, kind, text);
            }
            default(files, "pad", "<pad>");
            default(files, "mask", "<mask>");
        } else {
            for kind in ["bos", "eos", "unk"] {
                default(files, kind, "<|endoftext|>");
            }
        }
    }
    add_tokens(&mut found, files)?;
    if is_roberta {
        let pair = |kind: &str| {
            let text = files.special(kind).unwrap_or_default();
            Ok::<_, ConvertError>(json!([text, found.id(text)?]))
        };
        found.post_processor = json!({"type": "RobertaProcessing", "sep": pair("sep")?, "cls": pair("cls")?,
                                      "trim_offsets": true, "add_prefix_space": prefixes});
    }
    Ok(found)
}

/// Makes a WordPiece tokenizer of `vocab.txt`, whose line numbers are the ids of its tokens.
pub(super) fn from_words<'a>(
    words: &'a str,
    files: &mut TokenizerFiles<'_>,
) -> Result<TokenizerJson<'a>, ConvertError> {
    let ids = words
        .lines()
        .enumerate()
        .map(|(id, word)| (Cow::Borrowed(word), id as u64));
    let ids: Vec<(Cow<'a, str>, u64)> = ids.collect();
    if ids.len() as u64 > MAX_TOKENS {
        return Err(ConvertError::Tokenizer(format!(
            "its vocab.txt has {} lines",
            ids.len()
        )));
    }
    for (kind, text) in [
        ("unk", "[UNK]"),
        ("sep", "[SEP]"),
        ("pad", "[PAD]"),
        ("cls", "[CLS]"),
        ("mask", "[MASK]"),
    ] {
        files
            .config
            .entry(format!("{kind}_token"))
            .or_insert_with(|| text.into());
    }
    let flag = |key: &str| files.config.get(key).and_then(Json::as_bool);
    let lowercases = flag("do_lower_case").unwrap_or(true);
    let mut found = TokenizerJson {
        normalizer: json!({"type": "BertNormalizer", "clean_text": true, "lowercase": lowercases,
                           "handle_chinese_chars": flag("tokenize_chinese_chars").unwrap_or(true),
                           "strip_accents": flag("strip_accents")}),
        pre_tokenizer: json!({"type": "BertPreTokenizer"}),
        decoder: json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        model: TokenizerModel {
            kind: Some("WordPiece".to_owned()),
            vocab: Vocab::Ids(ids),
            unk_token: files.special("unk").map(str::to_owned),
            continuing_subword_prefix: Some("##".to_owned()),
            ..TokenizerModel::default()
        },
        ..TokenizerJson::default()
    };
    add_tokens(&mut found, files)?;
    let (cls, sep) = (
        files.special("cls").unwrap_or_default(),
        files.special("sep").unwrap_or_default(),
    );
    found.post_processor = found.template(cls, sep, &[cls, "A", sep], &[cls, "A", sep, "B", sep])?;
    Ok(found)
}

/// Adds the tokens of `added_tokens.json` and `tokenizer_config.json`, and the special tokens.
fn add_tokens(json: &mut TokenizerJson<'_>, files: &TokenizerFiles<'_>) -> Result<(), ConvertError> {
    let ids: HashMap<&str, u64> = json.model.ids()?.collect();
    let of_config = files.added_by_config();
    let mut added: HashMap<String, Added> = of_config.into_iter().map(|token| (token.text.clone(), token)).collect();
    for (text, id) in &files.added {
        if let Some(id) = id.as_u64() {
            added.entry(text.clone()).or_insert_with(|| Added::new(id, text, false));
        }
    }
    let more = files.config.get("additional_special_tokens").and_then(Json::as_array);
    let more = more.into_iter().flatten().filter_map(Json::as_str);
    for text in KINDS.iter().filter_map(|kind| files.special(kind)).chain(more) {
        if let Some(token) = added.get_mut(text) {
            token.special = true;
        } else if let Some(id) = ids.get(text) {
            added.insert(text.to_owned(), Added::new(*id, text, true));
        }
    }
    json.added = added.into_values().collect();
    // A hash map has no order, and added tokens are numbered in theirs.
    json.added.sort_by_key(|token| token.id);
    Ok(())
}
