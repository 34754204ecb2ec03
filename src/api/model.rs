//! What is known of a model before it is asked, and the checks that need only that.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture};
use serde_json::value::RawValue;

use super::{dispatch::RoutedModel, error::ApiError, stream::Steps};
use crate::{
    config::UnsupportedTools,
    go::quote,
    inference::{Failure, InferenceRequest, ModelCapability, ThinkMode},
    provider::{CallContext, Provider},
};

/// A model that one of our providers serves.
#[derive(Debug)]
pub(crate) struct Model {
    /// Who serves it.
    pub(crate) provider: Arc<dyn Provider>,
    /// What the provider calls it.
    pub(crate) name: String,
    /// What the client calls it; echoed as it is.
    pub(crate) requested: String,
    /// The canonical name, as listed.
    canonical: String,
    /// What it can do; `None` as long as its files are not there to tell.
    capabilities: Option<Vec<ModelCapability>>,
}

/// Tools after the check, with whether some were left out.
#[derive(Debug, Default)]
pub(crate) struct CheckedTools {
    /// What the model is shown.
    pub(crate) tools: Vec<Box<RawValue>>,
    /// Whether the client's tools were left out.
    pub(crate) ignored: bool,
}

/// Reasoning after the check, with whether the wish for it was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckedThink {
    /// What the model is told.
    pub(crate) think: ThinkMode,
    /// Whether the client's wish was left out.
    pub(crate) ignored: bool,
}

impl Model {
    /// Asks the provider for the model's card.
    pub(crate) async fn find(call: &CallContext, routed: RoutedModel, requested: String) -> Result<Self, ApiError> {
        let RoutedModel { provider, name, .. } = routed;
        let (canonical, capabilities) = match provider.card_now(call, &name).await {
            Ok(card) => (card.name, Some(card.facts.capabilities).filter(|list| !list.is_empty())),
            // It is pulled on first use; until then nothing is known of it.
            Err(Failure::NotFound(_)) if call.config.hub.auto_pull => (name.clone(), None),
            Err(failure) => return Err(failure_of(failure, &requested)),
        };
        Ok(Self {
            provider,
            name,
            requested,
            canonical,
            capabilities,
        })
    }

    /// An error of the provider, in terms of the name that the client used.
    pub(crate) fn failure(&self, failure: Failure) -> ApiError {
        failure_of(failure, &self.requested)
    }

    /// Adds what the provider has no way to honour to what has no effect in any case.
    pub(crate) fn note_dropped(&self, request: &InferenceRequest, ignored: &mut Vec<&'static str>) {
        for part in self.provider.drops(request) {
            if !ignored.contains(&part) {
                ignored.push(part);
            }
        }
    }

    /// Starts an answer; resolves when its first event is there. The future owns all that it needs: it may go on inside a
    /// response body.
    pub(crate) fn start(
        &self,
        call: &CallContext,
        request: InferenceRequest,
    ) -> BoxFuture<'static, Result<Steps, ApiError>> {
        let (provider, call) = (Arc::clone(&self.provider), call.clone());
        let (name, requested) = (self.name.clone(), self.requested.clone());
        async move {
            match provider.infer(&call, &name, request).await {
                Ok(events) => Ok(events.map_err(ApiError::from).boxed()),
                Err(failure) => Err(failure_of(failure, &requested)),
            }
        }
        .boxed()
    }

    /// Refuses a model that does not hear.
    pub(crate) fn require_audio(&self) -> Result<(), ApiError> {
        if self.lacks(ModelCapability::Audio) {
            return Err(ApiError::bad_request(format!(
                "{} does not support audio input: it cannot transcribe",
                self.canonical
            )));
        }
        Ok(())
    }

    /// Refuses a model that only makes vectors.
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

    /// Refuses a model that cannot fill in the middle.
    pub(crate) fn require_insert(&self) -> Result<(), ApiError> {
        if self.lacks(ModelCapability::Insert) {
            return Err(ApiError::bad_request(format!(
                "{} does not support insert",
                self.canonical
            )));
        }
        Ok(())
    }

    /// Whether the model is to reason: a model that can does so unless told otherwise.
    pub(crate) fn think(&self, asked: ThinkMode) -> Result<ThinkMode, ApiError> {
        match asked {
            ThinkMode::On | ThinkMode::Level(_) if self.lacks(ModelCapability::Thinking) => Err(ApiError::bad_request(
                format!("{} does not support thinking", quote(&self.requested)),
            )),
            ThinkMode::Unset if self.has(ModelCapability::Thinking) => Ok(ThinkMode::On),
            other => Ok(other),
        }
    }

    /// The same for a wire on which a model that cannot reason simply does not.
    pub(crate) fn think_if_able(&self, asked: ThinkMode) -> CheckedThink {
        match self.think(asked) {
            Ok(think) => CheckedThink { think, ignored: false },
            Err(_) => CheckedThink {
                think: ThinkMode::Unset,
                ignored: true,
            },
        }
    }

    /// Tools that the model is to see. `required` says that an answer without a call would be wrong.
    pub(crate) fn tools(
        &self,
        call: &CallContext,
        tools: Vec<Box<RawValue>>,
        required: bool,
    ) -> Result<CheckedTools, ApiError> {
        let policy = call.config.engine.unsupported_tools;
        if tools.is_empty() || !self.lacks(ModelCapability::Tools) || policy == UnsupportedTools::Prompt {
            return Ok(CheckedTools { tools, ignored: false });
        }
        if required || policy == UnsupportedTools::Refuse {
            return Err(ApiError::bad_request(format!(
                "{} does not support tools",
                self.canonical
            )));
        }
        tracing::warn!(model.name = %self.canonical, tools = tools.len(), "the model knows no tools: leaving them out");
        Ok(CheckedTools {
            tools: Vec::new(),
            ignored: true,
        })
    }

    fn has(&self, capability: ModelCapability) -> bool {
        self.capabilities
            .as_ref()
            .is_some_and(|list| list.contains(&capability))
    }

    fn lacks(&self, capability: ModelCapability) -> bool {
        self.capabilities
            .as_ref()
            .is_some_and(|list| !list.contains(&capability))
    }
}

/// An error in terms of the name that the client used: an alias must not be answered with what it stands for.
pub(crate) fn failure_of(failure: Failure, requested: &str) -> ApiError {
    match failure {
        Failure::NotFound(_) => ApiError::model_not_found(requested),
        other => other.into(),
    }
}
