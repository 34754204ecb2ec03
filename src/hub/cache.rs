//! The layout of the cache that huggingface_hub, llama.cpp and other programs share, and the models that are complete
//! in it.
//!
//! ```text
//! models--ORG--REPO/blobs/HASH              the contents of files, named by sha256 or git's sha1
//!                   snapshots/COMMIT/PATH   links to blobs, with the file names of the repository
//!                   refs/REVISION           the commit that a branch or tag pointed to
//! .locks/models--ORG--REPO/HASH.lock        a lock for each blob
//! ```
//!
//! This module reads, and writes links and references. Downloads write the blobs, and `library::remove` deletes.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest as _, Sha256};

use super::{
    error::HubError,
    name::{HfName, Selector, is_safe_path, split_repo_id},
    resolve::{self, RepoFile, ResolveError, ResolvedModel},
};
use crate::stdx::{
    fs::{symlink_atomic, write_atomic},
    hex,
};

/// Largest number of entries that are read of one folder or snapshot; the largest repositories have some thousands.
const MAX_ENTRIES: usize = 50_000;
/// Largest text file that is read, in bytes; tokenizer configurations with thousands of added tokens are smaller.
const MAX_TEXT_BYTES: u64 = 32 << 20;
/// Deepest nesting of folders that is followed.
const MAX_DEPTH: usize = 16;

/// Cached model: a model that is complete in a cache, without adapters. It was downloaded as GGUF files, or converted
/// from a checkpoint in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// The cache folder that holds it, or its checkpoint.
    pub root: PathBuf,
    /// User or organization, spelled as in the cache.
    pub org: String,
    /// Repository, spelled as in the cache.
    pub repo: String,
    /// 40 hex digits.
    pub commit: String,
    /// Canonical selector, for example `Q4_K_M` or a path.
    pub label: String,
    /// Paths of the weights, first shard first. They lead through the snapshot, never to blobs, because llama.cpp finds
    /// the other shards by the file name.
    pub files: Vec<PathBuf>,
    /// Path of the projector of a vision model.
    pub mmproj: Option<PathBuf>,
    /// SnapshotFolder paths of the checkpoint that the model was converted from; empty for a downloaded model.
    pub sources: Vec<PathBuf>,
    /// Folder of the checkpoint, if the weights are loaded from it and the only file is a GGUF header.
    pub checkpoint: Option<PathBuf>,
    /// Bytes of all files, the projector included; a header counts as if it had its weights.
    pub size_bytes: u64,
    /// 64 hex digits; the sha256 of the content if the weights are one downloaded file.
    pub digest: String,
    /// Arrival time of the newest file.
    pub modified_at: SystemTime,
}

impl CachedModel {
    /// Returns the downloaded files: those of the checkpoint if the model was converted, else its own.
    pub(crate) fn downloads(&self) -> impl Iterator<Item = &PathBuf> {
        let own = self.files.iter().chain(&self.mmproj);
        let own = own.filter(|_| self.sources.is_empty());
        self.sources.iter().chain(own)
    }
}

/// Repository folder: `models--ORG--REPO` in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoFolder {
    pub(crate) org: String,
    pub(crate) repo: String,
    pub(crate) path: PathBuf,
}

/// Snapshot folder: `snapshots/COMMIT` of a repository, with links to the files of one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotFolder {
    pub(crate) commit: String,
    pub(crate) path: PathBuf,
}

/// Watched paths: the folders and references that a scan read, with their modification times. While none changes, the
/// scan is valid.
pub(crate) type WatchedPaths = Vec<(PathBuf, Option<SystemTime>)>;

impl RepoFolder {
    /// Returns the folder of a repository, which need not exist.
    pub(crate) fn new(root: &Path, org: &str, repo: &str) -> Self {
        Self {
            org: org.to_owned(),
            repo: repo.to_owned(),
            path: root.join(format!("models--{org}--{repo}")),
        }
    }

    /// Parses the name of a folder. Repository names never contain `--`, so it can be read in one way only.
    fn parse(path: PathBuf) -> Option<Self> {
        let (org, repo) = path.file_name()?.to_str()?.strip_prefix("models--")?.split_once("--")?;
        split_repo_id(&format!("{org}/{repo}"))?;
        Some(Self {
            org: org.to_owned(),
            repo: repo.to_owned(),
            path,
        })
    }

    /// Returns every repository in the cache, sorted by path.
    pub(crate) fn all(root: &Path) -> Vec<Self> {
        let mut folders: Vec<Self> = entries(root)
            .into_iter()
            .filter(|path| path.is_dir())
            .filter_map(Self::parse)
            .collect();
        folders.sort_by(|a, b| a.path.cmp(&b.path));
        folders
    }

    /// Finds the folder of a repository in any case; prefers the exact spelling.
    pub(crate) fn find(root: &Path, org: &str, repo: &str) -> Option<Self> {
        let exact = Self::new(root, org, repo);
        if exact.path.is_dir() {
            return Some(exact);
        }
        Self::all(root)
            .into_iter()
            .find(|f| f.org.eq_ignore_ascii_case(org) && f.repo.eq_ignore_ascii_case(repo))
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.path.join("blobs").join(etag)
    }

    /// Returns the snapshots that a revision means, most wanted first. Without a revision these are `main` and then all
    /// others, the newest first: when the branch moves on, weights of the old commit must not disappear.
    pub(crate) fn snapshots(&self, revision: Option<&str>) -> Vec<SnapshotFolder> {
        let folder = self.path.join("snapshots");
        if let Some(revision) = revision {
            let commit = if is_commit(revision) {
                Some(revision.to_owned())
            } else {
                self.reference(revision)
            };
            return commit
                .map(|commit| SnapshotFolder {
                    path: folder.join(&commit),
                    commit,
                })
                .filter(|snapshot| snapshot.path.is_dir())
                .into_iter()
                .collect();
        }
        let main = self.reference("main");
        let mut found: Vec<(bool, SystemTime, SnapshotFolder)> = entries(&folder)
            .into_iter()
            .filter_map(|path| {
                let commit = path.file_name()?.to_str()?.to_owned();
                let modified = fs::metadata(&path).ok().filter(fs::Metadata::is_dir)?.modified().ok()?;
                Some((
                    main.as_ref() == Some(&commit),
                    modified,
                    SnapshotFolder { commit, path },
                ))
            })
            .collect();
        found.sort_by(|a, b| (b.0, b.1, &a.2.commit).cmp(&(a.0, a.1, &b.2.commit)));
        found.into_iter().map(|(_, _, snapshot)| snapshot).collect()
    }

    fn reference(&self, revision: &str) -> Option<String> {
        if !is_safe_path(revision) {
            return None;
        }
        let path = self.path.join("refs").join(revision);
        let is_short = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= 64);
        let commit = fs::read_to_string(path).ok().filter(|_| is_short)?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(crate) fn has_reference(&self, revision: &str) -> bool {
        self.reference(revision).is_some()
    }

    /// Returns every commit that a branch or tag points to.
    pub(crate) fn referenced_commits(&self) -> HashSet<String> {
        let mut commits = HashSet::new();
        let refs = self.path.join("refs");
        let mut stack = vec![(refs.clone(), 0)];
        while let Some((folder, depth)) = stack.pop() {
            for path in entries(&folder) {
                if path.is_dir() && !path.is_symlink() && depth < MAX_DEPTH {
                    stack.push((path, depth + 1));
                } else if let Some(revision) = path.strip_prefix(&refs).ok().and_then(Path::to_str) {
                    commits.extend(self.reference(revision));
                }
            }
        }
        commits
    }

    /// Points a branch or tag to a commit.
    pub(crate) fn write_reference(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.path.join("refs").join(revision);
        if self.reference(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write_atomic(&path, commit.as_bytes()).map_err(|error| HubError::io("write", &path, &error))
    }

    /// Makes `snapshots/COMMIT/PATH` a link to a blob. The link is relative, as huggingface_hub makes it, so that the
    /// cache can be moved.
    pub(crate) fn link(&self, commit: &str, path: &str, etag: &str) -> Result<(), HubError> {
        let link = self.path.join("snapshots").join(commit).join(path);
        let target = format!("{}../../blobs/{etag}", "../".repeat(path.matches('/').count()));
        if fs::read_link(&link).is_ok_and(|found| found == Path::new(&target)) {
            return Ok(());
        }
        symlink_atomic(&link, &target).map_err(|error| HubError::io("link", &link, &error))
    }
}

/// Walk: the state of one walk through a snapshot.
struct Walk<'a> {
    is_wanted: fn(&str) -> bool,
    /// Entries that may still be read.
    left: usize,
    files: Vec<RepoFile>,
    watched: &'a mut WatchedPaths,
}

impl SnapshotFolder {
    /// Returns the GGUF files whose blobs exist.
    pub(crate) fn files(&self, watched: &mut WatchedPaths) -> Vec<RepoFile> {
        self.files_where(watched, |path| path.to_ascii_lowercase().ends_with(".gguf"))
    }

    /// Returns the files whose path passes a filter and whose blobs exist; appends the folders that were read to
    /// `watched`.
    pub(crate) fn files_where(&self, watched: &mut WatchedPaths, is_wanted: fn(&str) -> bool) -> Vec<RepoFile> {
        let mut walk = Walk {
            is_wanted,
            left: MAX_ENTRIES,
            files: Vec::new(),
            watched,
        };
        self.walk(String::new(), 0, &mut walk);
        walk.files
    }

    fn walk(&self, prefix: String, depth: usize, walk: &mut Walk<'_>) {
        let folder = self.path.join(&prefix);
        watch(walk.watched, &folder);
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if walk.left == 0 {
                return;
            }
            walk.left -= 1;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let path = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}/{name}")
            };
            let Ok(kind) = entry.file_type() else { continue };
            // Links to folders are not followed: they could form a cycle.
            if kind.is_dir() && depth < MAX_DEPTH {
                self.walk(path, depth + 1, walk);
            } else if !kind.is_dir() && (walk.is_wanted)(&path) {
                walk.files.extend(self.file(path));
            }
        }
    }

    fn file(&self, path: String) -> Option<RepoFile> {
        let full = self.path.join(&path);
        let meta = fs::metadata(&full).ok().filter(fs::Metadata::is_file)?;
        let etag = blob_name(&full).unwrap_or_default();
        Some(RepoFile {
            size: meta.len(),
            lfs_sha256: Some(etag.clone()).filter(|etag| hex::is_hex(etag, 64)),
            oid: Some(etag).filter(|etag| hex::is_hex(etag, 40)),
            path,
        })
    }

    fn model(&self, folder: &RepoFolder, resolution: ResolvedModel) -> CachedModel {
        let parts = || resolution.files.iter().chain(&resolution.mmproj);
        let full = |file: &RepoFile| self.path.join(&file.path);
        let modified = |file: &RepoFile| fs::metadata(full(file)).and_then(|meta| meta.modified()).ok();
        CachedModel {
            root: folder.path.parent().map(Path::to_owned).unwrap_or_default(),
            org: folder.org.clone(),
            repo: folder.repo.clone(),
            commit: self.commit.clone(),
            files: resolution.files.iter().map(full).collect(),
            mmproj: resolution.mmproj.as_ref().map(full),
            sources: Vec::new(),
            checkpoint: None,
            size_bytes: parts().map(|file| file.size).sum(),
            digest: digest(&resolution.files),
            modified_at: parts().filter_map(modified).max().unwrap_or(SystemTime::UNIX_EPOCH),
            label: resolution.label,
        }
    }
}

/// Finds a model in several caches. The first one that has it wins, unless a later one got another commit more
/// recently: a pull must not stay hidden behind an old download in a read-only cache.
///
/// # Errors
/// If the model is complete in none of them.
pub(crate) fn locate_in(roots: &[PathBuf], name: &HfName) -> Result<CachedModel, HubError> {
    let mut found: Option<CachedModel> = None;
    let mut missing = HubError::NotCached(name.to_string());
    for root in roots {
        match locate(root, name) {
            Ok(model) => {
                let is_better = found.as_ref().is_none_or(|first| supersedes(&model, first));
                if is_better {
                    found = Some(model);
                }
            }
            Err(error) => missing = error,
        }
    }
    found.ok_or(missing)
}

/// Returns true if a model in a later cache is preferred to the same model in an earlier one, see [`locate_in`].
pub(crate) fn supersedes(later: &CachedModel, earlier: &CachedModel) -> bool {
    later.commit != earlier.commit && later.modified_at > earlier.modified_at
}

/// Finds a model in one cache.
///
/// # Errors
/// If it is not complete there.
pub(crate) fn locate(root: &Path, name: &HfName) -> Result<CachedModel, HubError> {
    let missing = || HubError::NotCached(name.to_string());
    let folder = RepoFolder::find(root, &name.org, &name.repo).ok_or_else(missing)?;
    folder
        .snapshots(name.revision.as_deref())
        .iter()
        .find_map(|snapshot| model_in(&folder, snapshot, name.selector.as_ref()).ok())
        .ok_or_else(missing)
}

/// Finds the folder of the snapshot that a name's revision means, without a look at its files. A name without a
/// revision means `main`, and never another commit.
#[must_use]
pub fn find_snapshot(root: &Path, name: &HfName) -> Option<PathBuf> {
    let folder = RepoFolder::find(root, &name.org, &name.repo)?;
    let revision = name.revision.as_deref().unwrap_or("main");
    Some(folder.snapshots(Some(revision)).pop()?.path)
}

/// Reads a small text file of the first snapshot that the name's revision means and that has the file.
pub(crate) fn text(root: &Path, name: &HfName, path: &str) -> Option<String> {
    let folder = RepoFolder::find(root, &name.org, &name.repo)?;
    folder
        .snapshots(name.revision.as_deref())
        .iter()
        .map(|snapshot| snapshot.path.join(path))
        .find(|path| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_TEXT_BYTES))
        .and_then(|path| fs::read_to_string(path).ok())
}

/// Resolves a selector in one snapshot.
///
/// # Errors
/// If it selects no complete model.
pub(crate) fn model_in(
    folder: &RepoFolder,
    snapshot: &SnapshotFolder,
    selector: Option<&Selector>,
) -> Result<CachedModel, ResolveError> {
    let resolution = resolve::resolve(&snapshot.files(&mut Vec::new()), selector)?;
    Ok(snapshot.model(folder, resolution))
}

/// Returns every complete model of a cache, one for each repository and label: the one that [`locate`] finds. Also
/// returns the paths that the scan depends on.
pub(crate) fn scan(root: &Path) -> (Vec<CachedModel>, WatchedPaths) {
    let mut models = Vec::new();
    let mut watched = Vec::new();
    watch(&mut watched, root);
    for folder in RepoFolder::all(root) {
        for part in ["snapshots", "blobs", "refs", "refs/main"] {
            watch(&mut watched, &folder.path.join(part));
        }
        let mut seen = HashSet::new();
        for snapshot in folder.snapshots(None) {
            for resolution in resolve::all(&snapshot.files(&mut watched)) {
                if seen.insert(resolution.label.to_ascii_lowercase()) {
                    models.push(snapshot.model(&folder, resolution));
                }
            }
        }
    }
    (models, watched)
}

/// Appends a path and its modification time.
fn watch(watched: &mut WatchedPaths, path: &Path) {
    watched.push((path.to_owned(), modified(path)));
}

/// Returns the modification time of a path, if it exists.
pub(crate) fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// Returns the path of the blob that a link in a snapshot leads to.
pub(crate) fn blob_of(folder: &RepoFolder, link: &Path) -> Option<PathBuf> {
    blob_name(link).map(|etag| folder.blob(&etag))
}

/// Returns the name of the blob that a link in a snapshot leads to, which is the hash of the content.
pub(crate) fn blob_name(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// Returns the digest of a model, 64 hex digits: the sha256 of the content if there is one file with a known sha256,
/// else the sha256 of the hashes, sizes and paths of all files.
pub(crate) fn digest(files: &[RepoFile]) -> String {
    if let [
        RepoFile {
            lfs_sha256: Some(sha256),
            ..
        },
    ] = files
    {
        return sha256.clone();
    }
    let mut hasher = Sha256::new();
    for file in files {
        let hash = file.lfs_sha256.as_ref().or(file.oid.as_ref());
        hasher.update(format!(
            "{} {} {}\n",
            hash.map_or("-", String::as_str),
            file.size,
            file.path
        ));
    }
    hex::encode(hasher.finalize())
}

/// Returns true if a revision is a commit, not a branch or tag.
pub(crate) fn is_commit(text: &str) -> bool {
    hex::is_hex(text, 40)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_ENTRIES)
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const OLD: &str = "1111111111111111111111111111111111111111";
    pub(crate) const NEW: &str = "2222222222222222222222222222222222222222";

    /// Puts a file into a cache as a download would.
    pub(crate) fn put(root: &Path, id: &str, commit: &str, path: &str, content: &str) -> PathBuf {
        let (org, repo) = split_repo_id(id).unwrap();
        let folder = RepoFolder::new(root, org, repo);
        let etag = hex::encode(Sha256::digest(content));
        fs::create_dir_all(folder.path.join("blobs")).unwrap();
        fs::write(folder.blob(&etag), content).unwrap();
        folder.link(commit, path, &etag).unwrap();
        folder.blob(&etag)
    }

    pub(crate) fn name(text: &str) -> HfName {
        HfName::parse(text).unwrap()
    }

    fn labels(root: &Path) -> Vec<String> {
        scan(root)
            .0
            .into_iter()
            .map(|m| format!("{}/{}:{}@{}", m.org, m.repo, m.label, &m.commit[..1]))
            .collect()
    }

    #[test]
    fn finds_what_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let blob = put(root, "Org/Repo", OLD, "m-Q4_1.gguf", "weights");
        put(root, "Org/Repo", OLD, "mmproj-F16.gguf", "eye");
        put(root, "Org/Repo", OLD, "sub/m-Q8_0-00001-of-00002.gguf", "first");
        put(root, "Org/Repo", OLD, "README.md", "text");
        assert_eq!(labels(root), ["Org/Repo:Q4_1@1"]);
        let model = locate(root, &name("hf:org/repo")).unwrap();
        assert_eq!(
            (model.org.as_str(), model.repo.as_str(), model.label.as_str()),
            ("Org", "Repo", "Q4_1")
        );
        assert_eq!(model.size_bytes, 10);
        assert_eq!(Some(model.digest.as_str()), blob.file_name().unwrap().to_str());
        assert_eq!(fs::read_to_string(&model.files[0]).unwrap(), "weights");
        assert_eq!(fs::read_to_string(model.mmproj.unwrap()).unwrap(), "eye");
        assert!(locate(root, &name("hf:org/repo:Q8_0")).is_err());

        put(root, "Org/Repo", OLD, "sub/m-Q8_0-00002-of-00002.gguf", "second");
        let model = locate(root, &name("hf:org/repo:q8_0")).unwrap();
        assert_eq!(model.files.len(), 2);
        assert!(hex::is_hex(&model.digest, 64));
        assert_eq!(labels(root).len(), 2);

        fs::remove_file(blob).unwrap();
        assert!(
            locate(root, &name("hf:org/repo:Q4_1")).is_err(),
            "a dangling link is no file"
        );
    }

    #[test]
    fn main_wins_over_newer_and_older_commits() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        put(root, "o/r", OLD, "m-Q4_0.gguf", "old");
        put(root, "o/r", OLD, "m-F16.gguf", "only here");
        put(root, "o/r", NEW, "m-Q4_0.gguf", "new");
        let folder = RepoFolder::find(root, "O", "R").unwrap();
        folder.write_reference("main", OLD).unwrap();
        folder.write_reference("refs/pr/1", NEW).unwrap();
        let commit = |text: &str| locate(root, &name(text)).map(|model| model.commit).unwrap_or_default();
        assert_eq!(commit("hf:o/r:Q4_0"), OLD);
        assert_eq!(commit("hf:o/r@refs/pr/1:Q4_0"), NEW);
        assert_eq!(commit(&format!("hf:o/r@{NEW}")), NEW);
        assert_eq!(commit("hf:o/r@absent"), "");
        folder.write_reference("main", NEW).unwrap();
        assert_eq!(commit("hf:o/r:Q4_0"), NEW);
        assert_eq!(
            commit("hf:o/r:F16"),
            OLD,
            "a commit that moved on does not hide weights"
        );
        assert_eq!(labels(root), ["o/r:Q4_0@2", "o/r:F16@1"]);
    }

    #[test]
    fn hostile_content_is_ignored() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        put(root, "o/r", OLD, "m-Q4_0.gguf", "fine");
        let folder = RepoFolder::new(root, "o", "r");
        fs::create_dir_all(folder.path.join("refs")).unwrap();
        fs::write(folder.path.join("refs/main"), "../../../../etc").unwrap();
        std::os::unix::fs::symlink("..", folder.path.join("snapshots").join(OLD).join("loop")).unwrap();
        fs::create_dir_all(root.join("models--..--etc/snapshots")).unwrap();
        fs::create_dir_all(root.join("models--a--b--c")).unwrap();
        assert_eq!(labels(root), ["o/r:Q4_0@1"]);
        assert!(folder.reference("../../x").is_none());
        assert!(scan(&root.join("absent")).0.is_empty());
    }
}
