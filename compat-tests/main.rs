//! Tests over sockets: what clients see, and what the servers behind us see.

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
mod honest_v1;
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
