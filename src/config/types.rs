//! The configuration as plain data, with its defaults. What may stand in the file is the matter of `keys`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    inference::{AutoSwitch, KeepAlive, KvCacheType, LoadOptions, SamplingOptions, SplitMode},
    stdx::Secret,
};

/// A complete, validated configuration: one immutable snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// How clients reach us.
    pub server: ServerConfig,
    /// The Ollama that answers plain names.
    pub ollama: OllamaConfig,
    /// The Hugging Face Hub and its cache.
    pub hub: HubConfig,
    /// Defaults of every hf: model, and what they share.
    pub engine: EngineConfig,
    /// Settings of single models, by the name as it is written in the file (`hf:…`).
    pub models: BTreeMap<String, ModelConfig>,
    /// Plain names that stand for an hf: name.
    pub aliases: BTreeMap<String, String>,
    /// Logging.
    pub log: LogConfig,
    /// Folder for what must survive a restart.
    pub state_dir: PathBuf,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// `host:port` or `unix:/path`. Needs a restart.
    pub listen: Vec<String>,
    /// Origins that browsers may call from, beside the built-in ones; one `*` each.
    pub origins: Vec<String>,
    /// Time that streams have to end after a stop was asked for.
    pub shutdown_timeout: Duration,
    /// Connections open at once. Needs a restart.
    pub max_connections: usize,
    /// Bytes of a request's headers. Needs a restart.
    pub max_header_bytes: usize,
    /// Bytes of a body that are kept in memory while its model name is looked for; the rest goes to an unlinked file.
    pub body_memory_bytes: u64,
    /// Bytes of a body whose model name must be known (blobs stream past this limit).
    pub max_body_bytes: u64,
}

/// `[ollama]`
#[derive(Clone, Debug, PartialEq)]
pub struct OllamaConfig {
    /// Whether plain names are passed on at all.
    pub enabled: bool,
    /// Base URL, as `http://127.0.0.1:11434`.
    pub url: String,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Answer of `/api/version` while Ollama does not answer.
    pub fallback_version: String,
    /// Who answers where both know a plain name.
    pub priority: Vec<ProviderName>,
    /// If set, a `/v1` request with a parameter that Ollama's `/v1` ignores is answered through Ollama's native route.
    pub v1_via_native: bool,
}

/// One side of the house.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    /// A real Ollama.
    Ollama,
    /// hf: models.
    HuggingFace,
}

/// `[hub]`
#[derive(Clone, Debug, PartialEq)]
pub struct HubConfig {
    /// Whether hf: names are served at all.
    pub enabled: bool,
    /// Base URL of the Hub.
    pub endpoint: String,
    /// Base URLs that are asked, in this order, where the endpoint does not help. They never see a token.
    pub mirrors: Vec<String>,
    /// Access token.
    pub token: Option<Secret<String>>,
    /// Access tokens for the repositories of one user or organisation, by its name in lower case.
    pub organisation_tokens: BTreeMap<String, Secret<String>>,
    /// Root of the cache shared with huggingface_hub (the folder that holds `models--org--repo`).
    pub cache_dir: PathBuf,
    /// Roots of other people's caches, searched first and never written to.
    pub extra_caches: Vec<PathBuf>,
    /// Use what is cached, ask nobody.
    pub offline: bool,
    /// Pull any well-formed name on first use, not only those named in the configuration.
    pub auto_pull: bool,
    /// Tell a chat that waits for a download how far that is, in its reasoning.
    pub progress_in_thinking: bool,
    /// Claim `hf.co/…` and `huggingface.co/…`, which are Ollama's own spelling.
    pub claim_hf_co: bool,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time without a byte after which a transfer is tried again.
    pub stall_timeout: Duration,
    /// Tries of one request after the first.
    pub retry_attempts: u32,
    /// Wait before the first retry; doubles each time.
    pub retry_delay: Duration,
    /// Ranges of one file that are fetched at once.
    pub parallel_ranges: usize,
    /// Bytes in a second that all downloads together may bring; 0 is no limit.
    pub max_bytes_per_second: u64,
    /// When files come over the Hub's xet protocol.
    pub xet: XetUse,
    /// What is made of a repository that holds only safetensors.
    pub safetensors: Safetensors,
    /// The type of weights that is made of safetensors for a name that asks for none.
    pub safetensors_type: WeightType,
    pub tokenizer_mismatch: TokenizerMismatch,
}

/// The name of a type of weights, as `Q4_K_M`; `stored` is the one that a repository has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightType(&'static str);

impl WeightType {
    /// Those that can be made, by their names; `convert` makes them.
    pub const ALL: &[(&'static str, Self)] = &weight_types([
        "stored", "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L",
        "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS",
    ]);

    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0
    }
}

const fn weight_types<const N: usize>(names: [&'static str; N]) -> [(&'static str, WeightType); N] {
    let mut types = [("", WeightType("")); N];
    let mut at = 0;
    while at < N {
        types[at] = (names[at], WeightType(names[at]));
        at += 1;
    }
    types
}

impl Default for WeightType {
    fn default() -> Self {
        Self("stored")
    }
}

/// When files come over the Hub's xet protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XetUse {
    /// Never.
    Off,
    /// Where plain HTTP cannot give them.
    #[default]
    Auto,
    /// Wherever the Hub has them there.
    Always,
}

/// What is made of a repository that holds only safetensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Safetensors {
    /// A file of what takes long to make, else nothing.
    #[default]
    Auto,
    /// Nothing: the weights are made from the repository's own files with each load.
    Stream,
    /// A GGUF file.
    File,
}

/// `[engine]`: defaults of every hf: model, and what they share.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Models in memory at once; 0 is three.
    pub max_loaded_models: usize,
    /// Sequences that one model decodes at once; 0 is chosen from the model's size.
    pub parallel: u32,
    /// Requests that may wait for a model before new ones are refused.
    pub max_queue: usize,
    /// How long a model stays after its last request.
    pub keep_alive: KeepAlive,
    /// Context window of one sequence in tokens; 0 is chosen from the device memory.
    pub context_length: u32,
    /// Time without progress after which a load is given up.
    pub load_timeout: Duration,
    /// Time without a token after which a stream is given up.
    pub stream_timeout: Duration,
    /// Compute threads over all models; 0 is the number of cores.
    pub threads: u32,
    /// Tokens in one logical batch.
    pub batch: u32,
    /// Layers to offload; -1 is as many as fit.
    pub gpu_layers: i32,
    /// Device that holds what is not split.
    pub main_gpu: i32,
    /// How a model is split over devices.
    pub split_mode: SplitMode,
    /// Share of each device; empty lets the engine choose.
    pub tensor_split: Vec<f32>,
    /// Flash attention.
    pub flash_attention: AutoSwitch,
    /// Element type of the K cache.
    pub kv_cache_type_k: KvCacheType,
    /// Element type of the V cache; other than f16 needs flash attention.
    pub kv_cache_type_v: KvCacheType,
    /// Map weight files instead of reading them.
    pub mmap: bool,
    /// Check weights for NaN and infinity while loading.
    pub check_tensors: bool,
    /// Bytes of a rendered prompt; longer ones are refused before they are tokenised.
    pub max_prompt_bytes: usize,
    /// What to do with tools where the model's template knows none.
    pub unsupported_tools: UnsupportedTools,
    /// What to do with the parts of a JSON schema that cannot be enforced.
    pub json_schemas: JsonSchemas,
    /// Sampling defaults.
    pub sampling: SamplingOptions,
}

/// What to do with tools where the model's template knows none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnsupportedTools {
    /// Leave them out and say so in a header and the log.
    #[default]
    Ignore,
    /// Refuse the request, as Ollama does.
    Refuse,
    /// Teach them in the system prompt, and read calls from the answer.
    Prompt,
}

/// What to do with the parts of a JSON schema that cannot be enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JsonSchemas {
    /// Leave them out and say so in the log.
    #[default]
    Relaxed,
    /// Refuse the request.
    Strict,
}

/// Treatment of a checkpoint for which llama.cpp's tokenizer and the repository's `tokenizer.json` disagree on sample texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerMismatch {
    /// The conversion fails.
    #[default]
    Refuse,
    /// The checkpoint is converted; the log, `/api/show` and the GGUF metadata report the mismatch.
    Warn,
}

/// `[models."hf:…"]`: settings of one model; `None` leaves the engine's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelConfig {
    /// System prompt, put in front where the conversation has none.
    pub system: Option<String>,
    /// How long the model stays after its last request.
    pub keep_alive: Option<KeepAlive>,
    /// Sequences decoded at once.
    pub parallel: Option<u32>,
    /// Options of the load (context length, layers on the GPU …).
    pub load: LoadOptions,
    /// Sampling defaults.
    pub sampling: SamplingOptions,
    /// Flash attention.
    pub flash_attention: Option<AutoSwitch>,
    /// Element type of the K cache.
    pub kv_cache_type_k: Option<KvCacheType>,
    /// Element type of the V cache.
    pub kv_cache_type_v: Option<KvCacheType>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A filter as `info` or `hubllama=debug,hyper=warn`.
    pub level: String,
    /// Text for people, JSON for machines. Needs a restart.
    pub format: LogFormat,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:11435".into(), "[::1]:11435".into()],
            origins: Vec::new(),
            shutdown_timeout: Duration::from_secs(30),
            max_connections: 4096,
            max_header_bytes: 64 << 10,
            body_memory_bytes: 4 << 20,
            max_body_bytes: 4 << 30,
        }
    }
}

impl Default for OllamaConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            url: "http://127.0.0.1:11434".into(),
            connect_timeout: Duration::from_secs(5),
            fallback_version: "0.13.5".into(),
            priority: vec![ProviderName::Ollama, ProviderName::HuggingFace],
            v1_via_native: false,
        }
    }
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            endpoint: "https://huggingface.co".into(),
            mirrors: Vec::new(),
            token: None,
            organisation_tokens: BTreeMap::new(),
            cache_dir: PathBuf::new(),
            extra_caches: Vec::new(),
            offline: false,
            auto_pull: false,
            progress_in_thinking: false,
            claim_hf_co: false,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            retry_attempts: 5,
            retry_delay: Duration::from_millis(500),
            parallel_ranges: 8,
            max_bytes_per_second: 0,
            xet: XetUse::default(),
            safetensors: Safetensors::default(),
            safetensors_type: WeightType::default(),
            tokenizer_mismatch: TokenizerMismatch::default(),
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_loaded_models: 0,
            parallel: 0,
            max_queue: 512,
            keep_alive: KeepAlive::For(Duration::from_secs(300)),
            context_length: 0,
            load_timeout: Duration::from_secs(300),
            stream_timeout: Duration::from_secs(300),
            threads: 0,
            batch: 512,
            gpu_layers: -1,
            main_gpu: 0,
            split_mode: SplitMode::Layer,
            tensor_split: Vec::new(),
            flash_attention: AutoSwitch::Auto,
            kv_cache_type_k: KvCacheType::F16,
            kv_cache_type_v: KvCacheType::F16,
            mmap: true,
            check_tensors: true,
            max_prompt_bytes: 16 << 20,
            unsupported_tools: UnsupportedTools::Ignore,
            json_schemas: JsonSchemas::Relaxed,
            sampling: SamplingOptions::default(),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}
