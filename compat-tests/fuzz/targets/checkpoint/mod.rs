//! Tiny checkpoint, some of whose files are fuzzed.

use std::{fs, path::Path};

use crate::{convert, inference::WeightType};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/convert/llama");

/// Plans the conversion of the checkpoint. A refusal is a valid result.
pub fn plan(files: &[(&str, &[u8])]) {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(FIXTURES).join(name), folder.path().join(name)).expect("copied");
    }
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    let mut cut = |_: &[u8], texts: &[String]| Ok(vec![Vec::new(); texts.len()]);
    if let Ok(planned) = convert::plan_checked(folder.path(), "fuzz", WeightType::Stored, &mut cut) {
        assert!(!planned.model.header().is_empty());
    }
}
