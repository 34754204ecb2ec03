//! Integration tests against the real binary over sockets. They check what clients receive, and what Ollama and the
//! Hub, which [`harness`] plays, are sent.

mod adapters;
mod aliases;
mod chat;
mod cli;
mod clients;
mod compatibility;
mod concurrency;
mod convert;
mod embeddings;
mod harness;
mod hub;
mod lifecycle;
mod passthrough;
mod reload;
mod replay;
mod safetensors;
mod scenarios;
mod templates;
mod tidy;
mod tokens;
mod traps;
mod v1_via_native;
