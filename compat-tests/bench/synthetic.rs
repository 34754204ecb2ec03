//! Synthetic Llama checkpoint with a billion random parameters, large enough that fixed costs do not matter.

use std::{
    fs,
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::Result;
use serde_json::{Map, Value, json};

const HIDDEN: u64 = 2048;
const INNER: u64 = 5632;
const LAYERS: u64 = 22;
const KEYS: u64 = 256;
const VOCABULARY: u64 = 296;
/// Folder with the tokenizer of this vocabulary.
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/convert");

/// Writes the checkpoint in BF16 and returns the size of its weights in bytes.
pub(crate) fn write(folder: &Path) -> Result<u64> {
    fs::create_dir_all(folder)?;
    let tokenizer = Path::new(FIXTURE).join("tokenizers/qwen");
    for entry in fs::read_dir(tokenizer)? {
        let path = entry?.path();
        fs::copy(&path, folder.join(path.file_name().unwrap_or_default()))?;
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "eos_token_id": 266,
    });
    fs::write(folder.join("config.json"), config.to_string())?;
    let (mut header, mut at) = (Map::new(), 0);
    let mut add = |name: String, shape: &[u64]| {
        let end = at + 2 * shape.iter().product::<u64>();
        header.insert(
            name,
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    };
    add("model.embed_tokens.weight".into(), &[VOCABULARY, HIDDEN]);
    add("model.norm.weight".into(), &[HIDDEN]);
    for layer in 0..LAYERS {
        let shapes: [(&str, &[u64]); 9] = [
            ("input_layernorm", &[HIDDEN]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", &[KEYS, HIDDEN]),
            ("self_attn.v_proj", &[KEYS, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            ("mlp.gate_proj", &[INNER, HIDDEN]),
            ("mlp.up_proj", &[INNER, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, INNER]),
        ];
        for (part, shape) in shapes {
            add(format!("model.layers.{layer}.{part}.weight"), shape);
        }
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..at / 2 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // The weights are between 2^-10 and 2^-3, with either sign.
        let bits = (state >> 48) as u16;
        file.write_all(&(bits & 0x8000 | (0x3a80 + bits % 0x400)).to_le_bytes())?;
    }
    file.into_inner()?.sync_all()?;
    Ok(at)
}
