//! Who answers for a model name.
//!
//! A [`Provider`] serves neutral requests; a plain name that Ollama answers is not put through one: its bytes are
//! forwarded as they are. (Unless `ollama.v1_via_native` is on, and a request asks for what Ollama would leave out.)

mod aliases;
mod huggingface;
pub mod ollama;
pub mod registry;

pub use aliases::{AliasError, AliasSettings, AliasStore, ModelAlias, PlainName, SettingsLayer};
pub use huggingface::{HuggingFace, facts};
pub use ollama::{NativeProvider, Ollama, UpstreamError};
pub use registry::{NameOrigin, NameOwner, Registry, prefers_ollama};

use std::{fmt, pin::Pin, sync::Arc, time::Instant};

use futures_util::{Stream, future::BoxFuture};

use crate::{
    config::Config,
    inference::{
        EmbedRequest, EmbeddingResult, Event, Failure, InferenceRequest, KeepAlive, LoadOptions, Message, ModelCard,
        ModelDetails, PullEvent, ResidentModel, TextToken,
    },
};

/// Events of one answer, in order. Dropping the stream cancels the work within one decode step. The stream owns the
/// lease that keeps the model resident.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Failure>> + Send>>;

/// Progress of one pull. Dropping it leaves the partial files in place, for the next pull to resume.
pub type PullStream = Pin<Box<dyn Stream<Item = Result<PullEvent, Failure>> + Send>>;

/// What every call to a provider carries.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// The one snapshot that this request sees from start to end.
    pub config: Arc<Config>,
    /// When the request arrived.
    pub arrived: Instant,
}

/// A text to cut into tokens.
#[derive(Clone, Debug)]
pub struct TokenizeRequest {
    /// The text.
    pub text: String,
    /// Add the tokens that the model wants around every text (as BOS).
    pub add_special: bool,
    /// Read the text of control tokens as those tokens.
    pub parse_special: bool,
}

/// What a client put before every conversation with a model of its own making.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConversationPreset<'a> {
    /// System prompt; empty if there is none.
    pub system: &'a str,
    /// Turns that come before the request's.
    pub messages: &'a [Message],
}

/// Serves models by name. Names are passed as the client wrote them, blanks trimmed.
pub trait Provider: fmt::Debug + Send + Sync {
    /// Every model that this provider lists.
    fn list<'a>(&'a self, call: &'a CallContext) -> BoxFuture<'a, Vec<ModelCard>>;

    /// Every model that is in memory.
    fn resident<'a>(&'a self, call: &'a CallContext) -> BoxFuture<'a, Vec<ResidentModel>>;

    /// The card of one model that is on disk (or named in the configuration).
    fn card<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<ModelCard, Failure>>;

    /// The same for a request that is about to be made: nothing is waited for that the answer itself can tell of.
    fn card_now<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<ModelCard, Failure>> {
        self.card(call, name)
    }

    /// Everything that is known of one model.
    fn show<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        verbose: bool,
    ) -> BoxFuture<'a, Result<ModelDetails, Failure>>;

    /// Makes a model resident.
    fn load<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        options: LoadOptions,
        keep_alive: Option<KeepAlive>,
    ) -> BoxFuture<'a, Result<(), Failure>>;

    /// Unloads a model as soon as it is idle; fine if it is not resident.
    fn unload<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<(), Failure>>;

    /// Parts of a request that [`Self::infer`] has no way to honour, by the names that they have on the wires. A dialect
    /// tells them to the client.
    fn unsupported_parameters(&self, request: &InferenceRequest) -> Vec<&'static str> {
        let _ = request;
        Vec::new()
    }

    /// Starts an answer. Resolves when its first event is there, so that everything that can fail before it is still a status.
    fn infer<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        request: InferenceRequest,
    ) -> BoxFuture<'a, Result<EventStream, Failure>>;

    /// Turns texts into vectors.
    fn embed<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        request: EmbedRequest,
    ) -> BoxFuture<'a, Result<EmbeddingResult, Failure>>;

    /// The prompt that [`Self::infer`] would give the model, as text; needs no weights.
    fn render<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        request: InferenceRequest,
    ) -> BoxFuture<'a, Result<String, Failure>>;

    /// The tokens of a text.
    fn tokenize<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        request: TokenizeRequest,
    ) -> BoxFuture<'a, Result<Vec<TextToken>, Failure>>;

    /// The text of token ids; ids that the vocabulary does not have are [`Failure::Invalid`].
    fn detokenize<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        tokens: Vec<i32>,
    ) -> BoxFuture<'a, Result<String, Failure>>;

    /// Downloads a model.
    fn pull<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<PullStream, Failure>>;

    /// What stands before every conversation with this provider's model; [`Self::infer`] puts it there by itself. Only a
    /// provider of one model has any.
    fn preset(&self) -> Option<ConversationPreset<'_>> {
        None
    }

    /// Removes a model from disk, or from the listing where its files are not ours.
    fn delete<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<(), Failure>>;

    /// Removes a model from disk, whoever put it there.
    fn delete_files<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        self.delete(call, name)
    }
}
