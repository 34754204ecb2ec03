//! Fuzzes the text files of a checkpoint: tokenizers, configuration, model card. The conversion must be planned or
//! refused. The first byte of the input selects the file that the rest replaces.
#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../../src/convert/mod.rs"]
mod convert;
#[path = "../../../src/gguf/mod.rs"]
mod gguf;
#[path = "../../../src/inference/mod.rs"]
mod inference;
mod stdx;
mod checkpoint;

use libfuzzer_sys::fuzz_target;

const FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "merges.txt",
    "README.md",
    "generation_config.json",
    "tokenizer_config.json",
];
const LETTERS: &[u8] = br#"{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}"#;
const MERGES: &[u8] = b"#version: 0.2\na b\n";

fuzz_target!(|bytes: &[u8]| {
    let Some((file, bytes)) = bytes.split_first() else { return };
    let name = FILES[usize::from(*file) % FILES.len()];
    let needs_others = matches!(name, "merges.txt" | "README.md" | "generation_config.json" | "tokenizer_config.json");
    let mut files = vec![(name, bytes)];
    if needs_others {
        files.push(("vocab.json", LETTERS));
    }
    if needs_others && name != "merges.txt" {
        files.push(("merges.txt", MERGES));
    }
    checkpoint::plan(&files);
});
