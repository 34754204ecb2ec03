//! GGUF file of all-MiniLM-L6-v2, a real embedding model, identical to the output of llama.cpp's converter. `make test`
//! downloads the checkpoint; the file is written once, next to it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use hubllama::gguf::{GgmlType, GgufArray, GgufLayout, GgufValue, TensorSpec};
use serde_json::Value as Json;

use super::fixture_file::sha256_of;

/// Repository of the model in a daemon's cache.
pub(crate) const REPO: &str = "sentence-transformers/all-MiniLM-L6-v2-GGUF";
/// Canonical name of the model.
pub(crate) const MODEL: &str = "hf:sentence-transformers/all-MiniLM-L6-v2-GGUF:F16";
/// File name in the repository.
pub(crate) const FILE: &str = "all-MiniLM-L6-v2-F16.gguf";
/// Expected sha256 of the written file.
pub(crate) const SHA256: &str = "aaeef815fbed772b82a873bb1590b2aff3daeabfed76b446bcdcad9de4e285bf";

/// Environment variable with the path of the file. Its checkpoint is the folder `all-MiniLM-L6-v2` next to it.
const VARIABLE: &str = "HUBLLAMA_TEST_MINILM";

const LAYERS: usize = 6;
/// Ids of `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]`.
const SPECIAL: [usize; 5] = [0, 100, 101, 102, 103];
/// llama.cpp's numbers of token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Tensor names in the checkpoint and in the GGUF file, without `.weight` and `.bias`. `N` is the number of a layer.
const NAMES: [(&str, &str); 12] = [
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("encoder.layer.N.attention.self.key", "blk.N.attn_k"),
    ("encoder.layer.N.attention.output.dense", "blk.N.attn_output"),
    ("encoder.layer.N.attention.output.LayerNorm", "blk.N.attn_output_norm"),
    ("encoder.layer.N.attention.self.query", "blk.N.attn_q"),
    ("encoder.layer.N.attention.self.value", "blk.N.attn_v"),
    ("encoder.layer.N.output.dense", "blk.N.ffn_down"),
    ("encoder.layer.N.intermediate.dense", "blk.N.ffn_up"),
    ("encoder.layer.N.output.LayerNorm", "blk.N.layer_output_norm"),
];

/// Matrices that llama.cpp's converter keeps in F32.
const FULL: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// Returns the path of the file, which the first caller writes unless an earlier run did.
pub(crate) fn gguf() -> PathBuf {
    static WRITTEN: OnceLock<PathBuf> = OnceLock::new();
    let written = WRITTEN.get_or_init(|| {
        let path = std::env::var_os(VARIABLE).expect("run the tests with `make test`, which gets the embedding model");
        let path = PathBuf::from(path);
        if !path.exists() || sha256_of(&path) != SHA256 {
            let whole = path.with_extension("new");
            write(&path.with_file_name("all-MiniLM-L6-v2"), &whole);
            assert_eq!(sha256_of(&whole), SHA256, "the converter's output is another");
            fs::rename(whole, &path).expect("renamed");
        }
        path
    });
    written.clone()
}

/// Shape of a tensor, and the range of its bytes in the checkpoint.
struct Source {
    dims: Vec<u64>,
    bytes: std::ops::Range<usize>,
}

fn write(checkpoint: &Path, path: &Path) {
    let weights = fs::read(checkpoint.join("model.safetensors")).expect("the checkpoint's weights");
    let sources = sources(&weights);
    let mut taken = HashMap::new();
    let mut specs = Vec::new();
    for (from, to) in renamed() {
        for part in [".bias", ".weight"] {
            let Some(source) = sources.get(&format!("{from}{part}")) else {
                continue;
            };
            let name = format!("{to}{part}");
            let is_full = source.dims.len() < 2 || FULL.contains(&name.as_str());
            let kind = if is_full { GgmlType::F32 } else { GgmlType::F16 };
            specs.push(TensorSpec::new(&name, kind, source.dims.clone()));
            taken.insert(name, source.bytes.clone());
        }
    }
    let plan = GgufLayout::new(metadata(checkpoint), specs).expect("a plan");
    let file = BufWriter::new(File::create(path).expect("a file"));
    plan.write(file, |tensor, out| {
        let numbers = &weights[taken[&tensor.name].clone()];
        if tensor.element_type == GgmlType::F32 {
            return out.write_all(numbers);
        }
        let mut halves = Vec::with_capacity(numbers.len() / 2);
        for number in numbers.chunks_exact(4) {
            let number = f32::from_le_bytes(number.try_into().expect("four bytes"));
            halves.write_all(&half::f16::from_f32(number).to_le_bytes())?;
        }
        out.write_all(&halves)
    })
    .expect("written");
}

/// Returns all pairs of tensor names, layer by layer.
fn renamed() -> impl Iterator<Item = (String, String)> {
    let (layer, once): (Vec<_>, Vec<_>) = NAMES.into_iter().partition(|(from, _)| from.contains(".N."));
    let once = once.into_iter().map(|(from, to)| (from.to_owned(), to.to_owned()));
    let layers = (0..LAYERS).flat_map(move |at| {
        let numbered = move |name: &str| name.replace(".N.", &format!(".{at}."));
        layer
            .clone()
            .into_iter()
            .map(move |(from, to)| (numbered(from), numbered(to)))
    });
    once.chain(layers)
}

/// Parses the header of a safetensors file.
fn sources(file: &[u8]) -> HashMap<String, Source> {
    let (length, rest) = file.split_first_chunk().expect("a length");
    let length = u64::from_le_bytes(*length) as usize;
    let header: HashMap<String, Json> = serde_json::from_slice(&rest[..length]).expect("a header");
    let number = |value: &Json| value.as_u64().expect("a number");
    header
        .into_iter()
        .filter(|(_, tensor)| tensor["dtype"] == "F32")
        .map(|(name, tensor)| {
            let shape = tensor["shape"].as_array().expect("a shape");
            let start = 8 + length;
            let source = Source {
                dims: shape.iter().rev().map(number).collect(),
                bytes: start + number(&tensor["data_offsets"][0]) as usize
                    ..start + number(&tensor["data_offsets"][1]) as usize,
            };
            (name, source)
        })
        .collect()
}

fn metadata(checkpoint: &Path) -> Vec<(String, GgufValue)> {
    let words = fs::read_to_string(checkpoint.join("vocab.txt")).expect("the checkpoint's vocabulary");
    // llama.cpp marks the beginning of a word; WordPiece marks its continuation with `##`.
    let tokens = words
        .lines()
        .enumerate()
        .map(|(id, word)| match word.strip_prefix("##") {
            _ if SPECIAL.contains(&id) => word.to_owned(),
            Some(rest) => rest.to_owned(),
            None => format!("\u{2581}{word}"),
        });
    let kinds = (0..words.lines().count()).map(|id| if SPECIAL.contains(&id) { CONTROL } else { NORMAL });
    let text = |text: &str| GgufValue::String(text.into());
    let id = |at: usize| GgufValue::U32(SPECIAL[at] as u32);
    let pairs = [
        ("general.architecture", text("bert")),
        ("general.type", text("model")),
        ("general.name", text("All MiniLM L6 v2")),
        ("general.organization", text("Sentence Transformers")),
        ("general.size_label", text("23M")),
        ("general.license", text("apache-2.0")),
        ("bert.block_count", GgufValue::U32(LAYERS as u32)),
        ("bert.context_length", GgufValue::U32(512)),
        ("bert.embedding_length", GgufValue::U32(384)),
        ("bert.feed_forward_length", GgufValue::U32(1536)),
        ("bert.attention.head_count", GgufValue::U32(12)),
        ("bert.attention.layer_norm_epsilon", GgufValue::F32(1e-12)),
        ("general.file_type", GgufValue::U32(1)),
        ("bert.attention.causal", GgufValue::Bool(false)),
        ("bert.pooling_type", GgufValue::U32(1)),
        ("tokenizer.ggml.token_type_count", GgufValue::U32(2)),
        ("tokenizer.ggml.model", text("bert")),
        ("tokenizer.ggml.pre", text("jina-v2-en")),
        (
            "tokenizer.ggml.tokens",
            GgufValue::Array(GgufArray::String(tokens.collect())),
        ),
        (
            "tokenizer.ggml.token_type",
            GgufValue::Array(GgufArray::I32(kinds.collect())),
        ),
        ("tokenizer.ggml.padding_token_id", id(0)),
        ("tokenizer.ggml.unknown_token_id", id(1)),
        ("tokenizer.ggml.bos_token_id", id(2)),
        ("tokenizer.ggml.eos_token_id", id(3)),
        ("tokenizer.ggml.seperator_token_id", id(3)),
        ("tokenizer.ggml.mask_token_id", id(4)),
        ("tokenizer.ggml.add_bos_token", GgufValue::Bool(true)),
        ("tokenizer.ggml.add_eos_token", GgufValue::Bool(true)),
        ("tokenizer.ggml.add_sep_token", GgufValue::Bool(false)),
        ("tokenizer.ggml.normalizer.lowercase", GgufValue::Bool(true)),
        ("general.quantization_version", GgufValue::U32(2)),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).to_vec()
}
