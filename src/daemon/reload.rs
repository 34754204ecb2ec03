//! The reload task: loads the configuration again when a file changes or a signal asks for it.
//!
//! The requests take one path, one after another: load, validate, compare, swap the snapshot, apply. Components that
//! take a snapshot with each request need nothing more; a setting that has to be applied is given to a callback.

use std::{io, sync::Arc};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::systemd;
use crate::config::{
    Config, ConfigStore, ReloadHandle, ReloadOutcome, ReloadReason, ReloadRequest,
    watch::{ConfigWatcher, WatchTiming},
};

/// Watches the configuration's files for as long as the returned value lives.
///
/// # Errors
///
/// If the system refuses a thread.
pub(super) fn watch(store: &Arc<ConfigStore>, reload: ReloadHandle) -> io::Result<ConfigWatcher> {
    let store = Arc::clone(store);
    ConfigWatcher::start(Box::new(move || store.files()), reload, WatchTiming::default())
}

/// Handles reload requests until `stop`, or until no sender is left. Calls `apply` with each new configuration in
/// force.
pub(super) async fn run(
    store: Arc<ConfigStore>,
    mut requests: mpsc::Receiver<ReloadRequest>,
    apply: impl Fn(&Config),
    stop: CancellationToken,
) {
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => return,
            request = requests.recv() => request,
        };
        let Some(ReloadRequest { reason, reply }) = request else {
            return;
        };
        systemd::reloading();
        let reloading = Arc::clone(&store);
        match tokio::task::spawn_blocking(move || reloading.reload()).await {
            Ok(outcome) => {
                if matches!(outcome, ReloadOutcome::Applied { .. }) {
                    apply(&store.current());
                }
                log(reason, &outcome);
                if let Some(reply) = reply {
                    // The sender of the request may be gone.
                    let _ = reply.send(outcome);
                }
            }
            // The snapshot is swapped as a whole, so a panic leaves the old one in force.
            Err(error) => {
                tracing::error!(%reason, error = %error, "the reload failed, the last good configuration stays")
            }
        }
        // Also after a refusal: systemd shows the unit as reloading until then.
        systemd::ready();
    }
}

fn log(reason: ReloadReason, outcome: &ReloadOutcome) {
    match outcome {
        ReloadOutcome::Unchanged { restart } if restart.is_empty() => {
            tracing::info!(%reason, "configuration reloaded, nothing changed");
        }
        ReloadOutcome::Unchanged { restart } => {
            tracing::warn!(%reason, restart = restart.join(" "), "configuration changed, but these keys need a restart");
        }
        ReloadOutcome::Applied { changed, restart } if restart.is_empty() => {
            tracing::info!(%reason, changed = changed.join(" "), "configuration reloaded");
        }
        ReloadOutcome::Applied { changed, restart } => {
            let (changed, restart) = (changed.join(" "), restart.join(" "));
            tracing::warn!(%reason, changed, restart, "configuration reloaded, but some keys need a restart");
        }
        ReloadOutcome::Refused(problems) => {
            let count = problems.0.len();
            let problems = problems
                .0
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ");
            tracing::error!(%reason, count, problems, "configuration refused, the last good one stays in force");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use tempfile::TempDir;

    use super::*;
    use crate::config::ConfigInputs;

    struct Bench {
        folder: TempDir,
        /// Calls of the callback that applies a configuration.
        applied: Arc<AtomicUsize>,
        store: Arc<ConfigStore>,
        reload: ReloadHandle,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl Bench {
        fn new(text: &str) -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let file = folder.path().join("config.toml");
            fs::write(&file, text).expect("the folder is writable");
            let home = folder.path().to_string_lossy().into_owned();
            let environment = [("HOME".to_owned(), home)].into();
            let inputs = ConfigInputs {
                path: Some(file),
                overrides: Vec::new(),
                environment,
            };
            let store = Arc::new(ConfigStore::open(inputs).expect("a good configuration"));
            let (reload, requests) = ReloadHandle::channel();
            let stop = CancellationToken::new();
            let applied = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&applied);
            let apply = move |_: &Config| {
                counter.fetch_add(1, Ordering::Relaxed);
            };
            let task = tokio::spawn(run(Arc::clone(&store), requests, apply, stop.clone()));
            Self {
                folder,
                applied,
                store,
                reload,
                stop,
                task,
            }
        }

        fn write(&self, text: &str) {
            fs::write(self.file(), text).expect("the folder is writable");
        }

        fn file(&self) -> std::path::PathBuf {
            self.folder.path().join("config.toml")
        }

        async fn reload(&self) -> ReloadOutcome {
            self.reload.request(ReloadReason::Signal).await.expect("the task runs")
        }

        async fn end(self) {
            self.stop.cancel();
            self.task.await.expect("the task ends well");
        }
    }

    #[tokio::test]
    async fn good_change_is_applied_and_bad_one_changes_nothing() {
        let bench = Bench::new("[engine]\nmax_queue = 5\n");
        assert_eq!(bench.reload().await, ReloadOutcome::Unchanged { restart: Vec::new() });

        bench.write("[engine]\nmax_queue = 6\n[server]\nlisten = \"127.0.0.1:1\"\n");
        let before = bench.store.current();
        let restart = vec!["server.listen".to_owned()];
        let changed = vec!["engine.max_queue".to_owned()];
        assert_eq!(
            bench.reload().await,
            ReloadOutcome::Applied {
                changed,
                restart: restart.clone()
            }
        );
        let good = bench.store.current();
        assert_eq!((before.engine.max_queue, good.engine.max_queue), (5, 6));
        assert_eq!(good.server.listen, before.server.listen);
        let status = bench.store.describe()["status"].clone();
        assert_eq!(status["restart_needed"], serde_json::json!(restart));
        assert_eq!(status["generation"], 2);
        assert_eq!(bench.applied.load(Ordering::Relaxed), 1);

        bench.write("[engine]\nmax_queue = -1\nmax_queu = 1\n");
        let outcome = bench.reload().await;
        assert!(
            matches!(&outcome, ReloadOutcome::Refused(problems) if problems.0.len() == 2),
            "{outcome:?}"
        );
        assert!(Arc::ptr_eq(&good, &bench.store.current()));
        let status = bench.store.describe()["status"].clone();
        assert_eq!(
            (&status["synchronized"], &status["generation"]),
            (&false.into(), &2.into())
        );
        assert_eq!(status["problems"].as_array().map(Vec::len), Some(2));
        assert!(!bench.store.is_synchronized());
        assert_eq!(bench.applied.load(Ordering::Relaxed), 1);

        bench.write("[engine]\nmax_queue = 6\n");
        assert_eq!(bench.reload().await, ReloadOutcome::Unchanged { restart: Vec::new() });
        assert!(bench.store.is_synchronized());
        bench.end().await;
    }

    #[tokio::test]
    async fn change_that_only_goes_with_a_restart_is_refused() {
        let bench = Bench::new("[server]\nlisten = \"127.0.0.1:7001\"\n");
        bench.write("[server]\nlisten = \"127.0.0.1:7002\"\n[ollama]\nurl = \"http://127.0.0.1:7001\"\n");
        let outcome = bench.reload().await;
        let ReloadOutcome::Refused(problems) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(
            problems
                .to_string()
                .contains("config.toml:4: ollama.url: is one of our own addresses"),
            "{problems}"
        );
        bench.end().await;
    }

    #[tokio::test]
    async fn good_files_are_kept() {
        let bench = Bench::new("# first\n");
        bench.write("# second\n");
        bench.reload().await;
        bench.write("nonsense");
        bench.reload().await;
        let backups = fs::read_dir(bench.store.current().state_dir.join("config-backups")).expect("a folder");
        let mut texts: Vec<String> = backups
            .map(|backup| fs::read_to_string(backup.expect("an entry").path()).expect("it is there"))
            .collect();
        texts.sort();
        assert_eq!(texts, ["# first\n", "# second\n"]);
        bench.end().await;
    }

    /// Short waits, so that tests are fast.
    const TIMING: WatchTiming = WatchTiming {
        quiet: Duration::from_millis(10),
        patience: Duration::from_millis(100),
        poll: Duration::from_millis(50),
    };

    async fn changes_to(requests: &mut mpsc::Receiver<ReloadRequest>, what: &str, change: impl FnOnce()) {
        change();
        let hint = tokio::time::timeout(Duration::from_secs(20), requests.recv()).await;
        let hint = hint.unwrap_or_else(|_| panic!("no hint after {what}"));
        assert_eq!(hint.expect("the watch runs").reason, ReloadReason::File);
    }

    fn start(file: &Path) -> (ConfigWatcher, mpsc::Receiver<ReloadRequest>) {
        let (reload, requests) = ReloadHandle::channel();
        let file = file.to_owned();
        let watch = ConfigWatcher::start(Box::new(move || vec![file.clone()]), reload, TIMING).expect("a thread");
        (watch, requests)
    }

    #[tokio::test]
    async fn watch_sees_writes_renames_removal_and_return() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("config.toml");
        let other = folder.path().join(".config.toml.swp");
        fs::write(&file, "1").expect("writable");
        let (watch, mut requests) = start(&file);
        changes_to(&mut requests, "write", || fs::write(&file, "2").expect("writable")).await;
        changes_to(&mut requests, "rename", || {
            fs::write(&other, "3").expect("writable");
            fs::rename(&other, &file).expect("writable");
        })
        .await;
        changes_to(&mut requests, "removal", || fs::remove_file(&file).expect("writable")).await;
        changes_to(&mut requests, "return", || fs::write(&file, "4").expect("writable")).await;
        // Writing the same content, or another file, causes no hint: the next one is for the last change.
        fs::write(&file, "4").expect("writable");
        fs::write(&other, "x").expect("writable");
        changes_to(&mut requests, "last write", || fs::write(&file, "5").expect("writable")).await;
        drop(watch);
        assert!(requests.recv().await.is_none());
    }

    #[tokio::test]
    async fn watch_sees_swapped_links() {
        use std::os::unix::fs::symlink;

        // The layout of a volume in Kubernetes: config.toml -> ..data/config.toml, ..data -> a folder named by a time.
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("..1", "1"), ("..2", "2")] {
            fs::create_dir(path(name)).expect("writable");
            fs::write(path(name).join("config.toml"), text).expect("writable");
        }
        symlink("..1", path("..data")).expect("writable");
        symlink("..data/config.toml", path("config.toml")).expect("writable");
        // The configured path is a link in another folder.
        let outside = tempfile::tempdir().expect("a temporary folder");
        let link = outside.path().join("link.toml");
        symlink(path("config.toml"), &link).expect("writable");

        let (_watch, mut requests) = start(&link);
        changes_to(&mut requests, "swap of ..data", || {
            symlink("..2", path("..new")).expect("writable");
            fs::rename(path("..new"), path("..data")).expect("writable");
        })
        .await;
        changes_to(&mut requests, "write behind the links", || {
            fs::write(path("..2").join("config.toml"), "3").expect("writable");
        })
        .await;
    }

    #[tokio::test]
    async fn watch_polls_where_the_folder_is_missing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let below = folder.path().join("later");
        let file = below.join("config.toml");
        let (_watch, mut requests) = start(&file);
        changes_to(&mut requests, "late folder", || {
            fs::create_dir(&below).expect("writable");
            fs::write(&file, "1").expect("writable");
        })
        .await;
    }

    #[tokio::test]
    async fn file_change_reaches_the_store() {
        let bench = Bench::new("[engine]\nmax_queue = 5\n");
        let store = Arc::clone(&bench.store);
        let watch =
            ConfigWatcher::start(Box::new(move || store.files()), bench.reload.clone(), TIMING).expect("a thread");
        bench.write("[engine]\nmax_queue = 77\n");
        let seen = async {
            while bench.store.current().engine.max_queue != 77 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), seen)
            .await
            .expect("the change is applied");
        drop(watch);
        bench.end().await;
    }
}
