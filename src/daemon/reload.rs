//! Hint → load → validate → diff → prepare → swap. One task, one path, whoever asked.

use std::{io, sync::Arc};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::systemd;
use crate::config::{
    ConfigStore, Origin, Outcome, Prepare, Problem, Problems, Reason, ReloadHandle, ReloadRequest,
    watch::{Pace, Watch},
};
use crate::observability::LogControl;

/// Watches the configuration's files for as long as the returned value lives.
///
/// # Errors
///
/// Where the system gives no thread.
pub fn watch(store: &Arc<ConfigStore>, reload: ReloadHandle) -> io::Result<Watch> {
    let store = Arc::clone(store);
    Watch::start(Box::new(move || store.files()), reload, Pace::default())
}

/// Handles reload requests, one after another, until `stop` or until nobody can ask any more.
pub async fn run(
    store: Arc<ConfigStore>,
    mut requests: mpsc::Receiver<ReloadRequest>,
    participants: Vec<Prepare>,
    stop: CancellationToken,
) {
    let participants = Arc::new(participants);
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => return,
            request = requests.recv() => request,
        };
        let Some(ReloadRequest { reason, reply }) = request else {
            return;
        };
        systemd::reloading();
        let outcome = {
            let (store, participants) = (Arc::clone(&store), Arc::clone(&participants));
            tokio::task::spawn_blocking(move || store.reload(&participants)).await
        };
        let outcome = outcome.unwrap_or_else(|error| {
            // A participant panicked, before the swap or in its own commit.
            let sentence = format!("the reload broke off: {error}");
            Outcome::Refused(Problems(vec![Problem {
                origin: Origin::Default,
                key: String::new(),
                sentence,
            }]))
        });
        log(reason, &outcome);
        systemd::ready();
        if let Some(reply) = reply {
            // Who asked may have gone.
            let _ = reply.send(outcome);
        }
    }
}

/// Lets the log level follow the configuration.
#[must_use]
pub fn log_level(control: LogControl) -> Prepare {
    Box::new(move |change| {
        let (control, level) = (control.clone(), change.new.log.level.clone());
        let changed = change.old.log.level != level;
        Ok(Box::new(move || {
            if changed && let Err(error) = control.set_level(&level) {
                tracing::error!(error, "the log level stays as it was");
            }
        }))
    })
}

fn log(reason: Reason, outcome: &Outcome) {
    match outcome {
        Outcome::Unchanged { restart } if restart.is_empty() => {
            tracing::info!(%reason, "configuration reloaded, nothing changed");
        }
        Outcome::Unchanged { restart } => {
            tracing::warn!(%reason, restart = restart.join(" "), "configuration changed, but these keys need a restart");
        }
        Outcome::Applied { changed, restart } if restart.is_empty() => {
            tracing::info!(%reason, changed = changed.join(" "), "configuration reloaded");
        }
        Outcome::Applied { changed, restart } => {
            let (changed, restart) = (changed.join(" "), restart.join(" "));
            tracing::warn!(%reason, changed, restart, "configuration reloaded, but some keys need a restart");
        }
        Outcome::Refused(problems) => {
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
    use std::{fs, path::Path, time::Duration};

    use tempfile::TempDir;

    use super::*;
    use crate::config::Inputs;

    struct Bench {
        folder: TempDir,
        store: Arc<ConfigStore>,
        reload: ReloadHandle,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl Bench {
        fn new(text: &str, participants: Vec<Prepare>) -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let file = folder.path().join("config.toml");
            fs::write(&file, text).expect("the folder is writable");
            let home = folder.path().to_string_lossy().into_owned();
            let environment = [("HOME".to_owned(), home)].into();
            let inputs = Inputs {
                path: Some(file),
                overrides: Vec::new(),
                environment,
            };
            let store = Arc::new(ConfigStore::open(inputs).expect("a good configuration"));
            let (reload, requests) = ReloadHandle::channel();
            let stop = CancellationToken::new();
            let task = tokio::spawn(run(Arc::clone(&store), requests, participants, stop.clone()));
            Self {
                folder,
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

        async fn reload(&self) -> Outcome {
            self.reload.request(Reason::Admin).await.expect("the task runs")
        }

        async fn end(self) {
            self.stop.cancel();
            self.task.await.expect("the task ends well");
        }
    }

    #[tokio::test]
    async fn good_change_is_applied_and_bad_one_changes_nothing() {
        let bench = Bench::new("[engine]\nmax_queue = 5\n", Vec::new());
        assert_eq!(bench.reload().await, Outcome::Unchanged { restart: Vec::new() });

        bench.write("[engine]\nmax_queue = 6\n[server]\nlisten = \"127.0.0.1:1\"\n");
        let before = bench.store.current();
        let restart = vec!["server.listen".to_owned()];
        let changed = vec!["engine.max_queue".to_owned()];
        assert_eq!(
            bench.reload().await,
            Outcome::Applied {
                changed,
                restart: restart.clone()
            }
        );
        let good = bench.store.current();
        assert_eq!((before.engine.max_queue, good.engine.max_queue), (5, 6));
        assert_eq!(good.server.listen, before.server.listen);
        assert_eq!(bench.store.status().restart_needed, restart);
        assert_eq!(bench.store.status().generation, 2);

        bench.write("[engine]\nmax_queue = -1\nmax_queu = 1\n");
        let outcome = bench.reload().await;
        assert!(
            matches!(&outcome, Outcome::Refused(problems) if problems.0.len() == 2),
            "{outcome:?}"
        );
        assert!(Arc::ptr_eq(&good, &bench.store.current()));
        let status = bench.store.status();
        assert!(!status.synchronized && status.problems.len() == 2 && status.generation == 2);

        bench.write("[engine]\nmax_queue = 6\n");
        assert_eq!(bench.reload().await, Outcome::Unchanged { restart: Vec::new() });
        assert!(bench.store.status().synchronized);
        bench.end().await;
    }

    #[tokio::test]
    async fn change_that_only_goes_with_a_restart_is_refused() {
        let bench = Bench::new("[server]\nlisten = \"127.0.0.1:7001\"\n", Vec::new());
        bench.write("[server]\nlisten = \"127.0.0.1:7002\"\n[ollama]\nurl = \"http://127.0.0.1:7001\"\n");
        let outcome = bench.reload().await;
        let Outcome::Refused(problems) = outcome else {
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
    async fn participant_can_refuse_and_commits_only_after_all_agreed() {
        let (sender, mut commits) = mpsc::channel(4);
        let agreeing: Prepare = Box::new(move |_| {
            let sender = sender.clone();
            Ok(Box::new(move || {
                let _ = sender.try_send(());
            }))
        });
        let refusing: Prepare = Box::new(|change| match change.new.engine.max_queue {
            13 => Err("not thirteen".into()),
            _ => Ok(Box::new(|| ())),
        });
        let bench = Bench::new("", vec![agreeing, refusing]);
        bench.write("[engine]\nmax_queue = 13\n");
        assert!(matches!(bench.reload().await, Outcome::Refused(_)));
        assert!(commits.try_recv().is_err());
        bench.write("[engine]\nmax_queue = 14\n");
        assert!(matches!(bench.reload().await, Outcome::Applied { .. }));
        assert!(commits.try_recv().is_ok());
        bench.end().await;
    }

    #[tokio::test]
    async fn good_files_are_kept() {
        let bench = Bench::new("# first\n", Vec::new());
        bench.write("# second\n");
        bench.reload().await;
        bench.write("nonsense");
        bench.reload().await;
        let backups = crate::config::backups::list(&bench.store.current().state_dir).expect("a folder");
        let texts: Vec<String> = backups
            .iter()
            .map(|backup| fs::read_to_string(&backup.path).expect("it is there"))
            .collect();
        assert_eq!(texts, ["# first\n", "# second\n"]);
        bench.end().await;
    }

    /// A short pace for tests; a longer wait for the result than any slow machine needs.
    const PACE: Pace = Pace {
        quiet: Duration::from_millis(10),
        patience: Duration::from_millis(100),
        poll: Duration::from_millis(50),
    };

    async fn changes_to(requests: &mut mpsc::Receiver<ReloadRequest>, what: &str, change: impl FnOnce()) {
        change();
        let hint = tokio::time::timeout(Duration::from_secs(20), requests.recv()).await;
        let hint = hint.unwrap_or_else(|_| panic!("no hint after {what}"));
        assert_eq!(hint.expect("the watch runs").reason, Reason::File);
    }

    fn start(file: &Path) -> (Watch, mpsc::Receiver<ReloadRequest>) {
        let (reload, requests) = ReloadHandle::channel();
        let file = file.to_owned();
        let watch = Watch::start(Box::new(move || vec![file.clone()]), reload, PACE).expect("a thread");
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
        // Neither the same content nor another file is news: the next hint is the one for the last change.
        fs::write(&file, "4").expect("writable");
        fs::write(&other, "x").expect("writable");
        changes_to(&mut requests, "last write", || fs::write(&file, "5").expect("writable")).await;
        drop(watch);
        assert!(requests.recv().await.is_none());
    }

    #[tokio::test]
    async fn watch_sees_swapped_links() {
        use std::os::unix::fs::symlink;

        // As a mounted volume has it: config.toml -> ..data/config.toml, ..data -> a folder with a time as its name.
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("..1", "1"), ("..2", "2")] {
            fs::create_dir(path(name)).expect("writable");
            fs::write(path(name).join("config.toml"), text).expect("writable");
        }
        symlink("..1", path("..data")).expect("writable");
        symlink("..data/config.toml", path("config.toml")).expect("writable");
        // The daemon is given a link to it from yet another folder.
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
        let bench = Bench::new("[engine]\nmax_queue = 5\n", Vec::new());
        let store = Arc::clone(&bench.store);
        let watch = Watch::start(Box::new(move || store.files()), bench.reload.clone(), PACE).expect("a thread");
        bench.write("[engine]\nmax_queue = 77\n");
        let seen = async {
            while bench.store.current().engine.max_queue != 77 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), seen)
            .await
            .expect("the change is taken over");
        drop(watch);
        bench.end().await;
    }
}
