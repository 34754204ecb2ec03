//! What hubllama itself put into the shared cache, and what it was asked not to list. Only files in the ledger are ever
//! deleted: the cache belongs to every program of the user.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{disk::write_atomic, error::HubError};

/// Bytes of the file; a hundred thousand downloads fit.
const MAX_BYTES: u64 = 32 << 20;

/// The ledger, loaded once and written through.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    entries: Mutex<Entries>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Entries {
    /// Paths of blobs that hubllama downloaded.
    downloaded: BTreeSet<PathBuf>,
    /// Keys of models that are not listed although they are cached.
    unlisted: BTreeSet<String>,
}

impl Ledger {
    /// Reads `state_dir/hub-ledger.json`. A file that cannot be read is put aside: without it everything counts as
    /// somebody else's, which only means that nothing is deleted.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join("hub-ledger.json");
        let entries = match read(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Entries::default(),
            Err(error) => {
                let aside = path.with_extension("json.broken");
                tracing::warn!(path = %path.display(), %error, "hub ledger is unreadable; it is put aside");
                if let Err(error) = fs::rename(&path, &aside) {
                    tracing::warn!(path = %aside.display(), %error, "hub ledger cannot be put aside");
                }
                Entries::default()
            }
        };
        Self {
            path,
            entries: Mutex::new(entries),
        }
    }

    pub(crate) fn owns(&self, blob: &Path) -> bool {
        self.lock().downloaded.contains(blob)
    }

    pub(crate) fn is_unlisted(&self, key: &str) -> bool {
        self.lock().unlisted.contains(key)
    }

    /// Records a blob that hubllama downloaded.
    pub(crate) fn add(&self, blob: PathBuf) -> Result<(), HubError> {
        self.change(|entries| entries.downloaded.insert(blob))
    }

    /// Forgets a blob that is gone.
    pub(crate) fn forget(&self, blob: &Path) -> Result<(), HubError> {
        self.change(|entries| entries.downloaded.remove(blob))
    }

    /// Hides a model from lists, or shows it again.
    pub(crate) fn set_unlisted(&self, key: &str, unlisted: bool) -> Result<(), HubError> {
        self.change(|entries| match unlisted {
            true => entries.unlisted.insert(key.to_owned()),
            false => entries.unlisted.remove(key),
        })
    }

    fn change(&self, change: impl FnOnce(&mut Entries) -> bool) -> Result<(), HubError> {
        // The lock is held over the write, so that two changes cannot reach the disk in the wrong order.
        let mut entries = self.lock();
        if !change(&mut entries) {
            return Ok(());
        }
        serde_json::to_vec(&*entries)
            .map_err(io::Error::from)
            .and_then(|json| write_atomic(&self.path, &json))
            .map_err(|error| HubError::io("write", &self.path, &error))
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        again.set_unlisted("o/r:q4_0", false).unwrap();
        assert!(!Ledger::load(state.path()).is_unlisted("o/r:q4_0"));
        assert_eq!(
            fs::read_dir(state.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
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
