//! Loopback servers that tests run against. Each listens on port 0 and stops when its handle is dropped.

pub(crate) mod fake_hub;
