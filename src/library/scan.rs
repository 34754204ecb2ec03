//! Scans of the cache folders, remembered so that a listing does not walk every snapshot again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use dashmap::{DashMap, Entry};

use super::ledger_key;
use crate::hub::cache::{self, CachedModel, WatchedPaths};

/// Resolution of modification times: two changes within it may leave the same time behind. The coarsest kernel clock
/// ticks 100 times a second; the rest is margin.
const CLOCK_TICK: Duration = Duration::from_millis(50);

/// Scan cache: the complete models of each cache folder, valid until a folder or reference in it changes.
#[derive(Debug, Default)]
pub(super) struct ScanCache {
    scans: DashMap<PathBuf, CacheScan>,
}

/// Cache scan: the models that one walk through a cache folder found, and what it read.
#[derive(Debug)]
struct CacheScan {
    watched: WatchedPaths,
    at: SystemTime,
    models: Vec<CachedModel>,
}

impl ScanCache {
    /// Returns every complete model of the given caches, each once, sorted by key. Scans those that changed.
    pub(super) fn models(&self, roots: &[PathBuf]) -> Vec<CachedModel> {
        // Folders that the configuration no longer names.
        self.scans.retain(|root, _| roots.contains(root));
        let mut models: BTreeMap<String, CachedModel> = BTreeMap::new();
        for root in roots {
            // The entry stays locked during the scan, so that listings at the same time wait for one scan instead of
            // walking the same folder twice. Other folders are independent of it.
            let scan = match self.scans.entry(root.clone()) {
                Entry::Occupied(known) if known.get().holds() => known.into_ref(),
                entry => entry.insert(CacheScan::of(root)),
            };
            for model in &scan.models {
                let key = ledger_key(model);
                if models.get(&key).is_none_or(|first| cache::supersedes(model, first)) {
                    models.insert(key, model.clone());
                }
            }
        }
        models.into_values().collect()
    }
}

impl CacheScan {
    fn of(root: &Path) -> Self {
        let at = SystemTime::now();
        let (models, watched) = cache::scan(root);
        Self { watched, at, models }
    }

    /// Returns true if nothing that the scan read has changed since.
    fn holds(&self) -> bool {
        self.watched.iter().all(|(path, then)| {
            // A path that changed just before the scan may have changed again in the same tick, unseen.
            let is_settled = then.is_none_or(|then| then + CLOCK_TICK < self.at);
            is_settled && cache::modified(path) == *then
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::hub::cache::tests::{OLD, put};

    #[test]
    fn a_scan_is_kept_until_something_changes() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_owned()];
        let cache = ScanCache::default();
        put(root.path(), "o/r", OLD, "sub/m-Q4_0.gguf", "weights");
        let deadline = Instant::now() + Duration::from_secs(10);
        let holds = || cache.scans.iter().any(|scan| scan.holds());
        while !holds() {
            assert!(Instant::now() < deadline, "the scan never settles");
            assert_eq!(cache.models(&roots).len(), 1);
            std::thread::yield_now();
        }
        put(root.path(), "o/r", OLD, "sub/m-Q8_0.gguf", "more");
        assert!(!holds());
        assert_eq!(cache.models(&roots).len(), 2);
    }
}
