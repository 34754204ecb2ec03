//! From a safetensors checkpoint to a GGUF file, planned before a weight is read.
//!
//! `safetensors` reads the headers of the weights. A [`VirtualGguf`] is metadata and a [`TensorRecipe`] for each tensor: which
//! stored rows it is made from, in which order and in which type. Its size and layout are known at once; whoever
//! consumes it asks for rows. One consumer writes a file, in one pass for every type: rows of mixes as `Q4_K_M` are quantised
//! by a function that whoever may call the engine passes in. Another, [`GgufStream`], answers whoever reads a file that is not
//! there.
//!
//! [`plan()`] makes one from a folder: `config` reads `config.json`, `arch` knows what each architecture family calls its
//! tensors, `tokenizer` reads the tokenizer's files.

mod adapter;
mod arch;
mod card;
mod cast;
mod config;
mod dtype;
mod encode;
mod error;
mod files;
mod fp8;
#[cfg(test)]
mod golden;
mod mix;
mod model;
mod mxfp4;
mod parts;
mod plan;
mod progress;
mod recipe;
mod replan;
mod safetensors;
mod stored;
mod stream;
mod tokenizer;
mod write;

pub use adapter::{AdapterBase, check_adapter_config, plan_adapter};
pub use arch::FAMILIES;
pub use encode::{RowQuantizer, Scratch};
pub use error::ConvertError;
pub use model::VirtualGguf;
pub use plan::{
    ConversionPlan, EngineTokenizer, GgufRole, check_config, has_projector, plan, plan_checked, plan_projector,
};
pub use progress::{ConversionProgress, ConversionStage};
pub use recipe::TensorRecipe;
pub use replan::replan;
pub use stream::GgufStream;
pub use tokenizer::TokenizerCheck;
pub use write::WriteProgress;

/// Whether this platform lets llama.cpp read a [`GgufStream`]; elsewhere a file must be made.
pub const CAN_STREAM: bool = cfg!(target_os = "linux");
/// Changes when a conversion makes something else of the same checkpoint, so that what is kept is made again.
pub const VERSION: u32 = 3;
