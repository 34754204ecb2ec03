//! hubllama: makes every existing Ollama client speak Hugging Face.

pub mod config;
pub mod daemon;
pub mod inference;
pub mod observability;
pub mod provider;
pub mod stdx;
