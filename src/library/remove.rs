//! Removing models from the shared cache without removing what other programs put there or other models need.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

use super::{
    DeleteOutcome, Library, LocalModel, adapter,
    blobs::{is_ours, is_owned, release, remove_unreferenced, unlink},
    error::LibraryError,
    ledger_key, roots,
};
use crate::{
    config::HubConfig,
    hub::{
        HfName, HubError, Selector,
        cache::{self, RepoFolder, SnapshotFolder},
        ledger::Ledger,
        resolve,
    },
    inference::WeightType,
};

/// Model removal: the removal of one model. Its methods block.
pub(super) struct ModelRemoval {
    pub(super) library: Library,
    pub(super) config: HubConfig,
    /// If set, files that other programs downloaded are removed, too.
    pub(super) all: bool,
}

impl ModelRemoval {
    /// Removes a model; `name` is how the user spelled it.
    pub(super) fn remove(&self, model: &LocalModel, name: &HfName) -> Result<DeleteOutcome, LibraryError> {
        if !model.adapters.is_empty() {
            return self.remove_adapted(model);
        }
        let key = model.ledger_key();
        // A model with adapters still needs the files. They go with the last such model.
        if !self.all && self.is_base(&key) {
            self.library.0.ledger.set_unlisted(&key, true)?;
            return Ok(DeleteOutcome::Unlisted);
        }
        Ok(self.remove_base(name)?)
    }

    /// Removes a model without adapters.
    fn remove_base(&self, name: &HfName) -> Result<DeleteOutcome, HubError> {
        let config = &self.config;
        let roots = roots(config);
        let default = config.safetensors_type;
        let model = self.library.find_blocking(&roots, name, default)?;
        let (key, base) = (model.ledger_key(), model.base);
        // The selector is made explicit, so that the same model is meant at every commit.
        let name = HfName {
            org: base.org,
            repo: base.repo,
            selector: Selector::parse(&base.label).ok().flatten(),
            ..name.clone()
        };
        let ledger = &self.library.0.ledger;
        if !base.sources.is_empty() {
            let conversions = &self.library.0.conversions;
            let converted = conversions.locate(&roots, &name, WeightType::Stored)?;
            ledger.set_unlisted(&key, false)?;
            let revision = name.revision.as_deref();
            return conversions.delete(&config.cache_dir, ledger, &converted, revision, self.all);
        }
        let is_elsewhere = cache::locate_in(&config.extra_caches, &name).is_ok();
        match delete(&config.cache_dir, ledger, &name, &key, self.all) {
            // The model is only in the other caches.
            Err(HubError::NotCached(_)) if is_elsewhere => {}
            deleted if !is_elsewhere => return deleted,
            deleted => {
                deleted?;
            }
        }
        // The other caches are never written to; unlisted, the model in them does not come back into the lists.
        ledger.set_unlisted(&key, true)?;
        Ok(DeleteOutcome::Unlisted)
    }

    /// Removes a model with adapters: the adapters that no other model uses, and the base if it was deleted before and
    /// only stayed for this model.
    fn remove_adapted(&self, model: &LocalModel) -> Result<DeleteOutcome, LibraryError> {
        let ledger = &self.library.0.ledger;
        let key = model.ledger_key();
        ledger.forget_model(&key)?;
        let dropped = self.drop_unused_adapters(model)?;
        // As long as base and adapters are all there, naming the model would bring it back.
        ledger.set_unlisted(&key, dropped.is_still_usable)?;
        let mut bytes_freed = dropped.bytes_freed;
        let base_key = ledger_key(&model.base);
        if ledger.is_unlisted(&base_key) && !self.is_base(&base_key) {
            let name = HfName {
                org: model.base.org.clone(),
                repo: model.base.repo.clone(),
                revision: None,
                selector: Selector::parse(&model.base.label).ok().flatten(),
                adapters: Vec::new(),
            };
            match self.remove_base(&name) {
                Ok(DeleteOutcome::Removed { bytes_freed: more }) => bytes_freed += more,
                Ok(DeleteOutcome::Unlisted) | Err(HubError::NotCached(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(if dropped.is_still_usable {
            DeleteOutcome::Unlisted
        } else {
            DeleteOutcome::Removed { bytes_freed }
        })
    }

    /// Removes those adapters of a model that no other model has.
    pub(super) fn drop_unused_adapters(&self, model: &LocalModel) -> Result<DroppedAdapters, HubError> {
        let (key, ledger) = (model.ledger_key(), &self.library.0.ledger);
        let mut others = self.library.adapted(&roots(&self.config));
        others.retain(|other| other.ledger_key() != key);
        let mut dropped = DroppedAdapters {
            bytes_freed: 0,
            is_still_usable: true,
        };
        for adapter in &model.adapters {
            let is_used = others
                .iter()
                .flat_map(|other| &other.adapters)
                .any(|other| other.name.is_same_repository(&adapter.name));
            if is_used {
                continue;
            }
            let mut is_gone = true;
            // An adapter may be cached at several commits; one that stayed would be found in its place.
            for (folder, snapshot, files) in adapter::snapshots(&adapter.root, &adapter.name) {
                let links: Vec<PathBuf> = files.iter().map(|file| snapshot.path.join(&file.path)).collect();
                let is_ours = links.iter().all(|link| is_ours(ledger, &folder, link));
                if adapter.root != self.config.cache_dir || !self.all && !is_ours {
                    is_gone = false;
                    continue;
                }
                dropped.bytes_freed += self.library.0.prepared.remove(&adapter.name, &snapshot.commit);
                dropped.bytes_freed += release(&folder, ledger, &links)?;
            }
            dropped.is_still_usable &= !is_gone;
        }
        Ok(dropped)
    }

    /// Returns true if a listed model with adapters has this base.
    fn is_base(&self, key: &str) -> bool {
        let models = self.library.adapted(&roots(&self.config));
        models.iter().any(|model| ledger_key(&model.base) == key)
    }
}

/// Dropped adapters: the result of removing those adapters of a model that no other model has.
pub(super) struct DroppedAdapters {
    bytes_freed: u64,
    /// True if the model could still be used, because all of its adapters are still in some cache.
    is_still_usable: bool,
}

/// Removes the GGUF files of a model from one cache, at every commit that the name means. Files of other programs stay
/// unless `all` is set, and the model is unlisted instead; `key` is its key in the ledger.
fn delete(root: &Path, ledger: &Ledger, name: &HfName, key: &str, all: bool) -> Result<DeleteOutcome, HubError> {
    let Some(folder) = RepoFolder::find(root, &name.org, &name.repo) else {
        return Err(HubError::NotCached(name.to_string()));
    };
    let io_error = |error: io::Error| HubError::io("delete from", &folder.path, &error);
    let mut found = false;
    let mut is_left = false;
    let mut unlinked = HashSet::new();
    // A model that stayed at another commit would be listed in place of the removed one.
    for snapshot in folder.snapshots(name.revision.as_deref()) {
        let Ok(model) = cache::model_in(&folder, &snapshot, name.selector.as_ref()) else {
            continue;
        };
        found = true;
        if !all && !is_owned(ledger, &model) {
            is_left = true;
            continue;
        }
        unlinked.extend(unlink(&folder, &model.files).map_err(io_error)?);
        let projector = model.mmproj.filter(|link| all || is_ours(ledger, &folder, link));
        if let Some(projector) = projector.filter(|link| !is_used_projector(&snapshot, link)) {
            unlinked.extend(unlink(&folder, &[projector]).map_err(io_error)?);
        }
    }
    if !found {
        return Err(HubError::NotCached(name.to_string()));
    }
    let bytes_freed = remove_unreferenced(&folder, ledger, &unlinked)?;
    if is_left {
        ledger.set_unlisted(key, true)?;
        tracing::info!(model.name = %name, "model is unlisted; its files are another program's and stay");
        return Ok(DeleteOutcome::Unlisted);
    }
    // A mark from an earlier deletion would hide the model after another program downloads it again.
    ledger.set_unlisted(key, false)?;
    Ok(DeleteOutcome::Removed { bytes_freed })
}

/// Returns true if a model that is left in the snapshot uses a projector: all quantizations of a folder share one.
fn is_used_projector(snapshot: &SnapshotFolder, projector: &Path) -> bool {
    let files = snapshot.files(&mut Vec::new());
    resolve::all(&files)
        .iter()
        .filter_map(|model| model.mmproj.as_ref())
        .any(|used| snapshot.path.join(&used.path) == projector)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::hub::cache::tests::{NEW, OLD, name, put};

    struct Bench {
        root: tempfile::TempDir,
        state: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                root: tempfile::tempdir().unwrap(),
                state: tempfile::tempdir().unwrap(),
            }
        }

        fn ours(&self, commit: &str, path: &str, content: &str) -> PathBuf {
            let blob = put(self.root.path(), "o/r", commit, path, content);
            self.ledger().add(blob.clone()).unwrap();
            blob
        }

        fn ledger(&self) -> Ledger {
            Ledger::load(self.state.path())
        }

        fn delete(&self, text: &str) -> Result<DeleteOutcome, HubError> {
            delete(self.root.path(), &self.ledger(), &name(text), "key", false)
        }

        fn delete_all(&self, text: &str) -> Result<DeleteOutcome, HubError> {
            delete(self.root.path(), &self.ledger(), &name(text), "key", true)
        }
    }

    #[test]
    fn ours_is_removed() {
        let bench = Bench::new();
        bench.ours(OLD, "sub/m-Q4_0.gguf", "weights");
        RepoFolder::new(bench.root.path(), "o", "r")
            .write_reference("main", OLD)
            .unwrap();
        assert_eq!(
            bench.delete("hf:O/R:q4_0"),
            Ok(DeleteOutcome::Removed { bytes_freed: 7 })
        );
        assert_eq!(
            fs::read_dir(bench.root.path()).unwrap().count(),
            0,
            "no empty folder is left"
        );
        assert_eq!(
            bench.delete("hf:o/r:Q4_0"),
            Err(HubError::NotCached("hf:o/r:Q4_0".into()))
        );
    }

    #[test]
    fn a_shared_blob_stays() {
        let bench = Bench::new();
        let blob = bench.ours(OLD, "m-Q4_0.gguf", "weights");
        put(bench.root.path(), "o/r", NEW, "renamed.gguf", "weights");
        assert_eq!(
            bench.delete("hf:o/r:Q4_0"),
            Ok(DeleteOutcome::Removed { bytes_freed: 0 })
        );
        assert!(blob.exists() && bench.ledger().owns(&blob));
    }

    #[test]
    fn foreign_files_are_only_unlisted() {
        let bench = Bench::new();
        let blob = put(bench.root.path(), "o/r", OLD, "m-Q4_0.gguf", "weights");
        assert_eq!(bench.delete("hf:o/r:Q4_0"), Ok(DeleteOutcome::Unlisted));
        assert!(blob.exists() && bench.ledger().is_unlisted("key"));
    }

    #[test]
    fn foreign_files_are_removed_on_request() {
        let bench = Bench::new();
        let blob = put(bench.root.path(), "o/r", OLD, "m-Q4_0.gguf", "weights");
        let eye = put(bench.root.path(), "o/r", OLD, "mmproj-F16.gguf", "eye");
        bench.delete("hf:o/r:Q4_0").unwrap();
        assert!(blob.exists() && bench.ledger().is_unlisted("key"));
        assert_eq!(
            bench.delete_all("hf:o/r:Q4_0"),
            Ok(DeleteOutcome::Removed { bytes_freed: 10 })
        );
        assert!(!blob.exists() && !eye.exists() && !bench.ledger().is_unlisted("key"));
    }

    #[test]
    fn the_projector_goes_last() {
        let bench = Bench::new();
        bench.ours(OLD, "m-Q4_0.gguf", "four");
        bench.ours(OLD, "m-Q8_0.gguf", "eight");
        let eye = bench.ours(OLD, "mmproj-F16.gguf", "eye");
        bench.delete("hf:o/r:Q4_0").unwrap();
        assert!(eye.exists());
        bench.delete("hf:o/r:Q8_0").unwrap();
        assert!(!eye.exists());
    }
}
