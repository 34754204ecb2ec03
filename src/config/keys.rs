//! The one table of all keys: name, how to read, how to show, what a change of it needs.
//!
//! Loading, diffing, describing and the tests over `config.toml.example` all walk this table, so that a key cannot be
//! known in one place and forgotten in another.

use serde_json::Value as Json;

use super::{
    Config, ModelConfig,
    value::{Choice, Codec, Flag, Folder, Hidden, List, Maybe, Number, Raw, Real, Size, Stay, Text, Time, Tokens},
};
use crate::inference::KvCacheType;

/// One key of a `T`.
pub(super) struct Key<T: 'static> {
    /// Path from the top, as `engine.max_queue`; in a model's table just the field.
    pub name: &'static str,
    /// Other spellings.
    pub other_names: &'static [&'static str],
    /// Keys that this one sets; itself where it is an ordinary one.
    pub sets: &'static [&'static str],
    /// Whether a change takes effect only after a restart.
    pub restart: bool,
    /// Puts a value in.
    pub read: fn(&mut T, &Raw) -> Result<(), String>,
    /// For people; `Null` where nothing is set. A secret shows as `[redacted]`.
    pub show: fn(&T) -> Json,
    /// Whether both have the same value here.
    pub same: fn(&T, &T) -> bool,
    /// Takes this value over from the second.
    pub copy: fn(&mut T, &T),
}

impl<T> Key<T> {
    /// Whether this one only writes other keys and has no value of its own.
    pub(super) fn is_shorthand(&self) -> bool {
        self.sets != [self.name]
    }
}

macro_rules! key {
    ($name:literal $(| $other:literal)*, $($field:ident).+, $codec:ty) => {
        key!(@ $name, [$($other),*], $($field).+, $codec, false)
    };
    ($name:literal, $($field:ident).+, $codec:ty, restart) => {
        key!(@ $name, [], $($field).+, $codec, true)
    };
    (@ $name:literal, [$($other:literal),*], $($field:ident).+, $codec:ty, $restart:literal) => {
        Key {
            name: $name,
            other_names: &[$($other),*],
            sets: &[$name],
            restart: $restart,
            read: |target, raw| {
                target.$($field).+ = <$codec as Codec<_>>::read(raw)?;
                Ok(())
            },
            show: |target| <$codec as Codec<_>>::show(&target.$($field).+),
            same: |a, b| a.$($field).+ == b.$($field).+,
            copy: |target, source| target.$($field).+ = source.$($field).+.clone(),
        }
    };
}

/// The key whose value is a secret.
pub(super) const TOKEN: &str = "hub.token";
/// The key whose values hold secrets.
pub(super) const ORGANISATION_TOKENS: &str = "hub.organisation_tokens";
/// The key that names a file with that secret.
pub(super) const TOKEN_FILE: &str = "hub.token_file";

/// Every key of the file but the tables `[models]` and `[aliases]`, in the order of the documentation.
///
/// A shorthand stands before the keys that it sets, since the keys of one source are applied in this order.
pub(super) const KEYS: &[Key<Config>] = &[
    key!("server.listen", server.listen, List<Text>, restart),
    key!("server.origins", server.origins, List<Text>),
    key!("server.shutdown_timeout", server.shutdown_timeout, Time),
    key!("server.max_connections", server.max_connections, Number, restart),
    key!("server.max_header_bytes", server.max_header_bytes, Size, restart),
    key!("server.body_memory_bytes", server.body_memory_bytes, Size),
    key!("server.max_body_bytes", server.max_body_bytes, Size),
    key!("ollama.enabled", ollama.enabled, Flag),
    key!("ollama.url", ollama.url, Text),
    key!("ollama.connect_timeout", ollama.connect_timeout, Time),
    key!("ollama.fallback_version", ollama.fallback_version, Text),
    key!("ollama.priority", ollama.priority, List<Choice>),
    key!("ollama.v1_via_native", ollama.v1_via_native, Flag),
    key!("hub.enabled", hub.enabled, Flag),
    key!("hub.endpoint", hub.endpoint, Text),
    key!("hub.mirrors", hub.mirrors, List<Text>),
    key!("hub.token", hub.token, Hidden),
    // The loader reads the file, after everything has been merged.
    Key {
        name: TOKEN_FILE,
        other_names: &[],
        sets: &[TOKEN],
        restart: false,
        read: |_, raw| Folder::read(raw).map(drop),
        show: |_| Json::Null,
        same: |_, _| true,
        copy: |_, _| (),
    },
    key!("hub.organisation_tokens", hub.organisation_tokens, Tokens),
    key!("hub.cache_dir", hub.cache_dir, Folder),
    key!("hub.extra_caches", hub.extra_caches, List<Folder>),
    key!("hub.offline", hub.offline, Flag),
    key!("hub.auto_pull", hub.auto_pull, Flag),
    key!("hub.progress_in_thinking", hub.progress_in_thinking, Flag),
    key!("hub.claim_hf_co", hub.claim_hf_co, Flag),
    key!("hub.connect_timeout", hub.connect_timeout, Time),
    key!("hub.stall_timeout", hub.stall_timeout, Time),
    key!("hub.retry_attempts", hub.retry_attempts, Number),
    key!("hub.retry_delay", hub.retry_delay, Time),
    key!("hub.parallel_ranges", hub.parallel_ranges, Number),
    key!("hub.max_bytes_per_second", hub.max_bytes_per_second, Size),
    key!("hub.xet", hub.xet, Choice),
    key!("hub.safetensors", hub.safetensors, Choice),
    key!("hub.safetensors_type", hub.safetensors_type, Choice),
    key!("hub.tokenizer_mismatch", hub.tokenizer_mismatch, Choice),
    key!("engine.max_loaded_models", engine.max_loaded_models, Number),
    key!("engine.parallel", engine.parallel, Number),
    key!("engine.max_queue", engine.max_queue, Number),
    key!("engine.keep_alive", engine.keep_alive, Stay),
    key!("engine.context_length", engine.context_length, Number),
    key!("engine.load_timeout", engine.load_timeout, Time),
    key!("engine.stream_timeout", engine.stream_timeout, Time),
    key!("engine.threads", engine.threads, Number),
    key!("engine.batch", engine.batch, Number),
    key!("engine.gpu_layers", engine.gpu_layers, Number),
    key!("engine.main_gpu", engine.main_gpu, Number),
    key!("engine.split_mode", engine.split_mode, Choice),
    key!("engine.tensor_split", engine.tensor_split, List<Real>),
    key!("engine.flash_attention", engine.flash_attention, Choice),
    Key {
        name: "engine.kv_cache_type",
        other_names: &[],
        sets: &["engine.kv_cache_type_k", "engine.kv_cache_type_v"],
        restart: false,
        read: |config, raw| {
            let both: KvCacheType = Choice::read(raw)?;
            (config.engine.kv_cache_type_k, config.engine.kv_cache_type_v) = (both, both);
            Ok(())
        },
        show: |_| Json::Null,
        same: |_, _| true,
        copy: |_, _| (),
    },
    key!("engine.kv_cache_type_k", engine.kv_cache_type_k, Choice),
    key!("engine.kv_cache_type_v", engine.kv_cache_type_v, Choice),
    key!("engine.mmap", engine.mmap, Flag),
    key!("engine.check_tensors", engine.check_tensors, Flag),
    key!("engine.max_prompt_bytes", engine.max_prompt_bytes, Size),
    key!("engine.unsupported_tools", engine.unsupported_tools, Choice),
    key!("engine.json_schemas", engine.json_schemas, Choice),
    key!(
        "engine.sampling.num_predict",
        engine.sampling.num_predict,
        Maybe<Number>
    ),
    key!("engine.sampling.num_keep", engine.sampling.num_keep, Maybe<Number>),
    key!("engine.sampling.seed", engine.sampling.seed, Maybe<Number>),
    key!("engine.sampling.temperature", engine.sampling.temperature, Maybe<Real>),
    key!("engine.sampling.top_k", engine.sampling.top_k, Maybe<Number>),
    key!("engine.sampling.top_p", engine.sampling.top_p, Maybe<Real>),
    key!("engine.sampling.min_p", engine.sampling.min_p, Maybe<Real>),
    key!("engine.sampling.typical_p", engine.sampling.typical_p, Maybe<Real>),
    key!(
        "engine.sampling.repeat_last_n",
        engine.sampling.repeat_last_n,
        Maybe<Number>
    ),
    key!(
        "engine.sampling.repeat_penalty",
        engine.sampling.repeat_penalty,
        Maybe<Real>
    ),
    key!(
        "engine.sampling.presence_penalty",
        engine.sampling.presence_penalty,
        Maybe<Real>
    ),
    key!(
        "engine.sampling.frequency_penalty",
        engine.sampling.frequency_penalty,
        Maybe<Real>
    ),
    key!("engine.sampling.stop", engine.sampling.stop, Maybe<List<Text>>),
    key!("log.level", log.level, Text),
    key!("log.format", log.format, Choice, restart),
    key!("state_dir", state_dir, Folder, restart),
];

/// Every key of a table `[models."hf:…"]`.
pub(super) const MODEL_KEYS: &[Key<ModelConfig>] = &[
    key!("system", system, Maybe<Text>),
    key!("keep_alive", keep_alive, Maybe<Stay>),
    key!("parallel", parallel, Maybe<Number>),
    key!("num_ctx" | "context_length", load.context_length, Maybe<Number>),
    key!("num_batch" | "batch", load.num_batch, Maybe<Number>),
    key!("num_gpu" | "gpu_layers", load.num_gpu, Maybe<Number>),
    key!("main_gpu", load.main_gpu, Maybe<Number>),
    key!("use_mmap" | "mmap", load.use_mmap, Maybe<Flag>),
    key!("num_thread" | "threads", load.num_thread, Maybe<Number>),
    key!("flash_attention", flash_attention, Maybe<Choice>),
    Key {
        name: "kv_cache_type",
        other_names: &[],
        sets: &["kv_cache_type_k", "kv_cache_type_v"],
        restart: false,
        read: |model, raw| {
            let both: Option<KvCacheType> = Maybe::<Choice>::read(raw)?;
            (model.kv_cache_type_k, model.kv_cache_type_v) = (both, both);
            Ok(())
        },
        show: |_| Json::Null,
        same: |_, _| true,
        copy: |_, _| (),
    },
    key!("kv_cache_type_k", kv_cache_type_k, Maybe<Choice>),
    key!("kv_cache_type_v", kv_cache_type_v, Maybe<Choice>),
    key!("num_predict", sampling.num_predict, Maybe<Number>),
    key!("num_keep", sampling.num_keep, Maybe<Number>),
    key!("seed", sampling.seed, Maybe<Number>),
    key!("temperature", sampling.temperature, Maybe<Real>),
    key!("top_k", sampling.top_k, Maybe<Number>),
    key!("top_p", sampling.top_p, Maybe<Real>),
    key!("min_p", sampling.min_p, Maybe<Real>),
    key!("typical_p", sampling.typical_p, Maybe<Real>),
    key!("repeat_last_n", sampling.repeat_last_n, Maybe<Number>),
    key!("repeat_penalty", sampling.repeat_penalty, Maybe<Real>),
    key!("presence_penalty", sampling.presence_penalty, Maybe<Real>),
    key!("frequency_penalty", sampling.frequency_penalty, Maybe<Real>),
    key!("stop", sampling.stop, Maybe<List<Text>>),
];

/// A key of an earlier version that is still accepted under its old name.
pub(super) struct RenamedKey {
    pub old: &'static str,
    pub new: &'static str,
}

/// Every renamed key. The old name still works in the file, with a warning.
pub(super) const RENAMED_KEYS: &[RenamedKey] = &[
    RenamedKey {
        old: "ollama.honest_v1",
        new: "ollama.v1_via_native",
    },
    RenamedKey {
        old: "hub.doubtful_tokenizers",
        new: "hub.tokenizer_mismatch",
    },
];

/// Returns the entry of [`RENAMED_KEYS`] for a full key name that is no longer current.
pub(super) fn renamed(old: &str) -> Option<&'static RenamedKey> {
    RENAMED_KEYS.iter().find(|renamed| renamed.old == old)
}

/// Returns the key with this full name.
pub(super) fn find(name: &str) -> Option<&'static Key<Config>> {
    KEYS.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_shorthands_come_first() {
        let mut seen = BTreeSet::new();
        for key in KEYS {
            assert!(seen.insert(key.name), "{} twice", key.name);
            for set in key.sets.iter().filter(|set| **set != key.name && **set != TOKEN) {
                assert!(!seen.contains(set), "{} stands before its shorthand", set);
                assert!(find(set).is_some(), "{set}");
            }
        }
        for RenamedKey { old, new } in RENAMED_KEYS {
            assert!(seen.insert(*old), "{old} twice");
            assert!(find(new).is_some(), "{new}");
        }
        let mut seen = BTreeSet::new();
        for name in MODEL_KEYS
            .iter()
            .flat_map(|key| key.other_names.iter().chain([&key.name]))
        {
            assert!(seen.insert(*name), "{name} twice");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let config = Config {
            state_dir: "/state".into(),
            ..Config::default()
        };
        for key in KEYS.iter().filter(|key| !key.is_shorthand()) {
            let raw = match (key.show)(&config) {
                Json::String(text) if !text.is_empty() => Raw::Text(text),
                Json::Number(number) => Raw::Word(number.to_string()),
                Json::Bool(flag) => Raw::Boolean(flag),
                _ => continue,
            };
            let mut read = config.clone();
            (key.read)(&mut read, &raw).unwrap_or_else(|sentence| panic!("{}: {sentence}", key.name));
            assert!((key.same)(&config, &read), "{}", key.name);
        }
    }
}
