//! Search for models on the Hub.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::timeout;

use super::{api::SearchFilter, client::HubClient, error::HubError, resolve, wire::license_in};

/// Listings that are requested at once.
const PARALLEL: usize = 4;

/// Number of alternatives that an error names.
const ALTERNATIVES: usize = 3;
/// Upper limit of the time by which the search for alternatives delays an error.
const ALTERNATIVES_PATIENCE: Duration = Duration::from_secs(2);

/// Repository with GGUF files, as found by a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchHit {
    /// `ORG/REPO`.
    pub repository: String,
    /// Downloads in the last month.
    pub downloads: u64,
    /// License as named on the model card.
    pub license: Option<String>,
    /// True when its terms have to be accepted before a download.
    pub gated: bool,
    /// Models that can be pulled: selector and bytes, the smallest first. Empty if the files could not be listed.
    pub models: Vec<(String, u64)>,
}

impl HubClient {
    /// Finds repositories that match some words, the most downloaded first, and lists the models of each.
    ///
    /// # Errors
    /// If no endpoint answers the search.
    pub(crate) async fn search_models(&self, words: &str, limit: usize) -> Result<Vec<SearchHit>, HubError> {
        let found = self.search(SearchFilter::Words(words), limit).await?;
        let with_models = stream::iter(found).map(|repo| async move {
            // A repository whose files cannot be listed is shown without models.
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

/// Finds repositories with GGUF files that were made from a checkpoint, according to their model cards, the most
/// downloaded first. Returns none if the Hub does not answer soon: an error waits for this.
pub(crate) async fn made_from(client: &HubClient, repo: &str) -> Vec<String> {
    let tag = format!("base_model:quantized:{repo}");
    let asked = client.search(SearchFilter::Tag(&tag), ALTERNATIVES);
    let Ok(Ok(found)) = timeout(ALTERNATIVES_PATIENCE, asked).await else {
        return Vec::new();
    };
    found.into_iter().map(|repo| repo.id).collect()
}
