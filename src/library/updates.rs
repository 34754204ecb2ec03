//! Newer commits of models on the Hub.
//!
//! [`Library::update`] asks the Hub about one model. [`Library::updates`] serves listings, which must not wait for the
//! Hub: it asks about each model at most once a day, keeps the answers in `STATE/hub-updates.json`, and gives up after
//! a short time.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::{
    Library, LocalModel, blocking,
    error::LibraryError,
    pull::{PullPlan, blob_hashes, plan_adapter},
};
use crate::{
    config::HubConfig,
    hub::{HfName, HubError, Selector, cache},
    stdx::fs::write_unsynced_atomic,
};

/// Seconds for which an answer is valid.
const VALID_SECONDS: u64 = 24 * 3600;
/// Seconds for which a model is not asked about again after the Hub did not answer.
const RETRY_SECONDS: u64 = 600;
/// Models that are asked about at once.
const PARALLEL: usize = 8;
/// Largest size of the file; ten thousand models fit.
const MAX_BYTES: u64 = 4 << 20;

/// Available update: the files that the Hub has instead of those in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AvailableUpdate {
    /// 40 hex digits.
    pub commit: String,
    /// Bytes of the new files.
    pub bytes: u64,
}

/// Answers of the Hub by the canonical name of the model.
type KnownAnswers = BTreeMap<String, UpdateCheck>;

/// Update check: one question to the Hub about one model, and the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct UpdateCheck {
    /// Seconds since 1970.
    at: u64,
    /// The commit that was in the cache.
    commit: String,
    #[serde(rename = "found")]
    state: UpdateState,
}

/// Update state: the answer of the Hub about one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UpdateState {
    #[serde(rename = "nothing")]
    UpToDate,
    Newer {
        commit: String,
        bytes: u64,
    },
    NoAnswer,
}

impl UpdateCheck {
    fn is_valid_for(&self, model: &LocalModel, now: u64) -> bool {
        let seconds = match self.state {
            UpdateState::NoAnswer => RETRY_SECONDS,
            UpdateState::UpToDate | UpdateState::Newer { .. } => VALID_SECONDS,
        };
        // After a clock was set back, answers from the future would stay valid for too long.
        self.commit == model.base.commit && self.at <= now && now - self.at < seconds
    }

    fn update(&self) -> Option<AvailableUpdate> {
        match &self.state {
            UpdateState::Newer { commit, bytes } => Some(AvailableUpdate {
                commit: commit.clone(),
                bytes: *bytes,
            }),
            UpdateState::UpToDate | UpdateState::NoAnswer => None,
        }
    }
}

impl Library {
    /// Asks the Hub for newer files of a model; downloads nothing.
    ///
    /// # Errors
    /// If the model is not on disk, or the Hub cannot be asked.
    pub async fn update(&self, config: &HubConfig, name: &HfName) -> Result<Option<AvailableUpdate>, LibraryError> {
        let model = self.locate(config, name).await?;
        let of_base = self.base_update(config, name, &model).await?;
        if model.adapters.is_empty() {
            return Ok(of_base);
        }
        let of_adapters = adapter_update(self, &Arc::new(config.clone()), &model).await?;
        Ok(match (of_base, of_adapters) {
            (Some(base), Some(adapters)) => Some(AvailableUpdate {
                bytes: base.bytes.saturating_add(adapters.bytes),
                ..base
            }),
            (base, adapters) => base.or(adapters),
        })
    }

    /// Asks the Hub for newer files of a model without its adapters.
    async fn base_update(
        &self,
        config: &HubConfig,
        name: &HfName,
        model: &LocalModel,
    ) -> Result<Option<AvailableUpdate>, LibraryError> {
        // A commit never changes.
        if name.revision.as_deref().is_some_and(cache::is_commit) {
            return Ok(None);
        }
        if config.offline {
            return Err(HubError::SwitchedOff.into());
        }
        let config = Arc::new(config.clone());
        // The commit is a cheap question, and most models have no new one.
        let revision = name.revision.as_deref().unwrap_or("main");
        let info = self
            .client(Arc::clone(&config))?
            .info(&name.repo_id(), revision)
            .await?;
        if info.commit == model.base.commit {
            return Ok(None);
        }
        // The selector is made explicit: a better quantization that appeared since is not an update of this one.
        let name = HfName {
            selector: Selector::parse(&model.base.label).ok().flatten(),
            adapters: Vec::new(),
            ..name.clone()
        };
        let plan = PullPlan::new(self, config, &name).await?;
        // A commit that only changes a README has the same files.
        let here = blob_hashes(model).await?;
        let new = plan
            .files
            .iter()
            .filter(|file| !here.contains(&file.etag().map(str::to_owned)));
        let bytes = new.fold(0_u64, |sum, file| sum.saturating_add(file.size));
        Ok((bytes > 0).then_some(AvailableUpdate {
            commit: plan.info.commit,
            bytes,
        }))
    }

    /// Returns the updates of several models, in their order, as far as they are known or the Hub answers within
    /// `patience`. Downloads nothing, and asks nothing if the Hub is switched off.
    pub async fn updates(
        &self,
        config: &HubConfig,
        models: &[LocalModel],
        state_dir: &Path,
        patience: Duration,
    ) -> Vec<Option<AvailableUpdate>> {
        if config.offline {
            return vec![None; models.len()];
        }
        let path = state_dir.join("hub-updates.json");
        let file = path.clone();
        let mut known = blocking(move || Ok(read(&file))).await.unwrap_or_default();
        let now = unix_seconds();
        let without_retries = HubConfig {
            retry_attempts: 0,
            ..config.clone()
        };
        let deadline = Instant::now() + patience;
        let stale = models.iter().filter(|model| {
            !known
                .get(&model.canonical)
                .is_some_and(|check| check.is_valid_for(model, now))
        });
        let config = &without_retries;
        let checks = stale.map(|model| async move {
            let check = UpdateCheck {
                at: now,
                commit: model.base.commit.clone(),
                state: self.update_state(config, model, deadline).await,
            };
            (model.canonical.clone(), check)
        });
        let checks: Vec<(String, UpdateCheck)> = stream::iter(checks).buffer_unordered(PARALLEL).collect().await;
        if !checks.is_empty() {
            known.extend(checks);
            known.retain(|_, check| check.at <= now && now - check.at < VALID_SECONDS);
            let answers = known.clone();
            let write = move || {
                let json = serde_json::to_vec(&answers).map_err(std::io::Error::from);
                let written = json.and_then(|json| write_unsynced_atomic(&path, &json));
                Ok(written.map_err(|error| HubError::io("write", &path, &error))?)
            };
            // The command line may run as a user who cannot write there. The Hub is asked again next time, then.
            if let Err(error) = blocking(write).await {
                tracing::debug!(%error, "the answers about updates are not kept");
            }
        }
        models
            .iter()
            .map(|model| {
                known
                    .get(&model.canonical)
                    .filter(|check| check.commit == model.base.commit)?
                    .update()
            })
            .collect()
    }

    async fn update_state(&self, config: &HubConfig, model: &LocalModel, deadline: Instant) -> UpdateState {
        let Ok(name) = HfName::parse(&model.canonical) else {
            return UpdateState::NoAnswer;
        };
        match timeout_at(deadline, self.update(config, &name)).await {
            Ok(Ok(None)) => UpdateState::UpToDate,
            Ok(Ok(Some(AvailableUpdate { commit, bytes }))) => UpdateState::Newer { commit, bytes },
            Ok(Err(_)) | Err(_) => UpdateState::NoAnswer,
        }
    }
}

/// Asks the Hub for newer files of a model's adapters.
///
/// # Errors
/// If the Hub cannot be asked, or an adapter can no longer be applied.
async fn adapter_update(
    library: &Library,
    config: &Arc<HubConfig>,
    model: &LocalModel,
) -> Result<Option<AvailableUpdate>, LibraryError> {
    let mut found: Option<AvailableUpdate> = None;
    for adapter in &model.adapters {
        let (info, files) = plan_adapter(library, Arc::clone(config), &adapter.name).await?;
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

fn read(path: &Path) -> KnownAnswers {
    let is_short = fs::metadata(path).is_ok_and(|meta| meta.len() <= MAX_BYTES);
    let text = fs::read(path).ok().filter(|_| is_short);
    text.and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
