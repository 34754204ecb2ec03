//! Fuzzes the header of a safetensors file. The conversion must be planned or refused.
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

fuzz_target!(|bytes: &[u8]| checkpoint::plan(&[("model.safetensors", bytes)]));
