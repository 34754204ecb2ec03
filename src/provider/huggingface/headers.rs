//! GGUF headers of the models on disk: read once per file, reduced to what requests need, and cached.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use dashmap::DashMap;
use serde_json::{Map, Value};

use super::{facts, vectors};
use crate::{
    gguf::{self, GgufHeader},
    inference::{Failure, ModelFacts, TensorFacts},
    library::LocalModel,
};

/// Cached headers. When the cache is full it is cleared: a header is read again in milliseconds, so that an order of
/// use would cost more than it saves.
const MAX_CACHED_HEADERS: usize = 4096;

/// The part of a header that requests need.
#[derive(Debug)]
pub(super) struct ModelHeader {
    pub(super) facts: ModelFacts,
    /// Source of the chat template; empty if there is none.
    pub(super) template: String,
    /// Text of the beginning-of-sequence token.
    pub(super) bos: String,
    /// Text of the end-of-sequence token.
    pub(super) eos: String,
    /// Bytes of an f16 KV cache per token of context.
    pub(super) kv_bytes_per_token: u64,
    pub(super) vector_kind: vectors::VectorKind,
    /// Reason why the file must not be loaded: llama.cpp would crash on it.
    pub(super) refusal: Option<String>,
}

/// Reason why a model's files cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("the model has no files")]
    NoFiles,
    #[error("{file} is not a usable GGUF file: {error}")]
    Unusable { file: String, error: Arc<gguf::GgufError> },
    #[error("it is an adapter, not a model; name it behind its base: hf:ORG/REPO+ORG/ADAPTER")]
    Adapter,
}

impl From<HeaderError> for Failure {
    fn from(error: HeaderError) -> Self {
        Self::Load(error.to_string())
    }
}

/// A header, or the reason why it cannot be read, with modification time and size of the file that it was read from.
#[derive(Debug)]
struct CachedHeader {
    stamp: (SystemTime, u64),
    header: Result<Arc<ModelHeader>, HeaderError>,
}

/// Headers by file. A header is read again when the file has changed.
///
/// The map is concurrent because every request looks up its model here. Two requests that miss at the same time both
/// read the file, which is harmless.
#[derive(Debug, Default)]
pub(super) struct HeaderCache {
    headers: DashMap<PathBuf, CachedHeader>,
}

impl HeaderCache {
    /// Returns the header of a model's files.
    pub(super) async fn get(&self, local: &LocalModel) -> Result<Arc<ModelHeader>, Failure> {
        let path = local.base.files.first().cloned().ok_or(HeaderError::NoFiles)?;
        let stamp = tokio::fs::metadata(&path)
            .await
            .and_then(|meta| Ok((meta.modified()?, meta.len())))
            .map_err(|error| Failure::Unavailable(format!("{} cannot be read: {error}", path.display())))?;
        if let Some(cached) = self.headers.get(&path)
            && cached.stamp == stamp
        {
            return Ok(cached.header.clone()?);
        }
        let (files, projector) = (local.base.files.clone(), local.base.mmproj.clone());
        let header = read_blocking(move || read(&files, projector.as_deref())).await?;
        if let Err(error) = &header {
            tracing::warn!(path = %path.display(), reason = %error, "unreadable model file");
        }
        if self.headers.len() >= MAX_CACHED_HEADERS {
            self.headers.clear();
        }
        let cached = CachedHeader {
            stamp,
            // Errors are cached, too: a broken file is neither read nor logged again with each listing.
            header: header.clone(),
        };
        self.headers.insert(path, cached);
        Ok(header?)
    }
}

async fn read_blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Failure::Load(error.to_string()))
}

fn open_all(files: &[PathBuf]) -> Result<Vec<GgufHeader>, HeaderError> {
    let open = |path: &PathBuf| {
        GgufHeader::open(path).map_err(|error| HeaderError::Unusable {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            error: Arc::new(error),
        })
    };
    files.iter().map(open).collect()
}

fn read(files: &[PathBuf], projector: Option<&Path>) -> Result<Arc<ModelHeader>, HeaderError> {
    let shards = open_all(files)?;
    let first = shards.first().ok_or(HeaderError::NoFiles)?;
    if first.get("general.type").and_then(gguf::GgufValue::as_str) == Some("adapter") {
        return Err(HeaderError::Adapter);
    }
    let mut facts = facts::model_facts(&shards);
    // A projector that cannot be read only costs the capabilities that it would add.
    if let Some(projector) = projector.and_then(|path| GgufHeader::open(path).ok()) {
        facts::add_projector(&mut facts, &projector);
    }
    Ok(Arc::new(ModelHeader {
        facts,
        template: gguf::chat_template(first).unwrap_or_default().to_owned(),
        bos: gguf::bos_token(first).unwrap_or_default(),
        eos: gguf::eos_token(first).unwrap_or_default(),
        kv_bytes_per_token: kv_bytes_per_token(first),
        vector_kind: vectors::vector_kind(first),
        refusal: shards
            .iter()
            .find_map(|shard| gguf::precheck(shard).err())
            .map(|refusal| refusal.to_string()),
    }))
}

/// Returns layers × KV heads × (width of a K head + width of a V head) × 2 bytes. Models with sliding windows or
/// recurrent layers cache less, so that this is an upper bound.
fn kv_bytes_per_token(header: &GgufHeader) -> u64 {
    let number = |suffix: &str| header.hyperparameter(suffix).and_then(gguf::GgufValue::as_u64);
    let layers = number("block_count").unwrap_or(0);
    let heads = number("attention.head_count").unwrap_or(1).max(1);
    // Some architectures give the KV heads of each layer, as an array; the number of all heads is then the bound.
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

/// Details of a model's files that `/api/show` prints.
pub(super) struct FileDetails {
    pub(super) model_info: Map<String, Value>,
    pub(super) tensors: Vec<TensorFacts>,
    /// License in the metadata; empty if there is none.
    pub(super) license: String,
    /// Metadata of the projector; `None` if the model has none.
    pub(super) projector_info: Option<Map<String, Value>>,
}

/// Reads the details of a model's files; long arrays of metadata only if `verbose`.
pub(super) async fn read_details(local: &LocalModel, verbose: bool) -> Result<FileDetails, Failure> {
    let (files, projector) = (local.base.files.clone(), local.base.mmproj.clone());
    let read = move || -> Result<FileDetails, HeaderError> {
        let shards = open_all(&files)?;
        let model_info = facts::model_info(&shards, verbose);
        let license = model_info
            .get("general.license")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let projector = projector.and_then(|path| GgufHeader::open(&path).ok());
        Ok(FileDetails {
            model_info,
            tensors: shards.iter().flat_map(facts::tensor_facts).collect(),
            license,
            projector_info: projector.map(|header| facts::model_info(&[header], verbose)),
        })
    };
    Ok(read_blocking(read).await??)
}
