//! The files of the conversions, in the state folder: nobody else uses them, so they do not belong in the shared cache.
//!
//! `STATE/converted/models--ORG--REPO/COMMIT/` holds, for each weight type, `VERSION-TYPE.gguf` or
//! `VERSION-TYPE.header` (see [`ConversionOutput`]), the link `VERSION-stored` to the file of the type that the
//! checkpoint is stored in, and `VERSION-mmproj.gguf`, the projector of a vision model, which all types share. VERSION
//! is [`VERSION`]: files of other versions are not found, and pruned.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::key::{ConversionKey, snapshots};
use crate::{
    convert::VERSION,
    hub::{
        HfName, HubError, Selector,
        cache::{CachedModel, RepoFolder, SnapshotFolder},
        ledger::Ledger,
    },
    inference::WeightType,
    library::{DeleteOutcome, blobs, blocking, checkpoint, error::LibraryError},
    stdx::hex,
    worker::protocol::ConversionOutput,
};

/// Conversion store: the conversions on disk. A clone is a handle on the same files.
#[derive(Clone, Debug)]
pub(crate) struct ConversionStore {
    root: PathBuf,
}

impl ConversionStore {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            root: state_dir.join("converted"),
        }
    }

    /// Returns the folder of the conversions of one commit.
    pub(super) fn folder(&self, of: &RepoFolder, commit: &str) -> PathBuf {
        RepoFolder::new(&self.root, &of.org, &of.repo).path.join(commit)
    }

    /// Returns the name of the weight type if the conversion exists. A whole file also serves a request for its header.
    pub(crate) async fn find(
        &self,
        key: &ConversionKey,
        output: ConversionOutput,
    ) -> Result<Option<String>, LibraryError> {
        let (folder, weight_type) = (self.folder(&key.folder, &key.commit), key.weight_type);
        let serves = move |found: ConversionOutput| found == ConversionOutput::Full || found == output;
        blocking(move || {
            let found = converted(&folder, weight_type).filter(|(_, found)| serves(*found));
            Ok(found.map(|(label, _)| label))
        })
        .await
    }

    /// Returns every conversion whose checkpoint is in one of the caches.
    pub(crate) fn all(&self, roots: &[PathBuf]) -> Vec<CachedModel> {
        let mut models: Vec<CachedModel> = Vec::new();
        for own in RepoFolder::all(&self.root) {
            let mut seen = BTreeSet::new();
            for (folder, snapshot) in snapshots(roots, &own.org, &own.repo, None) {
                let found = self.in_snapshot(&folder, &snapshot);
                models.extend(found.into_iter().filter(|model| seen.insert(model.label.clone())));
            }
        }
        models
    }

    /// Finds the conversion that a name stands for. A name without a weight type means the default type, else the
    /// stored type, else the widest type there is.
    pub(crate) fn locate(
        &self,
        roots: &[PathBuf],
        name: &HfName,
        default: WeightType,
    ) -> Result<CachedModel, HubError> {
        snapshots(roots, &name.org, &name.repo, name.revision.as_deref())
            .into_iter()
            .find_map(|(folder, snapshot)| {
                let found = self.in_snapshot(&folder, &snapshot);
                let label = match &name.selector {
                    Some(Selector::Label(label)) => label.clone(),
                    Some(_) => return None,
                    None => [default, WeightType::Stored]
                        .into_iter()
                        .find_map(|weight_type| converted(&self.folder(&folder, &snapshot.commit), weight_type))
                        .map(|(label, _)| label)
                        .or_else(|| found.first().map(|model| model.label.clone()))?,
                };
                found.into_iter().find(|model| model.label.eq_ignore_ascii_case(&label))
            })
            .ok_or_else(|| HubError::NotCached(name.to_string()))
    }

    /// Returns every file and link of one commit.
    pub(crate) fn files(&self, of: &RepoFolder, commit: &str) -> Vec<PathBuf> {
        paths(&self.folder(of, commit)).collect()
    }

    /// Returns the conversions of one commit, the widest type first.
    pub(crate) fn in_snapshot(&self, folder: &RepoFolder, snapshot: &SnapshotFolder) -> Vec<CachedModel> {
        let own = self.folder(folder, &snapshot.commit);
        if !own.is_dir() {
            return Vec::new();
        }
        let listing = snapshot.files_where(&mut Vec::new(), checkpoint::is_part);
        let Some(sources) = checkpoint::files(&listing) else {
            return Vec::new();
        };
        let sources: Vec<PathBuf> = sources.iter().map(|file| snapshot.path.join(&file.path)).collect();
        let projector = Some(own.join(projector_name())).filter(|path| path.is_file());
        let model = |weight_type: WeightType| {
            let (label, output) = converted(&own, weight_type)?;
            let path = own.join(file_name(&label, output));
            let meta = fs::metadata(&path).ok()?;
            // A digest of the content would cost a read of the whole file, and a header has no content to speak of.
            let identity = format!("{}/{} {} {VERSION}-{label}", folder.org, folder.repo, snapshot.commit);
            Some(CachedModel {
                root: folder.path.parent().map(Path::to_owned).unwrap_or_default(),
                org: folder.org.clone(),
                repo: folder.repo.clone(),
                commit: snapshot.commit.clone(),
                label,
                files: vec![path],
                mmproj: projector.clone(),
                sources: sources.clone(),
                checkpoint: (output == ConversionOutput::HeaderOnly).then(|| snapshot.path.clone()),
                size_bytes: meta.len() + projector.as_deref().map_or(0, occupied_bytes),
                digest: hex::encode(Sha256::digest(identity)),
                modified_at: meta.modified().ok()?,
            })
        };
        WeightType::explicit().filter_map(model).collect()
    }

    /// Returns the files that have lost their use, because their checkpoint is gone or another version made them, each
    /// with a description for the user.
    pub(crate) fn stale(&self, roots: &[PathBuf]) -> Vec<(String, PathBuf)> {
        let mut stale = Vec::new();
        for own in RepoFolder::all(&self.root) {
            // Listed before the models, so that a file which appears in between is not taken for unused.
            let files: Vec<PathBuf> = paths(&own.path).flat_map(|commit| paths(&commit)).collect();
            let used: Vec<PathBuf> = snapshots(roots, &own.org, &own.repo, None)
                .iter()
                .flat_map(|(folder, snapshot)| self.in_snapshot(folder, snapshot))
                .flat_map(|model| model.files.into_iter().chain(model.mmproj))
                .collect();
            let is_unused = |path: &PathBuf| !path.is_symlink() && !used.contains(path);
            let unused = files.into_iter().filter(is_unused);
            stale.extend(unused.map(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (format!("{}/{} {name}", own.org, own.repo), path)
            }));
        }
        stale
    }

    /// Removes a conversion at every commit that the name means. The last conversion of a commit takes the checkpoint
    /// with it: the files that hubllama downloaded, or all of them if `all` is set.
    pub(crate) fn delete(
        &self,
        root: &Path,
        ledger: &Ledger,
        model: &CachedModel,
        revision: Option<&str>,
        all: bool,
    ) -> Result<DeleteOutcome, HubError> {
        let own = RepoFolder::new(&self.root, &model.org, &model.repo);
        let io_error = |error: io::Error| HubError::io("delete from", &own.path, &error);
        let mut bytes_freed = 0;
        let mut emptied = BTreeSet::new();
        for entry in fs::read_dir(&own.path).map_err(io_error)? {
            let folder = entry.map_err(io_error)?.path();
            let Some(commit) = folder.file_name().and_then(OsStr::to_str).map(str::to_owned) else {
                continue;
            };
            if revision.is_some() && commit != model.commit {
                continue;
            }
            // The suffix also matches files of other versions, which would otherwise stay until the next prune.
            let outputs = [ConversionOutput::Full, ConversionOutput::HeaderOnly];
            let suffixes = outputs.map(|output| format!("-{}.{}", model.label, extension(output)));
            let is_meant = |path: &PathBuf| suffixes.iter().any(|end| path.to_string_lossy().ends_with(end));
            for path in paths(&folder).filter(is_meant) {
                bytes_freed += occupied_bytes(&path);
                fs::remove_file(&path).map_err(io_error)?;
            }
            for path in paths(&folder).filter(|path| is_dangling(path)) {
                fs::remove_file(&path).map_err(io_error)?;
            }
            bytes_freed += remove_lone_projector(&folder);
            if self.remove_empty(&own, &commit) {
                emptied.insert(commit);
            }
        }
        if let Some(folder) = RepoFolder::find(root, &model.org, &model.repo) {
            let snapshots = folder.snapshots(None);
            for snapshot in snapshots.iter().filter(|snapshot| emptied.contains(&snapshot.commit)) {
                bytes_freed += release_checkpoint(&folder, snapshot, ledger, all)?;
            }
        }
        Ok(DeleteOutcome::Removed { bytes_freed })
    }

    /// Removes the folder of a commit if it is empty; returns true if it was.
    pub(super) fn remove_empty(&self, of: &RepoFolder, commit: &str) -> bool {
        let folder = self.folder(of, commit);
        let is_removed = fs::remove_dir(&folder).is_ok();
        blobs::remove_empty_folders(&folder, "converted");
        is_removed
    }
}

/// Removes the files of a checkpoint from the cache, except other programs' unless `all` is set; returns the bytes
/// freed.
fn release_checkpoint(
    folder: &RepoFolder,
    snapshot: &SnapshotFolder,
    ledger: &Ledger,
    all: bool,
) -> Result<u64, HubError> {
    let listing = snapshot.files_where(&mut Vec::new(), checkpoint::is_part);
    let sources = checkpoint::files(&listing).unwrap_or_default();
    let links = sources.iter().map(|file| snapshot.path.join(&file.path));
    let links: Vec<PathBuf> = links
        .filter(|link| all || blobs::is_ours(ledger, folder, link))
        .collect();
    blobs::release(folder, ledger, &links)
}

/// Looks up the conversion to a type; returns the name of the type, which for the stored one is where the link leads.
fn converted(folder: &Path, weight_type: WeightType) -> Option<(String, ConversionOutput)> {
    let label = match weight_type {
        WeightType::Stored => {
            let target = fs::read_link(stored_link(folder)).ok()?;
            let label = target.to_str()?.strip_prefix(&format!("{VERSION}-"))?;
            WeightType::explicit_named(label.split_once('.')?.0)?.to_string()
        }
        weight_type => weight_type.to_string(),
    };
    let outputs = [ConversionOutput::Full, ConversionOutput::HeaderOnly].into_iter();
    let mut found = outputs.filter(|output| folder.join(file_name(&label, *output)).is_file());
    found.next().map(|output| (label, output))
}

fn extension(output: ConversionOutput) -> &'static str {
    match output {
        ConversionOutput::Full => "gguf",
        ConversionOutput::HeaderOnly => "header",
    }
}

/// Returns the name of the file for a weight type, for example `3-Q4_K_M.gguf`.
pub(super) fn file_name(label: &str, output: ConversionOutput) -> String {
    format!("{VERSION}-{label}.{}", extension(output))
}

pub(super) fn projector_name() -> String {
    format!("{VERSION}-mmproj.gguf")
}

/// Returns the path of the link that leads to the file of the stored type.
pub(super) fn stored_link(folder: &Path) -> PathBuf {
    folder.join(format!("{VERSION}-stored"))
}

fn is_dangling(path: &Path) -> bool {
    path.is_symlink() && !path.exists()
}

/// Removes the projectors in the folder of a commit, those of other versions too, if no other file is left; returns the
/// bytes freed.
pub(super) fn remove_lone_projector(folder: &Path) -> u64 {
    let files: Vec<PathBuf> = paths(folder).collect();
    let is_projector = |path: &PathBuf| path.to_string_lossy().ends_with("-mmproj.gguf");
    if !files.iter().all(is_projector) {
        return 0;
    }
    let removed = files.iter().map(|path| (occupied_bytes(path), fs::remove_file(path)));
    removed
        .filter_map(|(bytes, removed)| removed.ok().map(|()| bytes))
        .sum()
}

/// Returns the bytes that a file occupies on its disk: the hole of a header occupies none.
pub(crate) fn occupied_bytes(path: &Path) -> u64 {
    let is_header = path
        .extension()
        .is_some_and(|found| found == extension(ConversionOutput::HeaderOnly));
    fs::symlink_metadata(path).map_or(0, |meta| match is_header {
        // `stat` counts blocks of 512 bytes whatever the file system uses.
        true => meta.len().min(meta.blocks().saturating_mul(512)),
        false => meta.len(),
    })
}

fn paths(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}
