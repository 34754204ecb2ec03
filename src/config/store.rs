//! The configuration in force: one immutable snapshot that a reload replaces as a whole.
//!
//! A reload that finds any problem changes nothing, so the last good configuration stays in force. Keys that need a
//! restart keep their running value until then.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use serde::Serialize;
use serde_json::Value as Json;

use super::{
    Config, ConfigInputs, ConfigProblem, ConfigProblems, LoadedConfig, backups, describe,
    diff::{ConfigDiff, without_restart_keys},
    load::load,
    validate::validate,
};
use crate::stdx::sync::lock;

/// Result of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// No value in force has changed.
    Unchanged {
        /// Keys that differ and wait for a restart.
        restart: Vec<String>,
    },
    /// The new configuration is in force.
    Applied {
        changed: Vec<String>,
        /// Keys that differ and wait for a restart.
        restart: Vec<String>,
    },
    /// The new configuration has problems; the old one stays in force.
    Refused(ConfigProblems),
}

/// State of the store, for `GET /config` and `/health`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StoreStatus {
    /// Path of the configuration file, which need not exist.
    pub path: Option<PathBuf>,
    #[serde(serialize_with = "rfc3339")]
    pub loaded_at: SystemTime,
    /// Number of the snapshot, counted from 1.
    pub generation: u64,
    /// False after a refused reload: the files hold something else than the snapshot in force.
    pub synchronized: bool,
    /// Reasons for which the last reload was refused.
    pub problems: Vec<ConfigProblem>,
    /// Keys that differ from the snapshot in force and wait for a restart.
    pub restart_needed: Vec<String>,
    /// Questionable settings in force.
    pub warnings: Vec<ConfigProblem>,
}

/// Holder of the configuration in force.
pub struct ConfigStore {
    inputs: ConfigInputs,
    current: Arc<ArcSwap<Config>>,
    /// Locked for moments only, never while files are read, so that a request for the status does not wait for a
    /// reload.
    state: Mutex<StoreState>,
    /// Locked from the load of a reload to its swap: reloads happen one at a time.
    reloading: Mutex<()>,
}

struct StoreState {
    loaded: LoadedConfig,
    loaded_at: SystemTime,
    generation: u64,
    problems: Vec<ConfigProblem>,
    restart_needed: Vec<String>,
}

impl ConfigStore {
    /// Loads the first configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigProblems`] with the problems of all sources.
    pub fn open(inputs: ConfigInputs) -> Result<Self, ConfigProblems> {
        let loaded = load(&inputs)?;
        keep_backup(&loaded);
        let current = Arc::new(ArcSwap::from_pointee(loaded.config.clone()));
        let state = StoreState {
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

    /// Returns the cell that always holds the snapshot in force, for components that take one with each request.
    #[must_use]
    pub fn live(&self) -> Arc<ArcSwap<Config>> {
        Arc::clone(&self.current)
    }

    /// Returns the snapshot in force.
    #[must_use]
    pub fn current(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// Returns false after a refused reload, until one succeeds.
    #[must_use]
    pub fn is_synchronized(&self) -> bool {
        lock(&self.state).problems.is_empty()
    }

    pub(super) fn status(&self) -> StoreStatus {
        let state = self.state();
        StoreStatus {
            path: state.loaded.path.clone(),
            loaded_at: state.loaded_at,
            generation: state.generation,
            synchronized: state.problems.is_empty(),
            problems: state.problems.clone(),
            restart_needed: state.restart_needed.clone(),
            warnings: state.loaded.warnings.clone(),
        }
    }

    /// Describes every value in force, its source, and the state of the store as JSON, without secrets.
    #[must_use]
    pub fn describe(&self) -> Json {
        let mut described = describe::describe(&self.state().loaded);
        if let (Json::Object(all), Ok(status)) = (&mut described, serde_json::to_value(self.status())) {
            all.insert("status".into(), status);
        }
        described
    }

    /// Returns one sentence for each questionable setting and each value that a stronger source hides, for the log.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let state = self.state();
        let warnings = state.loaded.warnings.iter().map(ToString::to_string);
        warnings
            .chain(state.loaded.shadowed.iter().map(ToString::to_string))
            .collect()
    }

    /// Returns the files whose change makes a reload worthwhile.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.state().loaded.files.clone()
    }

    /// Loads and validates all sources and replaces the snapshot if they are good. Reads files: call it from a thread
    /// that may block.
    pub fn reload(&self) -> ReloadOutcome {
        let _one_at_a_time = lock(&self.reloading);
        let outcome = load(&self.inputs).and_then(|loaded| self.replace(loaded));
        outcome.unwrap_or_else(|problems| {
            self.state().problems.clone_from(&problems.0);
            ReloadOutcome::Refused(problems)
        })
    }

    fn replace(&self, loaded: LoadedConfig) -> Result<ReloadOutcome, ConfigProblems> {
        let running = self.current();
        let ConfigDiff { changed, restart } = ConfigDiff::between(&running, &loaded.config);
        let live = without_restart_keys(&running, &loaded.config);
        // Each configuration is good alone, but the mixture that runs until the restart may not be: the new upstream
        // may be the address of the old listener.
        let problems = validate(&live).problems;
        if !problems.is_empty() {
            let waits = format!("together with what runs until a restart ({})", restart.join(", "));
            let problem = |(key, sentence): (String, String)| ConfigProblem {
                origin: loaded.origin(&key),
                key,
                sentence: format!("{sentence}; {waits}"),
            };
            return Err(ConfigProblems(problems.into_iter().map(problem).collect()));
        }

        keep_backup(&loaded);
        let mut state = self.state();
        // Also when no value changed: the lines of the file and the warnings may have.
        state.loaded = LoadedConfig {
            config: live.clone(),
            ..loaded
        };
        state.problems.clear();
        state.restart_needed.clone_from(&restart);
        if changed.is_empty() {
            return Ok(ReloadOutcome::Unchanged { restart });
        }
        state.loaded_at = SystemTime::now();
        state.generation += 1;
        // Swapped while the state is locked: no status names a generation that is not in force yet.
        self.current.store(Arc::new(live));
        Ok(ReloadOutcome::Applied { changed, restart })
    }

    fn state(&self) -> MutexGuard<'_, StoreState> {
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

/// Keeps a copy of the file. Only logs a failure: a state folder that cannot be written is no reason not to run.
fn keep_backup(loaded: &LoadedConfig) {
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
