//! Tests over sockets: what clients see, and what the servers behind us see.

mod chat;
mod concurrency;
mod harness;
mod hub;
mod lifecycle;
mod passthrough;
