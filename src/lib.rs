//! hubllama: makes every existing Ollama client speak Hugging Face.

pub mod api;
pub mod config;
pub mod http;
pub mod inference;
pub mod provider;
pub mod server;
pub mod stdx;
