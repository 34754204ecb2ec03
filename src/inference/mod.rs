//! Requests and replies as they pass between the wire dialects and the providers.
//!
//! A dialect decodes its bytes into an [`InferenceRequest`], a provider answers with [`Event`]s, and the same dialect
//! encodes these into bytes again. No type here knows HTTP (apart from the status in [`Failure::Upstream`]), a
//! dialect's spelling, or llama.cpp.
//!
//! The vocabulary is Ollama's on purpose (`num_predict`, `keep_alive`, `InferencePrompt::Chat.context`, the sentences
//! of [`Failure`]): Ollama is the reference that every dialect is measured by, so a request loses nothing in its terms,
//! and the dialects of OpenAI and Anthropic translate into them. The one exception is the context length, which Ollama
//! calls `num_ctx`.
//!
//! Events and failures cross the socket to a worker process and are therefore serializable.

mod capability;
mod embedding;
mod event;
mod failure;
mod keep_alive;
mod model;
mod options;
mod request;
mod tool;
mod weight_type;

pub use capability::ModelCapability;
pub use embedding::{EmbedRequest, EmbeddingResult, TextToken, VectorNormalization};
pub use event::{AnswerSummary, AnswerUsage, Delta, Event, FinishReason, TokenLogprob, ToolCall, TopLogprob};
pub use failure::Failure;
pub use keep_alive::KeepAlive;
pub use model::{ModelCard, ModelDetails, ModelFacts, PullEvent, ResidentModel, TensorFacts};
pub(crate) use options::sampling_parameters;
pub use options::{AutoSwitch, KvCacheType, LoadOptions, SamplingOptions, SplitMode};
pub use request::{
    AnswerFormat, InferencePrompt, InferenceRequest, Message, MessageRole, ThinkLevel, ThinkMode, ToolChoice,
};
pub use tool::ToolDefinition;
pub use weight_type::{QuantizationMix, WeightType};
