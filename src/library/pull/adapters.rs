//! Pulling the adapters of a name. They are planned before the base's first byte is fetched, so that an adapter which
//! can never be applied costs no download.

use std::sync::Arc;

use super::{PullJob, with_short_timeout};
use crate::{
    config::HubConfig,
    convert::{self, ConvertError},
    hub::{
        HubError, cache,
        client::{RepoInfo, RequestSubject},
        ledger::PullRecord,
        name::AdapterName,
        resolve::RepoFile,
    },
    library::{
        Library, LocalAdapter,
        adapter::{self, CONFIG},
        blocking,
        error::LibraryError,
        remove::ModelRemoval,
        roots,
    },
};

/// Adapter plan: the work that a pull has to do for one adapter.
#[derive(Debug)]
pub(super) enum AdapterPlan {
    /// The adapter is in a cache and up to date, or the Hub cannot be asked.
    UseCached(Box<LocalAdapter>),
    Fetch {
        name: AdapterName,
        info: RepoInfo,
        files: Vec<RepoFile>,
    },
}

impl PullJob {
    /// Plans the adapters of a pull.
    ///
    /// # Errors
    /// If the Hub does not have an adapter and no cache does, or an adapter can never be applied.
    pub(super) async fn plan_adapters(&self) -> Result<Vec<AdapterPlan>, LibraryError> {
        let mut plans = Vec::new();
        for name in &self.name.adapters {
            let (library, wanted, roots) = (self.library.clone(), name.clone(), roots(&self.config));
            let cached = blocking(move || Ok(adapter::find(&roots, &library.0.ledger, &wanted))).await?;
            let planned = match &cached {
                _ if self.config.offline => Err(HubError::Offline(self.name.to_string()).into()),
                Some(_) => with_short_timeout(&self.config, |config| plan(&self.library, config, name)).await,
                None => plan(&self.library, Arc::clone(&self.config), name).await,
            };
            plans.push(match (planned, cached) {
                (Ok((info, files)), Some(cached)) if is_same(&cached, &info, &files) => {
                    AdapterPlan::UseCached(Box::new(cached))
                }
                (Ok((info, files)), _) => AdapterPlan::Fetch {
                    name: name.clone(),
                    info,
                    files,
                },
                (Err(error), Some(cached)) if error.is_hub_failure() => AdapterPlan::UseCached(Box::new(cached)),
                (Err(error), _) => return Err(error),
            });
        }
        Ok(plans)
    }

    /// Fetches the adapters that are missing, converts them for the base, which must be in the cache, and records the
    /// pull.
    ///
    /// # Errors
    /// If a download fails, or an adapter cannot be applied to this base; what was fetched is removed then.
    pub(super) async fn pull_adapters(&self, plans: Vec<AdapterPlan>) -> Result<(), LibraryError> {
        for plan in &plans {
            match plan {
                AdapterPlan::UseCached(adapter) => self.events.complete_files(&adapter.files).await?,
                AdapterPlan::Fetch { name, info, files } => {
                    self.download(info, files, name.revision.as_deref()).await?
                }
            }
        }
        self.events.status("preparing adapters").await?;
        let model = self.library.find(&self.config, &self.name).await?;
        if let Err(error) = self.library.adapter_files(&model).await {
            let removal = ModelRemoval {
                library: self.library.clone(),
                config: (*self.config).clone(),
                all: false,
            };
            blocking(move || Ok(removal.drop_unused_adapters(&model)?)).await?;
            return Err(error);
        }
        let record = PullRecord {
            commit: model.base.commit.clone(),
            endpoint: self.config.endpoint.clone(),
            license: None,
        };
        self.record(model.ledger_key(), record).await
    }
}

/// Returns true if a cached adapter has the commit and the content that the Hub has.
fn is_same(cached: &LocalAdapter, info: &RepoInfo, files: &[RepoFile]) -> bool {
    let hashes = cached.files.iter().map(|file| cache::blob_name(file));
    cached.commit == info.commit && hashes.eq(files.iter().map(|file| file.etag().map(str::to_owned)))
}

/// Asks the Hub for the commit and the files of an adapter.
///
/// # Errors
/// If the Hub cannot be asked, or the adapter can never be applied.
pub(in crate::library) async fn plan(
    library: &Library,
    config: Arc<HubConfig>,
    name: &AdapterName,
) -> Result<(RepoInfo, Vec<RepoFile>), LibraryError> {
    let client = library.client(config)?;
    let revision = name.revision.as_deref().unwrap_or("main");
    let info = client.info(&format!("{}/{}", name.org, name.repo), revision).await?;
    let repo = format!("{}/{}", info.org, info.repo);
    let listing = client.tree(&repo, &info.commit).await?;
    let refused = |error| LibraryError::adapter(&repo, error);
    let files = adapter::resolve(&listing).map_err(|reason| refused(ConvertError::Adapter(reason.to_owned())))?;
    if files.iter().any(|file| file.path == CONFIG) {
        let about = RequestSubject {
            repo: &repo,
            revision: &info.commit,
            path: CONFIG,
        };
        let text = client.text(&about).await?.unwrap_or_default();
        convert::check_adapter_config(&text).map_err(refused)?;
    }
    Ok((info, files))
}
