//! The table of all keys: the name of each, its codec, and the setting that it writes.
//!
//! Loading, comparing, describing and the tests over `config.toml.example` walk this table, so a key cannot be known to
//! one of them and missing in another.

use serde_json::Value as Json;

use super::{
    Config, ModelConfig,
    value::{
        BoolCodec, ByteSizeCodec, ChoiceCodec, Codec, DurationCodec, FloatCodec, IntegerCodec, KeepAliveCodec,
        ListCodec, NamedSecretsCodec, OptionCodec, PathCodec, Raw, SecretCodec, TextCodec,
    },
};
use crate::inference::{KvCacheType, sampling_parameters};

/// A key that writes one or several settings of a `T`.
pub(super) struct SettingKey<T: 'static> {
    /// Full path, such as `engine.max_queue`; for a model's table the last component only.
    pub name: &'static str,
    /// Synonyms, such as `context_length` for `num_ctx`.
    pub other_names: &'static [&'static str],
    /// Keys whose values this one sets: itself, or several others for a shorthand.
    pub sets: &'static [&'static str],
    /// If set, a change takes effect only after a restart.
    pub restart: bool,
    /// Parses a value and stores it.
    pub read: fn(&mut T, &Raw) -> Result<(), String>,
    /// Returns the value for people: `Null` if none is set, `[redacted]` for a secret.
    pub show: fn(&T) -> Json,
    /// Returns true when both have the same value.
    pub same: fn(&T, &T) -> bool,
    /// Copies the value from the second to the first.
    pub copy: fn(&mut T, &T),
}

// Written out, since a derive would demand the same of `T`.
impl<T> Clone for SettingKey<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SettingKey<T> {}

impl<T> SettingKey<T> {
    /// Returns true for a key that only writes others and holds no value. Comparing or copying it does nothing, since
    /// the keys that it sets are compared and copied themselves.
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
    (@ $name:expr, [$($other:literal),*], $($field:ident).+, $codec:ty, $restart:literal) => {
        SettingKey {
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

/// The Hub's access token, a secret.
pub(super) const TOKEN: &str = "hub.token";
/// Access tokens of single users and organizations, secrets.
pub(super) const ORGANIZATION_TOKENS: &str = "hub.organization_tokens";
/// Path of a file that holds the Hub's access token.
pub(super) const TOKEN_FILE: &str = "hub.token_file";

/// Maps the type of a sampling parameter to the codec of its key.
trait ParameterCodec {
    type Codec;
}

impl ParameterCodec for i64 {
    type Codec = IntegerCodec;
}

impl ParameterCodec for i32 {
    type Codec = IntegerCodec;
}

impl ParameterCodec for f32 {
    type Codec = FloatCodec;
}

impl ParameterCodec for Vec<String> {
    type Codec = ListCodec<TextCodec>;
}

macro_rules! engine_sampling_keys {
    ($($name:ident: $type:ty,)*) => {
        &[$(key!(
            @ concat!("engine.sampling.", stringify!($name)), [], engine.sampling.$name,
            OptionCodec<<$type as ParameterCodec>::Codec>, false
        )),*]
    };
}

macro_rules! model_sampling_keys {
    ($($name:ident: $type:ty,)*) => {
        &[$(key!(
            @ stringify!($name), [], sampling.$name, OptionCodec<<$type as ParameterCodec>::Codec>, false
        )),*]
    };
}

const ENGINE_SAMPLING_KEYS: &[SettingKey<Config>] = sampling_parameters!(engine_sampling_keys! {});
const MODEL_SAMPLING_KEYS: &[SettingKey<ModelConfig>] = sampling_parameters!(model_sampling_keys! {});

/// Joins tables at compile time. `N` is the sum of their lengths.
const fn join<T, const N: usize>(tables: &[&[SettingKey<T>]]) -> [SettingKey<T>; N] {
    // Any key can fill the array first: each place is overwritten below, by loops without iterators, which are not
    // const.
    let mut joined = [tables[0][0]; N];
    let (mut table, mut at) = (0, 0);
    while table < tables.len() {
        let mut index = 0;
        while index < tables[table].len() {
            joined[at] = tables[table][index];
            index += 1;
            at += 1;
        }
        table += 1;
    }
    assert!(at == N, "N is the sum of the lengths");
    joined
}

/// Table of all keys of the file except those in `[models]` and `[aliases]`, in the order of the documentation.
///
/// The keys of one source are applied in this order, so a shorthand stands before the keys that it sets.
pub(super) const KEYS: &[SettingKey<Config>] = &join::<
    _,
    { FIRST_KEYS.len() + ENGINE_SAMPLING_KEYS.len() + LAST_KEYS.len() },
>(&[FIRST_KEYS, ENGINE_SAMPLING_KEYS, LAST_KEYS]);

/// Keys that the documentation lists before `[engine.sampling]`.
const FIRST_KEYS: &[SettingKey<Config>] = &[
    key!("server.listen", server.listen, ListCodec<TextCodec>, restart),
    key!("server.origins", server.origins, ListCodec<TextCodec>),
    key!("server.shutdown_timeout", server.shutdown_timeout, DurationCodec),
    key!("server.max_connections", server.max_connections, IntegerCodec, restart),
    key!(
        "server.max_header_bytes",
        server.max_header_bytes,
        ByteSizeCodec,
        restart
    ),
    key!("server.body_memory_bytes", server.body_memory_bytes, ByteSizeCodec),
    key!("server.max_body_bytes", server.max_body_bytes, ByteSizeCodec),
    key!("ollama.enabled", ollama.enabled, BoolCodec),
    key!("ollama.url", ollama.url, TextCodec),
    key!("ollama.connect_timeout", ollama.connect_timeout, DurationCodec),
    key!("ollama.fallback_version", ollama.fallback_version, TextCodec),
    key!("ollama.priority", ollama.priority, ListCodec<ChoiceCodec>),
    key!("ollama.v1_via_native", ollama.v1_via_native, BoolCodec),
    key!("hub.enabled", hub.enabled, BoolCodec),
    key!("hub.endpoint", hub.endpoint, TextCodec),
    key!("hub.mirrors", hub.mirrors, ListCodec<TextCodec>),
    key!("hub.token", hub.token, SecretCodec),
    // Only the syntax is checked here: the loader reads the token file once all sources are merged.
    SettingKey {
        name: TOKEN_FILE,
        other_names: &[],
        sets: &[TOKEN],
        restart: false,
        read: |_, raw| PathCodec::read(raw).map(drop),
        show: |_| Json::Null,
        same: |_, _| true,
        copy: |_, _| (),
    },
    key!("hub.organization_tokens", hub.organization_tokens, NamedSecretsCodec),
    key!("hub.cache_dir", hub.cache_dir, PathCodec),
    key!("hub.extra_caches", hub.extra_caches, ListCodec<PathCodec>),
    key!("hub.offline", hub.offline, BoolCodec),
    key!("hub.auto_pull", hub.auto_pull, BoolCodec),
    key!("hub.progress_in_thinking", hub.progress_in_thinking, BoolCodec),
    key!("hub.claim_hf_co", hub.claim_hf_co, BoolCodec),
    key!("hub.connect_timeout", hub.connect_timeout, DurationCodec),
    key!("hub.stall_timeout", hub.stall_timeout, DurationCodec),
    key!("hub.retry_attempts", hub.retry_attempts, IntegerCodec),
    key!("hub.retry_delay", hub.retry_delay, DurationCodec),
    key!("hub.parallel_ranges", hub.parallel_ranges, IntegerCodec),
    key!("hub.max_bytes_per_second", hub.max_bytes_per_second, ByteSizeCodec),
    key!("hub.xet", hub.xet, ChoiceCodec),
    key!("hub.safetensors", hub.safetensors, ChoiceCodec),
    key!("hub.safetensors_type", hub.safetensors_type, ChoiceCodec),
    key!("hub.tokenizer_mismatch", hub.tokenizer_mismatch, ChoiceCodec),
    key!("engine.max_loaded_models", engine.max_loaded_models, IntegerCodec),
    key!("engine.parallel", engine.parallel, IntegerCodec),
    key!("engine.max_queue", engine.max_queue, IntegerCodec),
    key!("engine.keep_alive", engine.keep_alive, KeepAliveCodec),
    key!("engine.context_length", engine.context_length, IntegerCodec),
    key!("engine.load_timeout", engine.load_timeout, DurationCodec),
    key!("engine.stream_timeout", engine.stream_timeout, DurationCodec),
    key!("engine.threads", engine.threads, IntegerCodec),
    key!("engine.batch", engine.batch, IntegerCodec),
    key!("engine.gpu_layers", engine.gpu_layers, IntegerCodec),
    key!("engine.main_gpu", engine.main_gpu, IntegerCodec),
    key!("engine.split_mode", engine.split_mode, ChoiceCodec),
    key!("engine.tensor_split", engine.tensor_split, ListCodec<FloatCodec>),
    key!("engine.flash_attention", engine.flash_attention, ChoiceCodec),
    SettingKey {
        name: "engine.kv_cache_type",
        other_names: &[],
        sets: &["engine.kv_cache_type_k", "engine.kv_cache_type_v"],
        restart: false,
        read: |config, raw| {
            let both: KvCacheType = ChoiceCodec::read(raw)?;
            (config.engine.kv_cache_type_k, config.engine.kv_cache_type_v) = (both, both);
            Ok(())
        },
        show: |_| Json::Null,
        same: |_, _| true,
        copy: |_, _| (),
    },
    key!("engine.kv_cache_type_k", engine.kv_cache_type_k, ChoiceCodec),
    key!("engine.kv_cache_type_v", engine.kv_cache_type_v, ChoiceCodec),
    key!("engine.mmap", engine.mmap, BoolCodec),
    key!("engine.check_tensors", engine.check_tensors, BoolCodec),
    key!("engine.max_prompt_bytes", engine.max_prompt_bytes, ByteSizeCodec),
    key!("engine.unsupported_tools", engine.unsupported_tools, ChoiceCodec),
    key!("engine.json_schemas", engine.json_schemas, ChoiceCodec),
];

/// Keys that the documentation lists after `[engine.sampling]`.
const LAST_KEYS: &[SettingKey<Config>] = &[
    key!("log.level", log.level, TextCodec),
    key!("log.format", log.format, ChoiceCodec, restart),
    key!("state_dir", state_dir, PathCodec, restart),
];

/// Table of all keys of a table `[models."hf:…"]`.
pub(super) const MODEL_KEYS: &[SettingKey<ModelConfig>] =
    &join::<_, { MODEL_LOAD_KEYS.len() + MODEL_SAMPLING_KEYS.len() }>(&[MODEL_LOAD_KEYS, MODEL_SAMPLING_KEYS]);

/// The keys of a model's table except its sampling parameters.
const MODEL_LOAD_KEYS: &[SettingKey<ModelConfig>] = &[
    key!("system", system, OptionCodec<TextCodec>),
    key!("keep_alive", keep_alive, OptionCodec<KeepAliveCodec>),
    key!("parallel", parallel, OptionCodec<IntegerCodec>),
    key!(
        "num_ctx" | "context_length",
        load.context_length,
        OptionCodec<IntegerCodec>
    ),
    key!("num_batch" | "batch", load.num_batch, OptionCodec<IntegerCodec>),
    key!("num_gpu" | "gpu_layers", load.num_gpu, OptionCodec<IntegerCodec>),
    key!("main_gpu", load.main_gpu, OptionCodec<IntegerCodec>),
    key!("use_mmap" | "mmap", load.use_mmap, OptionCodec<BoolCodec>),
    key!("num_thread" | "threads", load.num_thread, OptionCodec<IntegerCodec>),
    key!("flash_attention", flash_attention, OptionCodec<ChoiceCodec>),
    SettingKey {
        name: "kv_cache_type",
        other_names: &[],
        sets: &["kv_cache_type_k", "kv_cache_type_v"],
        restart: false,
        read: |model, raw| {
            let both: Option<KvCacheType> = OptionCodec::<ChoiceCodec>::read(raw)?;
            (model.kv_cache_type_k, model.kv_cache_type_v) = (both, both);
            Ok(())
        },
        show: |_| Json::Null,
        same: |_, _| true,
        copy: |_, _| (),
    },
    key!("kv_cache_type_k", kv_cache_type_k, OptionCodec<ChoiceCodec>),
    key!("kv_cache_type_v", kv_cache_type_v, OptionCodec<ChoiceCodec>),
];

/// A key of an earlier version that is still accepted under its old name.
pub(super) struct RenamedKey {
    pub old: &'static str,
    pub new: &'static str,
}

/// Renamed keys. The old names still work in the file, with a warning.
pub(super) const RENAMED_KEYS: &[RenamedKey] = &[
    RenamedKey {
        old: "ollama.honest_v1",
        new: "ollama.v1_via_native",
    },
    RenamedKey {
        old: "hub.organisation_tokens",
        new: "hub.organization_tokens",
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
pub(super) fn find(name: &str) -> Option<&'static SettingKey<Config>> {
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
