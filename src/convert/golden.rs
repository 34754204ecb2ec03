//! Tiny checkpoints of every architecture against what llama.cpp's own converter made of them, key by key and byte by
//! byte. `fixtures/convert/make/checkpoints.py` says how both were made.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{TargetType, plan};
use crate::gguf::{Array, Header, Value};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/convert");
/// Longer lists are compared by their hash.
const MAX_LISTED: usize = 16;
/// Tensors that are computed; the last bit of a power or a root is the platform's.
const COMPUTED: [&str; 1] = ["rope_freqs.weight"];

#[derive(Deserialize)]
struct Golden {
    tokenizer: String,
    keys: BTreeMap<String, (String, Json)>,
    tensors: BTreeMap<String, (Vec<u64>, BTreeMap<String, (String, String)>)>,
}

/// A whole checkpoint in a folder of its own: weights, and the tokenizer that several share.
fn assemble(name: &str, golden: &Golden) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Path::new(FIXTURES).join("tokenizers").join(&golden.tokenizer);
    for from in [tokenizer, Path::new(FIXTURES).join(name)] {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn listed(kind: &str, list: Vec<Json>) -> (String, Json) {
    let value = if list.len() > MAX_LISTED {
        json!({"len": list.len(), "sha256": hash(Json::Array(list).to_string().as_bytes())})
    } else {
        Json::Array(list)
    };
    (format!("[{kind}]"), value)
}

/// A value as the scripts print it.
fn printed(value: &Value) -> (String, Json) {
    let number = |kind: &str, number: Json| (kind.to_owned(), number);
    match value {
        Value::U32(x) => number("UINT32", json!(x)),
        Value::I32(x) => number("INT32", json!(x)),
        Value::F32(x) => number("FLOAT32", json!(f64::from(*x))),
        Value::Bool(x) => number("BOOL", json!(x)),
        Value::String(x) => number("STRING", json!(x)),
        Value::Array(Array::I32(list)) => listed("INT32", list.iter().map(|x| json!(x)).collect()),
        Value::Array(Array::F32(list)) => listed("FLOAT32", list.iter().map(|x| json!(f64::from(*x))).collect()),
        Value::Array(Array::Bool(list)) => listed("BOOL", list.iter().map(|x| json!(x)).collect()),
        Value::Array(Array::String(list)) => {
            let texts = list.iter().map(|text| json!(std::str::from_utf8(text).unwrap()));
            listed("STRING", texts.collect())
        }
        other => panic!("an unexpected value {other:?}"),
    }
}

/// Keys that we write where llama.cpp's converter leaves them out: ids that it does not look for.
fn is_ours(key: &str) -> bool {
    key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id")
}

/// Keys that it writes and we do not: it takes any Gemma for CodeGemma, and a class that knows no window has none.
fn is_theirs(name: &str, key: &str) -> bool {
    name == "gemma" && key == "tokenizer.ggml.eot_token_id"
}

/// Keys that its class for the first Gemmas does not write, though they are what the model has.
fn is_said_once_more(key: &str) -> bool {
    matches!(key, "gemma.rope.freq_base" | "gemma2.rope.freq_base")
}

fn check(name: &str) {
    let text = fs::read_to_string(Path::new(FIXTURES).join(name).join("golden.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let folder = assemble(name, &golden);
    let mut types: Vec<&String> = golden.tensors.values().flat_map(|(_, types)| types.keys()).collect();
    types.sort();
    types.dedup();
    assert_eq!(types, ["BF16", "F16", "F32", "Q8_0"]);
    for kind in types {
        let target: TargetType = kind.parse().unwrap();
        let planned = plan(folder.path(), "test", target).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(planned.file_type, kind);
        let path = folder.path().join("out.gguf");
        planned
            .model
            .write(&path, &|_, _| {}, &CancellationToken::new())
            .unwrap();
        let bytes = fs::read(&path).unwrap();
        let header = Header::open(&path).unwrap();

        let mut expected = golden.keys.clone();
        for (key, value) in header.metadata.iter() {
            if key.starts_with("general.") && !golden.keys.contains_key(key) || is_said_once_more(key) {
                continue;
            }
            match expected.remove(key) {
                Some(expected) => assert_eq!(printed(value), expected, "{name} {kind}: {key}"),
                None => assert!(is_ours(key), "{name}: {key} is {value:?}, but should not be there"),
            }
        }
        expected.retain(|key, _| !is_theirs(name, key));
        assert!(expected.is_empty(), "{name}: missing {expected:?}");

        let mut tensors = golden.tensors.clone();
        for tensor in &header.tensors {
            let Some((dims, stored)) = tensors.remove(&tensor.name) else {
                panic!("{name}: {} should not be there", tensor.name);
            };
            let (element, digest) = &stored[kind];
            assert_eq!(tensor.dims, dims, "{name}: {}", tensor.name);
            assert_eq!(tensor.element_type.name(), element, "{name} {kind}: {}", tensor.name);
            let start = (header.data_start + tensor.offset) as usize;
            let data = &bytes[start..start + tensor.byte_len().unwrap() as usize];
            if !COMPUTED.contains(&tensor.name.as_str()) {
                assert_eq!(&hash(data)[..16], digest, "{name} {kind}: {}", tensor.name);
            }
        }
        assert!(tensors.is_empty(), "{name}: missing {:?}", tensors.keys());
    }
}

macro_rules! golden {
    ($($test:ident $name:literal;)*) => {$(
        #[test]
        fn $test() {
            check($name);
        }
    )*};
}

golden! {
    bert "bert";
    gemma "gemma";
    gemma2 "gemma2";
    gemma3 "gemma3";
    gpt2 "gpt2";
    granite "granite";
    granitemoe "granitemoe";
    llama "llama";
    llama_bias "llama-bias";
    llama3 "llama3";
    mistral "mistral";
    mixtral "mixtral";
    olmo2 "olmo2";
    olmoe "olmoe";
    phi3 "phi3";
    phi3_longrope "phi3-longrope";
    qwen2 "qwen2";
    qwen2_yarn_sharded "qwen2-yarn";
    qwen2moe "qwen2moe";
    qwen3 "qwen3";
    qwen3moe "qwen3moe";
    smollm3 "smollm3";
}
