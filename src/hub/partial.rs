//! A file that is not complete yet: what has arrived, in any order, with a side file that lets a later process go on.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::error::HubError;
use crate::stdx::{fs::write_unsynced_atomic, hex, sync::lock};

/// Time between two writes of the side file; a kill loses at most what arrived in between.
const SAVE_INTERVAL: Duration = Duration::from_millis(500);
/// The longest sleep of who waits for more bytes; it is woken when some arrive.
const NAP: Duration = Duration::from_millis(200);
/// Bytes of the side file; a range takes about 25.
const MAX_SIDE_BYTES: u64 = 1 << 20;
/// Bytes that are hashed at a time.
const HASH_BYTES: usize = 1 << 20;

/// A blob under construction. Whoever holds it holds the lock on the blob over all processes.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    file: File,
    path: PathBuf,
    side: PathBuf,
    blob: PathBuf,
    size: u64,
    progress: Mutex<Progress>,
    /// Rung when something arrived or was given up.
    arrived: Condvar,
    is_given_up: AtomicBool,
    is_over: AtomicBool,
    _lock: BlobLock,
}

#[derive(Debug, Default)]
struct Progress {
    ranges: ByteRanges,
    /// How often everything was forgotten: what was read before has no value then.
    epoch: u32,
}

/// Disjoint ranges of bytes, sorted; the ends are exclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ByteRanges(Vec<(u64, u64)>);

/// What the side file holds.
#[derive(Serialize, Deserialize)]
struct Side {
    size: u64,
    done: ByteRanges,
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

impl PartialBlob {
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
        Ok(Self {
            file,
            path,
            side,
            blob: blob.to_owned(),
            size,
            progress: Mutex::new(Progress { ranges, epoch: 0 }),
            arrived: Condvar::new(),
            is_given_up: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Bytes that an earlier or another download of hubllama has on disk.
    pub(crate) fn peek(blob: &Path, size: u64) -> u64 {
        let length = fs::metadata(with_suffix(blob, ".hubllama.incomplete")).map_or(0, |meta| meta.len());
        read_side(&with_suffix(blob, ".hubllama.ranges"), size, length).map_or(0, |ranges| ranges.total())
    }

    /// The same of any program that shares the cache, for who waits for its lock.
    pub(crate) fn peek_any(blob: &Path, size: u64) -> u64 {
        let others = || {
            let name = blob.file_name()?.to_str()?;
            let entries = fs::read_dir(blob.parent()?).ok()?.flatten();
            entries
                .filter(|entry| {
                    entry
                        .file_name()
                        .to_str()
                        .is_some_and(|entry| is_partial_of(entry, name))
                })
                .filter_map(|entry| Some(entry.metadata().ok()?.len()))
                .max()
        };
        Self::peek(blob, size).max(others().unwrap_or(0)).min(size)
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
        drop(progress);
        self.arrived.notify_all();
        Ok(total)
    }

    /// Forgets everything, for a server that can only send the whole.
    pub(crate) fn clear(&self) -> Result<(), HubError> {
        let mut progress = self.lock();
        progress.ranges = ByteRanges::default();
        progress.epoch += 1;
        self.file
            .set_len(0)
            .map_err(|error| HubError::io("truncate", &self.path, &error))
    }

    /// Hashes the content as the Hub hashed it (sha256, or git's sha1 for a short hash), in order and while it arrives, so
    /// that it is read from memory and is done when the last byte is there.
    pub(crate) fn hash(&self, digits: usize) -> Result<String, HubError> {
        if digits == 64 {
            return self.hash_with(&Sha256::new());
        }
        self.hash_with(&Sha1::new_with_prefix(format!("blob {}\0", self.size)))
    }

    fn hash_with<D: Digest + Clone>(&self, start: &D) -> Result<String, HubError> {
        let mut buffer = vec![0; HASH_BYTES];
        let (mut hasher, mut at, mut epoch) = (start.clone(), 0, 0);
        loop {
            let (now, ready) = self.wait_for(epoch, at)?;
            if now != epoch {
                (hasher, at, epoch) = (start.clone(), 0, now);
                continue;
            }
            if at == self.size {
                return Ok(hex::encode(hasher.finalize()));
            }
            while at < ready && !self.is_given_up.load(Ordering::Relaxed) {
                let want = HASH_BYTES.min(usize::try_from(ready - at).unwrap_or(HASH_BYTES));
                match self.file.read_exact_at(&mut buffer[..want], at) {
                    Ok(()) => hasher.update(&buffer[..want]),
                    // The file was emptied meanwhile, to begin again.
                    Err(_) if self.lock().epoch != epoch => break,
                    Err(error) => return Err(HubError::io("read", &self.path, &error)),
                }
                at += want as u64;
            }
        }
    }

    /// Waits until there is something behind `at`, or everything; the epoch, and the end of what is there without a gap.
    fn wait_for(&self, epoch: u32, at: u64) -> Result<(u32, u64), HubError> {
        let mut progress = self.lock();
        loop {
            if self.is_given_up.load(Ordering::Relaxed) {
                return Err(HubError::Cancelled);
            }
            let ready = progress.ranges.front();
            if progress.epoch != epoch || ready > at || at == self.size {
                return Ok((progress.epoch, ready));
            }
            progress = self
                .arrived
                .wait_timeout(progress, NAP)
                .map_or_else(|broken| broken.into_inner().0, |(progress, _)| progress);
        }
    }

    /// Brings to disk what has arrived, and notes it, again and again until the download is given up or over. What is
    /// noted is on disk already, so that not even a loss of power makes the note lie.
    pub(crate) fn keep(&self) -> Result<(), HubError> {
        let mut kept = None;
        loop {
            let due = Instant::now() + SAVE_INTERVAL;
            let mut progress = self.lock();
            while Instant::now() < due {
                if self.is_given_up.load(Ordering::Relaxed) || self.is_over.load(Ordering::Acquire) {
                    return Ok(());
                }
                progress = self
                    .arrived
                    .wait_timeout(progress, due.saturating_duration_since(Instant::now()).min(NAP))
                    .map_or_else(|broken| broken.into_inner().0, |(progress, _)| progress);
            }
            let (ranges, epoch) = (progress.ranges.clone(), progress.epoch);
            drop(progress);
            if kept.as_ref() == Some(&ranges) {
                continue;
            }
            self.file
                .sync_data()
                .map_err(|error| HubError::io("write", &self.path, &error))?;
            // Under the lock: the file may have been finished or thrown away, and must not come back.
            let progress = self.lock();
            if self.is_over.load(Ordering::Acquire) {
                return Ok(());
            }
            // Emptied meanwhile: then it is not there any more.
            if progress.epoch == epoch {
                self.save(&ranges)?;
            }
            kept = Some(ranges);
        }
    }

    /// Wakes and ends who hashes or keeps.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
        self.arrived.notify_all();
    }

    /// Makes the file a blob: on disk first, then under its name.
    pub(crate) fn finish(&self) -> Result<(), HubError> {
        let finish = || {
            self.file.set_len(self.size)?;
            self.file.sync_all()?;
            let _progress = self.lock();
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
        let _progress = self.lock();
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

    fn save(&self, ranges: &ByteRanges) -> Result<(), HubError> {
        let side = Side {
            size: self.size,
            done: ranges.clone(),
        };
        serde_json::to_vec(&side)
            .map_err(io::Error::from)
            .and_then(|json| write_unsynced_atomic(&self.side, &json))
            .map_err(|error| HubError::io("write", &self.side, &error))
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        if self.is_over.load(Ordering::Acquire) {
            return;
        }
        // Not brought to disk first, which would take time: after a loss of power the hash finds out.
        let ranges = self.lock().ranges.clone();
        if let Err(error) = self.save(&ranges) {
            tracing::warn!(%error, "the next download of this file starts anew");
        }
    }
}

impl ByteRanges {
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

    /// End of what is there from the beginning on.
    pub(crate) fn front(&self) -> u64 {
        self.0.first().filter(|first| first.0 == 0).map_or(0, |first| first.1)
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
fn read_side(side: &Path, size: u64, length: u64) -> Option<ByteRanges> {
    if fs::metadata(side).ok()?.len() > MAX_SIDE_BYTES {
        return None;
    }
    let side: Side = serde_json::from_slice(&fs::read(side).ok()?).ok()?;
    (side.size == size).then(|| side.done.checked(size.min(length)))
}

/// Whether a file is what Python's (`BLOB.1a2b3c4d.incomplete`), Rust's or llama.cpp's client has of a blob.
fn is_partial_of(file: &str, blob: &str) -> bool {
    file.strip_prefix(blob).is_some_and(|rest| {
        matches!(rest, ".incomplete" | ".downloadInProgress")
            || rest
                .strip_prefix('.')
                .and_then(|rest| rest.strip_suffix(".incomplete"))
                .is_some_and(|id| hex::is_hex(id, 8))
    })
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
            let mut ranges = ByteRanges::default();
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

    fn open(folder: &Path, size: u64) -> PartialBlob {
        let lock = BlobLock::try_take(&folder.join("lock"))
            .unwrap()
            .expect("the lock is free");
        PartialBlob::open(&folder.join("blob"), size, lock).unwrap()
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
        assert_eq!(PartialBlob::peek(&folder.join("blob"), 10), 6);
        let partial = open(folder, 10);
        assert_eq!(partial.missing(), [(2, 6)]);
        assert_eq!(partial.write(2, b"2345").unwrap(), 10);
        assert_eq!(partial.hash(64).unwrap(), hex::encode(Sha256::digest(b"0123456789")));
        assert_eq!(
            partial.hash(40).unwrap(),
            hex::encode(Sha1::digest(b"blob 10\x000123456789"))
        );
        partial.give_up();
        assert_eq!(partial.hash(64), Err(HubError::Cancelled));
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
    fn hashes_what_arrives_in_any_order_and_what_comes_again() {
        let folder = tempfile::tempdir().unwrap();
        let partial = open(folder.path(), 3 << 20);
        let content: Vec<u8> = (0..3_u32 << 20).map(|at| (at / 7) as u8).collect();
        std::thread::scope(|scope| {
            let hash = scope.spawn(|| partial.hash(64));
            let keep = scope.spawn(|| partial.keep());
            partial.write(0, &[1; 4096]).unwrap();
            // A server without ranges begins anew, while the first bytes are being hashed.
            partial.clear().unwrap();
            partial.write(0, &[2; 4096]).unwrap();
            for part in [2, 0, 1] {
                let at = part << 20;
                partial.write(at as u64, &content[at..at + (1 << 20)]).unwrap();
            }
            assert_eq!(hash.join().unwrap().unwrap(), hex::encode(Sha256::digest(&content)));
            partial.finish().unwrap();
            keep.join().unwrap().unwrap();
        });
        drop(partial);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is kept of it");
    }

    #[test]
    fn what_has_arrived_is_noted_while_more_comes() {
        let folder = tempfile::tempdir().unwrap();
        let partial = open(folder.path(), 10);
        partial.write(3, b"345").unwrap();
        std::thread::scope(|scope| {
            let keep = scope.spawn(|| partial.keep());
            let deadline = Instant::now() + Duration::from_secs(10);
            while PartialBlob::peek(&folder.path().join("blob"), 10) != 3 {
                assert!(Instant::now() < deadline, "it is never noted");
                std::thread::yield_now();
            }
            partial.give_up();
            keep.join().unwrap().unwrap();
        });
    }

    #[test]
    fn other_programs_partial_files_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("ab12");
        assert_eq!(PartialBlob::peek_any(&blob, 100), 0);
        for (name, length) in [
            ("ab12.0123abcd.incomplete", 7),
            ("ab12.incomplete", 9),
            ("ab12.downloadInProgress", 11),
            ("ab12.other", 50),
            ("ab123.incomplete", 50),
        ] {
            fs::write(folder.path().join(name), vec![0; length]).unwrap();
        }
        assert_eq!(PartialBlob::peek_any(&blob, 100), 11);
        assert_eq!(PartialBlob::peek_any(&blob, 10), 10);
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
