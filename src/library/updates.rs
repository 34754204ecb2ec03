//! Which models the Hub has in a newer commit, asked so seldom and so shortly that a list can say it: what was found is kept in
//! `STATE/hub-updates.json`, and who does not answer soon is not waited for.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::{Library, LocalModel, Update};
use crate::{
    config::HubConfig,
    hub::{HfName, HubError, tasks::blocking},
    stdx::fs::write_unsynced_atomic,
};

/// How long an answer holds.
const FRESH: u64 = 24 * 3600;
/// How long nobody is asked again after the Hub did not answer.
const PAUSE: u64 = 600;
/// Models that are asked about at once.
const PARALLEL: usize = 8;
/// Bytes of the file; ten thousand models fit.
const MAX_BYTES: u64 = 4 << 20;

/// What is known, by canonical name.
type Known = BTreeMap<String, Look>;

/// One look at the Hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Look {
    /// Seconds since 1970.
    at: u64,
    /// The commit that was here.
    commit: String,
    found: Found,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Nothing,
    Newer { commit: String, bytes: u64 },
    NoAnswer,
}

impl Look {
    fn holds(&self, model: &LocalModel, now: u64) -> bool {
        let age = match self.found {
            Found::NoAnswer => PAUSE,
            Found::Nothing | Found::Newer { .. } => FRESH,
        };
        // A clock that was set back makes old looks young.
        self.commit == model.commit && self.at <= now && now - self.at < age
    }

    fn update(&self) -> Option<Update> {
        match &self.found {
            Found::Newer { commit, bytes } => Some(Update {
                commit: commit.clone(),
                bytes: *bytes,
            }),
            Found::Nothing | Found::NoAnswer => None,
        }
    }
}

impl Library {
    /// What the Hub has instead of cached models, in their order, as far as that is known within `patience`. Downloads
    /// nothing, and asks nobody where the Hub is switched off.
    pub async fn updates(
        &self,
        config: &HubConfig,
        models: &[LocalModel],
        state_dir: &Path,
        patience: Duration,
    ) -> Vec<Option<Update>> {
        if config.offline {
            return vec![None; models.len()];
        }
        let path = state_dir.join("hub-updates.json");
        let file = path.clone();
        let mut known = blocking(move || Ok(read(&file))).await.unwrap_or_default();
        let now = seconds();
        let hasty = HubConfig {
            retry_attempts: 0,
            ..config.clone()
        };
        let until = Instant::now() + patience;
        let stale = models
            .iter()
            .filter(|model| !known.get(&model.canonical).is_some_and(|look| look.holds(model, now)));
        let hasty = &hasty;
        let looks = stale.map(|model| async move {
            let found = match HfName::parse(&model.canonical) {
                Ok(name) => match timeout_at(until, self.update(hasty, &name)).await {
                    Ok(Ok(None)) => Found::Nothing,
                    Ok(Ok(Some(Update { commit, bytes }))) => Found::Newer { commit, bytes },
                    Ok(Err(_)) | Err(_) => Found::NoAnswer,
                },
                Err(_) => Found::NoAnswer,
            };
            let look = Look {
                at: now,
                commit: model.commit.clone(),
                found,
            };
            (model.canonical.clone(), look)
        });
        let looks: Vec<(String, Look)> = stream::iter(looks).buffer_unordered(PARALLEL).collect().await;
        if !looks.is_empty() {
            known.extend(looks);
            known.retain(|_, look| look.at <= now && now - look.at < FRESH);
            let kept = known.clone();
            let write = move || {
                let json = serde_json::to_vec(&kept).map_err(std::io::Error::from);
                let written = json.and_then(|json| write_unsynced_atomic(&path, &json));
                written.map_err(|error| HubError::io("write", &path, &error))
            };
            // Whoever may not write there asks again next time.
            if let Err(error) = blocking(write).await {
                tracing::debug!(%error, "what was found of updates is not kept");
            }
        }
        models
            .iter()
            .map(|model| {
                known
                    .get(&model.canonical)
                    .filter(|look| look.commit == model.commit)?
                    .update()
            })
            .collect()
    }
}

fn read(path: &Path) -> Known {
    let is_short = fs::metadata(path).is_ok_and(|meta| meta.len() <= MAX_BYTES);
    let text = fs::read(path).ok().filter(|_| is_short);
    text.and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
