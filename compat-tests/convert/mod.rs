//! `hubllama convert` on the command line, and its results for real checkpoints.

pub(crate) mod smollm2;

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use hubllama::gguf::{GgmlType, GgufHeader, GgufValue};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{
    fixture_file::gguf,
    hubllama::{Setup, children, is_alive, send_signal, wait_until},
    minilm,
    raw_http::PATIENCE,
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/convert");
/// Place of the converted model in a daemon's cache, and its name there.
const REPO: &str = "Example-Org/SmolLM2-GGUF";
const NAME: &str = "hf:Example-Org/SmolLM2-GGUF:BF16";

/// Copies a tiny checkpoint and its tokenizer into a folder.
pub(crate) fn checkpoint(model: &str, tokenizer: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for from in [format!("tokenizers/{tokenizer}"), model.to_owned()] {
        for entry in fs::read_dir(Path::new(FIXTURES).join(from)).expect("a fixture") {
            let path = entry.expect("an entry").path();
            fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    folder
}

fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hubllama"));
    command
        .arg("convert")
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .env("HF_HUB_CACHE", home.join("hub"))
        .current_dir(home)
        .stdin(Stdio::null());
    command
}

/// Runs the command; returns whether it succeeded, and its output.
pub(crate) fn convert(home: &Path, arguments: &[&str]) -> (bool, String) {
    let output = command(home, arguments).output().expect("the binary starts");
    assert!(output.stdout.is_empty(), "it says everything on standard error");
    (
        output.status.success(),
        String::from_utf8(output.stderr).expect("UTF-8"),
    )
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn file_type(path: &Path) -> Option<u64> {
    GgufHeader::open(path)
        .expect("a header")
        .get("general.file_type")?
        .as_u64()
}

#[test]
fn the_projector_of_a_model_that_sees() {
    let home = tempfile::tempdir().expect("a home");
    let folder = checkpoint("qwen2vl", "qwen");
    let (good, said) = convert(home.path(), &[text(folder.path()), "--mmproj", "--type", "f16"]);
    assert!(good, "{said}");
    let made = names(home.path());
    let made = made
        .iter()
        .find(|name| name.starts_with("mmproj-") && name.ends_with("-F16.gguf"));
    let header = GgufHeader::open(&home.path().join(made.expect(&said))).expect("a header");
    assert_eq!(header.architecture(), "clip");
    let (good, said) = convert(home.path(), &[text(checkpoint("qwen3", "qwen").path()), "--mmproj"]);
    assert!(!good && said.contains("Qwen3ForCausalLM has no projector"), "{said}");
}

#[test]
fn to_every_kind_of_type_without_a_daemon() {
    let home = tempfile::tempdir().expect("a home");
    let folder = checkpoint("qwen3", "qwen");
    for (kind, number) in [
        ("auto", 32),
        ("F16", 1),
        ("f32", 0),
        ("Q8_0", 7),
        ("Q4_K_M", 15),
        ("q6_k", 18),
    ] {
        let output = home.path().join(format!("{kind}.gguf"));
        let (good, said) = convert(
            home.path(),
            &[text(folder.path()), "--type", kind, "--output", text(&output)],
        );
        assert!(good, "{kind}: {said}");
        assert!(said.contains("wrote "), "{said}");
        assert_eq!(file_type(&output), Some(number), "{kind}");
    }
    assert_eq!(names(home.path()).len(), 6, "{:?}", names(home.path()));
}

#[test]
fn a_name_of_the_cache_and_a_name_for_the_file() {
    let home = tempfile::tempdir().expect("a home");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = home.path().join("hub/models--Org--Tiny");
    let snapshot = repository.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).expect("folders");
    fs::create_dir_all(repository.join("refs")).expect("folders");
    fs::write(repository.join("refs/main"), commit).expect("written");
    let folder = checkpoint("llama3", "llama3");
    for name in names(folder.path()) {
        fs::copy(folder.path().join(&name), snapshot.join(&name)).expect("copied");
    }
    let (good, said) = convert(home.path(), &["hf:Org/Tiny"]);
    assert!(good, "{said}");
    assert_eq!(names(home.path()), ["Tiny-BF16.gguf", "hub"]);
    let header = GgufHeader::open(&home.path().join("Tiny-BF16.gguf")).expect("a header");
    assert_eq!(header.get("general.name").and_then(GgufValue::as_str), Some("Tiny"));
    let (good, said) = convert(home.path(), &["hf:Org/Other"]);
    assert!(
        !good && said.contains("is not in") && said.contains("download it first"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_converted_is_said_in_a_sentence_and_leaves_nothing() {
    let home = tempfile::tempdir().expect("a home");
    let rewrite = |folder: &TempDir, from: &str, to: &str| {
        let path = folder.path().join("config.json");
        let config = fs::read_to_string(&path).expect("a configuration");
        assert!(config.contains(from), "{config}");
        fs::write(path, config.replace(from, to)).expect("written");
    };
    let unknown = checkpoint("qwen3", "qwen");
    rewrite(&unknown, "Qwen3ForCausalLM", "BrandNewForCausalLM");
    let narrow = checkpoint("qwen3", "qwen");
    rewrite(&narrow, "\"hidden_size\": 32", "\"hidden_size\": 64");
    let small = checkpoint("qwen3", "qwen");
    rewrite(&small, "\"vocab_size\": 296", "\"vocab_size\": 300");
    let deep = checkpoint("qwen3", "qwen");
    rewrite(&deep, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let sharded = checkpoint("qwen2-yarn", "qwen");
    let shard = names(sharded.path())
        .into_iter()
        .find(|name| name.contains("-00002-of-"));
    fs::remove_file(sharded.path().join(shard.expect("a second shard"))).expect("removed");
    let cut = checkpoint("qwen3", "qwen");
    let weights = fs::read(cut.path().join("model.safetensors")).expect("weights");
    fs::write(cut.path().join("model.safetensors"), &weights[..weights.len() - 2]).expect("written");
    let not_a_number = checkpoint("qwen3", "qwen");
    let mut weights = weights;
    let last = weights.len() - 2;
    weights[last..].copy_from_slice(&[0xc0, 0x7f]);
    fs::write(not_a_number.path().join("model.safetensors"), &weights).expect("written");
    let mute = checkpoint("qwen3", "qwen");
    fs::remove_file(mute.path().join("tokenizer.json")).expect("removed");
    let empty = tempfile::tempdir().expect("a folder");
    for (folder, reason) in [
        (&unknown, "\"BrandNewForCausalLM\" cannot be converted"),
        (&narrow, "config.json asks for"),
        (&small, "a vocabulary of 300"),
        (&deep, "\"model.layers.2.input_layernorm.weight\" is missing"),
        (&sharded, "-00002-of-"),
        (&cut, "download it again"),
        (&not_a_number, "contains NaN"),
        (&mute, "has none of tokenizer.json, tokenizer.model,"),
        (&empty, "has no config.json"),
    ] {
        for kind in ["auto", "F32", "Q4_K_M"] {
            let (good, said) = convert(home.path(), &[text(folder.path()), "--type", kind, "-o", "out.gguf"]);
            assert!(!good, "{reason}: {said}");
            assert!(said.contains(reason), "{said:?} does not say {reason:?}");
            assert_eq!(names(home.path()), Vec::<String>::new(), "{reason}");
        }
    }
    let (good, said) = convert(home.path(), &["/nowhere"]);
    assert!(!good && said.contains("neither a folder nor a name"), "{said}");
}

/// llama.cpp does not implement the normalizer of this tokenizer, which only the comparison of tokens shows.
#[test]
fn a_tokenizer_that_the_engine_does_not_follow_is_refused() {
    let home = tempfile::tempdir().expect("a home");
    let folder = checkpoint("qwen3", "qwen");
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("a tokenizer")).expect("JSON");
    tokenizer["normalizer"] = json!({"type": "Replace", "pattern": {"String": "e"}, "content": "a"});
    fs::write(&path, tokenizer.to_string()).expect("written");
    let (good, said) = convert(home.path(), &[text(folder.path()), "-o", "out.gguf"]);
    assert!(
        !good && said.contains("differently from the checkpoint's own tokenizer"),
        "{said}"
    );
    assert_eq!(names(home.path()), Vec::<String>::new());
    let (good, said) = convert(home.path(), &[text(folder.path()), "-o", "out.gguf", "--any-tokenizer"]);
    assert!(good && said.contains("note: llama.cpp tokenizes"), "{said}");
}

/// If the command is killed at any moment, it leaves a whole file or none, and no process.
#[test]
fn a_kill_leaves_nothing_behind() {
    let home = tempfile::tempdir().expect("a home");
    let folder = checkpoint("qwen3", "qwen");
    widen(folder.path());
    let mut seen_worker = false;
    for wait in [0, 50, 150, 300, 600, 1200, 2400] {
        let mut command = command(
            home.path(),
            &[text(folder.path()), "--type", "Q4_K_M", "-o", "out.gguf"],
        );
        let mut child = command
            .process_group(0)
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        std::thread::sleep(Duration::from_millis(wait));
        let workers = children(child.id() as i32);
        seen_worker |= !workers.is_empty();
        send_signal(child.id() as i32, Signal::KILL);
        child.wait().expect("waits");
        let ended = wait_until(PATIENCE, || workers.iter().all(|pid| !is_alive(*pid)).then_some(()));
        assert!(ended.is_some(), "the worker lives on");
        let left = names(home.path());
        if !left.is_empty() {
            assert_eq!(left, ["out.gguf"]);
            assert_eq!(file_type(&home.path().join("out.gguf")), Some(15), "it is whole");
            break;
        }
    }
    assert!(seen_worker, "it was never killed at work");
}

/// Enlarges a checkpoint's embedding so that its conversion takes a while.
pub(crate) fn widen(folder: &Path) {
    let hidden = 1024;
    let rows = 20_000;
    let norm = format!(
        r#""model.norm.weight":{{"dtype":"F16","shape":[{hidden}],"data_offsets":[0,{}]}}"#,
        2 * hidden
    );
    let end = 2 * hidden + 2 * hidden * rows;
    let embedding = format!(
        r#""model.embed_tokens.weight":{{"dtype":"F16","shape":[{rows},{hidden}],"data_offsets":[{},{end}]}}"#,
        2 * hidden
    );
    let mut layer = String::new();
    let mut at = end;
    let mut add = |name: &str, shape: &[usize]| {
        let bytes = 2 * shape.iter().product::<usize>();
        let (from, to) = (at, at + bytes);
        layer.push_str(&format!(
            r#","model.layers.0.{name}.weight":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{from},{to}]}}"#
        ));
        at = to;
    };
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        add(norm, &[hidden]);
    }
    for norm in ["self_attn.q_norm", "self_attn.k_norm"] {
        add(norm, &[128]);
    }
    add("self_attn.q_proj", &[1024, hidden]);
    add("self_attn.k_proj", &[1024, hidden]);
    add("self_attn.v_proj", &[1024, hidden]);
    add("self_attn.o_proj", &[hidden, 1024]);
    add("mlp.gate_proj", &[1024, hidden]);
    add("mlp.up_proj", &[1024, hidden]);
    add("mlp.down_proj", &[hidden, 1024]);
    let header = format!("{{{norm},{embedding}{layer}}}");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    // Random numbers, because equal ones are quantized too fast.
    file.extend((0..at / 2).flat_map(|number| (0x2000 + (number * 7919 % 4096) as u16).to_le_bytes()));
    fs::write(folder.join("model.safetensors"), file).expect("written");
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": hidden, "intermediate_size": 1024, "num_hidden_layers": 1,
        "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": rows, "eos_token_id": 266,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
}

/// The real embedding model gets the same tensors and keys as from llama.cpp's own converter, except its name.
#[test]
fn minilm_is_converted_as_llama_cpp_converts_it() {
    let home = tempfile::tempdir().expect("a home");
    let reference = minilm::gguf();
    let folder = reference.with_file_name("all-MiniLM-L6-v2");
    let (good, said) = convert(home.path(), &[text(&folder), "--type", "F16", "-o", "minilm.gguf"]);
    assert!(good, "{said}");
    let (ours, theirs) = (Whole::read(&home.path().join("minilm.gguf")), Whole::read(&reference));
    assert_eq!(ours.tensors(), theirs.tensors());
    assert_eq!(ours.keys(), theirs.keys());
}

/// GGUF file in memory.
struct Whole {
    header: GgufHeader,
    bytes: Vec<u8>,
}

impl Whole {
    fn read(path: &Path) -> Self {
        Self {
            header: GgufHeader::open(path).expect("a header"),
            bytes: fs::read(path).expect("a file"),
        }
    }

    /// Returns name, type, dimensions and data of all tensors, sorted.
    fn tensors(&self) -> Vec<(&str, GgmlType, &[u64], &[u8])> {
        let tensor = |tensor: usize| {
            let tensor = &self.header.tensors[tensor];
            let start = (self.header.data_start + tensor.offset) as usize;
            let end = start + tensor.byte_len().expect("a size") as usize;
            (
                tensor.name.as_str(),
                tensor.element_type,
                tensor.dims.as_slice(),
                &self.bytes[start..end],
            )
        };
        let mut all: Vec<_> = (0..self.header.tensors.len()).map(tensor).collect();
        all.sort_by_key(|tensor| tensor.0);
        all
    }

    fn keys(&self) -> Vec<(&str, &GgufValue)> {
        // Keys that only hubllama writes, and keys that come from the name or the card.
        let is_free =
            |key: &str| key.starts_with("hubllama.") || key.starts_with("general.") && key != "general.architecture";
        let mut all: Vec<_> = self.header.metadata.iter().filter(|(key, _)| !is_free(key)).collect();
        all.sort_by_key(|(key, _)| *key);
        all
    }
}

/// A real checkpoint in shards, made from the test model's file, is converted back to the same tensors, and answers.
#[test]
fn a_real_sharded_checkpoint_talks() {
    let home = tempfile::tempdir().expect("a home");
    let folder = home.path().join("SmolLM2");
    let expected = smollm2::write(&folder, &gguf());
    let (good, said) = convert(home.path(), &[text(&folder), "-o", "model-BF16.gguf"]);
    assert!(good, "{said}");
    assert!(
        !said.contains("structure"),
        "the tokenizer is known by its output: {said}"
    );
    let path: PathBuf = home.path().join("model-BF16.gguf");
    let ours = Whole::read(&path);
    let found = ours.tensors();
    assert_eq!(found.len(), expected.len());
    for (name, kind, dims, bytes) in found {
        let (shape, numbers) = &expected[name];
        assert_eq!(dims, shape, "{name}");
        let is_equal = match kind {
            GgmlType::BF16 => {
                bytes
                    == numbers
                        .iter()
                        .flat_map(|number| number.to_le_bytes())
                        .collect::<Vec<_>>()
            }
            GgmlType::F32 => {
                let wide = numbers.iter().flat_map(|number| number.to_f32().to_le_bytes());
                bytes == wide.collect::<Vec<_>>()
            }
            other => panic!("{name} is {other:?}"),
        };
        assert!(is_equal, "{name} has other numbers");
    }
    let original = GgufHeader::open(&gguf()).expect("a header");
    for key in [
        "model",
        "pre",
        "tokens",
        "merges",
        "token_type",
        "bos_token_id",
        "eos_token_id",
    ] {
        let key = format!("tokenizer.ggml.{key}");
        assert_eq!(ours.header.get(&key), original.get(&key), "{key}");
    }
    drop(ours);
    let daemon = Setup::default().file(REPO, "model-BF16.gguf", path).start();
    let request = json!({
        "model": NAME, "stream": false, "options": {"temperature": 0, "num_predict": 20},
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    let (head, body) = daemon.post("/api/chat", &request);
    assert_eq!(head.status(), 200, "{body}");
    assert!(body.contains("Paris"), "{body}");
}
