//! Fuzzes the GGUF reader. A header that is accepted must answer all queries without a panic.
#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../../src/gguf/mod.rs"]
mod gguf;
#[path = "../../../src/inference/mod.rs"]
mod inference;
#[path = "../../../src/provider/huggingface/facts/mod.rs"]
mod facts;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A header may claim more data than there is; the length of the file bounds it.
    let Ok(header) = gguf::GgufHeader::read(bytes, bytes.len() as u64) else { return };
    let _ = gguf::precheck(&header);
    let _ = facts::tensor_facts(&header);
    let header = std::slice::from_ref(&header);
    let _ = facts::model_facts(header);
    let _ = (facts::model_info(header, true), facts::model_info(header, false));
    let header = &header[0];
    let _ = (gguf::bos_token(header), gguf::eos_token(header), gguf::chat_template(header));
    let _ = header.split();
});
