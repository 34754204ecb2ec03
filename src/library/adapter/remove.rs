//! Taking a model with adapters away: its adapters, where no other model has them, and its base, where nobody lists that.

use std::path::PathBuf;

use super::{LocalAdapter, snapshots};
use crate::{
    config::HubConfig,
    hub::{HfName, HubError, Selector},
    library::{
        Deleted, Library, LocalModel,
        remove::{is_ours, release},
        roots,
    },
};

impl Library {
    /// Whether a model with adapters needs the files of a base.
    pub(in crate::library) fn is_base(&self, roots: &[PathBuf], key: &str) -> bool {
        self.adapted(roots).iter().any(|model| model.base_key() == key)
    }

    /// Forgets a model with adapters. Files that another program has put there stay unless `all` says otherwise.
    pub(in crate::library) fn remove_adapted(
        &self,
        config: &HubConfig,
        model: &LocalModel,
        all: bool,
    ) -> Result<Deleted, HubError> {
        let roots = roots(config);
        let own = model.key();
        self.0.ledger.forget_model(&own)?;
        let (mut bytes_freed, is_left) = self.drop_unused_adapters(config, model, all)?;
        // It could be used again as soon as it is named.
        self.0.ledger.set_unlisted(&own, is_left)?;
        let base = model.base_key();
        if self.0.ledger.is_unlisted(&base) && !self.is_base(&roots, &base) {
            let name = HfName {
                org: model.org.clone(),
                repo: model.repo.clone(),
                revision: None,
                selector: Selector::parse(&model.label).ok().flatten(),
                adapters: Vec::new(),
            };
            // Deleted while this model needed it.
            match self.remove_base(config, &name, all) {
                Ok(Deleted::Removed { bytes_freed: more }) => bytes_freed += more,
                Ok(Deleted::Unlisted) | Err(HubError::NotCached(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(if is_left {
            Deleted::Unlisted
        } else {
            Deleted::Removed { bytes_freed }
        })
    }

    /// Removes those adapters of a model that no other model has; returns the bytes, and whether anything is left that would
    /// let the model be used.
    pub(in crate::library) fn drop_unused_adapters(
        &self,
        config: &HubConfig,
        model: &LocalModel,
        all: bool,
    ) -> Result<(u64, bool), HubError> {
        let own_key = model.key();
        let others = self.adapted(&roots(config));
        let used: Vec<&LocalAdapter> = others
            .iter()
            .filter(|other| other.key() != own_key)
            .flat_map(|other| &other.adapters)
            .collect();
        let (mut bytes, mut is_left) = (0, true);
        for adapter in &model.adapters {
            let is_used = |other: &&LocalAdapter| {
                other.name.org.eq_ignore_ascii_case(&adapter.name.org)
                    && other.name.repo.eq_ignore_ascii_case(&adapter.name.repo)
            };
            if used.iter().any(is_used) {
                continue;
            }
            let mut is_gone = true;
            // The same adapter may be cached at several commits; one that stayed would be found in its place.
            for (folder, snapshot, files) in snapshots(&adapter.root, &adapter.name) {
                let links: Vec<PathBuf> = files.iter().map(|file| snapshot.path.join(&file.path)).collect();
                let is_ours = links.iter().all(|link| is_ours(&self.0.ledger, &folder, link));
                if adapter.root != config.cache_dir || !all && !is_ours {
                    is_gone = false;
                    continue;
                }
                let commit = LocalAdapter {
                    commit: snapshot.commit,
                    ..adapter.clone()
                };
                bytes += self.0.prepared.remove(&commit);
                bytes += release(&folder, &self.0.ledger, &links)?;
            }
            // Without one of its adapters it cannot be used.
            is_left &= !is_gone;
        }
        Ok((bytes, is_left))
    }
}
