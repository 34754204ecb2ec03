//! From a safetensors checkpoint to a GGUF file, planned before a weight is read.
//!
//! `safetensors` reads the headers of the weights. A [`VirtualGguf`] is metadata and a [`Recipe`] for each tensor: which
//! stored rows it is made from, in which order and in which type. Its size and layout are known at once; whoever
//! consumes it asks for rows. One consumer writes a file.

mod cast;
mod error;
mod files;
mod model;
mod recipe;
mod safetensors;
mod write;

pub use error::ConvertError;
pub use model::VirtualGguf;
pub use recipe::{Recipe, Scratch};
pub use write::Progress;
