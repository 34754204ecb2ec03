//! Watcher of the configuration's files: asks for a reload when their content changes.
//!
//! Folders are watched and not files, because editors write a new file and rename it, and mounted volumes swap a link
//! in the path. An event only starts a scan; a reload is requested when the hash of the content differs. If a folder
//! cannot be watched, because it does not exist or the system is out of watches, the files are scanned every few
//! seconds instead.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use sha2::{Digest as _, Sha256};

use super::{ReloadHandle, ReloadReason, load::read_bounded};

/// Waiting times of the watcher. The defaults suit people and their editors; tests use shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct WatchTiming {
    /// Quiet time after an event before the files are scanned, since an editor causes several events with one save.
    pub quiet: Duration,
    /// Longest delay of a scan by a folder in which events never stop.
    pub patience: Duration,
    /// Interval of scans while some folder cannot be watched.
    pub poll: Duration,
}

impl Default for WatchTiming {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(200),
            patience: Duration::from_secs(2),
            poll: Duration::from_secs(10),
        }
    }
}

/// Returns the files to watch. It is called before each scan, since a reload may name other files.
pub type WatchedFiles = Box<dyn Fn() -> Vec<PathBuf> + Send>;

/// Symbolic links that are followed; a longer chain is circular.
const MAX_LINKS: usize = 16;

/// A running watcher thread, which ends when this is dropped.
pub struct ConfigWatcher {
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl ConfigWatcher {
    /// Starts to watch `files` and to send hints to `reload`.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    pub fn start(files: WatchedFiles, reload: ReloadHandle, timing: WatchTiming) -> std::io::Result<Self> {
        // Events carry no content, so one waiting event is enough.
        let (wake, events) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let mut scanner = FileScanner::new(files, wake.clone());
        // Scan before the thread starts, so that no change after the return of this function is missed.
        let seen = scanner.scan();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("config-watch".into())
            .spawn(move || run(&mut scanner, seen, &events, &stopped, &reload, timing))?;
        Ok(Self {
            stop,
            wake,
            thread: Some(thread),
        })
    }
}

impl Drop for ConfigWatcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // If the channel is full, the thread wakes up anyway.
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been printed.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for ConfigWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigWatcher").finish_non_exhaustive()
    }
}

fn run(
    scanner: &mut FileScanner,
    mut seen: Fingerprint,
    events: &Receiver<()>,
    stop: &AtomicBool,
    reload: &ReloadHandle,
    timing: WatchTiming,
) {
    loop {
        let woken = if scanner.blind {
            events.recv_timeout(timing.poll)
        } else {
            events.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        if woken == Err(RecvTimeoutError::Disconnected) || stop.load(Ordering::Acquire) {
            return;
        }
        if woken.is_ok() {
            settle(events, stop, timing);
        }
        if stop.load(Ordering::Acquire) {
            return;
        }
        let now = scanner.scan();
        if now != seen {
            seen = now;
            // The daemon has ended its reload task.
            if !reload.hint(ReloadReason::File) {
                return;
            }
        }
    }
}

/// Waits for a quiet time without events, but no longer than the patience.
fn settle(events: &Receiver<()>, stop: &AtomicBool, timing: WatchTiming) {
    let deadline = Instant::now() + timing.patience;
    while Instant::now() < deadline && !stop.load(Ordering::Acquire) {
        if events.recv_timeout(timing.quiet).is_err() {
            return;
        }
    }
}

/// Hashes of the files' contents; `None` for a file that cannot be read.
type Fingerprint = Vec<(PathBuf, Option<[u8; 32]>)>;

struct FileScanner {
    files: WatchedFiles,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// True when some folder cannot be watched and scans have to happen at intervals.
    blind: bool,
}

impl FileScanner {
    fn new(files: WatchedFiles, wake: SyncSender<()>) -> Self {
        let on_event = move |event: notify::Result<notify::Event>| {
            // Reading a file is an event, too; reacting to it would make each scan cause the next one.
            let read_only = |kind: EventKind| matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
            // An error may mean that events were lost.
            if !event.is_ok_and(|event| read_only(event.kind)) {
                let _ = wake.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(on_event)
            .inspect_err(
                |error| tracing::warn!(error = %error, "cannot watch the configuration; its files are scanned at intervals"),
            )
            .ok();
        Self {
            files,
            watcher,
            watched: BTreeSet::new(),
            blind: false,
        }
    }

    /// Updates the watched folders and reads the files, in this order so that no change between the two is missed.
    fn scan(&mut self) -> Fingerprint {
        let files = (self.files)();
        self.watch(files.iter().flat_map(|file| folders(file)).collect());
        let read = |path: PathBuf| {
            let digest = read_bounded(&path)
                .ok()
                .map(|text| Sha256::digest(text.as_bytes()).into());
            (path, digest)
        };
        files.into_iter().map(read).collect()
    }

    fn watch(&mut self, wanted: BTreeSet<PathBuf>) {
        let was_blind = std::mem::replace(&mut self.blind, false);
        let Some(watcher) = &mut self.watcher else {
            self.blind = true;
            return;
        };
        for folder in self.watched.difference(&wanted) {
            // A removed folder has lost its watch already.
            let _ = watcher.unwatch(folder);
        }
        let mut watched = BTreeSet::new();
        for folder in wanted {
            // Also for folders that are watched: one that was removed and created again has lost its watch.
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    watched.insert(folder);
                }
                Err(error) => {
                    self.blind = true;
                    if !was_blind {
                        tracing::debug!(path = %folder.display(), error = %error, "cannot watch this folder; its files are scanned at intervals");
                    }
                }
            }
        }
        self.watched = watched;
    }
}

/// Returns the folders in which a change can change the content of `file`: its own, and that of each symbolic link in
/// its path.
fn folders(file: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut paths = vec![file.to_owned()];
    let mut links = 0;
    while let Some(path) = paths.pop() {
        // Any component may be a link: Kubernetes mounts `config.toml` as `..data/config.toml` behind a linked folder.
        for part in path.ancestors() {
            let Some(parent) = part.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
                continue;
            };
            if part == path {
                folders.insert(parent.to_owned());
            }
            if let Ok(target) = std::fs::read_link(part) {
                folders.insert(parent.to_owned());
                links += 1;
                if links <= MAX_LINKS {
                    let rest = path.strip_prefix(part).unwrap_or(Path::new(""));
                    let behind = parent.join(target);
                    paths.push(if rest.as_os_str().is_empty() {
                        behind
                    } else {
                        behind.join(rest)
                    });
                }
            }
        }
    }
    folders
}
