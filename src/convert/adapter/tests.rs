//! Tests of refusals: each has a sentence that names the reason.

use std::{fs, path::Path};

use serde_json::{Map, Value as Json, json};

use super::*;
use crate::{
    convert::safetensors::tests::file,
    gguf::{GgufHeader, GgufLayout},
};

/// Name and shape of a tensor.
type Tensor<'a> = (&'a str, &'a [u64]);

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

fn header(architecture: &str, more: &[(&str, GgufValue)], tensors: &[Tensor]) -> GgufHeader {
    let mut metadata = vec![(
        "general.architecture".to_owned(),
        GgufValue::String(architecture.to_owned()),
    )];
    metadata.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let specs = tensors
        .iter()
        .map(|(name, dims)| TensorSpec::new(*name, GgmlType::F32, dims.to_vec()));
    let plan = GgufLayout::new(metadata, specs.collect()).unwrap();
    GgufHeader::read(plan.header(), plan.file_len()).unwrap()
}

/// Returns a Llama of one layer: 8 wide, two query heads with one key-value head, feed-forward length 16, 20 tokens.
fn llama(is_tied: bool) -> AdapterBase {
    let sizes = [
        ("block_count", 1),
        ("embedding_length", 8),
        ("feed_forward_length", 16),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ];
    let keys: Vec<(String, GgufValue)> = sizes
        .iter()
        .map(|(key, size)| (format!("llama.{key}"), GgufValue::U32(*size)))
        .collect();
    let keys: Vec<(&str, GgufValue)> = keys.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let mut tensors: Vec<Tensor> = vec![
        ("token_embd.weight", &[8, 20]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[8, 4]),
        ("blk.0.ffn_gate_exps.weight", &[8, 16, 3]),
        ("blk.1.attn_q.weight", &[8, 8]),
        ("blk.1.attn_kv_a_mqa.weight", &[8, 4]),
        ("position_embd.weight", &[8, 32]),
    ];
    if !is_tied {
        tensors.push(("output.weight", &[8, 20]));
    }
    AdapterBase::of(&[header("llama", &keys, &tensors)])
}

/// Writes an adapter whose elements are all one.
fn write(folder: &Path, more: &Json, tensors: &[Tensor]) {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let (mut entries, mut data) = (Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<u64>() {
            data.extend(1.0f32.to_le_bytes());
        }
        entries.insert(
            (*name).to_owned(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    fs::write(folder.join(WEIGHTS), file(&Json::Object(entries).to_string(), &data)).unwrap();
}

fn planned(base: &AdapterBase, more: &Json, tensors: &[Tensor]) -> Result<VirtualGguf, String> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), more, tensors);
    plan_adapter(folder.path(), "test", base).map_err(|error| error.to_string())
}

fn names(model: &VirtualGguf) -> Vec<Tensor<'_>> {
    let recipes = model.recipes().iter();
    recipes
        .map(|recipe| (recipe.spec().name.as_str(), recipe.spec().dims.as_slice()))
        .collect()
}

#[test]
fn names_of_many_tools() {
    for (name, expected) in [
        (
            "base_model.model.model.layers.0.q_proj.lora_A.weight",
            Some(("model.layers.0.q_proj", 0, false)),
        ),
        (
            "model.layers.0.q_proj.lora_B.default.weight",
            Some(("model.layers.0.q_proj", 1, false)),
        ),
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            Some(("model.embed_tokens", 0, true)),
        ),
        ("base_model.model.lm_head.weight", None),
        ("base_model.model.x.lora_magnitude_vector", None),
        ("base_model.model.x.lora_B.bias", None),
    ] {
        let expected = expected.map(|(module, half, is_embedding)| (module.to_owned(), half, is_embedding));
        assert_eq!(factor_of(name), expected, "{name}");
    }
    for name in [
        "layers.0.mlp.up_proj",
        "model.layers.0.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj",
        "language_model.model.layers.0.mlp.up_proj",
    ] {
        assert_eq!(stem(name), "layers.0.mlp.up_proj");
    }
}

#[test]
fn any_class_of_the_base_and_both_ways_to_share_the_output() {
    let tensors: &[Tensor] = &[
        ("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", &[2, 8]),
        ("base_model.model.layers.0.self_attn.q_proj.lora_B.weight", &[8, 2]),
    ];
    for base in [llama(true), llama(false)] {
        let model = planned(&base, &json!({}), tensors).unwrap();
        let expected: [(&str, &[u64]); 2] = [
            ("blk.0.attn_q.weight.lora_a", &[8, 2]),
            ("blk.0.attn_q.weight.lora_b", &[2, 8]),
        ];
        assert_eq!(names(&model), expected);
    }
}

#[test]
fn weights_that_are_refused() {
    let base = llama(true);
    let [a, b] = ["lora_A", "lora_B"].map(|half| format!("{Q}.{half}.weight"));
    let (a, b) = (a.as_str(), b.as_str());
    let cases: &[(&[Tensor], &str)] = &[
        (&[], "changes nothing"),
        (
            &[(a, &[2, 8])],
            "factors of \"model.layers.0.self_attn.q_proj\" is missing",
        ),
        (&[(a, &[2, 8]), (b, &[8, 3])], "make no matrix"),
        (&[(a, &[2, 8, 1]), (b, &[8, 2])], "make no matrix"),
        (&[(a, &[2, 8]), (b, &[16, 2])], "has 16 rows"),
        (
            &[("base_model.model.lm_head.weight", &[20, 8])],
            "\"base_model.model.lm_head.weight\"",
        ),
        (
            &[
                ("x.layers.9.q_proj.lora_A.weight", &[2, 8]),
                ("x.layers.9.q_proj.lora_B.weight", &[8, 2]),
            ],
            "made for another model",
        ),
        (
            &[
                ("model.norm.lora_A.weight", &[2, 8]),
                ("model.norm.lora_B.weight", &[8, 2]),
            ],
            "cannot apply adapters",
        ),
        (
            &[
                (a, &[2, 8]),
                (b, &[8, 2]),
                ("layers.0.self_attn.q_proj.lora_A.weight", &[2, 8]),
                ("layers.0.self_attn.q_proj.lora_B.weight", &[8, 2]),
            ],
            "twice",
        ),
    ];
    for (tensors, part) in cases {
        let error = planned(&base, &json!({}), tensors).unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
    let unknown = AdapterBase::of(&[header(
        "brand-new",
        &[("brand-new.block_count", GgufValue::U32(1))],
        &[],
    )]);
    let error = planned(&unknown, &json!({}), &[(a, &[2, 8]), (b, &[8, 2])]).unwrap_err();
    assert!(error.contains("\"brand-new\""), "{error}");
}

#[test]
fn pairings_that_are_refused() {
    let alpha = ("adapter.lora.alpha", GgufValue::F32(4.0));
    let kinds = || {
        let text = |text: &str| GgufValue::String(text.to_owned());
        [
            ("general.type", text("adapter")),
            ("adapter.type", text("lora")),
            alpha.clone(),
        ]
    };
    let check = |base: &AdapterBase, architecture: &str, tensors: &[Tensor]| {
        let checked = base.check(&header(architecture, &kinds(), tensors));
        checked.map_err(|error| error.to_string())
    };
    let (tied, untied) = (llama(true), llama(false));
    let q: &[Tensor] = &[
        ("blk.0.attn_q.weight.lora_a", &[8, 2]),
        ("blk.0.attn_q.weight.lora_b", &[2, 8]),
    ];
    let embedding: &[Tensor] = &[
        ("token_embd.weight.lora_a", &[2, 20]),
        ("token_embd.weight.lora_b", &[2, 8]),
    ];
    let output: &[Tensor] = &[("output.weight.lora_a", &[8, 2]), ("output.weight.lora_b", &[2, 20])];
    let experts: &[Tensor] = &[
        ("blk.0.ffn_gate_exps.weight.lora_a", &[8, 2, 3]),
        ("blk.0.ffn_gate_exps.weight.lora_b", &[2, 16, 3]),
    ];
    for tensors in [q, embedding, output, experts] {
        assert_eq!(check(&untied, "llama", tensors), Ok(()));
    }
    let few: &[Tensor] = &[
        ("blk.0.ffn_gate_exps.weight.lora_a", &[8, 2, 1]),
        ("blk.0.ffn_gate_exps.weight.lora_b", &[2, 16, 3]),
    ];
    let wide: &[Tensor] = &[
        ("blk.0.attn_q.weight.lora_a", &[9, 2]),
        ("blk.0.attn_q.weight.lora_b", &[2, 8]),
    ];
    let compressed: &[Tensor] = &[
        ("blk.1.attn_q.weight.lora_a", &[8, 2]),
        ("blk.1.attn_q.weight.lora_b", &[2, 8]),
    ];
    let positions: &[Tensor] = &[
        ("position_embd.weight.lora_a", &[8, 2]),
        ("position_embd.weight.lora_b", &[2, 32]),
    ];
    for (base, architecture, tensors, part) in [
        (&untied, "llama", compressed, "does not apply adapters"),
        (&untied, "llama", positions, "does not apply adapters"),
        (&tied, "qwen2", q, "\"qwen2\", and the base is of \"llama\""),
        (&tied, "llama", output, "in this base is the embedding"),
        (&tied, "llama", embedding, "in this base is the output matrix"),
        (&untied, "llama", few, "made for another model"),
        (&untied, "llama", wide, "made for another model"),
        (&untied, "llama", &q[..1], "is missing"),
        (
            &untied,
            "llama",
            &[("blk.0.attn_q.weight", &[8, 8])],
            "is not a factor of a matrix",
        ),
        (&untied, "llama", &[], "changes nothing"),
    ] {
        let error = check(base, architecture, tensors).unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
    let missing = |key: &str| {
        let left: Vec<_> = kinds().into_iter().filter(|(name, _)| *name != key).collect();
        untied.check(&header("llama", &left, q)).unwrap_err().to_string()
    };
    assert!(missing("general.type").contains("but a model"));
    assert!(missing("adapter.lora.alpha").contains("no adapter.lora.alpha"));
}
