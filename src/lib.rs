//! hubllama makes every existing Ollama client speak Hugging Face.
//!
//! One daemon listens on a port of its own and speaks the Ollama API, OpenAI's beside it. A plain model name goes, byte
//! for byte, to a real Ollama. A name that begins with `hf:` is served from weights of the Hugging Face Hub, run by
//! llama.cpp in a worker process of its own. This page is the architecture document.
//!
//! # Processes
//!
//! ```text
//!  clients ──HTTP──▶ hubllama serve (the daemon) ──HTTP──▶ Ollama               (plain names)
//!                      │  holds no model, never calls llama.cpp
//!                      │ Unix socket pair, length-delimited frames
//!                      ├─▶ hubllama worker --role model   (model A: weights, KV cache, scheduler)
//!                      ├─▶ hubllama worker --role model   (model B …)
//!                      └─▶ hubllama worker --role helper  (renders chat templates; no weights)
//! ```
//!
//! # The way of a request
//!
//! ```text
//! socket → server (HTTP mechanics) → api (one wire dialect → neutral request) → provider (who answers this name)
//!    plain name:  provider::ollama forwards the original bytes, streams the reply's bytes back
//!    hf: name:    provider::huggingface: name → library (files) → lifecycle (a lease on a resident worker) → worker
//! neutral events → api (the same dialect) → NDJSON or SSE frames → socket
//! ```
//!
//! # Layers
//!
//! Imports go down only; `compat-tests/tidy.rs` fails on one that does not.
//!
//! | layer | module | holds |
//! |---|---|---|
//! | 8 | [`cli`] | arguments, and everything that is printed for people |
//! | 7 | [`daemon`] | composition root, start and stop order, signals, reload, systemd |
//! | 6 | [`server`] | listeners, connections, limits, CORS and host check, the one route table |
//! | 5 | [`api`] | wire dialects: Ollama's, OpenAI's, Anthropic's; health and configuration pages |
//! | 4 | [`provider`] | the `Provider` trait, the registry, `ollama`, `huggingface` |
//! | 3 | [`library`] | the models on this machine: find, list, pull, convert, remove, verify, import, prune |
//! | 2 | [`lifecycle`] | which models are resident: leases, keep-alive, eviction, worker supervision |
//! | 2 | [`worker`] | the child process: scheduler, slots, prefix reuse, constraints, sampling, vectors; `protocol` is shared with lifecycle |
//! | 1 | [`convert`] | safetensors into GGUF, as data: configuration, tokenizer, one file per architecture family |
//! | 1 | [`hub`] | names, resolving, verified downloads, the layout of the shared cache |
//! | 1 | [`observability`] | logging |
//! | 0 | [`config`] | plain data: types, load, validate, diff, watch |
//! | 0 | [`go`] | Go's standard library where clients of Ollama see it: JSON, durations, templates |
//! | 0 | [`inference`] | the neutral request and events |
//! | 0 | [`gguf`], [`llama`], [`http`], [`stdx`] | container reader, llama.cpp's border, HTTP pieces, what std lacks |
//!
//! # Invariants
//!
//! * The daemon process never calls llama.cpp: only `worker` and `llama` do, and only `llama` names the sys crate.
//! * A pass-through reply has the status, headers (hop-by-hop and CORS aside) and bytes that Ollama sent; no frame is
//!   held back. The request's bytes go out as they came in. (A request that is served by Ollama's native route instead,
//!   as `ollama.v1_via_native` allows, is no pass-through.)
//! * Whatever is downloaded is verified before it is opened; whatever is written is temp file, fsync, rename.
//! * Everything that waits is bounded and cancellable. A client that goes away stops its work within one decode step.
//! * One request sees one configuration snapshot from start to end. A bad configuration never takes effect.
//! * The lease rides inside the response body: a model stays resident exactly as long as bytes are owed.
//! * Scheduling, eviction, prefix choice and name resolution are pure functions over plain data, tested without a model.
//! * No dialect knows another; no HTTP type is below `api` but in `http`, `hub` and the proxying provider.
//! * Nothing is cut silently: a parameter that was ignored is said in a header and in the log.

pub mod api;
pub mod cli;
pub mod config;
pub mod convert;
pub mod daemon;
pub mod gguf;
pub mod go;
pub mod http;
pub mod hub;
pub mod inference;
pub mod library;
pub mod lifecycle;
pub mod llama;
pub mod observability;
pub mod provider;
pub mod server;
pub mod stdx;
pub mod worker;
