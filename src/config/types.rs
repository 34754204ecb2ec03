//! The settings as plain types, with their defaults. The keys that write them are in `keys`, their limits in
//! `validate`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    inference::{AutoSwitch, KeepAlive, KvCacheType, LoadOptions, SamplingOptions, SplitMode, WeightType},
    stdx::Secret,
};

/// Immutable snapshot of all settings. A request takes it once and keeps it to its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub server: ServerConfig,
    pub ollama: OllamaConfig,
    pub hub: HubConfig,
    pub engine: EngineConfig,
    /// Settings of single models by name (`hf:…`), spelled as in the file.
    pub models: BTreeMap<String, ModelConfig>,
    /// `hf:` names by the plain name that stands for each.
    pub aliases: BTreeMap<String, String>,
    pub log: LogConfig,
    /// Folder of everything that survives a restart: ledger, conversions, aliases, backups of the configuration.
    pub state_dir: PathBuf,
}

/// `[server]`: listeners and limits of connections and requests.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Listen addresses, `host:port` or `unix:/path`.
    pub listen: Vec<String>,
    /// Browser origins that are allowed besides the built-in ones; each may hold one `*`.
    pub origins: Vec<String>,
    /// Time that open streams get to finish after a soft stop.
    pub shutdown_timeout: Duration,
    pub max_connections: usize,
    pub max_header_bytes: usize,
    /// Bytes of a request body that are buffered in memory while its model name is read; the rest goes to an unlinked
    /// file.
    pub body_memory_bytes: u64,
    /// Bytes of a request body that has to be buffered to read its model name. Uploads of blobs are streamed without
    /// limit.
    pub max_body_bytes: u64,
}

/// `[ollama]`: the Ollama server that plain names are forwarded to.
#[derive(Clone, Debug, PartialEq)]
pub struct OllamaConfig {
    /// If false, plain names are not forwarded at all.
    pub enabled: bool,
    /// Base URL, such as `http://127.0.0.1:11434`.
    pub url: String,
    pub connect_timeout: Duration,
    /// Answer to `/api/version` while Ollama cannot be reached.
    pub fallback_version: String,
    /// Providers in the order in which they are asked for a plain name that several of them know.
    pub priority: Vec<ProviderName>,
    /// If set, a `/v1` request with a parameter that Ollama's `/v1` ignores is answered through Ollama's native route.
    pub v1_via_native: bool,
}

/// A provider of models, as `[ollama] priority` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    Ollama,
    HuggingFace,
}

/// `[hub]`: the Hugging Face Hub, its cache on this machine, and conversions of safetensors.
#[derive(Clone, Debug, PartialEq)]
pub struct HubConfig {
    /// If false, `hf:` names are not served at all.
    pub enabled: bool,
    /// Base URL of the Hub.
    pub endpoint: String,
    /// Base URLs that are asked, in this order, when the endpoint fails. No token is sent to them.
    pub mirrors: Vec<String>,
    pub token: Option<Secret<String>>,
    /// Access tokens for the repositories of one user or organization, by its lowercase name.
    pub organization_tokens: BTreeMap<String, Secret<String>>,
    /// Root of the cache that is shared with huggingface_hub: the folder that holds `models--org--repo`.
    pub cache_dir: PathBuf,
    /// Roots of further caches, which are searched first and never written to.
    pub extra_caches: Vec<PathBuf>,
    /// If set, only the cache is used and no network request is made.
    pub offline: bool,
    /// If set, any well-formed name is pulled on first use; otherwise only names in the configuration are.
    pub auto_pull: bool,
    /// If set, a chat that waits for a download reports its progress as thinking text.
    pub progress_in_thinking: bool,
    /// If set, `hf.co/…` and `huggingface.co/…` are served here; otherwise they are forwarded, since Ollama knows them
    /// too.
    pub claim_hf_co: bool,
    pub connect_timeout: Duration,
    /// Time without a byte after which a transfer is retried.
    pub stall_timeout: Duration,
    /// Retries of one request after its first attempt.
    pub retry_attempts: u32,
    /// Wait before the first retry; it doubles with each further one.
    pub retry_delay: Duration,
    /// Ranges of one file that are fetched at the same time.
    pub parallel_ranges: usize,
    /// Bytes per second of all downloads together; 0 is no limit.
    pub max_bytes_per_second: u64,
    pub xet: XetUse,
    pub safetensors: SafetensorsMode,
    /// Weight type of a conversion when the name does not ask for one.
    pub safetensors_type: WeightType,
    pub tokenizer_mismatch: TokenizerMismatch,
}

/// Use of the Hub's xet protocol for downloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XetUse {
    Off,
    /// Used only for files that plain HTTP cannot deliver.
    #[default]
    Auto,
    /// Used for every file that the Hub stores in xet.
    Always,
}

/// Form in which a repository that holds only safetensors is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SafetensorsMode {
    /// Stream weight types that are cheap to compute; write a GGUF file for the others.
    #[default]
    Auto,
    /// Compute the weights from the repository's own files on each load; only a header is stored.
    Stream,
    /// Write a GGUF file and load that.
    File,
}

/// `[engine]`: defaults for every `hf:` model, and limits that all models share.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Models in memory at the same time; 0 means three.
    pub max_loaded_models: usize,
    /// Sequences that one model decodes at the same time; 0 chooses by the size of their KV caches.
    pub parallel: u32,
    /// Requests that may wait for a model; further ones are refused.
    pub max_queue: usize,
    /// Time that a model stays loaded after its last request.
    pub keep_alive: KeepAlive,
    /// Tokens of context of one sequence; 0 means 4096, Ollama's default on a machine without a large GPU.
    pub context_length: u32,
    /// Time without progress after which a load fails.
    pub load_timeout: Duration,
    /// Time without a token after which a stream fails.
    pub stream_timeout: Duration,
    /// Compute threads of all models together; 0 means one for each physical core that the process may use.
    pub threads: u32,
    /// Tokens of one logical batch (llama.cpp's `n_batch`).
    pub batch: u32,
    /// Layers to offload; -1 means as many as fit.
    pub gpu_layers: i32,
    /// Device that holds everything that is not split.
    pub main_gpu: i32,
    pub split_mode: SplitMode,
    /// Share of each device; llama.cpp chooses if it is empty.
    pub tensor_split: Vec<f32>,
    pub flash_attention: AutoSwitch,
    pub kv_cache_type_k: KvCacheType,
    /// A quantized V cache needs flash attention.
    pub kv_cache_type_v: KvCacheType,
    /// If set, weight files are mapped into memory instead of read.
    pub mmap: bool,
    /// If set, a load fails when a weight is NaN or infinite.
    pub check_tensors: bool,
    /// Bytes of all texts in a prompt; a longer one is refused before it is rendered or tokenized.
    pub max_prompt_bytes: usize,
    pub unsupported_tools: UnsupportedTools,
    pub json_schemas: JsonSchemas,
    pub sampling: SamplingOptions,
}

/// Treatment of a request's tools when the model's chat template does not support tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnsupportedTools {
    /// Drop the tools; a response header and the log name them.
    #[default]
    Ignore,
    /// Refuse the request, as Ollama does.
    Refuse,
    /// Describe the tools in the system prompt and parse calls from the answer.
    Prompt,
}

/// Treatment of JSON schema keywords that cannot be enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JsonSchemas {
    /// Drop the keywords; the log names them.
    #[default]
    Relaxed,
    /// Refuse the request.
    Strict,
}

/// Treatment of a checkpoint for which llama.cpp's tokenizer and the repository's `tokenizer.json` disagree on sample
/// texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerMismatch {
    /// The conversion fails.
    #[default]
    Refuse,
    /// The checkpoint is converted; the log, `/api/show` and the GGUF metadata report the mismatch.
    Warn,
}

/// `[models."hf:…"]`: settings of one model; for `None` those of `[engine]` apply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelConfig {
    /// System prompt of conversations that have none.
    pub system: Option<String>,
    pub keep_alive: Option<KeepAlive>,
    pub parallel: Option<u32>,
    pub load: LoadOptions,
    pub sampling: SamplingOptions,
    pub flash_attention: Option<AutoSwitch>,
    pub kv_cache_type_k: Option<KvCacheType>,
    pub kv_cache_type_v: Option<KvCacheType>,
}

/// `[log]`: the log on standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Filter in the syntax of tracing's `EnvFilter`, such as `info` or `hubllama=debug,hyper=warn`.
    pub level: String,
    pub format: LogFormat,
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            // One port above Ollama's, so that both run on one machine; on both loopback addresses, since `localhost`
            // may mean either.
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
            organization_tokens: BTreeMap::new(),
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
            safetensors: SafetensorsMode::default(),
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
            // The queue, the keep-alive, the load timeout and the batch are Ollama's defaults.
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
