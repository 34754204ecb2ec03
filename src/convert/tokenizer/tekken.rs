//! Mistral's `tekken.json` (the `Tekkenizer` of `mistral_common`): special tokens, then tokens as bytes by rank. Like
//! tiktoken, it has no merges: the pair whose union has the lowest rank is merged first. They are reconstructed here.

use std::{borrow::Cow, collections::HashMap};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::{
    Added, MAX_TOKENS, byte_level,
    json::{MAX_MERGES, MergeList, TokenizerJson, TokenizerModel, Vocab},
};
use crate::convert::ConvertError;

/// Limit on the length of a token, since every split of it is tried. The longest of a published file has 128 bytes.
const MAX_TOKEN_BYTES: usize = 256;
/// Special tokens of files before version 7, which do not name them (`Tekkenizer.DEPRECATED_SPECIAL_TOKENS`).
const UNNAMED: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

#[derive(Deserialize)]
struct File<'a> {
    config: Config,
    #[serde(borrow)]
    vocab: Vec<Token<'a>>,
    #[serde(default)]
    special_tokens: Option<Vec<Special>>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    #[serde(default)]
    default_vocab_size: Option<u64>,
    #[serde(default)]
    default_num_special_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Token<'a> {
    #[serde(borrow)]
    token_bytes: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Special {
    rank: u64,
    token_str: String,
}

/// Makes an equivalent `tokenizer.json`. Special tokens are added to `config`, the contents of `tokenizer_config.json`,
/// which takes precedence.
pub(super) fn read(bytes: &[u8], config: &mut Map<String, Json>) -> Result<TokenizerJson<'static>, ConvertError> {
    let wrong = |reason: String| ConvertError::Tokenizer(format!("its tekken.json is malformed: {reason}"));
    let file: File<'_> = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
    let special = special_tokens(&file).map_err(&wrong)?;
    let mut tokens = file.vocab.as_slice();
    if let Some(size) = file.config.default_vocab_size {
        // Files hold more tokens than the model has; `default_vocab_size` includes the special ones.
        let most = size.saturating_sub(special.len() as u64).min(tokens.len() as u64);
        tokens = &tokens[..most as usize];
    }
    if tokens.len() as u64 > MAX_TOKENS {
        return Err(wrong(format!("it has {} tokens", tokens.len())));
    }
    let mut ranked = Vec::with_capacity(tokens.len());
    for token in tokens {
        let bytes = STANDARD.decode(token.token_bytes.as_ref());
        let bytes = bytes.map_err(|_| wrong(format!("{:?} is not base64", token.token_bytes)))?;
        if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES {
            return Err(wrong(format!("a token has {} bytes", bytes.len())));
        }
        ranked.push(bytes);
    }
    let merges = merges(&ranked).ok_or_else(|| wrong("its tokens can be merged in too many ways".to_owned()))?;
    let first = special.len() as u64;
    let letters = byte_level::letters();
    let spelled = |bytes: &[u8]| Cow::Owned(bytes.iter().map(|byte| letters[usize::from(*byte)]).collect::<String>());
    let of_bytes = ranked.iter().zip(first..).map(|(bytes, id)| (spelled(bytes), id));
    let of_special = special.iter().zip(0..).map(|(text, id)| (Cow::Owned(text.clone()), id));
    let merges = merges.iter().map(|(left, right)| (spelled(left), spelled(right)));
    let mut found = TokenizerJson {
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": file.config.pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]}),
        decoder: byte_level::decoder(),
        added: special
            .iter()
            .zip(0..)
            .map(|(text, id)| Added::new(id, text, true))
            .collect(),
        model: TokenizerModel {
            kind: Some("BPE".to_owned()),
            vocab: Vocab::Ids(of_special.chain(of_bytes).collect()),
            merges: Some(MergeList(merges.collect())),
            // Like tiktoken: a word that is a token is taken whole, without merging.
            ignore_merges: Some(true),
            ..TokenizerModel::default()
        },
        ..TokenizerJson::default()
    };
    let is_special = |text: &str| special.iter().any(|token| token == text);
    if is_special("<s>") {
        // BOS twice, because `template` expects two special tokens. EOS is not added.
        found.post_processor = found.template("<s>", "<s>", &["<s>", "A"], &["<s>", "A", "<s>", "B"])?;
    }
    for (kind, text) in [("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>")] {
        if is_special(text) {
            config.entry(format!("{kind}_token")).or_insert_with(|| text.into());
        }
    }
    // `Tekkenizer.encode` adds EOS only on demand, never to a prompt.
    config.entry("add_eos_token").or_insert(false.into());
    Ok(found)
}

/// Returns the special tokens by id. Reserved ones without a name are numbered.
fn special_tokens(file: &File<'_>) -> Result<Vec<String>, String> {
    let mut texts = match &file.special_tokens {
        None => UNNAMED.map(str::to_owned).to_vec(),
        Some(list) => {
            let mut list: Vec<(u64, &str)> = list
                .iter()
                .map(|token| (token.rank, token.token_str.as_str()))
                .collect();
            list.sort_unstable();
            if !list.iter().map(|(rank, _)| *rank).eq(0..list.len() as u64) {
                return Err("the ranks of its special tokens have gaps".to_owned());
            }
            list.into_iter().map(|(_, text)| text.to_owned()).collect()
        }
    };
    let count = file.config.default_num_special_tokens.unwrap_or(texts.len() as u64);
    if count > MAX_TOKENS || count < texts.len() as u64 {
        return Err(format!("it has {} special tokens, but speaks of {count}", texts.len()));
    }
    texts.extend((texts.len() as u64..count).map(|id| format!("<SPECIAL_{id}>")));
    Ok(texts)
}

/// Returns every pair of tokens whose union is a token, by the rank of the union, then by the ranks of its halves
/// (`generate_merges` of transformers' `TikTokenConverter`); `None` if there are more than [`MAX_MERGES`].
fn merges(ranked: &[Vec<u8>]) -> Option<Vec<(&[u8], &[u8])>> {
    let ranks: HashMap<&[u8], usize> = ranked
        .iter()
        .enumerate()
        .map(|(rank, bytes)| (bytes.as_slice(), rank))
        .collect();
    let mut all = Vec::new();
    for bytes in ranked {
        let halves = (1..bytes.len()).map(|at| bytes.split_at(at));
        let ranked = halves.filter_map(|(left, right)| Some((*ranks.get(left)?, *ranks.get(right)?, left, right)));
        let mut pairs: Vec<(usize, usize, &[u8], &[u8])> = ranked.collect();
        pairs.sort_unstable();
        all.extend(pairs.into_iter().map(|(_, _, left, right)| (left, right)));
        if all.len() > MAX_MERGES {
            return None;
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(config: Json, special: Json) -> Vec<u8> {
        let tokens = ["a", "b", "c", "bc", "ab", "abc", "more"];
        let token = |text: &&str| json!({"rank": 0, "token_bytes": STANDARD.encode(text), "token_str": text});
        let vocab: Vec<Json> = tokens.iter().map(token).collect();
        json!({"config": config, "vocab": vocab, "special_tokens": special})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn tokens_merges_and_what_frames_a_text() {
        let config = json!({"pattern": "x", "default_vocab_size": 9, "default_num_special_tokens": 3});
        let special = json!([{"rank": 1, "token_str": "</s>"}, {"rank": 0, "token_str": "<s>"}]);
        let mut said = Map::from_iter([("eos_token".to_owned(), "mine".into())]);
        let found = read(&file(config, special), &mut said).unwrap();
        let ids: Vec<(&str, u64)> = found.model.ids().unwrap().collect();
        assert_eq!(ids[..4], [("<s>", 0), ("</s>", 1), ("<SPECIAL_2>", 2), ("a", 3)]);
        assert_eq!(ids.len(), 9);
        let merges = found.model.merges().unwrap();
        assert_eq!(
            merges,
            [
                ("b".into(), "c".into()),
                ("a".into(), "b".into()),
                ("a".into(), "bc".into()),
                ("ab".into(), "c".into())
            ]
        );
        assert_eq!(
            (&said["bos_token"], &said["eos_token"]),
            (&"<s>".into(), &"mine".into())
        );
        assert_eq!(found.post_processor["single"][0]["SpecialToken"]["id"], "<s>");
    }

    #[test]
    fn damaged_files() {
        let fine = json!({"pattern": "x"});
        assert_eq!(
            read(&file(fine.clone(), Json::Null), &mut Map::new())
                .unwrap()
                .added
                .len(),
            20
        );
        for (config, special) in [
            (json!({}), Json::Null),
            (fine.clone(), json!([{"rank": 1, "token_str": "a"}])),
            (json!({"pattern": "x", "default_num_special_tokens": 5}), Json::Null),
            (
                json!({"pattern": "x", "default_num_special_tokens": 1_u64 << 40}),
                Json::Null,
            ),
        ] {
            assert!(read(&file(config, special), &mut Map::new()).is_err());
        }
        let text = String::from_utf8(file(fine, Json::Null))
            .unwrap()
            .replacen("YQ==", "?", 1);
        assert!(read(text.as_bytes(), &mut Map::new()).is_err());
    }
}
