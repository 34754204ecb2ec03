//! hubllama serves models of the Hugging Face Hub to the clients of Ollama.
//!
//! One daemon listens on a port of its own and speaks the APIs of Ollama, OpenAI and Anthropic. Requests for a plain
//! model name are forwarded, byte for byte, to a real Ollama. Requests for a name that begins with `hf:` are answered
//! from weights of the Hugging Face Hub, which llama.cpp runs in a child process for each model.
//!
//! This page is the architecture document: processes, the path of a request, layers, errors and invariants. The page of
//! each module tells the rest; [`library`] has the life of a checkpoint.
//!
//! # Processes
//!
//! ```text
//!  clients ──HTTP──▶ hubllama serve (the daemon) ──HTTP──▶ Ollama                   (plain names)
//!                      │  holds no model, never calls llama.cpp
//!                      │ Unix socket pair, length-delimited frames
//!                      ├─▶ hubllama worker --role model      (model A: weights, KV cache, scheduler)
//!                      ├─▶ hubllama worker --role model      (model B …)
//!                      ├─▶ hubllama worker --role helper     (renders chat templates; no weights)
//!                      └─▶ hubllama worker --role converter  (one checkpoint into a GGUF file, then ends)
//! ```
//!
//! A malformed file, a failed assertion in llama.cpp or a lack of memory ends one child process and the requests that
//! it was serving; the daemon and all other models go on.
//!
//! # The path of a request
//!
//! ```text
//! socket → server (HTTP mechanics) → api (a wire dialect → InferenceRequest) → provider (who answers this name)
//!    plain name:  provider::ollama forwards the original bytes, streams the reply's bytes back
//!    hf: name:    provider::huggingface: name → library (files) → lifecycle (a lease on a resident worker) → worker
//! events → api (the same dialect) → NDJSON or SSE frames → socket
//! ```
//!
//! # Layers
//!
//! A module imports modules of lower layers only. `compat-tests/tidy` checks that, and lists the exceptions with a
//! reason.
//!
//! | layer | module | holds |
//! |---|---|---|
//! | 8 | [`cli`] | arguments, and everything that is printed for the user |
//! | 7 | [`daemon`] | composition root, start and stop order, signals, reload, systemd |
//! | 6 | [`server`] | listeners, connections, limits, CORS and host check, the one route table |
//! | 5 | [`api`] | wire dialects: Ollama's, OpenAI's, Anthropic's; health and configuration pages |
//! | 4 | [`provider`] | the `Provider` trait, the registry, `ollama`, `huggingface` |
//! | 3 | [`library`] | the models on this machine: find, list, pull, convert, remove, verify, import, prune |
//! | 2 | [`lifecycle`] | which models are resident: leases, keep-alive, eviction, worker supervision |
//! | 2 | [`worker`] | the child process: scheduler, slots, prefix reuse, sampling; its `protocol` with lifecycle |
//! | 1 | [`convert`] | safetensors to GGUF, as a plan: configuration, tokenizer, one file per architecture family |
//! | 1 | [`hub`] | names, selectors, verified downloads, the layout of the shared cache |
//! | 1 | [`observability`] | logging |
//! | 0 | [`config`] | plain data: types, load, validate, diff, watch |
//! | 0 | [`go`] | Go's standard library as far as clients of Ollama see it: JSON, durations, templates |
//! | 0 | [`inference`] | the request and the events that all dialects share, in Ollama's vocabulary |
//! | 0 | [`gguf`], [`llama`] | GGUF files; the only calls of llama.cpp |
//! | 0 | [`http`], [`stdx`] | HTTP parts; additions to the standard library |
//!
//! # Errors
//!
//! A variant exists if a caller acts on it; everything else is a sentence that says what is wrong and what to do. On
//! its way up an error is converted at the border of a layer, with `From`, and never back:
//!
//! | error | of what | becomes |
//! |---|---|---|
//! | [`gguf::GgufError`] | a GGUF file that cannot be read | the next ones, as a sentence |
//! | [`gguf::GgufRefusal`] | a GGUF file that would crash llama.cpp | the next ones, as a sentence |
//! | [`convert::ConvertError`] | a checkpoint that cannot be converted; crosses the socket | `LibraryError` |
//! | [`hub::HubError`] | a name, the network, the cache; cloned for all that wait for a download | `LibraryError` |
//! | [`library::LibraryError`] | a model that cannot be found, pulled, converted, imported or removed | `Failure` |
//! | [`llama::LlamaError`], `WorkerError` | in a worker process: a call of llama.cpp, a prompt, a schema | `Failure` |
//! | [`inference::Failure`] | a request that a provider cannot answer; crosses the socket from a worker | `ApiError` |
//! | [`provider::UpstreamError`] | an Ollama that cannot be reached or breaks off | `ApiError` |
//! | `ApiError` (in [`api`]) | an HTTP status and a sentence; each dialect puts it into its own envelope | the reply |
//! | [`daemon::StartError`] | a daemon that cannot start | the log, the exit status |
//! | [`config::ConfigProblem`] | a configuration that is not valid | the log, the exit status |
//!
//! The command line prints any of them with `anyhow`. A bug of this program is no error of these: it panics, which ends
//! one connection or one worker.
//!
//! # Invariants
//!
//! * The daemon process never calls llama.cpp: only `worker` and `llama` do, and only `llama` names its crates.
//! * A pass-through reply has the status, headers (hop-by-hop and CORS aside) and bytes that Ollama sent; no frame is
//!   held back. The request's bytes go out as they came in. (A request that is served by Ollama's native route instead,
//!   as `ollama.v1_via_native` allows, is no pass-through.)
//! * A download is verified before it becomes visible. A file is written under a temporary name, synced and renamed.
//! * Everything that waits is bounded and cancellable. A client that goes away stops its work within one decode step.
//! * One request sees one configuration snapshot from start to end. A bad configuration never takes effect.
//! * The response body owns the lease: a model stays resident exactly as long as bytes of an answer are owed.
//! * Scheduling, eviction, prefix choice and name resolution are pure functions over plain data, tested without a
//!   model.
//! * No dialect imports another. Below `api`, only `http`, `hub` and `provider::ollama` use types of HTTP.
//! * Nothing is ignored silently: a header and the log name each parameter that had no effect.

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
