//! The identity of a conversion, and the checkpoint in the cache that a name asks to convert.

use std::{fmt, path::PathBuf};

use crate::{
    config::{HubConfig, SafetensorsMode},
    convert::CAN_STREAM,
    hub::{
        HfName,
        cache::{RepoFolder, SnapshotFolder},
        resolve,
    },
    inference::WeightType,
    library::checkpoint,
    worker::protocol::ConversionOutput,
};

/// Conversion key: a checkpoint in a cache, at one commit, and the weight type to convert it to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConversionKey {
    pub(crate) folder: RepoFolder,
    /// 40 hex digits.
    pub(crate) commit: String,
    pub(crate) weight_type: WeightType,
}

impl ConversionKey {
    /// Finds the checkpoint in the caches that a name asks for. Returns `None` if GGUF files answer to the name, or
    /// nothing does.
    pub(crate) fn find(roots: &[PathBuf], name: &HfName, default: WeightType) -> Option<Self> {
        let is_relevant = |path: &str| checkpoint::is_part(path) || path.to_ascii_lowercase().ends_with(".gguf");
        let found = snapshots(roots, &name.org, &name.repo, name.revision.as_deref());
        found.into_iter().find_map(|(folder, snapshot)| {
            let listing = snapshot.files_where(&mut Vec::new(), is_relevant);
            let error = resolve::resolve(&listing, name.selector.as_ref()).err()?;
            let found = checkpoint::resolve(&listing, name.selector.as_ref(), default, error).ok()?;
            Some(Self {
                folder,
                commit: snapshot.commit,
                weight_type: found.weight_type,
            })
        })
    }

    /// Returns the snapshot that holds the checkpoint.
    pub(crate) fn snapshot(&self) -> PathBuf {
        self.folder.path.join("snapshots").join(&self.commit)
    }

    /// Returns `ORG/REPO`.
    pub(super) fn repository(&self) -> String {
        format!("{}/{}", self.folder.org, self.folder.repo)
    }
}

impl fmt::Display for ConversionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.repository(), self.commit, self.weight_type)
    }
}

/// Returns the output that the configuration asks for: a header if the weights are to be streamed, else the whole file.
pub(crate) fn configured_output(config: &HubConfig, weight_type: WeightType) -> ConversionOutput {
    let is_streamed = match config.safetensors {
        // Streaming repeats the conversion at each load. That costs nothing for plain types and minutes for K-quants.
        SafetensorsMode::Auto => !matches!(weight_type, WeightType::Mix(_)),
        SafetensorsMode::Stream => true,
        SafetensorsMode::File => false,
    };
    if is_streamed && CAN_STREAM {
        ConversionOutput::HeaderOnly
    } else {
        ConversionOutput::Full
    }
}

/// Returns the snapshots of a repository in all caches, most wanted first.
pub(super) fn snapshots(
    roots: &[PathBuf],
    org: &str,
    repo: &str,
    revision: Option<&str>,
) -> Vec<(RepoFolder, SnapshotFolder)> {
    let folders = roots.iter().filter_map(|root| RepoFolder::find(root, org, repo));
    folders
        .flat_map(|folder| {
            let snapshots = folder.snapshots(revision);
            snapshots.into_iter().map(move |snapshot| (folder.clone(), snapshot))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_follows_the_setting_and_the_platform() {
        let output = |safetensors, weight_type| {
            let config = HubConfig {
                safetensors,
                ..HubConfig::default()
            };
            configured_output(&config, weight_type)
        };
        let mix = WeightType::explicit_named("Q4_K_M").unwrap();
        let streamed = if CAN_STREAM {
            ConversionOutput::HeaderOnly
        } else {
            ConversionOutput::Full
        };
        for plain in [WeightType::Stored, WeightType::F16, WeightType::Q8_0] {
            assert_eq!(output(SafetensorsMode::Auto, plain), streamed);
            assert_eq!(output(SafetensorsMode::Stream, plain), streamed);
            assert_eq!(output(SafetensorsMode::File, plain), ConversionOutput::Full);
        }
        assert_eq!(output(SafetensorsMode::Auto, mix), ConversionOutput::Full);
        assert_eq!(output(SafetensorsMode::Stream, mix), streamed);
        assert_eq!(output(SafetensorsMode::File, mix), ConversionOutput::Full);
    }
}
