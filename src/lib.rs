//! hubllama: makes every existing Ollama client speak Hugging Face.

pub mod config;
pub mod hub;
pub mod inference;
pub mod provider;
pub mod stdx;
