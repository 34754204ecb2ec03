//! Providers: they list, download and run models, each for the names that it owns.
//!
//! The [`Registry`] decides which provider owns a name. A dialect asks that [`Provider`] for the model once per request
//! and then works with the [`RunnableModel`] that it was given, so that a name is resolved once. A [`ModelStore`] is
//! the other half of a provider: the files behind the names.
//!
//! [`HuggingFace`] serves hf: names, `AliasedProvider` the plain names that clients made of them. A plain name of
//! Ollama does not pass through a provider: its bytes are forwarded. Only with `ollama.v1_via_native` a request that
//! asks for more than Ollama's `/v1` routes can do is served by [`NativeProvider`].

mod aliases;
mod huggingface;
pub mod ollama;
pub mod registry;

pub use aliases::{AliasError, AliasSettings, AliasStore, ModelAlias, PlainName, SettingsLayer};
pub use huggingface::{HuggingFace, facts};
pub use ollama::{NativeProvider, Ollama, UpstreamError};
pub use registry::{NameOrigin, NameOwner, Registry, prefers_ollama};

use std::{fmt, pin::Pin, sync::Arc, time::Instant};

use async_trait::async_trait;
use futures_util::Stream;

use crate::{
    config::Config,
    inference::{
        EmbedRequest, EmbeddingResult, Event, Failure, InferenceRequest, KeepAlive, LoadOptions, Message, ModelCard,
        ModelDetails, PullEvent, ResidentModel, TextToken,
    },
};

/// Events of one answer, in order. The stream owns the lease that keeps the model resident; dropping it cancels the
/// work within one decode step.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Failure>> + Send>>;

/// Progress of one pull. Dropping it leaves the partial files in place, for the next pull to resume.
pub type PullStream = Pin<Box<dyn Stream<Item = Result<PullEvent, Failure>> + Send>>;

/// Circumstances of one request of a client, which every call to a provider carries.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// The configuration snapshot that the request sees from start to end.
    pub config: Arc<Config>,
    /// Arrival of the request.
    pub arrived: Instant,
}

/// A text to tokenize.
#[derive(Clone, Debug)]
pub struct TokenizeRequest {
    pub text: String,
    /// If set, the tokens that the model expects around every text (such as BOS) are added.
    pub add_special: bool,
    /// If set, the text of control tokens is read as those tokens.
    pub parse_special: bool,
}

/// System prompt and turns that precede every conversation with a model that a client created.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConversationPreset<'a> {
    /// Empty if there is none.
    pub system: &'a str,
    /// Turns that precede those of the request.
    pub messages: &'a [Message],
}

/// Files that a deletion removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteScope {
    /// Files that hubllama downloaded. Files of other programs stay on disk, and only leave the listing.
    OwnFiles,
    /// Files of the model, also those that another program downloaded.
    AllFiles,
}

/// The files behind model names. Names are passed as the client wrote them, without surrounding whitespace.
#[async_trait]
pub trait ModelStore: fmt::Debug + Send + Sync {
    /// Returns every model that this provider lists.
    async fn list(&self, call: &CallContext) -> Vec<ModelCard>;

    /// Returns the listing entry of one model. A model that may be pulled on its first use is downloaded first.
    async fn card(&self, call: &CallContext, name: &str) -> Result<ModelCard, Failure>;

    /// Returns everything that is known of one model; long arrays of metadata only if `verbose`.
    async fn show(&self, call: &CallContext, name: &str, verbose: bool) -> Result<ModelDetails, Failure>;

    /// Starts to download a model.
    async fn pull(&self, call: &CallContext, name: &str) -> Result<PullStream, Failure>;

    /// Unloads a model and removes it.
    async fn delete(&self, call: &CallContext, name: &str, scope: DeleteScope) -> Result<(), Failure>;
}

/// A model store whose models can be run.
#[async_trait]
pub trait Provider: ModelStore {
    /// Returns the models in memory.
    async fn resident(&self, call: &CallContext) -> Vec<ResidentModel>;

    /// Finds the model of a name, to be used for one request. A model that may be pulled on its first use is downloaded
    /// first, unless the configuration wants the progress of the download in the answer: then the answer begins with
    /// it.
    async fn find(self: Arc<Self>, call: &CallContext, name: &str) -> Result<Arc<dyn RunnableModel>, Failure>;
}

/// A model as one request has found it.
#[async_trait]
pub trait RunnableModel: fmt::Debug + Send + Sync {
    /// Returns the listing entry. It has no capabilities as long as the files are not there.
    fn card(&self) -> &ModelCard;

    /// Returns the system prompt and the turns that precede every conversation with this model. [`Self::infer`] adds
    /// them by itself.
    fn preset(&self) -> ConversationPreset<'_> {
        ConversationPreset::default()
    }

    /// Returns the parameters of a request that [`Self::infer`] cannot honor, by their names on the wire. A dialect
    /// reports them to the client.
    fn unsupported_parameters(&self, request: &InferenceRequest) -> Vec<&'static str> {
        let _ = request;
        Vec::new()
    }

    /// Makes the model resident.
    async fn load(&self, options: LoadOptions, keep_alive: Option<KeepAlive>) -> Result<(), Failure>;

    /// Unloads the model as soon as it is idle. Succeeds if it is not resident.
    async fn unload(&self) -> Result<(), Failure>;

    /// Starts an answer. Resolves when its first event is there, so that every failure before it can still be an HTTP
    /// status.
    async fn infer(&self, request: InferenceRequest) -> Result<EventStream, Failure>;

    /// Computes the embedding vectors of texts.
    async fn embed(&self, request: EmbedRequest) -> Result<EmbeddingResult, Failure>;

    /// Returns the prompt that [`Self::infer`] would give the model, as text. Needs no weights.
    async fn render(&self, request: InferenceRequest) -> Result<String, Failure>;

    /// Returns the tokens of a text.
    async fn tokenize(&self, request: TokenizeRequest) -> Result<Vec<TextToken>, Failure>;

    /// Returns the text of token ids. Ids outside the vocabulary are [`Failure::Invalid`].
    async fn detokenize(&self, tokens: Vec<i32>) -> Result<String, Failure>;
}
