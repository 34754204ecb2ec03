//! Tests that run whole parts of hubllama against loopback servers.

mod harness;
mod hub;
