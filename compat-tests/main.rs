//! Tests over sockets: what clients see, and what the servers behind us see.

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
mod scenarios;
mod templates;
mod tidy;
mod tokens;
mod traps;
