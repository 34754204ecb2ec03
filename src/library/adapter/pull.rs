//! Bringing the adapters of a name: what to fetch is known before the base's first byte is.

use std::sync::Arc;

use super::{CONFIG, LocalAdapter, find, resolve};
use crate::{
    config::HubConfig,
    convert,
    hub::{
        HfName, HubError, cache,
        client::{HubClient, RepoInfo, RequestSubject},
        ledger::Note,
        name::AdapterName,
        resolve::RepoFile,
        tasks::blocking,
    },
    library::{
        Library, LocalModel, Update, error,
        pull::{Events, download, soon},
        roots,
    },
};

/// What has to be done for an adapter.
#[derive(Debug)]
pub(in crate::library) enum Wanted {
    /// Nothing: it is in a cache.
    Here(Box<LocalAdapter>),
    /// It is fetched.
    Fetch {
        name: AdapterName,
        info: RepoInfo,
        files: Vec<RepoFile>,
    },
}

/// What has to be done for each adapter of a name. An adapter that can never be applied is refused here.
pub(in crate::library) async fn wanted(
    library: &Library,
    config: &Arc<HubConfig>,
    name: &HfName,
) -> Result<Vec<Wanted>, HubError> {
    let mut all = Vec::new();
    for adapter in &name.adapters {
        let (at, wanted, search) = (library.clone(), adapter.clone(), roots(config));
        let cached = blocking(move || Ok(find(&search, &at.0.ledger, &wanted))).await?;
        let planned = match &cached {
            _ if config.offline => Err(HubError::Offline(name.to_string())),
            Some(_) => soon(config, |config| plan(library, config, adapter)).await,
            None => plan(library, Arc::clone(config), adapter).await,
        };
        all.push(match (planned, cached) {
            (Ok((info, files)), Some(cached)) if is_same(&cached, &info, &files) => Wanted::Here(Box::new(cached)),
            (Ok((info, files)), _) => Wanted::Fetch {
                name: adapter.clone(),
                info,
                files,
            },
            (Err(error), Some(cached))
                if error.is_transient() || matches!(error, HubError::Offline(_) | HubError::Protocol { .. }) =>
            {
                Wanted::Here(Box::new(cached))
            }
            (Err(error), _) => return Err(error),
        });
    }
    Ok(all)
}

/// Whether what is cached is what the Hub has.
fn is_same(cached: &LocalAdapter, info: &RepoInfo, files: &[RepoFile]) -> bool {
    let hashes = cached.files.iter().map(|file| cache::blob_name(file));
    cached.commit == info.commit && hashes.eq(files.iter().map(|file| file.etag().map(str::to_owned)))
}

/// What the Hub has of an adapter.
async fn plan(
    library: &Library,
    config: Arc<HubConfig>,
    name: &AdapterName,
) -> Result<(RepoInfo, Vec<RepoFile>), HubError> {
    let client = HubClient::new(&library.0.pool, config)?;
    let revision = name.revision.as_deref().unwrap_or("main");
    let info = client.info(&format!("{}/{}", name.org, name.repo), revision).await?;
    let repo = format!("{}/{}", info.org, info.repo);
    let listing = client.tree(&repo, &info.commit).await?;
    let files = resolve(&listing).map_err(|reason| HubError::Adapter {
        repo: repo.clone(),
        reason: reason.to_owned(),
    })?;
    if files.iter().any(|file| file.path == CONFIG) {
        let about = RequestSubject {
            repo: &repo,
            revision: &info.commit,
            path: CONFIG,
        };
        let text = client.text(&about).await?.unwrap_or_default();
        convert::check_adapter_config(&text).map_err(|error| error::adapter(&repo, &error))?;
    }
    Ok((info, files))
}

/// Fetches what is missing, converts it for the base, which is there, and keeps that the name was pulled.
pub(in crate::library) async fn bring(
    library: &Library,
    config: &Arc<HubConfig>,
    name: &HfName,
    wanted: Vec<Wanted>,
    events: &Events,
) -> Result<(), HubError> {
    for adapter in &wanted {
        match adapter {
            Wanted::Here(adapter) => events.whole(&adapter.files).await?,
            Wanted::Fetch { name, info, files } => {
                download(library, config, info, files, name.revision.as_deref(), events).await?;
            }
        }
    }
    events.status("preparing adapters").await?;
    let model = library.find(config, name).await?;
    if let Err(error) = library.adapter_files(&model).await {
        let (library, config) = (library.clone(), Arc::clone(config));
        // What was fetched for nothing does not stay.
        blocking(move || library.drop_unused_adapters(&config, &model, false)).await?;
        return Err(error);
    }
    let (library, key) = (library.clone(), model.key());
    let note = Note {
        commit: model.commit,
        endpoint: config.endpoint.clone(),
        license: None,
    };
    blocking(move || library.0.ledger.pulled(&key, note)).await
}

/// What the Hub has instead of the adapters of a model.
pub(in crate::library) async fn update(
    library: &Library,
    config: &Arc<HubConfig>,
    model: &LocalModel,
) -> Result<Option<Update>, HubError> {
    let mut found: Option<Update> = None;
    for adapter in &model.adapters {
        let (info, files) = plan(library, Arc::clone(config), &adapter.name).await?;
        let here: Vec<Option<String>> = adapter.files.iter().map(|file| cache::blob_name(file)).collect();
        let new = files
            .iter()
            .filter(|file| !here.contains(&file.etag().map(str::to_owned)));
        let bytes = new.fold(0_u64, |sum, file| sum.saturating_add(file.size));
        if bytes > 0 {
            let before = found.map_or(0, |update| update.bytes);
            found = Some(Update {
                commit: info.commit,
                bytes: bytes.saturating_add(before),
            });
        }
    }
    Ok(found)
}
