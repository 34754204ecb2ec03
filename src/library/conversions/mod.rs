//! What was made from checkpoints in the cache, once each. It lies outside of it, since it is nobody else's:
//! `STATE/converted/models--ORG--REPO/COMMIT/VERSION-TYPE.gguf`, or `….header` where the weights are loaded from the
//! checkpoint itself.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::{Deleted, checkpoint, error, remove};
use crate::{
    config::{HubConfig, Safetensors},
    convert::{Advance, CAN_STREAM, ConvertError, Part, TargetType, VERSION, has_projector},
    hub::{
        HfName, HubError, Selector,
        cache::{CachedModel, RepoFolder, Snapshot},
        ledger::Ledger,
        resolve,
        tasks::blocking,
    },
    stdx::{fs::symlink_atomic, hex},
};

/// Makes GGUF files. The Hub knows when one is wanted; who gives one does so in processes of its own.
pub trait Converter: fmt::Debug + Send + Sync {
    /// Makes a file that is whole or not there, and names the type of its weights. Dropping the future gives up.
    fn convert(
        &self,
        order: Order,
        progress: Box<dyn FnMut(Advance) + Send>,
    ) -> BoxFuture<'static, Result<String, ConvertError>>;
}

/// A file that is to be made.
#[derive(Clone, Debug)]
pub struct Order {
    /// The folder of the checkpoint.
    pub folder: PathBuf,
    /// What the model is called.
    pub name: String,
    /// The type of its weights.
    pub kind: TargetType,
    /// The file.
    pub output: PathBuf,
    /// What of it is made.
    pub kept: Kept,
    /// Which file of those that can be made of it.
    pub part: Part,
}

/// What is kept of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The whole file.
    File,
    /// A file with a hole for the weights, which are made again with each load.
    Header,
}

impl Kept {
    /// What the configuration wants of a type.
    pub(crate) fn wanted(config: &HubConfig, kind: TargetType) -> Self {
        let is_streamed = match config.safetensors {
            Safetensors::Auto => !matches!(kind, TargetType::Quantized(_)),
            Safetensors::Stream => true,
            Safetensors::File => false,
        };
        if is_streamed && CAN_STREAM {
            Self::Header
        } else {
            Self::File
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::File => "gguf",
            Self::Header => "header",
        }
    }

    fn file_name(self, label: &str) -> String {
        format!("{VERSION}-{label}.{}", self.extension())
    }
}

/// Where the made files are, and who makes them.
#[derive(Debug)]
pub(crate) struct Conversions {
    root: PathBuf,
    converter: Option<Arc<dyn Converter>>,
    /// A conversion takes all cores, so that there is one at a time; whoever waited finds the file made.
    running: tokio::sync::Mutex<()>,
    /// How far it is, and what is made.
    advance: watch::Sender<Option<(Wanted, Advance)>>,
}

/// A checkpoint in the cache, and what is made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) folder: RepoFolder,
    pub(crate) commit: String,
    pub(crate) kind: TargetType,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} {} {}",
            self.folder.org, self.folder.repo, self.commit, self.kind
        )
    }
}

/// A conversion under way. However it ends, also when nobody waits for it any more, it leaves no folder without a model.
struct Begun<'a> {
    conversions: &'a Conversions,
    wanted: &'a Wanted,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let (folder, commit) = (&self.wanted.folder, &self.wanted.commit);
        self.conversions.advance.send_replace(None);
        remove_lone_projector(&self.conversions.folder(folder, commit));
        self.conversions.remove_empty(folder, commit);
    }
}

/// How far the conversion is that somebody wants, once its bytes are counted.
pub(crate) fn advance_of(state: &Option<(Wanted, Advance)>, wanted: &Wanted) -> Option<Advance> {
    let (what, advance) = state.as_ref()?;
    (what == wanted && advance.total > 0).then_some(*advance)
}

impl Conversions {
    pub(crate) fn new(state_dir: &Path, converter: Option<Arc<dyn Converter>>) -> Self {
        Self {
            root: state_dir.join("converted"),
            converter,
            running: tokio::sync::Mutex::default(),
            advance: watch::Sender::default(),
        }
    }

    fn folder(&self, of: &RepoFolder, commit: &str) -> PathBuf {
        RepoFolder::new(&self.root, &of.org, &of.repo).path.join(commit)
    }

    /// Hears how far the running conversion is.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<(Wanted, Advance)>> {
        self.advance.subscribe()
    }

    /// Who converts; worth asking before anything is downloaded.
    pub(crate) fn check_converter(&self) -> Result<&Arc<dyn Converter>, HubError> {
        let missing = || HubError::Converter("nothing here converts checkpoints".to_owned());
        self.converter.as_ref().ok_or_else(missing)
    }

    /// The name of the type of what is there already. A whole file serves as well as its header.
    pub(crate) async fn find(&self, wanted: &Wanted, kept: Kept) -> Result<Option<String>, HubError> {
        let (folder, kind) = (self.folder(&wanted.folder, &wanted.commit), wanted.kind);
        blocking(move || Ok(made(&folder, kind).filter(|(_, found)| *found == Kept::File || *found == kept)))
            .await
            .map(|found| found.map(|(label, _)| label))
    }

    /// Makes the file unless it is there; returns the name of its type.
    pub(crate) async fn make(&self, wanted: Wanted, kept: Kept) -> Result<String, HubError> {
        let repo = format!("{}/{}", wanted.folder.org, wanted.folder.repo);
        let converter = self.check_converter()?;
        let _running = self.running.lock().await;
        if let Some(label) = self.find(&wanted, kept).await? {
            return Ok(label);
        }
        let folder = self.folder(&wanted.folder, &wanted.commit);
        let stored = folder.join(format!("{VERSION}-stored"));
        let output = match wanted.kind {
            // What that is comes out only in the end.
            TargetType::Stored => stored.with_extension("new"),
            kind => folder.join(kept.file_name(&kind.to_string())),
        };
        let created = tokio::fs::create_dir_all(&folder).await;
        created.map_err(|error| HubError::io("create", &folder, &error))?;
        let order = Order {
            folder: wanted.folder.path.join("snapshots").join(&wanted.commit),
            name: wanted.folder.repo.clone(),
            kind: wanted.kind,
            output: output.clone(),
            kept,
            part: Part::Model,
        };
        let _begun = Begun {
            conversions: self,
            wanted: &wanted,
        };
        tracing::info!(model.repository = repo, kind = %wanted.kind, ?kept, "converting a checkpoint");
        make_projector(converter, &order).await?;
        let (told, what) = (self.advance.clone(), wanted.clone());
        let progress = move |advance| _ = told.send_replace(Some((what.clone(), advance)));
        let converted = converter.convert(order, Box::new(progress)).await;
        let label = converted.map_err(|error| error::conversion(&repo, &error))?;
        let (name, header) = (kept.file_name(&label), Kept::Header.file_name(&label));
        blocking(move || {
            let path = folder.join(&name);
            if output != path {
                fs::rename(&output, &path).map_err(|error| HubError::io("rename", &output, &error))?;
            }
            if output != path || fs::read_link(&stored).is_ok_and(|target| target.as_os_str() == header.as_str()) {
                symlink_atomic(&stored, &name).map_err(|error| HubError::io("link", &stored, &error))?;
            }
            if kept == Kept::File {
                // There may be none; one that stays does no harm.
                let _ = fs::remove_file(folder.join(header));
            }
            Ok(())
        })
        .await?;
        Ok(label)
    }

    /// Every conversion whose checkpoint is in one of the caches.
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

    /// The conversion that a name stands for; of a name without a type the one of the default type, or what is there.
    pub(crate) fn locate(
        &self,
        roots: &[PathBuf],
        name: &HfName,
        default: TargetType,
    ) -> Result<CachedModel, HubError> {
        snapshots(roots, &name.org, &name.repo, name.revision.as_deref())
            .into_iter()
            .find_map(|(folder, snapshot)| {
                let found = self.in_snapshot(&folder, &snapshot);
                let label = match &name.selector {
                    Some(Selector::Label(label)) => label.clone(),
                    Some(_) => return None,
                    None => [default, TargetType::Stored]
                        .into_iter()
                        .find_map(|kind| made(&self.folder(&folder, &snapshot.commit), kind))
                        .map(|(label, _)| label)
                        .or_else(|| found.first().map(|model| model.label.clone()))?,
                };
                found.into_iter().find(|model| model.label.eq_ignore_ascii_case(&label))
            })
            .ok_or_else(|| HubError::NotCached(name.to_string()))
    }

    /// Every file that was made of one commit, and what leads to them.
    pub(crate) fn files(&self, of: &RepoFolder, commit: &str) -> Vec<PathBuf> {
        paths(&self.folder(of, commit)).collect()
    }

    /// Conversions of one commit, the widest type first.
    pub(crate) fn in_snapshot(&self, folder: &RepoFolder, snapshot: &Snapshot) -> Vec<CachedModel> {
        let made = self.folder(folder, &snapshot.commit);
        if !made.is_dir() {
            return Vec::new();
        }
        let listing = snapshot.files_where(&mut Vec::new(), checkpoint::is_part);
        let Some(sources) = checkpoint::files(&listing) else {
            return Vec::new();
        };
        let sources: Vec<PathBuf> = sources.iter().map(|file| snapshot.path.join(&file.path)).collect();
        let projector = Some(made.join(projector_name())).filter(|path| path.is_file());
        let model = |kind: TargetType| {
            let (label, kept) = self::made(&made, kind)?;
            let path = made.join(kept.file_name(&label));
            let meta = fs::metadata(&path).ok()?;
            let text = format!("{}/{} {} {VERSION}-{label}", folder.org, folder.repo, snapshot.commit);
            Some(CachedModel {
                root: folder.path.parent().map(Path::to_owned).unwrap_or_default(),
                org: folder.org.clone(),
                repo: folder.repo.clone(),
                commit: snapshot.commit.clone(),
                label,
                files: vec![path],
                mmproj: projector.clone(),
                sources: sources.clone(),
                checkpoint: (kept == Kept::Header).then(|| snapshot.path.clone()),
                // A header's file is as long as if the weights were in it.
                size_bytes: meta.len() + projector.as_deref().map_or(0, occupied),
                digest: hex::encode(Sha256::digest(text)),
                modified_at: meta.modified().ok()?,
            })
        };
        TargetType::named().into_iter().filter_map(model).collect()
    }

    /// Files that are of no use any more: their checkpoint is gone, or another version made them. For people, and their paths.
    pub(crate) fn stale(&self, roots: &[PathBuf]) -> Vec<(String, PathBuf)> {
        let mut stale = Vec::new();
        for own in RepoFolder::all(&self.root) {
            // Looked at before what is used, so that what is made meanwhile is not taken for unused.
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

    /// Removes a conversion, at every commit that the name means; with the last of a commit go those files of its
    /// checkpoint that hubllama downloaded, or all where `all` says so.
    pub(crate) fn delete(
        &self,
        root: &Path,
        ledger: &Ledger,
        model: &CachedModel,
        revision: Option<&str>,
        all: bool,
    ) -> Result<Deleted, HubError> {
        let own = RepoFolder::new(&self.root, &model.org, &model.repo);
        let io_error = |error: io::Error| HubError::io("delete from", &own.path, &error);
        let mut bytes_freed = 0;
        let mut bare = BTreeSet::new();
        for entry in fs::read_dir(&own.path).map_err(io_error)? {
            let folder = entry.map_err(io_error)?.path();
            let Some(commit) = folder.file_name().and_then(OsStr::to_str).map(str::to_owned) else {
                continue;
            };
            if revision.is_some() && commit != model.commit {
                continue;
            }
            // Those of other versions too.
            let ends = [Kept::File, Kept::Header].map(|kept| format!("-{}.{}", model.label, kept.extension()));
            let is_meant = |path: &PathBuf| ends.iter().any(|end| path.to_string_lossy().ends_with(end));
            for path in paths(&folder).filter(is_meant) {
                bytes_freed += occupied(&path);
                fs::remove_file(&path).map_err(io_error)?;
            }
            // What says which type is the stored one may lead nowhere now.
            for path in paths(&folder).filter(|path| path.is_symlink() && !path.exists()) {
                fs::remove_file(&path).map_err(io_error)?;
            }
            bytes_freed += remove_lone_projector(&folder);
            if self.remove_empty(&own, &commit) {
                bare.insert(commit);
            }
        }
        if let Some(folder) = RepoFolder::find(root, &model.org, &model.repo) {
            let snapshots = folder.snapshots(None);
            let bare = snapshots.iter().filter(|snapshot| bare.contains(&snapshot.commit));
            for snapshot in bare {
                let listing = snapshot.files_where(&mut Vec::new(), checkpoint::is_part);
                let sources = checkpoint::files(&listing).unwrap_or_default();
                let links = sources.iter().map(|file| snapshot.path.join(&file.path));
                let links: Vec<PathBuf> = links
                    .filter(|link| all || remove::is_ours(ledger, &folder, link))
                    .collect();
                bytes_freed += remove::release(&folder, ledger, &links)?;
            }
        }
        Ok(Deleted::Removed { bytes_freed })
    }

    /// Removes the folder of a commit if nothing is in it.
    fn remove_empty(&self, of: &RepoFolder, commit: &str) -> bool {
        let folder = self.folder(of, commit);
        let is_removed = fs::remove_dir(&folder).is_ok();
        remove::remove_empty_folders(&folder, "converted");
        is_removed
    }
}

/// The checkpoint in a cache that a name stands for.
pub(crate) fn cached(roots: &[PathBuf], name: &HfName, default: TargetType) -> Option<Wanted> {
    let is_wanted = |path: &str| checkpoint::is_part(path) || path.to_ascii_lowercase().ends_with(".gguf");
    let found = snapshots(roots, &name.org, &name.repo, name.revision.as_deref());
    found.into_iter().find_map(|(folder, snapshot)| {
        let listing = snapshot.files_where(&mut Vec::new(), is_wanted);
        let unfound = resolve::resolve(&listing, name.selector.as_ref()).err()?;
        let found = checkpoint::resolve(&listing, name.selector.as_ref(), default, unfound).ok()?;
        Some(Wanted {
            folder,
            commit: snapshot.commit,
            kind: found.kind,
        })
    })
}

/// What is there of a type: of the one asked for, or of the one that turned out to be the stored one.
fn made(folder: &Path, kind: TargetType) -> Option<(String, Kept)> {
    let label = match kind {
        TargetType::Stored => {
            let target = fs::read_link(folder.join(format!("{VERSION}-stored"))).ok()?;
            let label = target.to_str()?.strip_prefix(&format!("{VERSION}-"))?;
            checkpoint::type_named(label.split_once('.')?.0)?.to_string()
        }
        kind => kind.to_string(),
    };
    let kept = [Kept::File, Kept::Header].into_iter();
    let mut found = kept.filter(|kept| folder.join(kept.file_name(&label)).is_file());
    found.next().map(|kept| (label, kept))
}

/// The file beside all models of a commit with which they see.
fn projector_name() -> String {
    format!("{VERSION}-mmproj.gguf")
}

/// Makes the projector of a checkpoint that has one, unless it is there: always a whole file, in the stored type, since it
/// is small and mapped by path. The model talks without it, so that one which cannot be made is only told.
async fn make_projector(converter: &Arc<dyn Converter>, model: &Order) -> Result<(), HubError> {
    let output = model.output.with_file_name(projector_name());
    let (folder, path) = (model.folder.clone(), output.clone());
    if !blocking(move || Ok(!path.is_file() && has_projector(&folder))).await? {
        return Ok(());
    }
    let order = Order {
        kind: TargetType::Stored,
        kept: Kept::File,
        part: Part::Projector,
        output,
        ..model.clone()
    };
    if let Err(error) = converter.convert(order, Box::new(|_| {})).await {
        tracing::warn!(model = model.name, %error, "the projector of a checkpoint cannot be made; its model reads text only");
    }
    Ok(())
}

/// Removes projectors, those of other versions too, if nothing else is left of a commit; returns the bytes that they had.
fn remove_lone_projector(folder: &Path) -> u64 {
    let files: Vec<PathBuf> = paths(folder).collect();
    let is_projector = |path: &PathBuf| path.to_string_lossy().ends_with("-mmproj.gguf");
    if !files.iter().all(is_projector) {
        return 0;
    }
    let removed = files.iter().map(|path| (occupied(path), fs::remove_file(path)));
    removed
        .filter_map(|(bytes, removed)| removed.ok().map(|()| bytes))
        .sum()
}

/// Bytes that a file takes from its disk: a header's hole takes none.
pub(super) fn occupied(path: &Path) -> u64 {
    let is_header = path
        .extension()
        .is_some_and(|extension| extension == Kept::Header.extension());
    fs::symlink_metadata(path).map_or(0, |meta| match is_header {
        true => meta.len().min(meta.blocks().saturating_mul(512)),
        false => meta.len(),
    })
}

/// Snapshots of a repository in all caches, most wanted first.
fn snapshots(roots: &[PathBuf], org: &str, repo: &str, revision: Option<&str>) -> Vec<(RepoFolder, Snapshot)> {
    let folders = roots.iter().filter_map(|root| RepoFolder::find(root, org, repo));
    folders
        .flat_map(|folder| {
            let snapshots = folder.snapshots(revision);
            snapshots.into_iter().map(move |snapshot| (folder.clone(), snapshot))
        })
        .collect()
}

fn paths(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        convert::Stage,
        hub::cache::tests::{OLD, name, put},
    };

    /// Writes a word, and counts how often.
    #[derive(Debug, Default)]
    struct Writer(AtomicUsize);

    impl Converter for Writer {
        fn convert(
            &self,
            order: Order,
            mut progress: Box<dyn FnMut(Advance) + Send>,
        ) -> BoxFuture<'static, Result<String, ConvertError>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::task::yield_now().await;
                assert!(order.folder.join("config.json").is_file() && order.name == "r");
                match order.kept {
                    Kept::File => fs::write(&order.output, "made").unwrap(),
                    // With a hole behind it.
                    Kept::Header => {
                        fs::write(&order.output, "head").unwrap();
                        let file = fs::OpenOptions::new().write(true).open(&order.output).unwrap();
                        file.set_len(64 << 20).unwrap();
                    }
                }
                progress(Advance {
                    stage: Stage::Writing,
                    done: 4,
                    total: 4,
                });
                let label = match order.kind {
                    TargetType::F32 => "F32",
                    TargetType::Q8_0 => "Q8_0",
                    _ => "BF16",
                };
                Ok(label.to_owned())
            }
            .boxed()
        }
    }

    /// Puts a checkpoint into a cache; what is wanted of it is only a matter of the type then.
    fn checkpoint(cache: &Path) -> impl Fn(TargetType) -> Wanted + use<> {
        put(cache, "o/r", OLD, "config.json", "{}");
        put(cache, "o/r", OLD, "model.safetensors", "weights");
        let folder = RepoFolder::new(cache, "o", "r");
        move |kind| Wanted {
            folder: folder.clone(),
            commit: OLD.to_owned(),
            kind,
        }
    }

    #[tokio::test]
    async fn made_once_found_by_type_and_gone_with_the_checkpoint() {
        let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = [cache.path().to_owned()];
        let wanted = checkpoint(cache.path());
        let writer = Arc::new(Writer::default());
        let conversions = Conversions::new(state.path(), Some(writer.clone()));
        let locate_by = |text: &str, default| {
            conversions
                .locate(&roots, &name(text), default)
                .map(|model| model.label)
        };
        let locate = |text: &str| locate_by(text, TargetType::Stored);

        let eight = || conversions.make(wanted(TargetType::Q8_0), Kept::File);
        assert_eq!(tokio::join!(eight(), eight()), (Ok("Q8_0".into()), Ok("Q8_0".into())));
        assert_eq!(writer.0.load(Ordering::Relaxed), 1, "the second finds it made");
        assert_eq!(locate("hf:O/R").as_deref(), Ok("Q8_0"), "better than nothing");
        assert_eq!(
            conversions.make(wanted(TargetType::Stored), Kept::File).await,
            Ok("BF16".into())
        );
        assert_eq!(
            conversions.make(wanted(TargetType::Bf16), Kept::File).await,
            Ok("BF16".into())
        );
        assert_eq!(
            writer.0.load(Ordering::Relaxed),
            2,
            "the stored type by its name is the same file"
        );
        assert_eq!(
            conversions.make(wanted(TargetType::F32), Kept::File).await,
            Ok("F32".into())
        );
        assert_eq!(
            locate("hf:o/r").as_deref(),
            Ok("BF16"),
            "the stored type, not the widest"
        );
        for (default, label) in [(TargetType::Q8_0, "Q8_0"), (TargetType::F16, "BF16")] {
            assert_eq!(
                locate_by("hf:o/r", default).as_deref(),
                Ok(label),
                "the setting, if it was made"
            );
        }
        assert_eq!(locate("hf:o/r:q8_0").as_deref(), Ok("Q8_0"));
        assert!(locate("hf:o/r:F16").is_err() && locate("hf:o/r@other").is_err());
        let all: Vec<String> = conversions.all(&roots).into_iter().map(|model| model.label).collect();
        assert_eq!(all, ["F32", "BF16", "Q8_0"]);

        let made = conversions.folder(&RepoFolder::new(cache.path(), "o", "r"), OLD);
        fs::write(made.join("0-F16.gguf"), "of an older version").unwrap();
        assert_eq!(conversions.stale(&roots).len(), 1);
        fs::remove_dir_all(cache.path().join("models--o--r")).unwrap();
        assert!(conversions.all(&roots).is_empty() && locate("hf:o/r").is_err());
        assert_eq!(conversions.stale(&roots).len(), 4, "what was made, but not the link");
    }

    #[tokio::test]
    async fn only_our_files_of_a_checkpoint_go_and_with_the_last_conversion() {
        let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = [cache.path().to_owned()];
        let ledger = Ledger::load(state.path());
        let theirs = put(cache.path(), "o/r", OLD, "config.json", "{}");
        let ours = put(cache.path(), "o/r", OLD, "model.safetensors", "weights");
        ledger.add(ours.clone()).unwrap();
        let conversions = Conversions::new(state.path(), Some(Arc::new(Writer::default())));
        for kind in [TargetType::Stored, TargetType::Q8_0] {
            let folder = RepoFolder::new(cache.path(), "o", "r");
            let commit = OLD.to_owned();
            let wanted = Wanted { folder, commit, kind };
            conversions.make(wanted, Kept::File).await.unwrap();
        }
        let delete = |text: &str| {
            let model = conversions.locate(&roots, &name(text), TargetType::Stored).unwrap();
            conversions.delete(cache.path(), &ledger, &model, None, false)
        };
        assert_eq!(delete("hf:o/r"), Ok(Deleted::Removed { bytes_freed: 4 }));
        assert!(ours.exists());
        assert_eq!(delete("hf:o/r:Q8_0"), Ok(Deleted::Removed { bytes_freed: 4 + 7 }));
        assert!(theirs.exists() && !ours.exists());
        let left: Vec<PathBuf> = paths(&state.path().join("converted")).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn a_header_stands_for_its_file_until_there_is_one() {
        let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = [cache.path().to_owned()];
        let wanted = checkpoint(cache.path());
        let writer = Arc::new(Writer::default());
        let conversions = Conversions::new(state.path(), Some(writer.clone()));
        let locate = |text: &str| conversions.locate(&roots, &name(text), TargetType::Stored).unwrap();
        for kind in [TargetType::Q8_0, TargetType::Stored, TargetType::Bf16] {
            conversions.make(wanted(kind), Kept::Header).await.unwrap();
        }
        assert_eq!(writer.0.load(Ordering::Relaxed), 2);
        let model = locate("hf:o/r");
        let snapshot = cache.path().join("models--o--r/snapshots").join(OLD);
        assert_eq!((model.label.as_str(), model.size_bytes), ("BF16", 64 << 20));
        assert_eq!(model.checkpoint, Some(snapshot));
        assert_eq!(conversions.all(&roots).len(), 2);

        // The configuration wants files now.
        assert_eq!(
            conversions.make(wanted(TargetType::Bf16), Kept::File).await,
            Ok("BF16".into())
        );
        assert_eq!(writer.0.load(Ordering::Relaxed), 3);
        let file = locate("hf:o/r");
        assert_eq!((file.checkpoint, file.size_bytes), (None, 4), "still the default");
        assert_eq!(file.digest, model.digest);
        assert_ne!(file.files, model.files);
        assert!(!model.files[0].exists() && conversions.stale(&roots).is_empty());
        // And headers again: the file is as good.
        for kind in [TargetType::Stored, TargetType::Bf16] {
            conversions.make(wanted(kind), Kept::Header).await.unwrap();
        }
        assert_eq!(writer.0.load(Ordering::Relaxed), 3);

        let ledger = Ledger::load(state.path());
        let deleted = conversions.delete(cache.path(), &ledger, &locate("hf:o/r:Q8_0"), None, false);
        let Ok(Deleted::Removed { bytes_freed }) = deleted else {
            panic!("{deleted:?}");
        };
        assert!(bytes_freed < 1 << 20, "a hole takes no place: {bytes_freed}");
        assert_eq!(locate("hf:o/r").label, "BF16");
        assert_eq!(conversions.all(&roots).len(), 1);
    }

    #[test]
    fn what_is_kept_is_set_and_possible() {
        let wanted = |safetensors, kind| {
            let config = HubConfig {
                safetensors,
                ..HubConfig::default()
            };
            Kept::wanted(&config, kind)
        };
        let mix = checkpoint::type_named("Q4_K_M").unwrap();
        let streamed = if CAN_STREAM { Kept::Header } else { Kept::File };
        for kind in [TargetType::Stored, TargetType::F16, TargetType::Q8_0] {
            assert_eq!(wanted(Safetensors::Auto, kind), streamed);
            assert_eq!(wanted(Safetensors::Stream, kind), streamed);
            assert_eq!(wanted(Safetensors::File, kind), Kept::File);
        }
        assert_eq!(wanted(Safetensors::Auto, mix), Kept::File);
        assert_eq!(wanted(Safetensors::Stream, mix), streamed);
        assert_eq!(wanted(Safetensors::File, mix), Kept::File);
    }

    #[tokio::test]
    async fn a_projector_serves_all_models_of_a_commit_and_goes_with_the_last() {
        let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = [cache.path().to_owned()];
        let config = r#"{"architectures":["Qwen2VLForConditionalGeneration"],"vision_config":{}}"#;
        put(cache.path(), "o/r", OLD, "config.json", config);
        put(cache.path(), "o/r", OLD, "model.safetensors", "weights");
        let writer = Arc::new(Writer::default());
        let conversions = Conversions::new(state.path(), Some(writer.clone()));
        for kind in [TargetType::Stored, TargetType::Q8_0] {
            let wanted = Wanted {
                folder: RepoFolder::new(cache.path(), "o", "r"),
                commit: OLD.to_owned(),
                kind,
            };
            conversions.make(wanted, Kept::File).await.unwrap();
        }
        assert_eq!(writer.0.load(Ordering::Relaxed), 3, "two models and one projector");
        let locate = |text: &str| conversions.locate(&roots, &name(text), TargetType::Stored).unwrap();
        let (model, eight) = (locate("hf:o/r"), locate("hf:o/r:Q8_0"));
        let projector = model.mmproj.clone().unwrap();
        assert_eq!((eight.mmproj.as_ref(), model.size_bytes), (Some(&projector), 8));
        assert!(conversions.stale(&roots).is_empty());

        let ledger = Ledger::load(state.path());
        let delete = |model: &CachedModel| conversions.delete(cache.path(), &ledger, model, None, false);
        assert_eq!(delete(&model).unwrap(), Deleted::Removed { bytes_freed: 4 });
        assert!(projector.is_file());
        assert_eq!(delete(&eight).unwrap(), Deleted::Removed { bytes_freed: 8 });
        assert!(!projector.exists() && conversions.all(&roots).is_empty());
    }
}
