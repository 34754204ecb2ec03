//! HTTP building blocks for the server and for the client of Ollama: bodies, headers, the pooled client, stream
//! framing.
//!
//! The building blocks know no route, model or setting.

pub mod body;
pub mod client;
pub mod headers;
pub mod ndjson;
pub mod peek;
pub mod spool;
pub mod sse;
pub mod zstd;
