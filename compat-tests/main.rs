//! Tests over sockets: what clients see, and what the servers behind us see.

mod chat;
mod clients;
mod golden;
mod harness;
mod hub;
mod passthrough;
mod replay;
