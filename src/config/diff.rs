//! Comparison of two configurations, key by key.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Config,
    document::quoted,
    keys::{KEYS, SettingKey},
};

/// Keys whose values differ, without the values, so that the difference can be logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ConfigDiff {
    /// Keys that can change while the daemon runs, in the order of the documentation. Models and aliases stand as
    /// `models."hf:…"` and `aliases.name`.
    pub changed: Vec<String>,
    /// Keys that take effect only after a restart.
    pub restart: Vec<String>,
}

impl ConfigDiff {
    pub(super) fn between(old: &Config, new: &Config) -> Self {
        let different = KEYS.iter().filter(|key| !(key.same)(old, new));
        let (restart, live): (Vec<_>, Vec<_>) = different.partition(|key| key.restart);
        let names = |keys: Vec<&SettingKey<Config>>| keys.into_iter().map(|key| key.name.to_owned()).collect();
        let mut changed: Vec<String> = names(live);
        changed.extend(changed_entries("models", &old.models, &new.models));
        changed.extend(changed_entries("aliases", &old.aliases, &new.aliases));
        Self {
            changed,
            restart: names(restart),
        }
    }
}

/// Returns `new` with the running values of all keys that need a restart: the configuration in force after a reload.
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
        assert_eq!(ConfigDiff::between(&old, &old.clone()), ConfigDiff::default());

        let mut new = old.clone();
        new.engine.sampling.top_k = Some(3);
        new.hub.token = Some(Secret::new("hf_x".into()));
        new.server.listen = vec!["127.0.0.1:1".into()];
        new.models.insert("hf:a/b.c".into(), ModelConfig::default());
        new.aliases.insert("plain".into(), "hf:a/b".into());
        let diff = ConfigDiff::between(&old, &new);
        let changed = [
            "hub.token",
            "engine.sampling.top_k",
            "models.\"hf:a/b.c\"",
            "aliases.plain",
        ];
        assert_eq!(diff.changed, changed);
        assert_eq!(diff.restart, ["server.listen"]);
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
