//! Embeddings of a real embedding model.

use std::collections::HashSet;

use hubllama::{
    gguf::GgufHeader,
    inference::SplitMode,
    llama::{Model, ModelParams},
};

use crate::harness::minilm;

#[test]
fn llama_cpp_loads_the_embedding_model_and_reads_its_words() {
    let params = ModelParams {
        gpu_layers: 0,
        split_mode: SplitMode::None,
        ..ModelParams::default()
    };
    let model = Model::load(&minilm::gguf(), &params, |_| true).expect("llama.cpp loads it");
    assert_eq!((model.vocab_size(), model.train_context()), (30_522, 512));
    // Token ids from the checkpoint's own tokenizer.
    let tokens = model
        .tokenize("Hello, unbelievable world!", true, false)
        .expect("tokens");
    assert_eq!(tokens, [101, 7592, 1010, 23653, 2088, 999, 102]);
}

#[test]
fn the_embedding_model_has_the_tensors_that_ollama_recorded() {
    let recorded = include_str!("../fixtures/ollama-recordings/minilm-show.json");
    let recorded: serde_json::Value = serde_json::from_str(recorded).expect("a recording");
    let body = recorded["response"]["chunks"][0]["text"].as_str().expect("text");
    let shown: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let header = GgufHeader::open(&minilm::gguf()).expect("a header");
    let here: HashSet<String> = header
        .tensors
        .iter()
        .map(|tensor| format!("{} {} {:?}", tensor.name, tensor.element_type.name(), tensor.dims))
        .collect();
    for tensor in shown["tensors"].as_array().expect("a list") {
        // The recorder has shortened the list and marked this with a string.
        if let Some(name) = tensor["name"].as_str() {
            let dims: Vec<u64> = serde_json::from_value(tensor["shape"].clone()).expect("a shape");
            let line = format!("{name} {} {dims:?}", tensor["type"].as_str().expect("a type"));
            assert!(here.contains(&line), "{line}");
        }
    }
}
