//! Golden tests: tiny random checkpoints of every architecture. Their files are compared with those of llama.cpp's own
//! converter, key by key and byte by byte, and the logits that llama.cpp computes from them with those of transformers.
//! All were made by `fixtures/convert/make/checkpoints.py`.

#[cfg(test)]
mod mixes;

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{ConversionPlan, ConvertError, GgufStream, plan, plan_checked, plan_projector, replan};
use crate::{
    gguf::{END_TOKENS_KEY, GgufArray, GgufHeader, GgufValue},
    inference::{AutoSwitch, KvCacheType, SplitMode, WeightType},
    llama::{Batch, Context, ContextParams, ContextPurpose, Model, ModelParams},
};

pub(super) const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/convert");
/// Longest list that is compared element by element. Longer ones are compared by their hash.
const MAX_LISTED: usize = 16;
/// Tensors that are computed. The last bit of powers and roots differs between platforms.
const COMPUTED: [&str; 1] = ["rope_freqs.weight"];

/// Dimensions, and for each weight type the tensor's type and the beginning of the SHA-256 of its data.
type GoldenTensor = (Vec<u64>, BTreeMap<String, (String, String)>);

#[derive(Deserialize)]
pub(super) struct GoldenCheckpoint {
    tokenizer: String,
    prompt: Vec<i32>,
    logits: Vec<f32>,
    #[serde(flatten)]
    contents: Contents,
}

/// Contents of a file.
#[derive(Deserialize)]
struct Contents {
    keys: BTreeMap<String, (String, Json)>,
    tensors: BTreeMap<String, GoldenTensor>,
}

fn read_file<T: serde::de::DeserializeOwned>(name: &str, file: &str) -> T {
    let text = fs::read_to_string(Path::new(FIXTURES).join(name).join(file)).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub(super) fn read(name: &str) -> GoldenCheckpoint {
    read_file(name, "golden.json")
}

/// Copies a checkpoint and its tokenizer, which several checkpoints share, into a new folder.
pub(super) fn assemble(name: &str, golden: &GoldenCheckpoint) -> tempfile::TempDir {
    assemble_with(name, &golden.tokenizer)
}

fn assemble_with(name: &str, tokenizer: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Path::new(FIXTURES).join("tokenizers").join(tokenizer);
    for from in [tokenizer, Path::new(FIXTURES).join(name)] {
        copy_all(&from, folder.path());
    }
    folder
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &copy);
        } else {
            fs::copy(&path, copy).unwrap();
        }
    }
}

/// Assembles the checkpoint of this name.
pub(super) fn assembled(name: &str) -> tempfile::TempDir {
    assemble(name, &read(name))
}

pub(super) fn hash(bytes: &[u8]) -> String {
    crate::stdx::hex::encode(Sha256::digest(bytes))
}

fn listed(kind: &str, list: Vec<Json>) -> (String, Json) {
    let value = if list.len() > MAX_LISTED {
        json!({"len": list.len(), "sha256": hash(Json::Array(list).to_string().as_bytes())})
    } else {
        Json::Array(list)
    };
    (format!("[{kind}]"), value)
}

/// Returns a value as the scripts print it.
fn printed(value: &GgufValue) -> (String, Json) {
    let number = |kind: &str, number: Json| (kind.to_owned(), number);
    match value {
        GgufValue::U32(x) => number("UINT32", json!(x)),
        GgufValue::I32(x) => number("INT32", json!(x)),
        GgufValue::F32(x) => number("FLOAT32", json!(f64::from(*x))),
        GgufValue::Bool(x) => number("BOOL", json!(x)),
        GgufValue::String(x) => number("STRING", json!(x)),
        GgufValue::Array(GgufArray::I32(list)) => listed("INT32", list.iter().map(|x| json!(x)).collect()),
        GgufValue::Array(GgufArray::F32(list)) => {
            listed("FLOAT32", list.iter().map(|x| json!(f64::from(*x))).collect())
        }
        GgufValue::Array(GgufArray::U8(list)) => listed("UINT8", list.iter().map(|x| json!(x)).collect()),
        GgufValue::Array(GgufArray::Bool(list)) => listed("BOOL", list.iter().map(|x| json!(x)).collect()),
        GgufValue::Array(GgufArray::String(list)) => {
            let texts = list.iter().map(|text| json!(std::str::from_utf8(text).unwrap()));
            listed("STRING", texts.collect())
        }
        other => panic!("an unexpected value {other:?}"),
    }
}

/// Returns true for keys that only we write: ids of special tokens for which llama.cpp's converter does not look.
fn is_ours(key: &str) -> bool {
    key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id")
}

/// Returns true for keys that only llama.cpp's converter writes: it takes every Gemma for CodeGemma, and writes an RMS
/// epsilon for ModernBERT, which has none.
fn is_theirs(name: &str, key: &str) -> bool {
    name == "gemma" && key == "tokenizer.ggml.eot_token_id" || key == "modern-bert.attention.layer_norm_rms_epsilon"
}

/// Returns true for correct keys that llama.cpp's converter leaves out: defaults that it relies on, and keys without
/// which llama.cpp loads only DeepSeek models of a few known sizes, or guesses their gating function.
fn is_written_explicitly(key: &str) -> bool {
    matches!(
        key,
        "cohere2.attention.sliding_window_pattern"
            | "deepseek2.attention.q_lora_rank"
            | "deepseek2.expert_gating_func"
            | "gemma-embedding.attention.sliding_window_pattern"
            | "gemma.rope.freq_base"
            | "gemma2.rope.freq_base"
            | "modern-bert.attention.sliding_window_pattern"
            | "modern-bert.classifier.pooling_type"
            | "phi2.rope.freq_base"
            | "stablelm.rope.freq_base"
            // Without it llama.cpp would return embeddings instead of scores.
            | "bert.pooling_type"
            | "modern-bert.pooling_type"
    )
}

/// Returns true for tensors that llama.cpp's converter leaves out by mistake: without OLMo 2's output matrix llama.cpp
/// cannot load the file, without the dense layer of BERT's head it computes other scores.
fn is_missed(name: &str, tensor: &str) -> bool {
    matches!(
        (name, tensor),
        ("olmo2", "output.weight") | ("bert-classifier", "cls.weight" | "cls.bias")
    )
}

fn check(name: &str) {
    let golden = read(name);
    let folder = assemble(name, &golden);
    check_contents(name, folder.path(), &golden.contents, plan);
}

fn check_projector(name: &str) {
    let folder = assemble(name, &read(name));
    check_contents(name, folder.path(), &read_file(name, "projector.json"), plan_projector);
}

type Planner = fn(&Path, &str, WeightType) -> Result<ConversionPlan, ConvertError>;

/// Checks that files of every weight type have exactly the golden keys and tensors.
fn check_contents(name: &str, folder: &Path, golden: &Contents, planner: Planner) {
    let mut types: Vec<&String> = golden.tensors.values().flat_map(|(_, types)| types.keys()).collect();
    types.sort();
    types.dedup();
    assert_eq!(types, ["BF16", "F16", "F32", "Q8_0"]);
    for kind in types {
        let target: WeightType = kind.parse().unwrap();
        let planned = planner(folder, "test", target).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = match kind.as_str() {
            "F32" | "F16" | "BF16" if name == "gpt-oss-mxfp4" => "MXFP4_MOE",
            kind => kind,
        };
        assert_eq!(planned.file_type, expected);
        let path = folder.join("out.gguf");
        planned
            .model
            .write(&path, &|_, _| {}, &CancellationToken::new())
            .unwrap();
        let bytes = fs::read(&path).unwrap();
        let header = GgufHeader::open(&path).unwrap();
        let mut streamed = Vec::new();
        let again = match header.architecture() {
            // Projectors are never streamed, so they cannot be planned again.
            "clip" => planned.model,
            _ => replan(folder, &path).unwrap_or_else(|error| panic!("{name} {kind}: {error}")),
        };
        GgufStream::start(again).read_to_end(&mut streamed).unwrap();
        assert!(streamed == bytes, "{name} {kind}: the stream is not the file");

        let mut expected = golden.keys.clone();
        for (key, value) in header.metadata.iter() {
            if !golden.keys.contains_key(key) && (key.starts_with("general.") || is_written_explicitly(key)) {
                continue;
            }
            if key == "tokenizer.ggml.remove_extra_whitespaces" {
                // The converter takes it from `clean_up_tokenization_spaces`, a setting for detokenization.
                expected.remove(key);
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
            if is_missed(name, &tensor.name) {
                continue;
            }
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

/// Tolerance of logits for activations that ggml computes exactly, such as SiLU.
pub(super) const EXACT: f32 = 2e-5;
/// Tolerance for activations that ggml looks up in a table of 16-bit floats, such as GELU.
pub(super) const TABLE: f32 = 3e-3;
/// Tolerance for MXFP4 matrices, because ggml quantizes their inputs to eight bits, and for weights rounded to 16 bits.
const PACKED: f32 = 3e-2;

macro_rules! golden {
    ($($test:ident $name:literal $tolerance:ident;)*) => {
        mod bytes {$(
            #[test]
            fn $test() {
                super::check($name);
            }
        )*}
        mod each_mix {$(
            #[test]
            fn $test() {
                super::mixes::check($name);
            }
        )*}
        mod numbers {$(
            #[test]
            fn $test() {
                super::check_numbers($name, super::$tolerance);
            }
        )*}
    };
}

golden! {
    bert "bert" TABLE;
    bert_classifier "bert-classifier" TABLE;
    cohere2 "cohere2" EXACT;
    command_r "command-r" EXACT;
    deepseek2 "deepseek2" EXACT;
    deepseek3 "deepseek3" EXACT;
    ernie4_5 "ernie4_5" EXACT;
    exaone4 "exaone4" EXACT;
    gemma "gemma" TABLE;
    gemma_embedding "gemma-embedding" TABLE;
    gemma2 "gemma2" TABLE;
    gemma3 "gemma3" TABLE;
    gpt2 "gpt2" TABLE;
    gpt_oss "gpt-oss" EXACT;
    gpt_oss_mxfp4 "gpt-oss-mxfp4" PACKED;
    lfm2 "lfm2" EXACT;
    modernbert "modernbert" TABLE;
    modernbert_classifier "modernbert-classifier" TABLE;
    modernbert_reranker "modernbert-reranker" TABLE;
    nomic_bert "nomic-bert" EXACT;
    nomic_bert_moe "nomic-bert-moe" TABLE;
    roberta "roberta" TABLE;
    roberta_reranker "roberta-reranker" TABLE;
    xlm_roberta "xlm-roberta" TABLE;
    granite "granite" EXACT;
    granitemoe "granitemoe" EXACT;
    internlm3 "internlm3" EXACT;
    llama "llama" EXACT;
    ministral3 "ministral3" EXACT;
    llama3 "llama3" EXACT;
    mistral "mistral" EXACT;
    mistral_fp8 "mistral-fp8" EXACT;
    mixtral "mixtral" EXACT;
    olmo2 "olmo2" EXACT;
    olmo3 "olmo3" EXACT;
    olmoe "olmoe" EXACT;
    phi2 "phi2" TABLE;
    phi3 "phi3" EXACT;
    phi3_longrope "phi3-longrope" EXACT;
    qwen2 "qwen2" EXACT;
    qwen2_yarn_sharded "qwen2-yarn" EXACT;
    qwen2moe "qwen2moe" EXACT;
    qwen3 "qwen3" EXACT;
    qwen3_reranker "qwen3-reranker" EXACT;
    qwen3moe "qwen3moe" EXACT;
    seed_oss "seed-oss" EXACT;
    smollm3 "smollm3" EXACT;
    stablelm "stablelm" EXACT;
    stablelm_parallel "stablelm-parallel" EXACT;
    starcoder2 "starcoder2" TABLE;
    gemma3_vision "gemma3-vision" TABLE;
    qwen2vl "qwen2vl" EXACT;
    qwen2_5vl "qwen2_5vl" EXACT;
    smolvlm "smolvlm" EXACT;
}

mod projector_bytes {
    macro_rules! projectors {
        ($($test:ident $name:literal;)*) => {$(
            #[test]
            fn $test() {
                super::check_projector($name);
            }
        )*};
    }

    projectors! {
        gemma3 "gemma3-vision";
        qwen2vl "qwen2vl";
        qwen2_5vl "qwen2_5vl";
        smolvlm "smolvlm";
    }
}

/// Way in which llama.cpp gets a model.
#[derive(Clone, Copy, Debug)]
pub(super) enum LoadVia {
    File,
    #[cfg(target_os = "linux")]
    Stream,
}

const WAYS: &[LoadVia] = &[
    LoadVia::File,
    #[cfg(target_os = "linux")]
    LoadVia::Stream,
];

/// Loads a model with adapters into llama.cpp, with a context of one sequence and everything that is not in the file in
/// 32 bits.
pub(super) fn engine(
    folder: &Path,
    purpose: ContextPurpose,
    target: WeightType,
    adapters: &[PathBuf],
    way: LoadVia,
) -> Context {
    let planned = plan(folder, "test", target).unwrap();
    let path = folder.join("engine.gguf");
    let params = ModelParams {
        gpu_layers: 0,
        split_mode: SplitMode::None,
        ..ModelParams::default()
    };
    let model = match way {
        LoadVia::File => {
            let cancel = CancellationToken::new();
            planned.model.write(&path, &|_, _| {}, &cancel).unwrap();
            Model::load(&path, &params, |_| true)
        }
        #[cfg(target_os = "linux")]
        LoadVia::Stream => Model::load_from(&mut GgufStream::start(planned.model), &params, |_| true),
    };
    let mut model = model.unwrap();
    model.add_end_tokens(END_TOKENS_KEY);
    for adapter in adapters {
        model.add_adapter(adapter, 1.0).unwrap();
    }
    let params = ContextParams {
        context_length: 64,
        parallel: 1,
        batch: 64,
        threads: 1,
        flash_attention: AutoSwitch::Off,
        kv_type_k: KvCacheType::F32,
        kv_type_v: KvCacheType::F32,
    };
    Context::new(Arc::new(model), purpose, &params).unwrap()
}

/// Checks that llama.cpp computes from the file what transformers computed from the checkpoint.
fn check_numbers(name: &str, tolerance: f32) {
    check_numbers_of(name, WeightType::F32, tolerance);
}

fn check_numbers_of(name: &str, target: WeightType, tolerance: f32) {
    let golden = read(name);
    let folder = assemble(name, &golden);
    let purpose = purpose_of(name);
    for way in WAYS {
        let context = engine(folder.path(), purpose, target, &[], *way);
        let worst = largest_difference(&numbers(context, purpose, &golden.prompt), &golden.logits);
        assert!(worst < tolerance, "{name}: the largest difference is {worst} ({way:?})");
    }
}

pub(super) fn purpose_of(name: &str) -> ContextPurpose {
    if ["bert", "embedding", "rerank"].iter().any(|kind| name.contains(kind)) {
        ContextPurpose::Embed
    } else {
        ContextPurpose::Generate
    }
}

/// Returns the logits after the last token, or the embedding of the text.
pub(super) fn numbers(mut context: Context, purpose: ContextPurpose, prompt: &[i32]) -> Vec<f32> {
    let mut batch = Batch::new(prompt.len());
    let mut last = None;
    for (position, token) in prompt.iter().enumerate() {
        last = batch.add(*token, position as i32, 0, true);
    }
    context.decode(&mut batch).unwrap();
    let numbers = match purpose {
        ContextPurpose::Embed => context.embedding(0),
        ContextPurpose::Generate => context.logits(last.unwrap()),
    };
    numbers.unwrap().to_vec()
}

pub(super) fn largest_difference(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    let differences = one.iter().zip(other).map(|(one, other)| (one - other).abs());
    differences.fold(0.0, f32::max)
}

/// The language model of a vision model has the architecture of the text-only model.
#[test]
fn mistral_small_is_mistral3() {
    let folder = assemble("mistral", &read("mistral"));
    let path = folder.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("MistralForCausalLM", "Mistral3ForConditionalGeneration"),
    )
    .unwrap();
    let planned = plan(folder.path(), "test", WeightType::F32).unwrap();
    let header = GgufHeader::read(planned.model.header(), planned.model.file_len()).unwrap();
    assert_eq!(header.architecture(), "mistral3");
    assert_eq!(header.hyperparameter("attention.temperature_scale"), None);
}

/// A `config.json` of transformers 5 leaves out defaults; the defaults of the class give the same file.
#[test]
fn deepseek3_chooses_experts_by_its_class() {
    let golden = read("deepseek3");
    let folder = assemble("deepseek3", &golden);
    let path = folder.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(r#""scoring_func": "sigmoid","#, "")).unwrap();
    let planned = plan(folder.path(), "test", WeightType::F32).unwrap();
    let file = folder.path().join("out.gguf");
    planned
        .model
        .write(&file, &|_, _| {}, &CancellationToken::new())
        .unwrap();
    let header = GgufHeader::open(&file).unwrap();
    assert_eq!(header.hyperparameter("expert_gating_func"), Some(&GgufValue::U32(2)));
    assert!(planned.notes.iter().any(|note| note.contains("scoring_func")));
}

/// llama.cpp tokenizes texts like the reference implementation.
fn check_texts(name: &str) {
    let golden = read(name);
    check_texts_in(name, &assemble(name, &golden));
}

fn check_texts_in(name: &str, folder: &tempfile::TempDir) {
    let context = engine(
        folder.path(),
        ContextPurpose::Generate,
        WeightType::F32,
        &[],
        LoadVia::File,
    );
    let texts = fs::read_to_string(folder.path().join("texts.json")).unwrap();
    let texts: Vec<(String, Vec<i32>)> = serde_json::from_str(&texts).unwrap();
    assert_eq!(texts.len(), 10);
    for (text, expected) in texts {
        let tokens = context.model().tokenize(&text, false, true).unwrap();
        assert_eq!(tokens, expected, "{name}: {text:?}");
    }
}

macro_rules! texts {
    ($($test:ident $name:literal;)*) => {
        mod texts {$(
            #[test]
            fn $test() {
                super::check_texts($name);
            }
        )*}
    };
}

texts! {
    gemma "gemma2";
    gpt2 "granite";
    llama3 "llama3";
    qwen "qwen2";
    sentencepiece "llama";
    unigram "xlm-roberta";
    wordpiece "bert";
}

/// Golden tokenizer in other files than `tokenizer.json`, with a checkpoint of the same vocabulary size.
#[derive(Deserialize)]
struct GoldenTokenizer {
    checkpoint: String,
    keys: BTreeMap<String, (String, Json)>,
}

/// Checks that the keys are those of llama.cpp's converter, and that texts are tokenized like by transformers.
fn check_files(name: &str) {
    let text = fs::read_to_string(Path::new(FIXTURES).join("tokenizers").join(name).join("golden.json")).unwrap();
    let golden: GoldenTokenizer = serde_json::from_str(&text).unwrap();
    let folder = assemble_with(&golden.checkpoint, name);
    let planned = plan(folder.path(), "test", WeightType::F32).unwrap_or_else(|error| panic!("{name}: {error}"));
    let header = GgufHeader::read(planned.model.header(), planned.model.file_len()).unwrap();
    for (key, expected) in golden.keys {
        // Scores that have no effect, and a setting for detokenization.
        if name == "tekken" && key.ends_with(".scores") || key.ends_with(".remove_extra_whitespaces") {
            continue;
        }
        let value = header.get(&key).unwrap_or_else(|| panic!("{name}: {key} is missing"));
        assert_eq!(printed(value), expected, "{name}: {key}");
    }
    check_texts_in(name, &folder);
}

macro_rules! files {
    ($($test:ident $name:literal;)*) => {
        mod tokenizer_files {$(
            #[test]
            fn $test() {
                super::check_files($name);
            }
        )*}
    };
}

files! {
    gpt2 "gpt2-files";
    qwen "qwen-files";
    roberta "roberta-files";
    tekken "tekken";
    unigram "unigram-model";
    wordpiece "wordpiece-files";
    xlm_roberta "xlm-model";
}

/// Returns llama.cpp's token ids of texts with the vocabulary of a header.
fn cut(header: &[u8], texts: &[String]) -> Result<Vec<Vec<i32>>, ConvertError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), header).unwrap();
    let model = Model::load_vocabulary(file.path()).map_err(|error| ConvertError::Engine(error.to_string()))?;
    let cut = |text: &String| {
        model
            .tokenize(text, false, true)
            .map_err(|error| ConvertError::Engine(error.to_string()))
    };
    texts.iter().map(cut).collect()
}

/// If no structure fits, the comparison decides: a pre-tokenizer that tokenizes all texts alike is found; if there is
/// none, the best one is a mismatch.
#[test]
fn a_pre_tokenizer_of_unknown_structure_is_found_by_trying() {
    for (pattern, expected) in [
        (
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            Some("gpt-2"),
        ),
        (r"[aeiou]", None),
    ] {
        let golden = read("gpt2");
        let folder = assemble("gpt2", &golden);
        let path = folder.path().join("tokenizer.json");
        let mut json: Json = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]});
        // Long numbers distinguish this pre-tokenizer from those that are tried before it.
        json["model"]["vocab"]
            .as_object_mut()
            .unwrap()
            .retain(|_, id| id.as_u64() < Some(264));
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        merges.truncate(merges.len() - 2);
        merges.extend([json!(["3", "3"]), json!(["33", "33"])]);
        for (id, text) in [(264, "33"), (265, "3333")] {
            json["model"]["vocab"][text] = id.into();
        }
        fs::write(&path, json.to_string()).unwrap();
        let refused = plan(folder.path(), "test", WeightType::F32).unwrap_err();
        assert!(refused.to_string().contains("no pre-tokenizer"), "{refused}");
        let planned = plan_checked(folder.path(), "test", WeightType::F32, &mut cut).unwrap();
        let check = planned.check.unwrap();
        assert_eq!(check.is_mismatch(), expected.is_none(), "{}", check.sentence());
        let header = GgufHeader::read(planned.model.header(), planned.model.file_len()).unwrap();
        let said = header
            .get(crate::gguf::TOKENIZER_CHECK_KEY)
            .and_then(GgufValue::as_str)
            .unwrap();
        assert!(
            said.starts_with(if expected.is_some() { "equal" } else { "mismatch" }),
            "{said}"
        );
        if let Some(expected) = expected {
            let pre = header.get("tokenizer.ggml.pre").and_then(GgufValue::as_str);
            assert_eq!(pre, Some(expected));
        }
    }
}

/// A model with more end tokens than the format has keys for.
#[test]
fn the_engine_knows_every_end_of_an_answer() {
    let golden = read("llama3");
    let folder = assemble("llama3", &golden);
    fs::write(
        folder.path().join("generation_config.json"),
        r#"{"eos_token_id": [267, 268, 269, 5, 7]}"#,
    )
    .unwrap();
    let context = engine(
        folder.path(),
        ContextPurpose::Generate,
        WeightType::F32,
        &[],
        LoadVia::File,
    );
    let ends: Vec<i32> = (0..296)
        .filter(|token| context.model().is_end_of_generation(*token))
        .collect();
    assert_eq!(ends, [5, 7, 267, 268, 269]);
}
