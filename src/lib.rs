//! hubllama: makes every existing Ollama client speak Hugging Face.

pub mod api;
pub mod config;
pub mod gguf;
pub mod http;
pub mod inference;
pub mod lifecycle;
pub mod llama;
pub mod provider;
pub mod stdx;
pub mod worker;
