//! The neutral vocabulary between wire dialects and providers.
//!
//! A dialect turns bytes into an [`InferenceRequest`]; a provider answers with [`Event`]s; the same dialect turns
//! those into bytes again. Nothing here knows HTTP, JSON field names of a wire, or llama.cpp.
//! Everything is serialisable, because requests and events also cross the socket to a worker process.

mod capability;
mod embedding;
mod event;
mod failure;
mod keep_alive;
mod model;
mod options;
mod request;

pub use capability::Capability;
pub use embedding::{EmbedRequest, Embeddings, Normalisation, TextToken};
pub use event::{Delta, Event, Finish, FinishReason, TokenLogprob, ToolCall, TopLogprob, Usage};
pub use failure::Failure;
pub use keep_alive::KeepAlive;
pub use model::{ModelCard, ModelDetails, ModelFacts, PullEvent, ResidentModel, TensorFacts};
pub use options::{KvCacheType, LoadOptions, Sampling, SplitMode, Switch};
pub use request::{Format, InferenceRequest, Message, Prompt, Role, Think, ThinkLevel, ToolChoice};
