//! Golden tests of quantization mixes: every mix is compared, tensor by tensor, with what llama.cpp's quantizer makes
//! of the same weights in an F32 file. Besides the tiny checkpoints there are two with rows long enough for every type
//! and enough layers for every rule.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

use super::{assemble, hash, read};
use crate::{
    convert::{VirtualGguf, mix, plan, safetensors::tests::file},
    gguf::{GgmlType, GgufHeader, TensorInfo},
    inference::WeightType,
    llama,
};

/// Type, dimensions without trailing ones, and hash of the data of each tensor by name.
type ElementTypes = BTreeMap<String, (&'static str, Vec<u64>, String)>;

fn write(folder: &Path, target: WeightType, path: &Path) -> &'static str {
    let planned = plan(folder, "test", target).unwrap();
    let model = planned.model.with_quantizer(|weight_type, numbers, row, out| {
        llama::quantize_rows(weight_type, numbers, row, out).map_err(|error| error.to_string())
    });
    model.write(path, &|_, _| {}, &CancellationToken::new()).unwrap();
    planned.file_type
}

/// Writes the F32 file, with MXFP4 decoded: llama.cpp refuses to requantize it.
fn write_unpacked(folder: &Path, path: &Path) {
    let model = plan(folder, "test", WeightType::F32).unwrap().model;
    let header = GgufHeader::read(model.header(), model.file_len()).unwrap();
    let metadata = header.metadata.iter();
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let mut recipes = model.recipes().to_vec();
    let packed = recipes.iter_mut().filter(|recipe| recipe.is_packed());
    packed.for_each(|recipe| recipe.set_type(GgmlType::F32));
    let model = VirtualGguf::new(metadata, recipes).unwrap();
    model.write(path, &|_, _| {}, &CancellationToken::new()).unwrap();
}

fn tensors(path: &Path) -> ElementTypes {
    let (header, bytes) = (GgufHeader::open(path).unwrap(), fs::read(path).unwrap());
    let tensor = |tensor: &TensorInfo| {
        let start = (header.data_start + tensor.offset) as usize;
        let data = &bytes[start..start + tensor.byte_len().unwrap() as usize];
        let mut dims = tensor.dims.clone();
        while dims.len() > 1 && dims.ends_with(&[1]) {
            dims.pop();
        }
        (tensor.name.clone(), (tensor.element_type.name(), dims, hash(data)))
    };
    header.tensors.iter().map(tensor).collect()
}

fn compare(name: &str, folder: &Path) {
    let full = folder.join("full.gguf");
    write_unpacked(folder, &full);
    let (ours, theirs) = (folder.join("ours.gguf"), folder.join("theirs.gguf"));
    for target in WeightType::explicit() {
        let WeightType::Mix(mix) = target else { continue };
        assert_eq!(write(folder, target, &ours), target.name());
        llama::quantize(&full, &theirs, mix::file_type(mix), 2).unwrap();
        let (header, expected) = (GgufHeader::open(&ours).unwrap(), GgufHeader::open(&theirs).unwrap());
        for (key, value) in expected.metadata.iter() {
            assert_eq!(header.get(key), Some(value), "{name} {target}: {key}");
        }
        let (ours, theirs) = (tensors(&ours), tensors(&theirs));
        assert_eq!(ours.len(), theirs.len());
        for (tensor, expected) in theirs {
            let (found, what) = (&ours[&tensor], format!("{name} {target}: {tensor}"));
            if expected.0 == "F32" && found.0 == "BF16" {
                // Tensors that are not quantized have the type that they would have without a mix.
                assert_eq!(found.1, expected.1, "{what}");
            } else {
                assert_eq!(found, &expected, "{what}");
            }
        }
    }
}

pub(super) fn check(name: &str) {
    compare(name, assemble(name, &read(name)).path());
}

/// Checks a checkpoint of random weights like `name`, with other dimensions and more layers.
fn check_wide(name: &str, changes: &[(&str, u64)], experts: u64) {
    let folder = assemble(name, &read(name));
    let path = folder.path().join("config.json");
    let mut config: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, number) in changes {
        config[key] = json!(number);
    }
    fs::write(&path, config.to_string()).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap();
    let (hidden, inner) = (number("hidden_size"), number("intermediate_size"));
    let head = hidden / number("num_attention_heads");
    let keys = head * number("num_key_value_heads");

    let mut shapes = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![number("vocab_size"), hidden],
        ),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] == json!(false) {
        shapes.push(("lm_head.weight".to_owned(), vec![number("vocab_size"), hidden]));
    }
    for layer in 0..number("num_hidden_layers") {
        let mut add = |part: &str, shape: &[u64]| {
            shapes.push((format!("model.layers.{layer}.{part}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[keys, hidden]);
        add("self_attn.v_proj", &[keys, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        if experts == 0 {
            add("mlp.gate_proj", &[inner, hidden]);
            add("mlp.up_proj", &[inner, hidden]);
            add("mlp.down_proj", &[hidden, inner]);
            continue;
        }
        add("block_sparse_moe.gate", &[experts, hidden]);
        for expert in 0..experts {
            let mut add = |part: &str, shape: &[u64]| add(&format!("block_sparse_moe.experts.{expert}.{part}"), shape);
            add("w1", &[inner, hidden]);
            add("w3", &[inner, hidden]);
            add("w2", &[hidden, inner]);
        }
    }
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let end = at + 2 * shape.iter().product::<u64>();
        header.insert(
            name,
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let data: Vec<u8> = (0..at / 2)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Magnitudes from 2^-10 to 2^-3, with either sign.
            let bits = (state >> 48) as u16;
            (bits & 0x8000 | (0x3a80 + bits % 0x400)).to_le_bytes()
        })
        .collect();
    let weights = file(&Json::Object(header).to_string(), &data);
    fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    compare(name, folder.path());
}

#[test]
fn many_layers() {
    let changes = [
        ("hidden_size", 256),
        ("intermediate_size", 256),
        ("num_hidden_layers", 17),
        ("head_dim", 64),
        ("num_key_value_heads", 1),
    ];
    check_wide("llama", &changes, 0);
}

#[test]
fn eight_experts() {
    let changes = [
        ("hidden_size", 256),
        ("intermediate_size", 256),
        ("num_hidden_layers", 2),
        ("num_local_experts", 8),
    ];
    check_wide("mixtral", &changes, 8);
}
