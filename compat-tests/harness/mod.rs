//! What the tests are made of: servers that play a part, and HTTP read byte by byte.

pub(crate) mod daemon;
pub(crate) mod fake_ollama;
pub(crate) mod raw_http;
