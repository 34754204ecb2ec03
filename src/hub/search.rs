//! Looking for models on the Hub.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::timeout;

use super::{api::SearchFilter, client::HubClient, error::HubError, resolve, wire::license_in};

/// Listings that are asked for at once.
const PARALLEL: usize = 4;

/// Repositories that an error names as another way.
const ALTERNATIVES: usize = 3;
/// The longest that an error waits for them.
const ALTERNATIVES_PATIENCE: Duration = Duration::from_secs(2);

/// A repository with GGUF files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchHit {
    /// `ORG/REPO`.
    pub repository: String,
    /// Downloads in the last month.
    pub downloads: u64,
    /// As its card has it.
    pub license: Option<String>,
    /// Its terms have to be accepted first.
    pub gated: bool,
    /// What can be pulled: selector and bytes, the smallest first. Empty where the listing could not be had.
    pub models: Vec<(String, u64)>,
}

impl HubClient {
    /// Repositories that match some words, the most downloaded first, with what each holds.
    ///
    /// # Errors
    /// If the Hub cannot be asked.
    pub(crate) async fn search_models(&self, words: &str, limit: usize) -> Result<Vec<SearchHit>, HubError> {
        let found = self.search(SearchFilter::Words(words), limit).await?;
        let with_models = stream::iter(found).map(|repo| async move {
            // One listing that cannot be had does not spoil the others.
            let files = self.tree(&repo.id, "main").await.unwrap_or_default();
            let mut models: Vec<(String, u64)> = resolve::all(&files)
                .into_iter()
                .map(|model| {
                    let files = model.files.iter().chain(&model.mmproj);
                    let bytes = files.fold(0_u64, |sum, file| sum.saturating_add(file.size));
                    (model.label, bytes)
                })
                .collect();
            models.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
            SearchHit {
                license: license_in(repo.tags.as_deref().unwrap_or_default()),
                gated: repo.gated.is_some_and(|gated| gated != serde_json::Value::Bool(false)),
                repository: repo.id,
                downloads: repo.downloads.unwrap_or(0),
                models,
            }
        });
        Ok(with_models.buffered(PARALLEL).collect().await)
    }
}

/// Repositories with GGUF files that somebody made of a checkpoint, as their cards say, the most downloaded first; none where
/// the Hub does not say so soon.
pub(crate) async fn made_from(client: &HubClient, repo: &str) -> Vec<String> {
    let tag = format!("base_model:quantized:{repo}");
    let asked = client.search(SearchFilter::Tag(&tag), ALTERNATIVES);
    let Ok(Ok(found)) = timeout(ALTERNATIVES_PATIENCE, asked).await else {
        return Vec::new();
    };
    found.into_iter().map(|repo| repo.id).collect()
}
