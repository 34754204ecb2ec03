//! Building blocks of the tests: the daemon under test ([`hubllama`], or [`daemon`] in this process), fake servers for
//! Ollama and the Hub, models for the cache, and HTTP that is read byte by byte. Each server listens on port 0 and
//! stops when its handle is dropped.

pub(crate) mod daemon;
pub(crate) mod facts;
pub(crate) mod fake_hub;
pub(crate) mod fake_ollama;
pub(crate) mod fixture_file;
pub(crate) mod hubllama;
pub(crate) mod minilm;
pub(crate) mod raw_http;
pub(crate) mod recording;
pub(crate) mod stream;
pub(crate) mod tools_model;
