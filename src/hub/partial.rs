//! Partial blobs: files whose content is still arriving, in any order.
//!
//! A [`PartialBlob`] knows which ranges it has, hashes them while they arrive, and keeps a note of them in a side file,
//! from which a later process resumes. It holds the lock on the blob that all programs of the cache respect.

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

/// Time between two writes of the side file. A kill loses at most the bytes that arrived in between.
const SAVE_INTERVAL: Duration = Duration::from_millis(500);
/// Upper limit of one sleep while waiting for bytes. Their arrival ends it; the limit covers a missed wake-up.
const NAP: Duration = Duration::from_millis(200);
/// Upper limit of the side file in bytes. A range takes about 25.
const MAX_SIDE_BYTES: u64 = 1 << 20;
/// Bytes that are read and hashed at a time.
const HASH_BYTES: usize = 1 << 20;

/// Blob whose content is still arriving. Its owner holds the lock on the blob over all processes.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    file: File,
    path: PathBuf,
    /// Path of the side file with the ranges.
    side: PathBuf,
    /// Path of the complete blob.
    blob: PathBuf,
    /// Bytes of the complete blob.
    size: u64,
    progress: Mutex<Progress>,
    /// Notified when bytes arrive and when the download ends.
    arrived: Condvar,
    /// True when the download has ended without the blob: hashing and saving stop.
    is_given_up: AtomicBool,
    /// True when the file is a blob or was discarded: the side file must not come back.
    is_over: AtomicBool,
    _lock: BlobLock,
}

#[derive(Debug, Default)]
struct Progress {
    ranges: ByteRanges,
    /// Number of times that the file was emptied. Content that was read in an earlier epoch is worthless.
    epoch: u32,
}

/// Disjoint byte ranges with exclusive ends, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ByteRanges(Vec<(u64, u64)>);

/// Content of the side file, in JSON.
#[derive(Serialize, Deserialize)]
struct Side {
    size: u64,
    done: ByteRanges,
}

/// Lock on a blob: an `flock` on its lock file, as huggingface_hub takes it.
#[derive(Debug)]
pub(crate) struct BlobLock(#[expect(dead_code, reason = "closing the file is the unlock")] File);

impl BlobLock {
    /// Takes the lock; `None` if someone else holds it.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>, HubError> {
        let take = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            // The file is never deleted: a second process could lock the new file while the first one holds the old.
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
    /// Opens the partial file that an earlier download left, or creates one.
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
                // Its content is the start of this download.
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

    /// Returns the bytes of a blob that a download of hubllama, perhaps in another process, has on disk.
    pub(crate) fn peek(blob: &Path, size: u64) -> u64 {
        let length = fs::metadata(with_suffix(blob, ".hubllama.incomplete")).map_or(0, |meta| meta.len());
        read_side(&with_suffix(blob, ".hubllama.ranges"), size, length).map_or(0, |ranges| ranges.total())
    }

    /// Returns the bytes of a blob that any program of the shared cache has on disk; progress of another process that
    /// holds the lock.
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

    /// Writes bytes at an offset and returns the number of all bytes on disk.
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

    /// Empties the file, for a server that sends only whole files.
    pub(crate) fn clear(&self) -> Result<(), HubError> {
        let mut progress = self.lock();
        progress.ranges = ByteRanges::default();
        progress.epoch += 1;
        self.file
            .set_len(0)
            .map_err(|error| HubError::io("truncate", &self.path, &error))
    }

    /// Computes the hash that the Hub announces: sha256 for 64 digits, git's sha1 of a blob for 40. Blocks until all
    /// bytes have arrived.
    ///
    /// The content is hashed in order while it arrives, so that it is read from the page cache and the hash is ready
    /// soon after the last byte.
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
                    // The file was emptied in the meantime, and the bytes are gone.
                    Err(_) if self.lock().epoch != epoch => break,
                    Err(error) => return Err(HubError::io("read", &self.path, &error)),
                }
                at += want as u64;
            }
        }
    }

    /// Waits for bytes behind `at`. Returns the epoch and the end of the bytes that are there from the start on.
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

    /// Syncs the file and saves its ranges at intervals, until the download ends. Blocks.
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
            // Before the note, so that it is true even after a loss of power.
            self.file
                .sync_data()
                .map_err(|error| HubError::io("write", &self.path, &error))?;
            // Under the lock: `finish` and `discard` may have removed the side file, and it must not come back.
            let progress = self.lock();
            if self.is_over.load(Ordering::Acquire) {
                return Ok(());
            }
            // In another epoch the file was emptied since.
            if progress.epoch == epoch {
                self.save(&ranges)?;
            }
            kept = Some(ranges);
        }
    }

    /// Ends [`PartialBlob::hash`] and [`PartialBlob::keep`].
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
        self.arrived.notify_all();
    }

    /// Syncs the file and gives it the name of the blob.
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

    /// Removes the file and its side file.
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
        // Without a sync, which could take seconds. If a loss of power makes the note wrong, the hash shows it.
        let ranges = self.lock().ranges.clone();
        if let Err(error) = self.save(&ranges) {
            tracing::warn!(%error, "the ranges of a partial download cannot be saved; the next download of this file starts over");
        }
    }
}

impl ByteRanges {
    /// Adds the range `start..end`.
    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        // Ranges that touch the new one are merged with it.
        let first = self.0.partition_point(|range| range.1 < start);
        let last = self.0.partition_point(|range| range.0 <= end);
        let merged = self.0[first..last]
            .iter()
            .fold((start, end), |all, range| (all.0.min(range.0), all.1.max(range.1)));
        self.0.splice(first..last, [merged]);
    }

    /// Returns the end of the range that starts at 0, or 0.
    pub(crate) fn front(&self) -> u64 {
        self.0.first().filter(|first| first.0 == 0).map_or(0, |first| first.1)
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|range| range.1 - range.0).sum()
    }

    /// Returns the gaps in `0..size`.
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

    /// Rebuilds ranges that were read from disk, which may overlap, be out of order or exceed `0..limit`.
    fn checked(self, limit: u64) -> Self {
        let mut ranges = Self::default();
        for (start, end) in self.0 {
            ranges.insert(start, end.min(limit));
        }
        ranges
    }
}

/// Reads a side file. Ignores one for another size of blob, and ranges behind the end of the partial file.
fn read_side(side: &Path, size: u64, length: u64) -> Option<ByteRanges> {
    if fs::metadata(side).ok()?.len() > MAX_SIDE_BYTES {
        return None;
    }
    let side: Side = serde_json::from_slice(&fs::read(side).ok()?).ok()?;
    (side.size == size).then(|| side.done.checked(size.min(length)))
}

/// True for names of partial files of a blob: Python's `BLOB.1a2b3c4d.incomplete`, Rust's `BLOB.incomplete` and
/// llama.cpp's `BLOB.downloadInProgress`.
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
            // A server without ranges starts over while the first bytes are being hashed.
            partial.clear().unwrap();
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
