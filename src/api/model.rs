//! Model that a request has named: its card, and the checks that need no more than that.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture};

use super::{error::ApiError, routed::RoutedModel, stream::StepStream};
use crate::{
    go::quote,
    inference::{Failure, InferenceRequest, ModelCapability, ThinkMode},
    provider::{CallContext, RunnableModel},
};

/// Model of a provider, as far as it is known before it is loaded.
#[derive(Debug)]
pub(crate) struct ServedModel {
    /// Model as its provider found it.
    pub(crate) inner: Arc<dyn RunnableModel>,
    /// Name as the client sent it, which answers repeat.
    pub(crate) requested: String,
    canonical: String,
    /// Capabilities; `None` if they are unknown, since its files are not downloaded.
    capabilities: Option<Vec<ModelCapability>>,
}

/// Reasoning after the check of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckedThink {
    pub(crate) think: ThinkMode,
    /// True when the client asked for reasoning that the model lacks.
    pub(crate) ignored: bool,
}

impl ServedModel {
    /// Finds the model at its provider.
    pub(crate) async fn find(call: &CallContext, routed: RoutedModel, requested: String) -> Result<Self, ApiError> {
        let RoutedModel { provider, name, .. } = routed;
        let inner = provider
            .find(call, &name)
            .await
            .map_err(|failure| failure_of(failure, &requested))?;
        let card = inner.card();
        let canonical = card.name.clone();
        // The card of a model that is not downloaded has no capabilities. They are unknown then: `has` and `lacks` both
        // return false, and no check refuses the model.
        let capabilities = Some(card.facts.capabilities.clone()).filter(|list| !list.is_empty());
        Ok(Self {
            inner,
            requested,
            canonical,
            capabilities,
        })
    }

    /// Converts a failure of the provider, with the name that the client used.
    pub(crate) fn failure(&self, failure: Failure) -> ApiError {
        failure_of(failure, &self.requested)
    }

    /// Adds to `ignored` the parameters of the request that the provider cannot honor.
    pub(crate) fn note_unsupported(&self, request: &InferenceRequest, ignored: &mut Vec<&'static str>) {
        for parameter in self.inner.unsupported_parameters(request) {
            if !ignored.contains(&parameter) {
                ignored.push(parameter);
            }
        }
    }

    /// Starts an answer. The future resolves at its first event, and owns all that it needs: it may outlive the handler
    /// inside a response body.
    pub(crate) fn start(&self, request: InferenceRequest) -> BoxFuture<'static, Result<StepStream, ApiError>> {
        // Cloned because the future may outlive this model, which belongs to the handler.
        let (inner, requested) = (Arc::clone(&self.inner), self.requested.clone());
        async move {
            match inner.infer(request).await {
                Ok(events) => Ok(events.map_err(ApiError::from).boxed()),
                Err(failure) => Err(failure_of(failure, &requested)),
            }
        }
        .boxed()
    }

    /// Fails for a model without audio input.
    pub(crate) fn require_audio(&self) -> Result<(), ApiError> {
        if self.lacks(ModelCapability::Audio) {
            return Err(ApiError::bad_request(format!(
                "{} does not support audio input: it cannot transcribe",
                self.canonical
            )));
        }
        Ok(())
    }

    /// Fails for a model that only computes embeddings.
    pub(crate) fn require_text(&self, route: &str) -> Result<(), ApiError> {
        let only_vectors = self.has(ModelCapability::Embedding) && !self.has(ModelCapability::Completion);
        if only_vectors {
            return Err(ApiError::bad_request(format!(
                "{} does not support {route}",
                quote(&self.requested)
            )));
        }
        Ok(())
    }

    /// Fails for a model without fill in the middle.
    pub(crate) fn require_insert(&self) -> Result<(), ApiError> {
        // Ollama prints the canonical name without quotes here, but the requested one in quotes for text and thinking.
        if self.lacks(ModelCapability::Insert) {
            return Err(ApiError::bad_request(format!(
                "{} does not support insert",
                self.canonical
            )));
        }
        Ok(())
    }

    /// Returns the reasoning to ask the model for. A model that can reason does so unless told otherwise, as in Ollama.
    ///
    /// # Errors
    /// Returns Ollama's error if reasoning is asked of a model that lacks it.
    pub(crate) fn think(&self, asked: ThinkMode) -> Result<ThinkMode, ApiError> {
        match asked {
            ThinkMode::On | ThinkMode::Level(_) if self.lacks(ModelCapability::Thinking) => Err(ApiError::bad_request(
                format!("{} does not support thinking", quote(&self.requested)),
            )),
            // Ollama turns thinking on for every model that can, unless the request says otherwise.
            ThinkMode::Unset if self.has(ModelCapability::Thinking) => Ok(ThinkMode::On),
            other => Ok(other),
        }
    }

    /// Returns the reasoning to ask the model for, on a wire where a model that lacks it is no error.
    pub(crate) fn think_if_able(&self, asked: ThinkMode) -> CheckedThink {
        match self.think(asked) {
            Ok(think) => CheckedThink { think, ignored: false },
            Err(_) => CheckedThink {
                think: ThinkMode::Unset,
                ignored: true,
            },
        }
    }

    pub(crate) fn canonical(&self) -> &str {
        &self.canonical
    }

    fn has(&self, capability: ModelCapability) -> bool {
        self.capabilities
            .as_ref()
            .is_some_and(|list| list.contains(&capability))
    }

    /// Returns true if the model is known not to have a capability.
    pub(crate) fn lacks(&self, capability: ModelCapability) -> bool {
        self.capabilities
            .as_ref()
            .is_some_and(|list| !list.contains(&capability))
    }
}

/// Converts a failure, with the name that the client used: the error for an alias must not name its target.
pub(crate) fn failure_of(failure: Failure, requested: &str) -> ApiError {
    match failure {
        Failure::NotFound(_) => ApiError::model_not_found(requested),
        other => other.into(),
    }
}
