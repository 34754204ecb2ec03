//! Golden tests of adapters for the tiny checkpoints: the files against those of llama.cpp's own converter, and the
//! logits against those of transformers and PEFT. All were made by `fixtures/convert/make/adapters.py`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{super::golden, AdapterBase, plan_adapter, stem};
use crate::{
    convert::{arch, plan, safetensors},
    gguf::{GgufHeader, GgufValue},
    inference::WeightType,
};

#[derive(Deserialize)]
struct GoldenCheckpoint {
    checkpoint: String,
    prompt: Vec<i32>,
    logits: Vec<f32>,
    /// Output of llama.cpp's converter; `None` where it is wrong.
    made: Option<Made>,
}

#[derive(Deserialize)]
struct Made {
    architecture: String,
    alpha: f32,
    /// Dimensions, type and the beginning of the SHA-256 of the data.
    tensors: BTreeMap<String, (Vec<u64>, String, String)>,
}

fn folder_of(name: &str) -> PathBuf {
    Path::new(golden::FIXTURES).join("adapters").join(name)
}

fn read(name: &str) -> GoldenCheckpoint {
    serde_json::from_str(&fs::read_to_string(folder_of(name).join("golden.json")).unwrap()).unwrap()
}

/// Assembles a checkpoint, and plans its file for the header.
fn base(checkpoint: &str) -> (tempfile::TempDir, GgufHeader) {
    let folder = golden::assemble(checkpoint, &golden::read(checkpoint));
    let planned = plan(folder.path(), "test", WeightType::F32).unwrap().model;
    let header = GgufHeader::read(planned.header(), planned.file_len()).unwrap();
    (folder, header)
}

fn make(adapter: &Path, base: &AdapterBase, out: &Path) -> GgufHeader {
    let planned = plan_adapter(adapter, "test", base).unwrap();
    planned.write(out, &|_, _| {}, &CancellationToken::new()).unwrap();
    let header = GgufHeader::open(out).unwrap();
    base.check(&header).unwrap();
    header
}

fn check_bytes(name: &str) {
    let golden = read(name);
    let made = golden.made.unwrap();
    let (folder, header) = base(&golden.checkpoint);
    let path = folder.path().join("adapter.gguf");
    let header = make(&folder_of(name), &AdapterBase::of(&[header]), &path);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(header.architecture(), made.architecture);
    // llama.cpp's converter ignores `use_rslora` and `alpha_pattern`: its files have the wrong scale. Ours do not.
    let root = if name == "qwen2" { 2.0 } else { 1.0 };
    assert_eq!(
        header.get("adapter.lora.alpha"),
        Some(&GgufValue::F32(root * made.alpha))
    );
    let mut tensors = made.tensors;
    for tensor in &header.tensors {
        let (dims, kind, digest) = tensors
            .remove(&tensor.name)
            .unwrap_or_else(|| panic!("{name}: {}", tensor.name));
        assert_eq!(
            (&tensor.dims, tensor.element_type.name()),
            (&dims, kind.as_str()),
            "{name}: {}",
            tensor.name
        );
        let start = (header.data_start + tensor.offset) as usize;
        let data = &bytes[start..start + tensor.byte_len().unwrap() as usize];
        let is_rescaled = name == "llama" && tensor.name == "blk.0.attn_v.weight.lora_b";
        assert_eq!(
            golden::hash(data)[..16] == digest,
            !is_rescaled,
            "{name}: {}",
            tensor.name
        );
    }
    assert!(tensors.is_empty(), "{name}: missing {:?}", tensors.keys());
}

fn check_numbers(name: &str, tolerance: f32) {
    let golden = read(name);
    let (folder, header) = base(&golden.checkpoint);
    let path = folder.path().join("adapter.gguf");
    make(&folder_of(name), &AdapterBase::of(&[header]), &path);
    let purpose = golden::purpose_of(&golden.checkpoint);
    let numbers = |adapters: &[PathBuf]| {
        golden::numbers(
            golden::engine(folder.path(), purpose, WeightType::F32, adapters, golden::LoadVia::File),
            purpose,
            &golden.prompt,
        )
    };
    let worst = golden::largest_difference(&numbers(&[path]), &golden.logits);
    assert!(worst < tolerance, "{name}: the largest difference is {worst}");
    let without = golden::largest_difference(&numbers(&[]), &golden.logits);
    assert!(
        without > 20.0 * tolerance,
        "{name}: without the adapter it is only {without}"
    );
}

macro_rules! golden {
    ($($test:ident $name:literal $tolerance:expr;)*) => {
        mod bytes {$(
            #[test]
            fn $test() {
                super::check_bytes($name);
            }
        )*}
        mod numbers {$(
            #[test]
            fn $test() {
                super::check_numbers($name, $tolerance);
            }
        )*}
    };
}

golden! {
    bert "bert" 3e-3;
    gemma2 "gemma2" 3e-3;
    gemma3 "gemma3" 3e-3;
    gpt_oss "gpt-oss" 1e-3;
    granite "granite" 2e-5;
    lfm2 "lfm2" 2e-5;
    llama "llama" 2e-5;
    llama_16 "llama-16" 2e-2;
    llama_embedding "llama-embedding" 2e-5;
    mixtral "mixtral" 2e-5;
    modernbert "modernbert" 3e-3;
    olmo2 "olmo2" 2e-5;
    phi3 "phi3" 2e-5;
    qwen2 "qwen2" 2e-5;
    qwen3 "qwen3" 2e-5;
    smollm3 "smollm3" 2e-5;
}

/// A family asks for the same tensors, whether it is given a checkpoint or only the sizes from a file's header.
#[test]
fn traced_tensors_are_those_of_a_checkpoint() {
    let checkpoints = fs::read_dir(golden::FIXTURES)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut seen = 0;
    for path in checkpoints.filter(|path| path.join("config.json").is_file()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (folder, header) = base(name);
        let base = AdapterBase::of(std::slice::from_ref(&header));
        let Ok(config) = base.config() else {
            assert!(UNKNOWN.contains(&header.architecture()), "{name}");
            continue;
        };
        let stored = safetensors::open(folder.path()).unwrap();
        let mut has: BTreeSet<String> = stored.keys().map(|name| stem(name)).collect();
        has.extend(base.optional_matrices().map(str::to_owned));
        let shard = &stored.values().next().unwrap().shard;
        let traced = arch::trace(&config, shard, |name| has.contains(&stem(name))).unwrap();
        let mut planned: BTreeMap<&str, &[u64]> = BTreeMap::new();
        for tensor in header
            .tensors
            .iter()
            .filter(|tensor| !COMPUTED.contains(&tensor.name.as_str()) && !tensor.name.starts_with(HEAD))
        {
            planned.insert(&tensor.name, &tensor.dims);
        }
        let traced: BTreeMap<&str, &[u64]> = traced
            .iter()
            .filter(|recipe| !recipe.spec().name.starts_with(HEAD))
            .map(|recipe| (recipe.spec().name.as_str(), recipe.spec().dims.as_slice()))
            .collect();
        assert_eq!(traced, planned, "{name}");
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

/// Architectures that can be converted, but not their adapters.
const UNKNOWN: [&str; 5] = [
    "deepseek2",
    "gemma-embedding",
    "nomic-bert",
    "nomic-bert-moe",
    "stablelm",
];
/// Prefix of the heads of classifiers and rerankers, which adapters do not change.
const HEAD: &str = "cls.";
/// Tensors that are computed from settings which a header does not have.
const COMPUTED: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

/// llama.cpp's converter transposes the factors of GPT-2 along with the matrix, although PEFT does not store them
/// transposed.
#[test]
fn a_matrix_that_is_stored_the_other_way_round() {
    assert!(read("gpt2").made.is_none());
    check_numbers("gpt2", 3e-3);
}
