//! A file that is not complete yet: what has arrived, in any order, with a side file that lets a later process go on.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{cache, disk::write_lightly, error::HubError};

/// Time between two writes of the side file; a kill loses at most what arrived in between.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of the side file; a range takes about 25.
const MAX_SIDE_BYTES: u64 = 1 << 20;
/// Bytes that are hashed at a time.
const HASH_BYTES: usize = 1 << 20;

/// A blob under construction. Whoever holds it holds the lock on the blob over all processes.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    side: PathBuf,
    blob: PathBuf,
    size: u64,
    progress: Mutex<Progress>,
    is_over: AtomicBool,
    _lock: BlobLock,
}

#[derive(Debug)]
struct Progress {
    ranges: Ranges,
    saved: Instant,
}

/// Disjoint ranges of bytes, sorted; the ends are exclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

/// What the side file holds.
#[derive(Serialize, Deserialize)]
struct Side {
    size: u64,
    done: Ranges,
}

/// The lock that huggingface_hub takes on a blob as well.
#[derive(Debug)]
pub(crate) struct BlobLock(#[expect(dead_code, reason = "closing the file is the unlock")] File);

impl BlobLock {
    /// Takes the lock unless somebody holds it. Lock files are never deleted: two processes could then hold "the" lock.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>, HubError> {
        let take = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let file = File::options().create(true).append(true).open(path)?;
            match file.try_lock() {
                Ok(()) => Ok(Some(Self(file))),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
            }
        };
        take().map_err(|error: io::Error| HubError::io("lock", path, &error))
    }
}

impl Partial {
    /// Opens what an earlier download left, or begins.
    pub(crate) fn open(blob: &Path, size: u64, lock: BlobLock) -> Result<Self, HubError> {
        let (path, side) = (
            with_suffix(blob, ".hubllama.incomplete"),
            with_suffix(blob, ".hubllama.ranges"),
        );
        let open = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
        };
        let file = open().map_err(|error| HubError::io("open", &path, &error))?;
        let length = file.metadata().map_or(0, |meta| meta.len());
        let ranges = read_side(&side, size, length).unwrap_or_default();
        let progress = Mutex::new(Progress {
            ranges,
            saved: Instant::now(),
        });
        let is_over = AtomicBool::new(false);
        Ok(Self {
            file,
            path,
            side,
            blob: blob.to_owned(),
            size,
            progress,
            is_over,
            _lock: lock,
        })
    }

    /// Bytes that another process has so far, which holds the lock.
    pub(crate) fn peek(blob: &Path, size: u64) -> u64 {
        read_side(&with_suffix(blob, ".hubllama.ranges"), size, size).map_or(0, |ranges| ranges.total())
    }

    pub(crate) fn completed(&self) -> u64 {
        self.lock().ranges.total()
    }

    pub(crate) fn missing(&self) -> Vec<(u64, u64)> {
        self.lock().ranges.missing(self.size)
    }

    /// Writes bytes at their place and returns how many there are in all.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<u64, HubError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| HubError::io("write", &self.path, &error))?;
        let mut progress = self.lock();
        progress.ranges.insert(offset, offset + bytes.len() as u64);
        let total = progress.ranges.total();
        if progress.saved.elapsed() >= SAVE_INTERVAL {
            progress.saved = Instant::now();
            self.save(&progress.ranges)?;
        }
        Ok(total)
    }

    /// Forgets everything, for a server that can only send the whole.
    pub(crate) fn clear(&self) -> Result<(), HubError> {
        let mut progress = self.lock();
        progress.ranges = Ranges::default();
        self.file
            .set_len(0)
            .map_err(|error| HubError::io("truncate", &self.path, &error))
    }

    /// Hashes the content as the Hub hashed it: sha256, or git's sha1 for a short hash. `is_cancelled` is asked often.
    pub(crate) fn hash(&self, digits: usize, is_cancelled: impl Fn() -> bool) -> Result<String, HubError> {
        if digits == 64 {
            return self.hash_with(Sha256::new(), is_cancelled);
        }
        self.hash_with(Sha1::new_with_prefix(format!("blob {}\0", self.size)), is_cancelled)
    }

    fn hash_with<D: Digest>(&self, mut hasher: D, is_cancelled: impl Fn() -> bool) -> Result<String, HubError> {
        let mut buffer = vec![0; HASH_BYTES];
        let mut offset = 0;
        while offset < self.size {
            if is_cancelled() {
                return Err(HubError::Cancelled);
            }
            let want = HASH_BYTES.min(usize::try_from(self.size - offset).unwrap_or(HASH_BYTES));
            let read = self.file.read_exact_at(&mut buffer[..want], offset);
            read.map_err(|error| HubError::io("read", &self.path, &error))?;
            hasher.update(&buffer[..want]);
            offset += want as u64;
        }
        Ok(cache::hex(&hasher.finalize()))
    }

    /// Makes the file a blob: on disk first, then under its name.
    pub(crate) fn finish(&self) -> Result<(), HubError> {
        let finish = || {
            self.file.set_len(self.size)?;
            self.file.sync_all()?;
            fs::rename(&self.path, &self.blob)?;
            self.is_over.store(true, Ordering::Release);
            match self.blob.parent() {
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            }
        };
        finish().map_err(|error: io::Error| HubError::io("complete", &self.blob, &error))?;
        self.remove(&self.side)
    }

    /// Throws everything away.
    pub(crate) fn discard(&self) -> Result<(), HubError> {
        self.is_over.store(true, Ordering::Release);
        self.remove(&self.side)?;
        self.remove(&self.path)
    }

    fn remove(&self, path: &Path) -> Result<(), HubError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(HubError::io("remove", path, &error)),
            _ => Ok(()),
        }
    }

    fn save(&self, ranges: &Ranges) -> Result<(), HubError> {
        let side = Side {
            size: self.size,
            done: ranges.clone(),
        };
        serde_json::to_vec(&side)
            .map_err(io::Error::from)
            .and_then(|json| write_lightly(&self.side, &json))
            .map_err(|error| HubError::io("write", &self.side, &error))
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_over.load(Ordering::Acquire) {
            return;
        }
        let ranges = self.lock().ranges.clone();
        if let Err(error) = self.save(&ranges) {
            tracing::warn!(%error, "the next download of this file starts anew");
        }
    }
}

impl Ranges {
    /// Adds `start..end`.
    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        // Everything that touches the new range melts into it.
        let first = self.0.partition_point(|range| range.1 < start);
        let last = self.0.partition_point(|range| range.0 <= end);
        let merged = self.0[first..last]
            .iter()
            .fold((start, end), |all, range| (all.0.min(range.0), all.1.max(range.1)));
        self.0.splice(first..last, [merged]);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|range| range.1 - range.0).sum()
    }

    /// What lacks of `0..size`.
    pub(crate) fn missing(&self, size: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut at = 0;
        for &(start, end) in self.0.iter().chain([&(size, size)]) {
            if at < start {
                missing.push((at, start));
            }
            at = end;
        }
        missing
    }

    /// Rebuilds ranges that come from disk, inside `0..limit`.
    fn checked(self, limit: u64) -> Self {
        let mut ranges = Self::default();
        for (start, end) in self.0 {
            ranges.insert(start, end.min(limit));
        }
        ranges
    }
}

/// Reads a side file; one of another size, or one that promises more than the file holds, is not believed.
fn read_side(side: &Path, size: u64, length: u64) -> Option<Ranges> {
    if fs::metadata(side).ok()?.len() > MAX_SIDE_BYTES {
        return None;
    }
    let side: Side = serde_json::from_slice(&fs::read(side).ok()?).ok()?;
    (side.size == size).then(|| side.done.checked(size.min(length)))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_a_set_of_bytes(parts in prop::collection::vec((0_u64..64, 0_u64..16), 0..12)) {
            let mut ranges = Ranges::default();
            let mut bytes = [false; 80];
            for (start, length) in parts {
                ranges.insert(start, start + length);
                bytes[start as usize..(start + length) as usize].fill(true);
            }
            prop_assert_eq!(ranges.total(), bytes.iter().filter(|byte| **byte).count() as u64);
            prop_assert!(ranges.0.windows(2).all(|pair| pair[0].1 < pair[1].0));
            for (start, end) in ranges.missing(80) {
                prop_assert!(start < end && bytes[start as usize..end as usize].iter().all(|byte| !byte));
                bytes[start as usize..end as usize].fill(true);
            }
            prop_assert!(bytes.iter().all(|byte| *byte));
        }
    }

    fn open(folder: &Path, size: u64) -> Partial {
        let lock = BlobLock::try_take(&folder.join("lock"))
            .unwrap()
            .expect("the lock is free");
        Partial::open(&folder.join("blob"), size, lock).unwrap()
    }

    #[test]
    fn goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let partial = open(folder, 10);
        partial.write(6, b"6789").unwrap();
        partial.write(0, b"01").unwrap();
        assert!(BlobLock::try_take(&folder.join("lock")).unwrap().is_none());
        drop(partial);
        assert_eq!(Partial::peek(&folder.join("blob"), 10), 6);
        let partial = open(folder, 10);
        assert_eq!(partial.missing(), [(2, 6)]);
        assert_eq!(partial.write(2, b"2345").unwrap(), 10);
        assert_eq!(
            partial.hash(64, || false).unwrap(),
            cache::hex(&Sha256::digest(b"0123456789"))
        );
        assert_eq!(
            partial.hash(40, || false).unwrap(),
            cache::hex(&Sha1::digest(b"blob 10\x000123456789"))
        );
        assert_eq!(partial.hash(64, || true), Err(HubError::Cancelled));
        partial.finish().unwrap();
        drop(partial);
        assert_eq!(fs::read(folder.join("blob")).unwrap(), b"0123456789");
        assert_eq!(
            fs::read_dir(folder).unwrap().count(),
            2,
            "only the blob and the lock are left"
        );
    }

    #[test]
    fn side_files_that_lie_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let side = folder.join("blob.hubllama.ranges");
        for text in [
            "",
            "nonsense",
            r#"{"size":9,"done":[[0,9]]}"#,
            r#"{"size":10,"done":[[0,10],[5,2]]}"#,
        ] {
            fs::write(&side, text).unwrap();
            let partial = open(folder, 10);
            assert_eq!(partial.completed(), 0, "{text}");
            partial.discard().unwrap();
        }
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "only the lock is left");
    }
}
