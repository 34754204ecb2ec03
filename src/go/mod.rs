//! Emulation of Go's standard library, where its behavior is visible to clients of Ollama.
//!
//! Ollama is written in Go. Its clients have been tested against what Go's packages read and write, and depend on the
//! quirks: JSON keys match in any case, `keep_alive` is a duration such as `1h30m`, error texts of `encoding/json` are
//! shown to people (and compared by tests of clients), `<` is escaped in answers, and the `template` of a request is a
//! Go template. None of that comes with serde_json or another crate, so this folder has it, one module for one package:
//!
//! | module | Go's package | used for |
//! |---|---|---|
//! | `decode` | `encoding/json`, reading; `encoding/base64` | bodies of requests (`api`) |
//! | [`encode`] | `encoding/json`, writing | every answer of hubllama's own (`api`) |
//! | [`duration`] | `time.Duration` | `keep_alive` in requests, durations in the configuration |
//! | [`template`] | `text/template` | templates of requests and of aliases |
//!
//! Nothing here knows a route, a model or a setting.

pub(crate) mod decode;
pub mod duration;
pub mod encode;
mod quote;
pub mod template;

pub(crate) use quote::quote;
