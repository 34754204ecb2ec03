//! What GGUF headers say, read once for each file and kept small.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use serde_json::{Map, Value};

use super::{facts, vectors};
use crate::{
    gguf::{self, GgufHeader},
    inference::{Failure, ModelFacts, TensorFacts},
    library::LocalModel,
    stdx::sync::lock,
};

/// Headers that are kept; a listing of more files reads the oldest again.
const KEPT: usize = 4096;

/// The part of a header that requests need.
#[derive(Debug)]
pub(super) struct ModelHeader {
    /// For listings.
    pub(super) facts: ModelFacts,
    /// The chat template's source; empty if there is none.
    pub(super) template: String,
    /// Text of the beginning-of-sequence token.
    pub(super) bos: String,
    /// Text of the end-of-sequence token.
    pub(super) eos: String,
    /// Bytes of an f16 KV cache for each token of context.
    pub(super) kv_bytes_per_token: u64,
    /// What an embedding of it is.
    pub(super) numbers: vectors::Numbers,
    /// Why llama.cpp must not see this file.
    pub(super) refusal: Option<String>,
}

type Stamp = (SystemTime, u64);
type Kept = (Stamp, Result<Arc<ModelHeader>, String>);

/// Headers by file, read again when the file changes.
#[derive(Debug, Default)]
pub(super) struct HeaderCache {
    kept: Mutex<HashMap<PathBuf, Kept>>,
}

impl HeaderCache {
    /// The header of a model's files.
    pub(super) async fn get(&self, local: &LocalModel) -> Result<Arc<ModelHeader>, Failure> {
        let Some(path) = local.base.files.first().cloned() else {
            return Err(Failure::Load("the model has no files".into()));
        };
        let stamp = tokio::fs::metadata(&path)
            .await
            .and_then(|meta| Ok((meta.modified()?, meta.len())))
            .map_err(|error| Failure::Unavailable(format!("{} cannot be read: {error}", path.display())))?;
        if let Some((kept, header)) = lock(&self.kept).get(&path)
            && *kept == stamp
        {
            return header.clone().map_err(Failure::Load);
        }
        let (files, projector) = (local.base.files.clone(), local.base.mmproj.clone());
        let read = move || read(&files, projector.as_deref());
        let header = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Failure::Load(error.to_string()))?;
        if let Err(reason) = &header {
            tracing::warn!(path = %path.display(), reason, "unreadable model file");
        }
        let mut kept = lock(&self.kept);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(path, (stamp, header.clone()));
        header.map_err(Failure::Load)
    }
}

fn open_all(files: &[PathBuf]) -> Result<Vec<GgufHeader>, String> {
    let open =
        |path: &PathBuf| GgufHeader::open(path).map_err(|error| format!("{} is no usable GGUF: {error}", name(path)));
    files.iter().map(open).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(files: &[PathBuf], projector: Option<&Path>) -> Result<Arc<ModelHeader>, String> {
    let shards = open_all(files)?;
    let first = shards.first().ok_or("the model has no files")?;
    if first.get("general.type").and_then(gguf::GgufValue::as_str) == Some("adapter") {
        return Err("it is an adapter, not a model; name it behind its base: hf:ORG/REPO+ORG/ADAPTER".to_owned());
    }
    let mut facts = facts::model_facts(&shards);
    if let Some(projector) = projector.and_then(|path| GgufHeader::open(path).ok()) {
        facts::add_projector(&mut facts, &projector);
    }
    Ok(Arc::new(ModelHeader {
        facts,
        template: gguf::chat_template(first).unwrap_or_default().to_owned(),
        bos: gguf::bos_token(first).unwrap_or_default(),
        eos: gguf::eos_token(first).unwrap_or_default(),
        kv_bytes_per_token: kv_bytes_per_token(first),
        numbers: vectors::numbers(first),
        refusal: shards
            .iter()
            .find_map(|shard| gguf::precheck(shard).err())
            .map(|refusal| refusal.to_string()),
    }))
}

/// Layers × KV heads × (K + V head width) × 2 bytes; an upper bound for models that cache less.
fn kv_bytes_per_token(header: &GgufHeader) -> u64 {
    let number = |suffix: &str| header.hyperparameter(suffix).and_then(gguf::GgufValue::as_u64);
    let layers = number("block_count").unwrap_or(0);
    let heads = number("attention.head_count").unwrap_or(1).max(1);
    let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
    let width = number("embedding_length").unwrap_or(0) / heads;
    let (key, value) = (
        number("attention.key_length").unwrap_or(width),
        number("attention.value_length").unwrap_or(width),
    );
    layers
        .saturating_mul(kv_heads)
        .saturating_mul(key.saturating_add(value))
        .saturating_mul(2)
}

type Details = (Map<String, Value>, Vec<TensorFacts>, String, Option<Map<String, Value>>);

/// Everything that `/api/show` tells of the files: header keys, tensors, licence, the projector's keys.
pub(super) async fn details(
    files: Vec<PathBuf>,
    projector: Option<PathBuf>,
    verbose: bool,
) -> Result<Details, Failure> {
    let read = move || -> Result<Details, String> {
        let shards = open_all(&files)?;
        let info = facts::model_info(&shards, verbose);
        let tensors = shards.iter().flat_map(facts::tensor_facts).collect();
        let license = info
            .get("general.license")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let projector = projector.and_then(|path| GgufHeader::open(&path).ok());
        Ok((
            info,
            tensors,
            license,
            projector.map(|header| facts::model_info(&[header], verbose)),
        ))
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Failure::Load(error.to_string()))?
        .map_err(Failure::Load)
}
