//! Tests over sockets: what clients see, and what the servers behind us see.

mod chat;
mod clients;
mod concurrency;
mod golden;
mod harness;
mod hub;
mod lifecycle;
mod passthrough;
mod replay;
