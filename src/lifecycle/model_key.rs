//! The identity of a resident model.

use std::{fmt, path::PathBuf};

use crate::worker::protocol::LoadSpec;

/// Identity of a resident model: its file and the adapters that are applied to it, in order. Two names that lead to the
/// same files share one resident; the same base with other adapters is another resident, since llama.cpp applies them
/// to the whole context.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelKey {
    /// GGUF file; for a sharded model the first shard.
    pub path: PathBuf,
    /// GGUF files of the adapters.
    pub adapters: Vec<PathBuf>,
}

impl From<&LoadSpec> for ModelKey {
    fn from(spec: &LoadSpec) -> Self {
        Self {
            path: spec.path.clone(),
            adapters: spec.adapters.iter().map(|adapter| adapter.path.clone()).collect(),
        }
    }
}

impl fmt::Display for ModelKey {
    /// Writes the paths with `+` between them, as adapters are written in hf: names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.adapters
            .iter()
            .try_for_each(|adapter| write!(f, "+{}", adapter.display()))
    }
}
