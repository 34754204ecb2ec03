//! A model on disk together with the facts of its header.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use super::headers::ModelHeader;
use crate::{
    inference::{Failure, ModelCard, ModelFacts},
    library::LocalModel,
};

/// A model on disk and the part of its header that requests need.
#[derive(Clone, Debug)]
pub(super) struct LocatedModel {
    pub(super) local: LocalModel,
    pub(super) header: Arc<ModelHeader>,
}

impl LocatedModel {
    pub(super) fn card(&self) -> ModelCard {
        ModelCard {
            name: self.local.canonical.clone(),
            modified_at: self.local.modified_at,
            size_bytes: self.local.size_bytes,
            digest: self.local.digest.clone(),
            facts: self.header.facts.clone(),
            parent_model: String::new(),
        }
    }

    /// Returns the file that llama.cpp opens. It finds the other shards of a model next to the first.
    pub(super) fn path(&self) -> Result<PathBuf, Failure> {
        self.local
            .base
            .files
            .first()
            .cloned()
            .ok_or_else(|| Failure::Load("the model has no files".into()))
    }
}

/// Returns the card of a model that may be used but has not been downloaded. Its facts are unknown, so that it has no
/// capabilities.
pub(super) fn not_downloaded_card(name: &str) -> ModelCard {
    ModelCard {
        name: name.to_owned(),
        modified_at: SystemTime::UNIX_EPOCH,
        size_bytes: 0,
        digest: "0".repeat(64),
        facts: ModelFacts {
            quantization: "unknown".into(),
            ..ModelFacts::default()
        },
        parent_model: String::new(),
    }
}
