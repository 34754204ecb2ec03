//! llama.cpp behind safe Rust: the only folder that names the sys crate.
//!
//! Only `worker/` uses this, in a process of its own: nothing here can be made safe against a hostile model file or
//! a driver fault, so none of it runs in the daemon. Pointers are owned by one type each, freed on drop, and never
//! outlive what they point into: [`Context`] keeps its [`Model`] alive through an [`std::sync::Arc`].
#![expect(unsafe_code, reason = "this is the border to C")]

mod adapter;
mod backend;
mod batch;
mod chat;
mod context;
mod grammar;
mod model;
mod quantize;
mod sampler;
#[cfg(target_os = "linux")]
mod source;

pub use backend::{ComputeDevice, DeviceKind, cpu_features, devices, init, supports_gpu_offload, version};
pub use batch::Batch;
pub use chat::{
    ChatParser, ChatTemplate, GrammarTrigger, ParseState, ParsedCall, ParsedMessage, PartKind, RenderedChat,
};
pub use context::{Context, ContextParams, ContextPurpose, DecodeError};
pub use grammar::{GrammarSampler, SamplerTrigger};
pub use model::{Model, ModelParams, TokenId};
pub use quantize::{quantize, quantize_rows};
pub use sampler::{SamplerChain, TokenCandidates, log_softmax_of};
#[cfg(target_os = "linux")]
pub use source::ModelSource;
