//! The live configuration: one immutable snapshot at a time, replaced whole, with the last good one kept.
//!
//! Who asks for a reload (a file event, a signal, an admin call) does so over one channel, [`ReloadHandle`]; the task at
//! its other end belongs to the daemon.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use serde::Serialize;
use serde_json::Value as Json;
use tokio::sync::{mpsc, oneshot};

use super::{
    Config, Diff, Inputs, Loaded, Origin, Problem, Problems, backups, describe, diff::without_restart_keys, load::load,
    validate::validate,
};
use crate::stdx::sync::lock;

/// What a component does before a change: refuse it with a sentence, or make ready what [`Commit`] puts in place.
/// Touches nothing live.
pub type Prepare = Box<dyn Fn(&Change<'_>) -> Result<Commit, String> + Send + Sync>;

/// Puts in place what was prepared. Cannot fail.
pub type Commit = Box<dyn FnOnce() + Send>;

/// A change that is about to happen.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// In force now.
    pub old: &'a Config,
    /// In force next.
    pub new: &'a Config,
    /// What differs, without the keys that wait for a restart.
    pub diff: &'a Diff,
}

/// How a reload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as before.
    Unchanged {
        /// Keys that differ but wait for a restart.
        restart: Vec<String>,
    },
    /// The new configuration is in force.
    Applied {
        /// Keys that changed.
        changed: Vec<String>,
        /// Keys that differ but wait for a restart.
        restart: Vec<String>,
    },
    /// The new configuration is wrong; the old one stays in force.
    Refused(Problems),
}

/// What the store knows of itself, for `GET /config` and `/health`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Where the file is, or would be.
    pub path: Option<std::path::PathBuf>,
    /// When what is in force was loaded.
    #[serde(serialize_with = "rfc3339")]
    pub loaded_at: SystemTime,
    /// Counts the snapshots, from 1.
    pub generation: u64,
    /// Whether the files are what is in force: false after a refused reload.
    pub synchronized: bool,
    /// Why the last reload was refused; empty where it was not.
    pub problems: Vec<Problem>,
    /// Keys that differ from what runs and wait for a restart.
    pub restart_needed: Vec<String>,
    /// Doubtful settings of what is in force.
    pub warnings: Vec<Problem>,
}

/// Holds the configuration in force.
pub struct ConfigStore {
    inputs: Inputs,
    current: Arc<ArcSwap<Config>>,
    /// Never held while files are read or components prepare.
    state: Mutex<State>,
    /// One reload at a time; held from its load to its swap.
    reloading: Mutex<()>,
}

struct State {
    loaded: Loaded,
    loaded_at: SystemTime,
    generation: u64,
    problems: Vec<Problem>,
    restart_needed: Vec<String>,
}

impl ConfigStore {
    /// Loads the first configuration.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn open(inputs: Inputs) -> Result<Self, Problems> {
        let loaded = load(&inputs)?;
        keep_backup(&loaded);
        let current = Arc::new(ArcSwap::from_pointee(loaded.config.clone()));
        let state = State {
            loaded,
            loaded_at: SystemTime::now(),
            generation: 1,
            problems: Vec::new(),
            restart_needed: Vec::new(),
        };
        Ok(Self {
            inputs,
            current,
            state: Mutex::new(state),
            reloading: Mutex::new(()),
        })
    }

    /// The live value itself, for who takes a snapshot with each request.
    #[must_use]
    pub fn live(&self) -> Arc<ArcSwap<Config>> {
        Arc::clone(&self.current)
    }

    /// The configuration in force. A request takes it once and keeps it to its end.
    #[must_use]
    pub fn current(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// How the store stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.state();
        Status {
            path: state.loaded.path.clone(),
            loaded_at: state.loaded_at,
            generation: state.generation,
            synchronized: state.problems.is_empty(),
            problems: state.problems.clone(),
            restart_needed: state.restart_needed.clone(),
            warnings: state.loaded.warnings.clone(),
        }
    }

    /// What is in force, who set it, and the [`Status`]; without secrets.
    #[must_use]
    pub fn describe(&self) -> Json {
        let mut described = describe::describe(&self.state().loaded);
        if let (Json::Object(all), Ok(status)) = (&mut described, serde_json::to_value(self.status())) {
            all.insert("status".into(), status);
        }
        described
    }

    /// Values that something stronger hides, and doubtful settings, for the log at start.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let state = self.state();
        let warnings = state.loaded.warnings.iter().map(ToString::to_string);
        warnings
            .chain(state.loaded.shadowed.iter().map(ToString::to_string))
            .collect()
    }

    /// Files whose change is worth a reload.
    #[must_use]
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        self.state().loaded.files.clone()
    }

    /// Loads, validates, compares, prepares and swaps. Reads files, so not for an async thread.
    ///
    /// A mistake anywhere before the swap changes nothing but the [`Status`].
    pub fn reload(&self, participants: &[Prepare]) -> Outcome {
        let _one_at_a_time = lock(&self.reloading);
        let outcome = load(&self.inputs).and_then(|loaded| self.replace(loaded, participants));
        outcome.unwrap_or_else(|problems| {
            self.state().problems.clone_from(&problems.0);
            Outcome::Refused(problems)
        })
    }

    fn replace(&self, loaded: Loaded, participants: &[Prepare]) -> Result<Outcome, Problems> {
        let running = self.current();
        let restart = Diff::between(&running, &loaded.config).restart;
        let live = without_restart_keys(&running, &loaded.config);
        // What waits for a restart may not go together with what does not: the new upstream with the old listeners.
        let problems = validate(&live).problems;
        if !problems.is_empty() {
            let waits = format!("together with what runs until a restart ({})", restart.join(", "));
            let problem = |(key, sentence): (String, String)| {
                let origin = loaded.origin(&key);
                Problem {
                    origin,
                    key,
                    sentence: format!("{sentence}; {waits}"),
                }
            };
            return Err(Problems(problems.into_iter().map(problem).collect()));
        }

        let diff = Diff::between(&running, &live);
        let mut commits = Vec::new();
        if !diff.is_empty() {
            let change = Change {
                old: &running,
                new: &live,
                diff: &diff,
            };
            let mut refusals = Vec::new();
            for prepare in participants {
                match prepare(&change) {
                    Ok(commit) => commits.push(commit),
                    Err(sentence) => refusals.push(Problem {
                        origin: Origin::Default,
                        key: String::new(),
                        sentence,
                    }),
                }
            }
            if !refusals.is_empty() {
                return Err(Problems(refusals));
            }
        }

        keep_backup(&loaded);
        let applied = !diff.is_empty();
        {
            let mut state = self.state();
            // Also where no value changed: lines and warnings may have.
            state.loaded = Loaded {
                config: live.clone(),
                ..loaded
            };
            state.problems.clear();
            state.restart_needed.clone_from(&restart);
            if applied {
                state.loaded_at = SystemTime::now();
                state.generation += 1;
                self.current.store(Arc::new(live));
            }
        }
        for commit in commits {
            commit();
        }
        Ok(if applied {
            Outcome::Applied {
                changed: diff.changed,
                restart,
            }
        } else {
            Outcome::Unchanged { restart }
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl fmt::Debug for ConfigStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigStore")
            .field("path", &self.state().loaded.path)
            .finish_non_exhaustive()
    }
}

/// A copy that cannot be kept is no reason not to run.
fn keep_backup(loaded: &Loaded) {
    let Some(text) = &loaded.text else { return };
    if let Err(error) = backups::keep(&loaded.config.state_dir, text.expose()) {
        tracing::warn!(
            path = %loaded.config.state_dir.display(),
            error = %error,
            "cannot keep a copy of the configuration; make the state folder writable"
        );
    }
}

fn rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    match jiff::Timestamp::try_from(*time) {
        Ok(time) => serializer.collect_str(&time),
        Err(_) => serializer.serialize_none(),
    }
}

/// Why somebody asks for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A watched file is no longer what it was.
    File,
    /// SIGHUP.
    Signal,
    /// An admin call.
    Admin,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Signal => "signal",
            Self::Admin => "admin",
        })
    }
}

/// A wish for a reload.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Who asks.
    pub reason: Reason,
    /// Who wants to know how it ended.
    pub reply: Option<oneshot::Sender<Outcome>>,
}

/// Hints that may wait. A waiting one will see whatever is in the files when its turn comes, so more say nothing new.
const WAITING_HINTS: usize = 8;

/// The one way to ask for a reload; cheap to clone.
#[derive(Clone, Debug)]
pub struct ReloadHandle(mpsc::Sender<ReloadRequest>);

impl ReloadHandle {
    /// A handle and the end at which the requests arrive.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<ReloadRequest>) {
        let (sender, receiver) = mpsc::channel(WAITING_HINTS);
        (Self(sender), receiver)
    }

    /// Asks for a reload and does not wait. `false` where the daemon is stopping.
    pub fn hint(&self, reason: Reason) -> bool {
        match self.0.try_send(ReloadRequest { reason, reply: None }) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Asks for a reload and waits for its end. `None` where the daemon is stopping.
    pub async fn request(&self, reason: Reason) -> Option<Outcome> {
        let (reply, outcome) = oneshot::channel();
        self.0
            .send(ReloadRequest {
                reason,
                reply: Some(reply),
            })
            .await
            .ok()?;
        outcome.await.ok()
    }
}
