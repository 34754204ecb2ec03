//! Checks that types cannot express: ranges, addresses, names, and combinations of settings.

use std::{collections::BTreeMap, path::Path, time::Duration};

use url::Url;

use super::{
    Config, EngineConfig, HubConfig, ModelConfig, ServerConfig,
    address::{HostAddress, ListenAddress},
    document::quoted,
    suggest::hint,
};
use crate::{
    inference::{AutoSwitch, KvCacheType, SamplingOptions},
    stdx::text::strip_prefix_ignore_case,
};

/// Findings of a check, each a full key and a sentence about it.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Mistakes; the configuration is refused.
    pub problems: Vec<(String, String)>,
    /// Settings that work but are probably not intended.
    pub warnings: Vec<(String, String)>,
}

impl Findings {
    fn problem(&mut self, key: &str, sentence: impl Into<String>) {
        self.problems.push((key.to_owned(), sentence.into()));
    }

    fn warning(&mut self, key: &str, sentence: impl Into<String>) {
        self.warnings.push((key.to_owned(), sentence.into()));
    }

    fn range<T: PartialOrd + std::fmt::Display>(&mut self, key: &str, value: T, least: T, most: T) {
        // Written as a negation, so that NaN is out of range.
        if !(value >= least && value <= most) {
            self.problem(key, format!("{value} is out of range; set {least} to {most}"));
        }
    }

    fn time(&mut self, key: &str, value: Duration, least: Duration, most: Duration) {
        if value < least || value > most {
            self.problem(key, format!("{value:?} is out of range; set {least:?} to {most:?}"));
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const TEN_MINUTES: Duration = Duration::from_secs(600);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// A duration that means "no limit".
const TEN_YEARS: Duration = Duration::from_secs(3650 * 24 * 3600);

/// Checks a whole configuration. Reads nothing but its argument.
pub(super) fn validate(config: &Config) -> Findings {
    let mut findings = Findings::default();
    server(&config.server, &mut findings);
    ollama(config, &mut findings);
    hub(&config.hub, &mut findings);
    engine(&config.engine, &mut findings);
    for (name, model) in &config.models {
        self::model(name, model, config, &mut findings);
    }
    same_models(config.models.keys(), &mut findings);
    aliases(&config.aliases, &config.hub, &mut findings);
    log_level(&config.log.level, &mut findings);
    folder("state_dir", &config.state_dir, "HUBLLAMA_STATE", &mut findings);
    if !config.ollama.enabled && !config.hub.enabled {
        findings.problem(
            "hub.enabled",
            "is false and so is ollama.enabled, so no request could be answered; enable one of the two",
        );
    }
    findings
}

fn server(server: &ServerConfig, findings: &mut Findings) {
    if server.listen.is_empty() {
        findings.problem(
            "server.listen",
            "is empty; name at least one address, such as \"127.0.0.1:11435\"",
        );
    }
    for (index, text) in server.listen.iter().enumerate() {
        match ListenAddress::parse(text) {
            Err(sentence) => findings.problem("server.listen", sentence),
            Ok(listen) => {
                if server.listen[..index].contains(text) && listen.port() != Some(0) {
                    findings.problem("server.listen", format!("{text:?} is named twice"));
                }
                if matches!(&listen, ListenAddress::Tcp(host, _) if !host.is_loopback()) {
                    let sentence = format!("{text:?} can be reached from other machines, and requests need no key");
                    findings.warning("server.listen", sentence);
                }
            }
        }
    }
    for origin in &server.origins {
        if origin.matches('*').count() > 1 {
            findings.problem("server.origins", format!("{origin:?} has more than one *"));
        } else if origin != "*" && !origin.contains("://") {
            let sentence = format!("{origin:?} has no scheme; write http://{origin} or https://{origin}");
            findings.problem("server.origins", sentence);
        }
    }
    findings.time("server.shutdown_timeout", server.shutdown_timeout, Duration::ZERO, DAY);
    findings.range("server.max_connections", server.max_connections, 1, 1_000_000);
    // hyper panics on a header buffer of less than 8 KiB.
    findings.range("server.max_header_bytes", server.max_header_bytes, 8 << 10, 16 << 20);
    findings.range("server.max_body_bytes", server.max_body_bytes, 1 << 10, 1 << 50);
    findings.range("server.body_memory_bytes", server.body_memory_bytes, 1 << 10, 1 << 40);
}

fn ollama(config: &Config, findings: &mut Findings) {
    let ollama = &config.ollama;
    let url = match base_url(&ollama.url, "http://127.0.0.1:11434") {
        Ok(url) => Some(url),
        Err(sentence) => {
            findings.problem("ollama.url", sentence);
            None
        }
    };
    // Malformed addresses are reported by `server`.
    for listen in config
        .server
        .listen
        .iter()
        .filter_map(|text| ListenAddress::parse(text).ok())
    {
        if url
            .as_ref()
            .is_some_and(|url| ollama.enabled && listen.is_reached_by(url))
        {
            let sentence = "is one of our own addresses in server.listen; requests would go round in a circle. \
                            Name the address of Ollama, or listen elsewhere";
            findings.problem("ollama.url", sentence);
            break;
        }
    }
    findings.time(
        "ollama.connect_timeout",
        ollama.connect_timeout,
        MILLISECOND,
        TEN_MINUTES,
    );
    let version = &ollama.fallback_version;
    let good = version.starts_with(|c: char| c.is_ascii_digit()) && version.split('.').count() >= 3;
    if !good || !version.bytes().all(|byte| byte.is_ascii_graphic()) || version.len() > 64 {
        findings.problem(
            "ollama.fallback_version",
            format!("{version:?} is not a version; write it as \"0.13.5\""),
        );
    }
    if ollama.priority.is_empty() {
        findings.problem("ollama.priority", "is empty; name \"ollama\", \"huggingface\" or both");
    }
    if (1..ollama.priority.len()).any(|index| ollama.priority[..index].contains(&ollama.priority[index])) {
        findings.problem("ollama.priority", "names a provider twice");
    }
    if ollama.v1_via_native && !ollama.enabled {
        findings.warning("ollama.v1_via_native", "has no effect, because ollama.enabled is false");
    }
}

fn hub(hub: &HubConfig, findings: &mut Findings) {
    match base_url(&hub.endpoint, "https://huggingface.co") {
        Err(sentence) => findings.problem("hub.endpoint", sentence),
        Ok(url) => {
            let local = url
                .host_str()
                .and_then(HostAddress::parse)
                .is_some_and(|host| host.is_loopback());
            if url.scheme() == "http" && hub.token.is_some() && !local {
                findings.warning("hub.endpoint", "is not encrypted, and the token is sent over it");
            }
        }
    }
    if let Some(token) = &hub.token {
        let token = token.expose();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) || token.len() > 1024 {
            findings.problem(
                "hub.token",
                "has characters that no token has; is it the content of another file?",
            );
        }
    }
    for (index, mirror) in hub.mirrors.iter().enumerate() {
        if let Err(sentence) = base_url(mirror, "https://hf-mirror.example.com") {
            findings.problem("hub.mirrors", sentence);
        }
        if *mirror == hub.endpoint || hub.mirrors[..index].contains(mirror) {
            findings.problem("hub.mirrors", format!("names {mirror:?}, which is asked already"));
        }
    }
    for (organization, token) in &hub.organization_tokens {
        let is_name = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        if organization.is_empty() || organization.len() > 96 || !is_name(organization) {
            let sentence = format!("{organization:?} is not a user or organization of the Hub");
            findings.problem("hub.organization_tokens", sentence);
        }
        let token = token.expose();
        if token.is_empty() || token.len() > 1024 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let sentence = format!("holds for {organization:?} a value that is not a token");
            findings.problem("hub.organization_tokens", sentence);
        }
    }
    for extra in &hub.extra_caches {
        if !extra.is_absolute() {
            let sentence = format!(
                "{:?} is not absolute; write the whole path",
                extra.display().to_string()
            );
            findings.problem("hub.extra_caches", sentence);
        } else if *extra == hub.cache_dir {
            findings.problem(
                "hub.extra_caches",
                "names the folder of hub.cache_dir, which is searched anyway",
            );
        }
    }
    if hub.enabled {
        folder("hub.cache_dir", &hub.cache_dir, "HF_HOME", findings);
    }
    // With a lower limit every transfer would look stalled.
    if hub.max_bytes_per_second != 0 {
        findings.range("hub.max_bytes_per_second", hub.max_bytes_per_second, 64 << 10, 1 << 50);
    }
    findings.time("hub.connect_timeout", hub.connect_timeout, MILLISECOND, TEN_MINUTES);
    findings.time("hub.stall_timeout", hub.stall_timeout, SECOND, DAY);
    findings.time("hub.retry_delay", hub.retry_delay, Duration::ZERO, TEN_MINUTES);
    findings.range("hub.retry_attempts", hub.retry_attempts, 0, 100);
    findings.range("hub.parallel_ranges", hub.parallel_ranges, 1, 64);
}

fn engine(engine: &EngineConfig, findings: &mut Findings) {
    findings.range("engine.max_loaded_models", engine.max_loaded_models, 0, 1024);
    // LLAMA_MAX_SEQ of llama.cpp.
    findings.range("engine.parallel", engine.parallel, 0, 256);
    findings.range("engine.max_queue", engine.max_queue, 0, 1_000_000);
    findings.range("engine.context_length", engine.context_length, 0, 1 << 28);
    findings.time("engine.load_timeout", engine.load_timeout, SECOND, TEN_YEARS);
    findings.time("engine.stream_timeout", engine.stream_timeout, SECOND, TEN_YEARS);
    findings.range("engine.threads", engine.threads, 0, 4096);
    findings.range("engine.batch", engine.batch, 1, 1 << 20);
    findings.range("engine.gpu_layers", engine.gpu_layers, -1, 1 << 20);
    findings.range("engine.main_gpu", engine.main_gpu, 0, 255);
    let split = &engine.tensor_split;
    if split.iter().any(|share| *share < 0.0) || (!split.is_empty() && split.iter().all(|share| *share == 0.0)) {
        findings.problem(
            "engine.tensor_split",
            "must hold a share for each device, none negative, one above 0",
        );
    }
    if split.len() > 128 {
        findings.problem("engine.tensor_split", "names more devices than there can be");
    }
    findings.range("engine.max_prompt_bytes", engine.max_prompt_bytes, 1 << 10, 1 << 32);
    v_cache(
        "engine.kv_cache_type_v",
        engine.kv_cache_type_v,
        engine.flash_attention,
        findings,
    );
    sampling("engine.sampling", &engine.sampling, findings);
}

fn model(name: &str, model: &ModelConfig, config: &Config, findings: &mut Findings) {
    let engine = &config.engine;
    let path = format!("models.{}", quoted(name));
    if let Err(sentence) = hf_name(name, &config.hub) {
        findings.problem(&path, sentence);
    }
    if let Some(parallel) = model.parallel {
        findings.range(&format!("{path}.parallel"), parallel, 0, 256);
    }
    let load = &model.load;
    if let Some(context_length) = load.context_length {
        findings.range(&format!("{path}.num_ctx"), context_length, 1, 1 << 28);
    }
    if let Some(num_batch) = load.num_batch {
        findings.range(&format!("{path}.num_batch"), num_batch, 1, 1 << 20);
    }
    if let Some(num_gpu) = load.num_gpu {
        findings.range(&format!("{path}.num_gpu"), num_gpu, -1, 1 << 20);
    }
    if let Some(main_gpu) = load.main_gpu {
        findings.range(&format!("{path}.main_gpu"), main_gpu, 0, 255);
    }
    if let Some(num_thread) = load.num_thread {
        findings.range(&format!("{path}.num_thread"), num_thread, 0, 4096);
    }
    if model.kv_cache_type_v.is_some() || model.flash_attention.is_some() {
        let v = model.kv_cache_type_v.unwrap_or(engine.kv_cache_type_v);
        let flash = model.flash_attention.unwrap_or(engine.flash_attention);
        v_cache(&format!("{path}.kv_cache_type_v"), v, flash, findings);
    }
    sampling(&path, &model.sampling, findings);
}

fn v_cache(key: &str, v: KvCacheType, flash: AutoSwitch, findings: &mut Findings) {
    if matches!(v, KvCacheType::Q8_0 | KvCacheType::Q4_0) && flash == AutoSwitch::Off {
        findings.problem(
            key,
            "needs flash attention; set flash_attention to \"auto\" or \"on\", or the type to \"f16\"",
        );
    }
}

fn sampling(path: &str, sampling: &SamplingOptions, findings: &mut Findings) {
    let reals = [
        ("temperature", sampling.temperature, 0.0, 100.0),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("typical_p", sampling.typical_p, 0.0, 1.0),
        ("repeat_penalty", sampling.repeat_penalty, 0.01, 100.0),
        ("presence_penalty", sampling.presence_penalty, -100.0, 100.0),
        ("frequency_penalty", sampling.frequency_penalty, -100.0, 100.0),
    ];
    for (name, value, least, most) in reals {
        if let Some(value) = value {
            findings.range(&format!("{path}.{name}"), value, least, most);
        }
    }
    if let Some(last_n) = sampling.repeat_last_n {
        findings.range(&format!("{path}.repeat_last_n"), last_n, -1, i32::MAX);
    }
    let stop = sampling.stop.as_deref().unwrap_or_default();
    if stop.iter().any(String::is_empty) {
        findings.problem(
            &format!("{path}.stop"),
            "holds an empty text, which would end every answer at once",
        );
    }
    if stop.len() > 64 || stop.iter().any(|text| text.len() > 1024) {
        findings.problem(
            &format!("{path}.stop"),
            "holds too much; set at most 64 texts of 1024 bytes",
        );
    }
}

/// Reports names that differ only in the spelling of their prefix and so stand for one model.
fn same_models<'a>(names: impl Iterator<Item = &'a String>, findings: &mut Findings) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for name in names {
        let folded = PREFIXES
            .iter()
            .find_map(|prefix| strip_prefix_ignore_case(name, prefix))
            .unwrap_or(name);
        if let Some(first) = seen.insert(folded.to_owned(), name) {
            findings.problem(
                &format!("models.{}", quoted(name)),
                format!("is the same model as {first:?}"),
            );
        }
    }
}

fn aliases(aliases: &BTreeMap<String, String>, hub: &HubConfig, findings: &mut Findings) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (alias, target) in aliases {
        let path = format!("aliases.{}", quoted(alias));
        if let Err(sentence) = hf_name(target, hub) {
            findings.problem(&path, sentence);
        }
        if alias.is_empty() || alias.contains(char::is_whitespace) {
            findings.problem(&path, "is not a model name; a name is not empty and has no blanks");
        } else if hf_name(alias, hub).is_ok() {
            findings.problem(&path, "already means a model of the Hub; an alias is a plain name");
        }
        // `:latest` is the default tag of Ollama, and names are compared without case.
        let plain = alias.strip_suffix(":latest").unwrap_or(alias).to_ascii_lowercase();
        if let Some(first) = seen.insert(plain, alias) {
            findings.problem(&path, format!("is the same name as {first:?}"));
        }
    }
}

/// Prefixes of the names of Hub models. The first is always known, the others only with `hub.claim_hf_co`.
const PREFIXES: [&str; 3] = ["hf:", "hf.co/", "huggingface.co/"];

/// Checks the outline of a Hub model's name. The full grammar is that of `hub::HfName`, a layer above.
fn hf_name(name: &str, hub: &HubConfig) -> Result<(), String> {
    let prefixes = if hub.claim_hf_co { &PREFIXES[..] } else { &PREFIXES[..1] };
    let rest = prefixes
        .iter()
        .find_map(|prefix| strip_prefix_ignore_case(name, prefix));
    let parts = rest.and_then(|rest| rest.split_once('/'));
    let is_good = parts.is_some_and(|(org, repo)| !org.is_empty() && !repo.is_empty())
        && !name.contains(|c: char| c.is_whitespace() || c.is_control());
    if is_good {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not the name of a Hub model; write it as \"hf:org/repo\" or \"hf:org/repo:Q4_K_M\""
    ))
}

fn log_level(level: &str, findings: &mut Findings) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // EnvFilter takes an unknown word for the name of a module and would then log nothing.
    for part in level.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let is_level = LEVELS.iter().any(|known| known.eq_ignore_ascii_case(part));
        if !is_level && !part.contains(['=', '[']) {
            let sentence = format!(
                "{part:?} is not a level; set one of {}{}",
                LEVELS.join(", "),
                hint(part, LEVELS)
            );
            findings.problem("log.level", sentence);
            return;
        }
    }
    if level.trim().is_empty() {
        findings.problem("log.level", "is empty; set a level such as \"info\"");
    } else if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(level) {
        findings.problem("log.level", format!("{level:?} is not a filter: {error}"));
    }
}

fn folder(key: &str, path: &Path, variable: &str, findings: &mut Findings) {
    if path.as_os_str().is_empty() {
        findings.problem(
            key,
            format!("is not set and there is no home folder to put it in; set it, or {variable}"),
        );
    } else if !path.is_absolute() {
        findings.problem(
            key,
            format!("{:?} is not absolute; write the whole path", path.display().to_string()),
        );
    }
}

fn base_url(text: &str, example: &str) -> Result<Url, String> {
    let wrong = |why: &str| Err(format!("{text:?} {why}; write it as {example:?}"));
    let Ok(url) = Url::parse(text) else {
        return wrong("is not a URL");
    };
    if !matches!(url.scheme(), "http" | "https") {
        return wrong("does not begin with http:// or https://");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return wrong("has no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The text holds a password, so the sentence must not repeat it.
        return Err(format!("must not hold a user or password; write it as {example:?}"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong("has more than a base URL has");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_right() {
        let mut config = Config {
            state_dir: "/state".into(),
            ..Config::default()
        };
        config.hub.cache_dir = "/cache".into();
        let findings = validate(&config);
        assert!(
            findings.problems.is_empty() && findings.warnings.is_empty(),
            "{findings:?}"
        );
    }
}
