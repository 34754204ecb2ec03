//! The provider of hf: names. It joins the library (files on disk), lifecycle (leases on resident workers) and the
//! protocol of the workers.
//!
//! A request for an answer takes this way: [`HuggingFace::find`] locates the model, [`served`] checks the request,
//! [`answer`] acquires a lease, [`prepare`] renders the conversation in a helper process and chooses how the answer is
//! constrained and read, and the stream of the job goes back with the lease inside.

mod acquire;
mod answer;
mod answer_after_pull;
pub mod facts;
mod headers;
mod located;
mod prepare;
mod render_job;
mod served;
mod settings;
mod shorten;
mod taught_tools;
mod vectors;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;

pub(super) use self::shorten::drop_oldest_turns;
use self::{
    headers::HeaderCache,
    located::{LocatedModel, not_downloaded_card},
    served::HubModel,
    settings::RequestSettings,
};
use super::{CallContext, DeleteScope, ModelStore, Provider, PullStream, RunnableModel};
use crate::{
    hub::{HfName, HubError},
    inference::{Failure, LoadOptions, ModelCard, ModelDetails, ResidentModel},
    library::{Library, LibraryError, LocalModel},
    lifecycle::{Lifecycle, TemplateHelper},
};

/// The provider of hf: names.
#[derive(Debug)]
pub struct HuggingFace {
    library: Library,
    lifecycle: Lifecycle,
    helper: TemplateHelper,
    headers: HeaderCache,
}

impl HuggingFace {
    /// Creates the provider over its parts.
    #[must_use]
    pub fn new(library: Library, lifecycle: Lifecycle, helper: TemplateHelper) -> Self {
        Self {
            library,
            lifecycle,
            helper,
            headers: HeaderCache::default(),
        }
    }

    /// Finds a model on disk. Downloads it first if the configuration names it or lets any name be pulled.
    async fn locate(&self, call: &CallContext, name: &str) -> Result<LocatedModel, Failure> {
        let parsed = HfName::parse(name).map_err(HubError::from)?;
        let local = match self.locate_on_disk(call, &parsed).await {
            Err(error) if error.is_not_cached() && settings::pulls_on_use(&call.config, &parsed) => {
                tracing::info!(model.name = name, "pulling a model on its first use");
                let mut progress = self.library.pull(&call.config.hub, &parsed);
                // Only a failure matters here: the client waits for an answer and sees no progress.
                while let Some(event) = progress.next().await {
                    event?;
                }
                self.locate_on_disk(call, &parsed).await?
            }
            Err(error) if error.is_not_cached() => return Err(Failure::NotFound(name.to_owned())),
            other => other?,
        };
        let header = self.headers.get(&local).await?;
        Ok(LocatedModel { local, header })
    }

    async fn locate_on_disk(&self, call: &CallContext, name: &HfName) -> Result<LocalModel, LibraryError> {
        self.library.locate(&call.config.hub, name).await
    }

    /// Returns true if the first use of a name will download it and the progress is to be part of the answer.
    async fn shows_progress_of_pull(&self, call: &CallContext, name: &HfName) -> bool {
        call.config.hub.progress_in_thinking
            && settings::pulls_on_use(&call.config, name)
            && self
                .locate_on_disk(call, name)
                .await
                .is_err_and(|error| error.is_not_cached())
    }

    async fn settings(&self, call: &CallContext, model: &LocatedModel, load: &LoadOptions) -> RequestSettings {
        RequestSettings::of(&self.library, &call.config, &model.local, load).await
    }

    /// Unloads the model of a name as soon as it is idle.
    async fn unload_by_name(&self, call: &CallContext, name: &str, parsed: &HfName) -> Result<(), Failure> {
        match self.locate_on_disk(call, parsed).await {
            Ok(local) => {
                self.unload(&local).await;
                Ok(())
            }
            Err(error) if error.is_not_cached() => Err(Failure::NotFound(name.to_owned())),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl ModelStore for HuggingFace {
    async fn list(&self, call: &CallContext) -> Vec<ModelCard> {
        let mut cards = Vec::new();
        let mut missing = settings::named_models(&call.config);
        for local in self.library.list(&call.config.hub).await {
            // A file that cannot be read as a model is not listed. The header cache logs the reason once.
            let Ok(header) = self.headers.get(&local).await else {
                continue;
            };
            let mut still_missing = Vec::new();
            for name in missing {
                let is_here = match HfName::parse(&name) {
                    Ok(parsed) => self.library.means(&call.config.hub, &parsed, &local).await,
                    Err(_) => false,
                };
                still_missing.extend((!is_here).then_some(name));
            }
            missing = still_missing;
            cards.push(LocatedModel { local, header }.card());
        }
        cards.extend(missing.iter().map(|name| not_downloaded_card(name)));
        cards
    }

    async fn card(&self, call: &CallContext, name: &str) -> Result<ModelCard, Failure> {
        Ok(self.locate(call, name).await?.card())
    }

    async fn show(&self, call: &CallContext, name: &str, verbose: bool) -> Result<ModelDetails, Failure> {
        let located = self.locate(call, name).await?;
        let settings = self.settings(call, &located, &LoadOptions::default()).await;
        let details = headers::read_details(&located.local, verbose).await?;
        let provenance = self.library.provenance(&located.local).await;
        let has_template = !located.header.template.is_empty();
        let mut model_info = details.model_info;
        model_info.extend(provenance.keys(if has_template { "gguf" } else { "none" }));
        let license = if details.license.is_empty() {
            provenance.license.unwrap_or_default()
        } else {
            details.license
        };
        Ok(ModelDetails {
            from: located.local.canonical.clone(),
            messages: Vec::new(),
            template: located.header.template.clone(),
            license,
            system: settings.system.clone().unwrap_or_default(),
            parameters: settings.parameters(),
            model_info,
            projector_info: details.projector_info,
            tensors: details.tensors,
            card: located.card(),
        })
    }

    async fn pull(&self, call: &CallContext, name: &str) -> Result<PullStream, Failure> {
        let parsed = HfName::parse(name).map_err(HubError::from)?;
        let progress = self.library.pull(&call.config.hub, &parsed);
        Ok(progress.map(|event| event.map_err(Failure::from)).boxed())
    }

    async fn delete(&self, call: &CallContext, name: &str, scope: DeleteScope) -> Result<(), Failure> {
        let parsed = HfName::parse(name).map_err(HubError::from)?;
        // Before the files go: afterwards the name leads nowhere, and the model could not be unloaded.
        let unloaded = self.unload_by_name(call, name, &parsed).await;
        match scope {
            DeleteScope::OwnFiles => {
                unloaded?;
                self.library.delete(&call.config.hub, &parsed).await?;
            }
            DeleteScope::AllFiles => {
                // A model that is no longer listed may still have files.
                if let Err(failure) = unloaded
                    && !matches!(failure, Failure::NotFound(_))
                {
                    return Err(failure);
                }
                self.library.delete_files(&call.config.hub, &parsed).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Provider for HuggingFace {
    async fn resident(&self, _: &CallContext) -> Vec<ResidentModel> {
        self.lifecycle.residents().await
    }

    async fn find(self: Arc<Self>, call: &CallContext, name: &str) -> Result<Arc<dyn RunnableModel>, Failure> {
        let model = match HfName::parse(name) {
            Ok(parsed) if self.shows_progress_of_pull(call, &parsed).await => {
                HubModel::not_downloaded(self, call, name, parsed)
            }
            _ => {
                let located = self.locate(call, name).await?;
                HubModel::on_disk(self, call, located)
            }
        };
        Ok(Arc::new(model))
    }
}
