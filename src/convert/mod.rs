//! From a safetensors checkpoint to a GGUF file, planned before a weight is read.
//!
//! `safetensors` reads the headers of the weights. A [`VirtualGguf`] is metadata and a [`Recipe`] for each tensor: which
//! stored rows it is made from, in which order and in which type. Its size and layout are known at once; whoever
//! consumes it asks for rows. One consumer writes a file.
//!
//! [`plan()`] makes one from a folder: `config` reads `config.json`, `arch` knows what each architecture family calls its
//! tensors, `tokenizer` reads the tokenizer's files.

mod arch;
mod cast;
mod config;
mod error;
mod files;
#[cfg(test)]
mod golden;
mod model;
mod plan;
mod recipe;
mod safetensors;
mod tokenizer;
mod write;

pub use error::ConvertError;
pub use model::VirtualGguf;
pub use plan::{Cut, Planned, Quantization, TargetType, check_config, plan, plan_checked};
pub use recipe::{Recipe, Scratch};
pub use tokenizer::{TokenizerCheck, reference_tokens};
pub use write::Progress;

/// Changes when a conversion makes something else of the same checkpoint, so that what is kept is made again.
pub const VERSION: u32 = 1;
