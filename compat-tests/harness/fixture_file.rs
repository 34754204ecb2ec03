//! The file of the real test model, and hashes of files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// Returns the path of the GGUF file of SmolLM2-135M-Instruct, which `make test` downloads.
pub(crate) fn gguf() -> PathBuf {
    let path = std::env::var_os("HUBLLAMA_TEST_GGUF").expect("run the tests with `make test`, which gets the model");
    PathBuf::from(path)
}

/// Returns the sha256 of a file as hex digits.
pub(crate) fn sha256_of(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
