//! Pulling the adapters of a name. They are planned before the base's first byte is fetched, so that an adapter which can
//! never be applied costs no download.

use std::sync::Arc;

use super::{CONFIG, LocalAdapter, find, resolve};
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
        AvailableUpdate, Library, LocalModel, blocking,
        error::LibraryError,
        pull::{PullJob, with_short_timeout},
        remove::Removal,
        roots,
    },
};

/// Adapter plan: the work that a pull has to do for one adapter.
#[derive(Debug)]
pub(in crate::library) enum AdapterPlan {
    /// The adapter is in a cache and up to date, or the Hub cannot be asked.
    UseCached(Box<LocalAdapter>),
    Fetch {
        name: AdapterName,
        info: RepoInfo,
        files: Vec<RepoFile>,
    },
}

/// Plans the adapters of a pull.
///
/// # Errors
/// If the Hub does not have an adapter and no cache does, or an adapter can never be applied.
pub(in crate::library) async fn plan_all(job: &PullJob) -> Result<Vec<AdapterPlan>, LibraryError> {
    let mut plans = Vec::new();
    for name in &job.name.adapters {
        let (library, wanted, roots) = (job.library.clone(), name.clone(), roots(&job.config));
        let cached = blocking(move || Ok(find(&roots, &library.0.ledger, &wanted))).await?;
        let planned = match &cached {
            _ if job.config.offline => Err(HubError::Offline(job.name.to_string()).into()),
            Some(_) => with_short_timeout(&job.config, |config| plan(&job.library, config, name)).await,
            None => plan(&job.library, Arc::clone(&job.config), name).await,
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

/// Returns true if a cached adapter has the commit and the content that the Hub has.
fn is_same(cached: &LocalAdapter, info: &RepoInfo, files: &[RepoFile]) -> bool {
    let hashes = cached.files.iter().map(|file| cache::blob_name(file));
    cached.commit == info.commit && hashes.eq(files.iter().map(|file| file.etag().map(str::to_owned)))
}

/// Asks the Hub for the commit and the files of an adapter.
async fn plan(
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
    let files = resolve(&listing).map_err(|reason| refused(ConvertError::Adapter(reason.to_owned())))?;
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

/// Fetches the adapters that are missing, converts them for the base, which must be in the cache, and records the pull.
///
/// # Errors
/// If a download fails, or an adapter cannot be applied to this base; what was fetched is removed then.
pub(in crate::library) async fn pull_all(job: &PullJob, plans: Vec<AdapterPlan>) -> Result<(), LibraryError> {
    for plan in &plans {
        match plan {
            AdapterPlan::UseCached(adapter) => job.events.complete_files(&adapter.files).await?,
            AdapterPlan::Fetch { name, info, files } => job.download(info, files, name.revision.as_deref()).await?,
        }
    }
    job.events.status("preparing adapters").await?;
    let model = job.library.find(&job.config, &job.name).await?;
    if let Err(error) = job.library.adapter_files(&model).await {
        let removal = Removal {
            library: job.library.clone(),
            config: (*job.config).clone(),
            all: false,
        };
        blocking(move || Ok(removal.drop_unused_adapters(&model)?)).await?;
        return Err(error);
    }
    let record = PullRecord {
        commit: model.base.commit.clone(),
        endpoint: job.config.endpoint.clone(),
        license: None,
    };
    job.record(model.ledger_key(), record).await
}

/// Asks the Hub for newer files of a model's adapters.
///
/// # Errors
/// If the Hub cannot be asked, or an adapter can no longer be applied.
pub(in crate::library) async fn find_update(
    library: &Library,
    config: &Arc<HubConfig>,
    model: &LocalModel,
) -> Result<Option<AvailableUpdate>, LibraryError> {
    let mut found: Option<AvailableUpdate> = None;
    for adapter in &model.adapters {
        let (info, files) = plan(library, Arc::clone(config), &adapter.name).await?;
        let here: Vec<Option<String>> = adapter.files.iter().map(|file| cache::blob_name(file)).collect();
        let new = files
            .iter()
            .filter(|file| !here.contains(&file.etag().map(str::to_owned)));
        let bytes = new.fold(0_u64, |sum, file| sum.saturating_add(file.size));
        if bytes > 0 {
            let before = found.map_or(0, |update| update.bytes);
            found = Some(AvailableUpdate {
                commit: info.commit,
                bytes: bytes.saturating_add(before),
            });
        }
    }
    Ok(found)
}
