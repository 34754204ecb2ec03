//! The plan of a pull: the files that the Hub has for a name.

use std::{path::PathBuf, sync::Arc};

use crate::{
    config::HubConfig,
    hub::{
        HfName, HubError,
        cache::{self, RepoFolder},
        client::RepoInfo,
        resolve::{self, RepoFile},
        target::BlobTarget,
    },
    inference::WeightType,
    library::{
        Library, LocalModel, blocking,
        checkpoint::{self, CheckpointFiles},
        error::LibraryError,
    },
};

/// Pull plan: the commit and the files that a name stands for on the Hub.
pub(in crate::library) struct PullPlan {
    pub(in crate::library) info: RepoInfo,
    pub(super) source: PullSource,
    pub(in crate::library) files: Vec<RepoFile>,
}

/// Pull source: the kind of files that a name stands for.
pub(super) enum PullSource {
    /// GGUF files of the model with this selector.
    Gguf(String),
    /// A checkpoint of safetensors that is to be converted to this weight type.
    Checkpoint(WeightType),
}

impl PullPlan {
    /// Asks the Hub for the files of a name without adapters.
    ///
    /// # Errors
    /// If the Hub cannot be asked, or has no files for the name.
    pub(in crate::library) async fn new(
        library: &Library,
        config: Arc<HubConfig>,
        name: &HfName,
    ) -> Result<Self, HubError> {
        let default = config.safetensors_type;
        let client = library.client(config)?;
        let revision = name.revision.as_deref().unwrap_or("main");
        let info = client.info(&name.repo_id(), revision).await?;
        let repo = format!("{}/{}", info.org, info.repo);
        let listing = client.tree(&repo, &info.commit).await?;
        let selector = name.selector.as_ref();
        let no_gguf = match resolve::resolve(&listing, selector) {
            Ok(resolution) => {
                let mut files = resolution.files;
                files.extend(resolution.mmproj);
                let source = PullSource::Gguf(resolution.label);
                return Ok(Self { info, source, files });
            }
            Err(error) => error,
        };
        let CheckpointFiles { weight_type, files } = checkpoint::resolve(&listing, selector, default, no_gguf)
            .map_err(|error| HubError::Resolve { repo, error })?;
        let source = PullSource::Checkpoint(weight_type);
        Ok(Self { info, source, files })
    }

    /// Returns true if the files of the plan are those of a model in a cache that is only read, so that nothing has to
    /// be copied.
    pub(super) async fn is_satisfied_by(&self, config: &HubConfig, model: &LocalModel) -> Result<bool, LibraryError> {
        // A conversion may have another weight type than the one that the plan asks for.
        if model.base.root == config.cache_dir || !model.base.sources.is_empty() {
            return Ok(false);
        }
        let wanted: Vec<Option<String>> = self.files.iter().map(|file| file.etag().map(str::to_owned)).collect();
        Ok(wanted == blob_hashes(model).await?)
    }
}

/// Returns the hashes of a model's downloaded files, by the names of their blobs, in the order of a plan's files;
/// `None` for a file without a hash.
pub(in crate::library) async fn blob_hashes(model: &LocalModel) -> Result<Vec<Option<String>>, LibraryError> {
    let files: Vec<PathBuf> = model.downloads().cloned().collect();
    blocking(move || Ok(files.iter().map(|file| cache::blob_name(file)).collect())).await
}

/// Returns the places in the cache for the files of a commit.
///
/// # Errors
/// If the Hub listed a file without a hash: content that cannot be verified is not downloaded.
pub(super) fn targets(config: &HubConfig, info: &RepoInfo, files: &[RepoFile]) -> Result<Vec<BlobTarget>, HubError> {
    let folder = RepoFolder::new(&config.cache_dir, &info.org, &info.repo);
    let target = |file: &RepoFile| {
        let Some(etag) = file.etag() else {
            let problem = format!("it lists {} without a hash", file.path);
            return Err(HubError::Protocol {
                host: config.endpoint.clone(),
                problem,
            });
        };
        Ok(BlobTarget {
            repo: format!("{}/{}", info.org, info.repo),
            commit: info.commit.clone(),
            path: file.path.clone(),
            size: file.size,
            blob: folder.blob(etag),
            // The lock that huggingface_hub takes for the same blob.
            lock: config
                .cache_dir
                .join(".locks")
                .join(format!("models--{}--{}", info.org, info.repo))
                .join(format!("{etag}.lock")),
            etag: etag.to_owned(),
        })
    };
    files.iter().map(target).collect()
}
