//! SmolLM2 as a checkpoint: the test model's file, dequantized, under the names that transformers uses.

use std::{collections::HashMap, fs, io::Write as _, path::Path};

use half::{bf16, f16};
use hubllama::gguf::{GgmlType, GgufHeader, GgufValue};
use serde_json::{Map, Value as Json, json};

const HIDDEN: u64 = 576;
const LAYERS: u64 = 30;
const HEADS: u64 = 9;
const KEY_HEADS: u64 = 3;
const SHARDS: usize = 3;

/// Dimensions and elements of every tensor that a conversion should make, by name.
pub(crate) type Expected = HashMap<String, (Vec<u64>, Vec<bf16>)>;

/// Writes the checkpoint of the test model's file; returns the expected tensors.
pub(crate) fn write(folder: &Path, gguf: &Path) -> Expected {
    fs::create_dir_all(folder).expect("a folder");
    let bytes = fs::read(gguf).expect("the model");
    let header = GgufHeader::open(gguf).expect("a header");
    let mut expected = Expected::new();
    let mut stored = Vec::new();
    for tensor in &header.tensors {
        let start = (header.data_start + tensor.offset) as usize;
        let data = &bytes[start..start + tensor.byte_len().expect("a size") as usize];
        let numbers = numbers(tensor.element_type, data);
        let heads = match tensor.name.as_str() {
            name if name.ends_with("attn_q.weight") => Some(HEADS),
            name if name.ends_with("attn_k.weight") => Some(KEY_HEADS),
            _ => None,
        };
        let ordered = match heads {
            Some(heads) => halved(&numbers, heads as usize, tensor.dims[0] as usize),
            None => numbers.clone(),
        };
        let shape: Vec<u64> = tensor.dims.iter().rev().copied().collect();
        stored.push((stored_name(&tensor.name), shape, ordered));
        expected.insert(tensor.name.clone(), (tensor.dims.clone(), numbers));
    }
    write_shards(folder, &stored);
    write_config(folder, &header);
    write_tokenizer(folder, &header);
    expected
}

fn numbers(kind: GgmlType, data: &[u8]) -> Vec<bf16> {
    let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let mut out = Vec::new();
    match kind {
        GgmlType::F32 => {
            let numbers = data.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number));
            out.extend(numbers.map(bf16::from_f32));
        }
        GgmlType::Q4_1 => {
            for block in data.chunks_exact(20) {
                let (scale, least) = (half(block), half(&block[2..]));
                let number = |nibble: u8| bf16::from_f32(f32::from(nibble) * scale + least);
                out.extend(block[4..].iter().map(|byte| number(byte & 15)));
                out.extend(block[4..].iter().map(|byte| number(byte >> 4)));
            }
        }
        GgmlType::Q8_0 => {
            for block in data.chunks_exact(34) {
                let scale = half(block);
                out.extend(
                    block[2..]
                        .iter()
                        .map(|byte| bf16::from_f32(f32::from(*byte as i8) * scale)),
                );
            }
        }
        other => panic!("the test model has {other:?}"),
    }
    out
}

/// Undoes the permutation of heads: the even rows of each head first, then the odd ones.
fn halved(numbers: &[bf16], heads: usize, width: usize) -> Vec<bf16> {
    let head = numbers.len() / heads;
    let rows = head / width;
    let mut out = Vec::with_capacity(numbers.len());
    for head in numbers.chunks_exact(head) {
        for start in [0, 1] {
            for row in (start..rows).step_by(2) {
                out.extend_from_slice(&head[row * width..(row + 1) * width]);
            }
        }
    }
    out
}

fn stored_name(name: &str) -> String {
    let Some(rest) = name.strip_prefix("blk.") else {
        return match name {
            "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
            "output_norm.weight" => "model.norm.weight".to_owned(),
            other => panic!("the test model has {other}"),
        };
    };
    let (layer, part) = rest.split_once('.').expect("a layer");
    let part = match part.strip_suffix(".weight").expect("a weight") {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("the test model has {other}"),
    };
    format!("model.layers.{layer}.{part}.weight")
}

fn write_shards(folder: &Path, stored: &[(String, Vec<u64>, Vec<bf16>)]) {
    let mut map = Map::new();
    for (number, shard) in stored.chunks(stored.len().div_ceil(SHARDS)).enumerate() {
        let name = format!("model-{:05}-of-{SHARDS:05}.safetensors", number + 1);
        let mut header = Map::new();
        let mut at = 0;
        for (tensor, shape, numbers) in shard {
            let end = at + 2 * numbers.len();
            header.insert(
                tensor.clone(),
                json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}),
            );
            map.insert(tensor.clone(), Json::from(name.as_str()));
            at = end;
        }
        let header = Json::Object(header).to_string();
        let file = fs::File::create(folder.join(name)).expect("a file");
        let mut file = std::io::BufWriter::new(file);
        file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
        file.write_all(header.as_bytes()).expect("written");
        for (_, _, numbers) in shard {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            file.write_all(&bytes).expect("written");
        }
        file.flush().expect("written");
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("written");
}

fn write_config(folder: &Path, header: &GgufHeader) {
    let integer = |key: &str| header.get(key).and_then(GgufValue::as_u64).expect("an integer");
    let number = |key: &str| header.get(key).and_then(GgufValue::as_f64).expect("a number");
    assert_eq!(
        (integer("llama.embedding_length"), integer("llama.block_count")),
        (HIDDEN, LAYERS)
    );
    assert_eq!(
        (
            integer("llama.attention.head_count"),
            integer("llama.attention.head_count_kv")
        ),
        (HEADS, KEY_HEADS)
    );
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "intermediate_size": integer("llama.feed_forward_length"),
        "max_position_embeddings": integer("llama.context_length"),
        "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": number("llama.rope.freq_base"),
        "tie_word_embeddings": true,
        "vocab_size": integer("llama.vocab_size"),
        "torch_dtype": "bfloat16",
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
}

fn write_tokenizer(folder: &Path, header: &GgufHeader) {
    let strings = |key: &str| -> Vec<String> {
        let list = header.get(key).and_then(GgufValue::as_strings).expect("strings");
        list.iter()
            .map(|text| String::from_utf8(text.to_vec()).expect("UTF-8"))
            .collect()
    };
    let tokens = strings("tokenizer.ggml.tokens");
    let kinds = header
        .get("tokenizer.ggml.token_type")
        .map(GgufValue::integers)
        .expect("types");
    let vocabulary: Map<String, Json> = tokens
        .iter()
        .enumerate()
        .map(|(id, text)| (text.clone(), Json::from(id)))
        .collect();
    let added: Vec<Json> = tokens
        .iter()
        .zip(&kinds)
        .enumerate()
        .filter(|(_, (_, kind))| **kind == 3)
        .map(|(id, (text, _))| {
            json!({
                "id": id, "content": text, "special": true, "normalized": false, "single_word": false, "lstrip": false,
                "rstrip": false,
            })
        })
        .collect();
    assert!(added.len() > 2);
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, byte_level,
        ]},
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": strings("tokenizer.ggml.merges"),
        },
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    let token = |key: &str| {
        let id = header.get(key).and_then(GgufValue::as_u64).expect("an id");
        tokens[id as usize].clone()
    };
    let config = json!({
        "bos_token": token("tokenizer.ggml.bos_token_id"),
        "eos_token": token("tokenizer.ggml.eos_token_id"),
    });
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("written");
    let template = header.get("tokenizer.chat_template").and_then(GgufValue::as_str);
    fs::write(folder.join("chat_template.jinja"), template.expect("a template")).expect("written");
}
