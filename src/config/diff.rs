//! What changed between two configurations, by key.

use std::collections::{BTreeMap, BTreeSet};

use super::{Config, document::quoted, keys::KEYS};

/// Changed keys; no values, so that it can be logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// In the order of the documentation; models and aliases as `models."hf:…"` and `aliases.name`.
    pub changed: Vec<String>,
    /// Those of them that take effect only after a restart.
    pub restart: Vec<String>,
}

impl Diff {
    /// Compares two configurations.
    #[must_use]
    pub fn between(old: &Config, new: &Config) -> Self {
        let keys = || KEYS.iter().filter(|key| !(key.same)(old, new));
        let mut changed: Vec<String> = keys().map(|key| key.name.to_owned()).collect();
        changed.extend(changed_entries("models", &old.models, &new.models));
        changed.extend(changed_entries("aliases", &old.aliases, &new.aliases));
        let restart = keys()
            .filter(|key| key.restart)
            .map(|key| key.name.to_owned())
            .collect();
        Self { changed, restart }
    }

    /// Whether both are equal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    /// Whether a key of `section` (as `engine`) changed.
    #[must_use]
    pub fn touches(&self, section: &str) -> bool {
        self.sections().contains(section)
    }

    /// The first components of all changed keys.
    #[must_use]
    pub fn sections(&self) -> BTreeSet<&str> {
        self.changed.iter().filter_map(|key| key.split('.').next()).collect()
    }
}

/// `new` with the values of `running` wherever a change needs a restart: what is really in force after a reload.
pub(super) fn without_restart_keys(running: &Config, new: &Config) -> Config {
    let mut live = new.clone();
    for key in KEYS.iter().filter(|key| key.restart) {
        (key.copy)(&mut live, running);
    }
    live
}

fn changed_entries<T: PartialEq>(table: &str, old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> Vec<String> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    changed.map(|name| format!("{table}.{}", quoted(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ModelConfig, stdx::Secret};

    #[test]
    fn names_what_changed() {
        let old = Config::default();
        assert!(Diff::between(&old, &old.clone()).is_empty());

        let mut new = old.clone();
        new.engine.sampling.top_k = Some(3);
        new.hub.token = Some(Secret::new("hf_x".into()));
        new.server.listen = vec!["127.0.0.1:1".into()];
        new.models.insert("hf:a/b.c".into(), ModelConfig::default());
        new.aliases.insert("plain".into(), "hf:a/b".into());
        let diff = Diff::between(&old, &new);
        let changed = [
            "server.listen",
            "hub.token",
            "engine.sampling.top_k",
            "models.\"hf:a/b.c\"",
            "aliases.plain",
        ];
        assert_eq!(diff.changed, changed);
        assert_eq!(diff.restart, ["server.listen"]);
        assert!(diff.touches("engine") && !diff.touches("log"));
        assert_eq!(diff.sections().len(), 5);
    }

    #[test]
    fn restart_keys_stay_as_they_run() {
        let running = Config::default();
        let mut new = running.clone();
        new.server.listen = vec!["127.0.0.1:1".into()];
        new.engine.max_queue = 7;
        let live = without_restart_keys(&running, &new);
        assert_eq!(live.server.listen, running.server.listen);
        assert_eq!(live.engine.max_queue, 7);
    }
}
