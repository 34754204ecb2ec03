//! Aliases: models that clients derive from hf: models with `/api/create` and `/api/copy`.
//!
//! A [`ModelAlias`] is a plain name with the settings that it adds to its model: a system prompt, a template,
//! parameters, messages. The [`AliasStore`] keeps each in a JSON file in the state folder; files are read once at start
//! and replaced as a whole. An [`AliasedProvider`] serves an alias by changing requests to its model.
//!
//! The names in the configuration (`[aliases]`) are a different thing: they belong to the administrator, add no
//! settings, and cannot be changed over the wire.

mod name;
mod record;
mod serve;

pub use name::PlainName;
pub use record::{AliasSettings, ModelAlias, SettingsLayer};
pub(super) use serve::AliasedProvider;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;

use crate::{
    inference::Failure,
    stdx::{fs::write_atomic, sync::lock},
};

/// Most aliases.
const MAX_ALIASES: usize = 4096;
/// Largest record in bytes: a long conversation with some pictures.
const MAX_RECORD_BYTES: usize = 8 << 20;
/// Most bytes of all records, which are kept in memory.
const MAX_TOTAL_BYTES: usize = 64 << 20;

/// Reason why an alias was not stored.
#[derive(Debug, thiserror::Error)]
pub enum AliasError {
    #[error("invalid model name")]
    Name,
    #[error("the model's own settings have more than {MAX_RECORD_BYTES} bytes; shorten its messages")]
    TooLarge,
    #[error(
        "there is no room for another model: {MAX_ALIASES} are kept, with {MAX_TOTAL_BYTES} bytes in all; delete some"
    )]
    Full,
    /// Error of the state folder.
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
}

impl From<AliasError> for Failure {
    fn from(error: AliasError) -> Self {
        match error {
            AliasError::Io { .. } => Self::Unavailable(format!("the model could not be kept: {error}")),
            AliasError::Name | AliasError::TooLarge | AliasError::Full => Self::Invalid(error.to_string()),
        }
    }
}

/// Store of all aliases. Cheap to clone; clones share the store.
#[derive(Clone, Debug, Default)]
pub struct AliasStore(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Folder of the files; `None` for a store in memory only.
    folder: Option<PathBuf>,
    kept: ArcSwap<Map>,
    /// Lock over every change, so that memory and disk change in the same order. Readers do not take it.
    changing: Mutex<()>,
}

/// Records by [`PlainName::key`].
type Map = BTreeMap<String, Kept>;

#[derive(Clone, Debug)]
struct Kept {
    alias: Arc<ModelAlias>,
    bytes: usize,
}

impl AliasStore {
    /// Reads `state_dir/aliases`. A file that cannot be read is renamed and logged, so that the others still serve.
    #[must_use]
    pub fn load(state_dir: &Path) -> Self {
        let folder = state_dir.join("aliases");
        let kept = read_all(&folder);
        Self(Arc::new(Shared {
            folder: Some(folder),
            kept: ArcSwap::from_pointee(kept),
            changing: Mutex::default(),
        }))
    }

    /// Returns the alias of a name, in any spelling.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<ModelAlias>> {
        let kept = self.0.kept.load();
        if kept.is_empty() {
            return None;
        }
        let key = PlainName::parse(name)?.key();
        kept.get(&key).map(|kept| Arc::clone(&kept.alias))
    }

    /// Returns all aliases, newest first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ModelAlias>> {
        let mut all: Vec<_> = self
            .0
            .kept
            .load()
            .values()
            .map(|kept| Arc::clone(&kept.alias))
            .collect();
        all.sort_by_key(|alias| std::cmp::Reverse(alias.modified_at));
        all
    }

    /// Stores an alias, replacing one of the same name. The spelling of the first stays, as in Ollama.
    ///
    /// # Errors
    /// If a limit is exceeded, or the disk fails. The store is unchanged then.
    pub async fn put(&self, alias: ModelAlias) -> Result<(), Failure> {
        self.changed(move |store| store.put_now(alias)).await
    }

    /// Removes an alias; returns true if there was one.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn remove(&self, name: &str) -> Result<bool, Failure> {
        let name = name.to_owned();
        self.changed(move |store| store.remove_now(&name)).await
    }

    /// Runs a change on a blocking thread, since it waits for the disk. A client that goes away does not interrupt it.
    async fn changed<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Self) -> Result<T, AliasError> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || change(&store))
            .await
            .map_err(|error| Failure::Unavailable(error.to_string()))?
            .map_err(Failure::from)
    }

    fn put_now(&self, mut alias: ModelAlias) -> Result<(), AliasError> {
        let name = PlainName::parse(&alias.name).ok_or(AliasError::Name)?;
        let key = name.key();
        let _changing = lock(&self.0.changing);
        let mut kept = Map::clone(&self.0.kept.load());
        alias.name = match kept.get(&key) {
            Some(old) => old.alias.name.clone(),
            None => name.to_string(),
        };
        let json = serde_json::to_vec_pretty(&alias).map_err(|error| self.io(&key, error.into()))?;
        let bytes = json.len();
        if bytes > MAX_RECORD_BYTES {
            return Err(AliasError::TooLarge);
        }
        let alias = Arc::new(alias);
        // Inserted into a copy: if a limit or the disk refuses the change, the copy is dropped and readers never see
        // it.
        kept.insert(key.clone(), Kept { alias, bytes });
        let total: usize = kept.values().map(|kept| kept.bytes).sum();
        if kept.len() > MAX_ALIASES || total > MAX_TOTAL_BYTES {
            return Err(AliasError::Full);
        }
        if let Some(folder) = &self.0.folder {
            fs::create_dir_all(folder)
                .and_then(|()| write_atomic(&folder.join(file_name(&name)), &json))
                .map_err(|error| self.io(&key, error))?;
        }
        self.0.kept.store(Arc::new(kept));
        Ok(())
    }

    fn remove_now(&self, name: &str) -> Result<bool, AliasError> {
        let Some(name) = PlainName::parse(name) else {
            return Ok(false);
        };
        let key = name.key();
        let _changing = lock(&self.0.changing);
        let mut kept = Map::clone(&self.0.kept.load());
        if kept.remove(&key).is_none() {
            return Ok(false);
        }
        if let Some(folder) = &self.0.folder {
            let gone = match fs::remove_file(folder.join(file_name(&name))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                // The removal is durable only after a sync of the folder.
                other => other.and_then(|()| fs::File::open(folder)?.sync_all()),
            };
            gone.map_err(|error| self.io(&key, error))?;
        }
        self.0.kept.store(Arc::new(kept));
        Ok(true)
    }

    fn io(&self, key: &str, error: io::Error) -> AliasError {
        let path = self.0.folder.as_deref().unwrap_or(Path::new("")).join(key);
        AliasError::Io {
            path: path.display().to_string(),
            error,
        }
    }
}

/// Returns a readable file name, unique for a name. The name itself may be longer than a file name can be, hence the
/// hash.
fn file_name(name: &PlainName) -> String {
    let key = name.key();
    let hash = record::sha256(key.as_bytes());
    format!("{}-{}.json", name.file_stem().to_ascii_lowercase(), &hash[..32])
}

fn read_all(folder: &Path) -> Map {
    let mut kept = Map::new();
    let mut total = 0;
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %folder.display(), %error, "the models that clients made cannot be read");
            }
            return kept;
        }
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(".tmp") {
            // A temporary file of a process that was killed while it wrote; the record itself is complete.
            let _ = fs::remove_file(&path);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read(&path) {
            Ok((key, record)) if kept.len() < MAX_ALIASES && total + record.bytes <= MAX_TOTAL_BYTES => {
                total += record.bytes;
                kept.insert(key, record);
            }
            Ok((_, record)) => {
                tracing::warn!(path = %path.display(), model.name = record.alias.name, "too many models that clients made: this one is left out");
            }
            Err(error) => {
                let aside = path.with_extension("json.broken");
                tracing::warn!(path = %path.display(), %error, "a model that a client made cannot be read; it is put aside");
                if let Err(error) = fs::rename(&path, &aside) {
                    tracing::warn!(path = %aside.display(), %error, "it cannot be put aside");
                }
            }
        }
    }
    kept
}

fn read(path: &Path) -> io::Result<(String, Kept)> {
    if fs::metadata(path)?.len() > MAX_RECORD_BYTES as u64 {
        return Err(io::Error::other("it is too large"));
    }
    let json = fs::read(path)?;
    let alias: ModelAlias = serde_json::from_slice(&json)?;
    let name = PlainName::parse(&alias.name).ok_or_else(|| io::Error::other("its name is no plain name"))?;
    if path.file_name().is_none_or(|file| file != file_name(&name).as_str()) {
        return Err(io::Error::other("its name does not belong to this file"));
    }
    let kept = Kept {
        alias: Arc::new(alias),
        bytes: json.len(),
    };
    Ok((name.key(), kept))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    pub(crate) fn alias(name: &str, system: &str) -> ModelAlias {
        ModelAlias {
            name: name.into(),
            model: "hf:o/r:Q4_K_M".into(),
            parent_model: "hf:o/r:Q4_K_M".into(),
            modified_at: SystemTime::UNIX_EPOCH + Duration::from_secs(system.len() as u64),
            settings: AliasSettings {
                system: system.into(),
                ..AliasSettings::default()
            },
        }
    }

    fn names(store: &AliasStore) -> Vec<String> {
        store.all().iter().map(|alias| alias.name.clone()).collect()
    }

    #[test]
    fn what_is_kept_survives_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let store = AliasStore::load(state.path());
        store.put_now(alias("Mario", "a")).unwrap();
        store.put_now(alias("me/luigi:v1", "abc")).unwrap();
        store.put_now(alias("gone", "ab")).unwrap();
        assert!(store.remove_now("library/GONE:latest").unwrap());
        assert!(!store.remove_now("gone").unwrap() && !store.remove_now("hf:o/r").unwrap());
        // The spelling that came first stays, as Ollama has it.
        store.put_now(alias("mario:LATEST", "abcd")).unwrap();
        for store in [store, AliasStore::load(state.path())] {
            assert_eq!(names(&store), ["Mario:latest", "me/luigi:v1"], "newest first");
            assert_eq!(store.get("MARIO").unwrap().settings.system, "abcd");
            assert!(store.get("luigi:v1").is_none() && store.get("gone").is_none());
        }
        assert_eq!(fs::read_dir(state.path().join("aliases")).unwrap().count(), 2);
    }

    #[test]
    fn a_broken_file_is_put_aside_and_a_half_written_one_removed() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("aliases");
        AliasStore::load(state.path()).put_now(alias("mario", "a")).unwrap();
        let good = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        fs::write(folder.join("x.json"), "{").unwrap();
        fs::copy(&good, folder.join("other.json")).unwrap();
        fs::write(folder.join(".y.json.1-0.tmp"), "{").unwrap();
        fs::write(folder.join("notes.txt"), "mine").unwrap();
        assert_eq!(names(&AliasStore::load(state.path())), ["mario:latest"]);
        let mut left: Vec<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = vec![
            good.file_name().unwrap().to_str().unwrap(),
            "notes.txt",
            "other.json.broken",
            "x.json.broken",
        ];
        expected.sort_unstable();
        assert_eq!(left, expected);
    }

    #[test]
    fn number_and_size_are_bounded_and_what_was_there_stays() {
        let store = AliasStore::default();
        let large = "x".repeat(MAX_RECORD_BYTES - 1000);
        store.put_now(alias("a", "small")).unwrap();
        let error = store.put_now(alias("a", &"x".repeat(MAX_RECORD_BYTES))).unwrap_err();
        assert!(matches!(error, AliasError::TooLarge));
        assert_eq!(store.get("a").unwrap().settings.system, "small");
        let kept = (0..20).take_while(|at| store.put_now(alias(&format!("b{at}"), &large)).is_ok());
        assert_eq!(kept.count(), MAX_TOTAL_BYTES / MAX_RECORD_BYTES);
        assert!(matches!(store.put_now(alias("c", &large)), Err(AliasError::Full)));
        assert!(store.get("c").is_none());
        // Replacing one takes no more room.
        store.put_now(alias("b0", &large)).unwrap();
        assert!(matches!(store.put_now(alias("a b", "")), Err(AliasError::Name)));
    }

    #[test]
    fn a_disk_that_refuses_changes_nothing() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("aliases"), "a file where the folder should be").unwrap();
        let store = AliasStore::load(state.path());
        let error = store.put_now(alias("a", "x")).unwrap_err();
        assert!(matches!(error, AliasError::Io { .. }), "{error}");
        assert!(store.get("a").is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_change_is_lost_when_many_come_at_once() {
        let state = tempfile::tempdir().unwrap();
        let store = AliasStore::load(state.path());
        let changes = (0..50).map(|at| {
            let store = store.clone();
            tokio::spawn(async move {
                store.put(alias(&format!("m{at}"), "x")).await.unwrap();
                if at % 5 == 0 {
                    store.remove(&format!("m{at}")).await.unwrap();
                }
            })
        });
        for change in changes.collect::<Vec<_>>() {
            change.await.unwrap();
        }
        assert_eq!(store.all().len(), 40);
        assert_eq!(AliasStore::load(state.path()).all().len(), 40);
    }
}
