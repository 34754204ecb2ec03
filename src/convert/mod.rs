//! Conversion of safetensors checkpoints to GGUF, planned before a weight is read.
//!
//! [`plan()`] reads a checkpoint's folder and returns a [`VirtualGguf`]: the metadata of the file, and a
//! [`TensorRecipe`] for each tensor, which says from which stored rows it is made, in which order and in which type.
//! Size and layout are then known, and rows can be made in any order. Two modules do so: `write` makes a file, and
//! [`GgufStream`] answers reads of a file that does not exist, so that a model can be loaded without one. Quantized
//! types such as Q4_K are made by llama.cpp, through a function that only processes which may call it pass in.
//!
//! The result is meant to be identical, byte for byte, to that of llama.cpp's own converter (`convert_hf_to_gguf.py`)
//! and quantizer; the module `golden` tests it. Where it differs on purpose, a comment says why.
//!
//! | modules | what they do |
//! |---|---|
//! | `config`, `files`, `card` | read `config.json` and the model card |
//! | `safetensors`, `stored`, `dtype`, `fp8` | find the stored tensors and read their elements |
//! | `arch` | names and shapes of each architecture family, as tables of weights |
//! | `recipe`, `parts`, `mxfp4`, `cast`, `encode` | make rows of the file from stored rows |
//! | `tokenizer` | turns the tokenizer's files into metadata and compares the result with the original |
//! | `plan`, `mix`, `replan`, `model` | choose types and lay out the file |
//! | `write`, `stream` | make the bytes of the file |
//! | `adapter` | converts LoRA adapters |

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
pub use encode::{RowQuantizer, RowScratch};
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

/// True on platforms where llama.cpp can read a [`GgufStream`]. On others every conversion must be a file: there is no
/// `fopencookie` to make a `FILE*` of it.
pub const CAN_STREAM: bool = cfg!(target_os = "linux");
/// Version of the conversion. It is increased when the same checkpoint is converted differently, so that stored results
/// are made again.
pub const VERSION: u32 = 3;
