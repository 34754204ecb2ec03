//! Watches the configuration's files and says when their content is no longer what it was.
//!
//! Folders are watched, not files: editors write a new file and rename it, and mounted volumes swap a link some way
//! above. An event is only a hint to look; what counts is the content. Where a folder cannot be watched (it is not there,
//! or the machine is out of watches) the files are looked at every few seconds instead.

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

use super::{load::read_bounded, store::Reason, store::ReloadHandle};

/// How the watcher waits. The defaults are for people and their editors.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Quiet time after an event before the files are looked at: an editor makes several events of one save.
    pub quiet: Duration,
    /// The longest that a noisy folder can put this off.
    pub patience: Duration,
    /// How often files are looked at where their folder cannot be watched.
    pub poll: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(200),
            patience: Duration::from_secs(2),
            poll: Duration::from_secs(10),
        }
    }
}

/// The files to watch, asked again at each look, since a reload may name other ones.
pub type Files = Box<dyn Fn() -> Vec<PathBuf> + Send>;

/// Links that are followed; a longer chain is a circle.
const MAX_LINKS: usize = 16;

/// A running watch; ends when dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to watch `files` and to send hints to `reload`.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn start(files: Files, reload: ReloadHandle, pace: Pace) -> std::io::Result<Self> {
        // One waiting event is enough: it says "look".
        let (wake, events) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let mut looker = Looker::new(files, wake.clone());
        // Before the thread: a change after this function has returned is never missed.
        let seen = looker.look();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("config-watch".into())
            .spawn(move || run(&mut looker, seen, &events, &stopped, &reload, pace))?;
        Ok(Self {
            stop,
            wake,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Full means that the thread will wake up anyway.
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic in it has been printed.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

fn run(
    looker: &mut Looker,
    mut seen: Fingerprint,
    events: &Receiver<()>,
    stop: &AtomicBool,
    reload: &ReloadHandle,
    pace: Pace,
) {
    loop {
        let woken = if looker.blind {
            events.recv_timeout(pace.poll)
        } else {
            events.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        if woken == Err(RecvTimeoutError::Disconnected) || stop.load(Ordering::Acquire) {
            return;
        }
        if woken.is_ok() {
            settle(events, stop, pace);
        }
        if stop.load(Ordering::Acquire) {
            return;
        }
        let now = looker.look();
        if now != seen {
            seen = now;
            if !reload.hint(Reason::File) {
                return;
            }
        }
    }
}

/// Waits until nothing has happened for a while.
fn settle(events: &Receiver<()>, stop: &AtomicBool, pace: Pace) {
    let deadline = Instant::now() + pace.patience;
    while Instant::now() < deadline && !stop.load(Ordering::Acquire) {
        if events.recv_timeout(pace.quiet).is_err() {
            return;
        }
    }
}

/// The content of every file; `None` for one that cannot be read.
type Fingerprint = Vec<(PathBuf, Option<[u8; 32]>)>;

struct Looker {
    files: Files,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// Whether some folder cannot be watched, so that time has to stand in for events.
    blind: bool,
}

impl Looker {
    fn new(files: Files, wake: SyncSender<()>) -> Self {
        let on_event = move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too: to react to that would be to react to ourselves.
            let read_only = |kind: EventKind| matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
            // After an error anything may have changed.
            if !event.is_ok_and(|event| read_only(event.kind)) {
                let _ = wake.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(on_event)
            .inspect_err(
                |error| tracing::warn!(error = %error, "cannot watch the configuration; it is looked at now and then"),
            )
            .ok();
        Self {
            files,
            watcher,
            watched: BTreeSet::new(),
            blind: false,
        }
    }

    /// Watches the right folders, then reads: in this order no change falls between the two.
    fn look(&mut self) -> Fingerprint {
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
            // A folder that is gone has lost its watch already.
            let _ = watcher.unwatch(folder);
        }
        let mut watched = BTreeSet::new();
        for folder in wanted {
            // Again also where it is watched: a folder that was removed and made anew is another one.
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    watched.insert(folder);
                }
                Err(error) => {
                    self.blind = true;
                    if !was_blind {
                        tracing::debug!(path = %folder.display(), error = %error, "cannot watch this folder; it is looked at now and then");
                    }
                }
            }
        }
        self.watched = watched;
    }
}

/// Every folder in which a change can change what `file` is: its own, and that of each link on the way to it.
fn folders(file: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut paths = vec![file.to_owned()];
    let mut links = 0;
    while let Some(path) = paths.pop() {
        // A link may be any part of the path: `..data/config.toml` is a file behind a linked folder.
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
