//! The ledger: a record of the files that hubllama put into the shared cache, the models that it pulled, and those that
//! it was asked not to list. The cache belongs to every program of the user, so only files in the ledger are deleted
//! without an explicit request.
//!
//! The daemon and the command line share the file `STATE/hub-ledger.json`. A change reads the file again under a lock
//! before it writes, and a reader notices by the file's stamp that it was replaced.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::error::HubError;
use crate::stdx::{fs::write_atomic, sync::lock};

/// Largest size of the file in bytes; a hundred thousand downloads fit.
const MAX_BYTES: u64 = 32 << 20;

/// Ledger: the file and its content in memory.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    state: Mutex<LedgerState>,
}

/// Ledger state: the entries in memory.
#[derive(Debug, Default)]
struct LedgerState {
    entries: Entries,
    /// Stamp of the file that the entries were read from.
    stamp: Option<Stamp>,
}

/// Stamp of a file: inode, modification time and length. The file is replaced and never changed in place, so that each
/// version has another inode.
type Stamp = (u64, SystemTime, u64);

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Entries {
    /// Paths of blobs that hubllama downloaded.
    downloaded: BTreeSet<PathBuf>,
    /// Keys of models that are not listed although they are cached.
    unlisted: BTreeSet<String>,
    /// Snapshots with a checkpoint that could not be converted when it was last tried.
    unconverted: BTreeSet<PathBuf>,
    /// Records of pulled models, by key.
    models: BTreeMap<String, PullRecord>,
}

/// Pull record: the facts about a model that only the Hub's answer to a pull tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PullRecord {
    pub(crate) commit: String,
    /// Base URL of the Hub; empty for an imported file.
    pub(crate) endpoint: String,
    /// License from the model card.
    pub(crate) license: Option<String>,
}

impl Ledger {
    /// Reads `state_dir/hub-ledger.json`. An unreadable file is renamed: without a ledger every file counts as another
    /// program's, and nothing is deleted.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let ledger = Self {
            path: state_dir.join("hub-ledger.json"),
            state: Mutex::default(),
        };
        drop(ledger.current());
        ledger
    }

    /// Returns true if hubllama downloaded a blob.
    pub(crate) fn owns(&self, blob: &Path) -> bool {
        self.current().entries.downloaded.contains(blob)
    }

    pub(crate) fn is_unlisted(&self, key: &str) -> bool {
        self.current().entries.unlisted.contains(key)
    }

    pub(crate) fn record(&self, key: &str) -> Option<PullRecord> {
        self.current().entries.models.get(key).cloned()
    }

    /// Returns the keys of all models that were pulled.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.current().entries.models.keys().cloned().collect()
    }

    /// Removes the record of a pulled model.
    pub(crate) fn forget_model(&self, key: &str) -> Result<(), HubError> {
        self.change(|entries| entries.models.remove(key).is_some())
    }

    /// Records a blob that hubllama downloaded.
    pub(crate) fn add(&self, blob: PathBuf) -> Result<(), HubError> {
        self.change(|entries| entries.downloaded.insert(blob))
    }

    /// Removes a deleted file: a blob from the downloads, a link in a snapshot from the notes on unconverted
    /// checkpoints.
    pub(crate) fn forget(&self, path: &Path) -> Result<(), HubError> {
        self.change(|entries| {
            let count = entries.unconverted.len();
            entries.unconverted.retain(|snapshot| !path.starts_with(snapshot));
            entries.downloaded.remove(path) || entries.unconverted.len() < count
        })
    }

    /// Hides a model from listings, or lists it again.
    pub(crate) fn set_unlisted(&self, key: &str, unlisted: bool) -> Result<(), HubError> {
        self.change(|entries| match unlisted {
            true => entries.unlisted.insert(key.to_owned()),
            false => entries.unlisted.remove(key),
        })
    }

    pub(crate) fn is_unconverted(&self, snapshot: &Path) -> bool {
        self.current().entries.unconverted.contains(snapshot)
    }

    /// Records whether the checkpoint in a snapshot failed to convert.
    pub(crate) fn set_unconverted(&self, snapshot: &Path, unconverted: bool) -> Result<(), HubError> {
        self.change(|entries| match unconverted {
            true => entries.unconverted.insert(snapshot.to_owned()),
            false => entries.unconverted.remove(snapshot),
        })
    }

    /// Records that a model was pulled, and lists it again.
    pub(crate) fn pulled(&self, key: &str, record: PullRecord) -> Result<(), HubError> {
        self.change(|entries| {
            let was_unlisted = entries.unlisted.remove(key);
            let is_news = entries.models.get(key) != Some(&record);
            entries.models.insert(key.to_owned(), record);
            was_unlisted || is_news
        })
    }

    fn change(&self, change: impl FnOnce(&mut Entries) -> bool) -> Result<(), HubError> {
        let io_error = |error: io::Error| HubError::io("write", &self.path, &error);
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(io_error)?;
        let lock = File::options()
            .create(true)
            .append(true)
            .open(self.path.with_extension("lock"))
            .map_err(io_error)?;
        // The mutex orders the threads of this process, the file lock the processes. Both are held only for the write
        // of a small file.
        let mut state = self.lock();
        lock.lock().map_err(io_error)?;
        self.refresh(&mut state);
        if !change(&mut state.entries) {
            return Ok(());
        }
        let written = serde_json::to_vec(&state.entries)
            .map_err(io::Error::from)
            .and_then(|json| write_atomic(&self.path, &json));
        // After a failed write, memory and file differ. Without a stamp, the file is read again.
        state.stamp = if written.is_ok() { stamp(&self.path).ok() } else { None };
        written.map_err(io_error)
    }

    fn current(&self) -> MutexGuard<'_, LedgerState> {
        let mut state = self.lock();
        self.refresh(&mut state);
        state
    }

    /// Reads the file again if it was replaced.
    fn refresh(&self, state: &mut LedgerState) {
        let now = stamp(&self.path);
        if let (Ok(now), Some(then)) = (&now, &state.stamp)
            && now == then
        {
            return;
        }
        match now.and_then(|stamp| Ok((stamp, read(&self.path)?))) {
            Ok((stamp, entries)) => {
                *state = LedgerState {
                    entries,
                    stamp: Some(stamp),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => *state = LedgerState::default(),
            Err(error) => {
                let aside = self.path.with_extension("json.broken");
                tracing::warn!(path = %self.path.display(), %error, "hub ledger is unreadable; it is put aside");
                if let Err(error) = fs::rename(&self.path, &aside) {
                    tracing::warn!(path = %aside.display(), %error, "hub ledger cannot be put aside");
                }
                *state = LedgerState::default();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, LedgerState> {
        lock(&self.state)
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::metadata(path)?;
    Ok((meta.ino(), meta.modified()?, meta.len()))
}

fn read(path: &Path) -> io::Result<Entries> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(io::Error::other("it is too large"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let (a, b) = (PathBuf::from("/c/a"), PathBuf::from("/c/b"));
        let ledger = Ledger::load(state.path());
        ledger.add(a.clone()).unwrap();
        ledger.add(b.clone()).unwrap();
        ledger.set_unlisted("o/r:q4_0", true).unwrap();
        ledger.forget(&b).unwrap();
        let again = Ledger::load(state.path());
        assert!(again.owns(&a) && !again.owns(&b) && again.is_unlisted("o/r:q4_0"));
        let record = PullRecord {
            commit: "1".into(),
            ..PullRecord::default()
        };
        again.pulled("o/r:q4_0", record.clone()).unwrap();
        let again = Ledger::load(state.path());
        assert!(!again.is_unlisted("o/r:q4_0"));
        assert_eq!(again.record("o/r:q4_0"), Some(record));
        assert_eq!(
            fs::read_dir(state.path()).unwrap().count(),
            2,
            "the ledger and its lock; no temporary file is left"
        );
    }

    #[test]
    fn processes_do_not_undo_each_other_s_entries() {
        let state = tempfile::tempdir().unwrap();
        // Two handles know nothing of each other, like two processes.
        let ledgers = [Ledger::load(state.path()), Ledger::load(state.path())];
        std::thread::scope(|scope| {
            for (index, ledger) in ledgers.iter().enumerate() {
                scope.spawn(move || {
                    for blob in 0..20 {
                        ledger.add(PathBuf::from(format!("/{index}/{blob}"))).unwrap();
                    }
                });
            }
        });
        for ledger in &ledgers {
            for index in 0..2 {
                for blob in 0..20 {
                    assert!(ledger.owns(Path::new(&format!("/{index}/{blob}"))), "/{index}/{blob}");
                }
            }
        }
    }

    #[test]
    fn a_broken_file_is_put_aside() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("hub-ledger.json"), "{ nonsense").unwrap();
        let ledger = Ledger::load(state.path());
        assert!(!ledger.owns(Path::new("/c/a")));
        assert!(state.path().join("hub-ledger.json.broken").exists());
        ledger.add(PathBuf::from("/c/a")).unwrap();
        assert!(Ledger::load(state.path()).owns(Path::new("/c/a")));
    }
}
