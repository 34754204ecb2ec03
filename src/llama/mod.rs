//! Safe Rust over llama.cpp; the only folder that names llama-cpp-2 and its sys crate.
//!
//! Only `worker/` uses this, in a process of its own: nothing here can be made safe against a hostile model file or a
//! driver fault, so none of it runs in the daemon. A [`Model`] holds weights and vocabulary; a [`Context`] holds a KV
//! cache over a model and decodes a [`Batch`]; a [`SamplerChain`] and a [`GrammarSampler`] choose from the logits; a
//! [`ChatTemplate`] renders conversations, and a [`ChatParser`] reads what a model wrote.
//!
//! Models, vocabularies, samplers, grammars, adapters and the list of devices are llama-cpp-2's types. The sys crate
//! serves where those lack something: loads from a stream and with all parameters, contexts whose threads change
//! between decodes ([`Context`] says why), quantization, and the log. `common/chat` is bound by neither;
//! `chat_shim.cpp` does that.
//!
//! Pointers are owned by one type each, freed on drop, and never outlive what they point into: a [`Context`] and a
//! [`GrammarSampler`] keep their [`Model`] alive through an [`std::sync::Arc`].
#![expect(unsafe_code, reason = "this is the border to C")]

mod adapter;
mod backend;
mod batch;
mod chat;
mod context;
mod error;
mod grammar;
mod layout;
mod model;
mod quantize;
mod sampler;
#[cfg(target_os = "linux")]
mod source;

pub use backend::{ComputeDevice, DeviceKind, cpu_features, devices, version};
pub use batch::Batch;
pub use chat::{
    ChatParser, ChatTemplate, GrammarTrigger, ParseState, ParsedCall, ParsedMessage, PartKind, RenderedChat,
};
pub use context::{Context, ContextParams, ContextPurpose};
pub use error::LlamaError;
pub use grammar::{GrammarSampler, SamplerTrigger};
pub use model::{Model, ModelParams, TokenId};
pub use quantize::{quantize, quantize_rows};
pub use sampler::{LlamaSampler, SamplerChain, TokenCandidates, log_softmax_of, logit_bias};
#[cfg(target_os = "linux")]
pub use source::ModelSource;

use std::{ffi::CString, path::Path};

/// Converts a path for C.
fn c_path(path: &Path) -> Result<CString, LlamaError> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| LlamaError::Nul("path"))
}
