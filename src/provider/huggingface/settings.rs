//! What is in force for one request: request before model settings before engine settings before Ollama's defaults.

use crate::{
    config::{Config, ModelConfig},
    hub::HfName,
    inference::{AutoSwitch, KeepAlive, KvCacheType, LoadOptions, ModelFacts, SamplingOptions},
    library::{Library, LocalModel},
    lifecycle,
    worker::protocol::SamplerSettings,
};

use super::DEFAULT_CONTEXT_LENGTH;

/// Ollama's smallest window.
const MIN_CONTEXT_LENGTH: u32 = 4;
/// An answer without a limit ends after this many windows, as Ollama's does.
const UNLIMITED_WINDOWS: u32 = 10;

/// Smallest multiplicative penalty.
const MIN_REPEAT_PENALTY: f32 = 1e-3;

/// A number that a wire had no room for is the largest there is: JSON, which carries it to the worker, has no infinity.
fn finite(number: f32) -> f32 {
    if number.is_nan() {
        0.0
    } else {
        number.clamp(f32::MIN, f32::MAX)
    }
}

/// Settings of one request, but for sampling.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) system: Option<String>,
    pub(super) keep_alive: KeepAlive,
    pub(super) flash_attention: AutoSwitch,
    pub(super) kv_type_k: KvCacheType,
    pub(super) kv_type_v: KvCacheType,
    /// Context that the request itself asked for.
    requested_context_length: Option<u32>,
    pub(super) load: LoadOptions,
    default_context_length: u32,
    parallel: u32,
    model: ModelConfig,
}

impl Settings {
    /// What is in force for a model and a request.
    pub(super) async fn of(hub: &Library, config: &Config, model: &LocalModel, request: &LoadOptions) -> Self {
        Self::resolve(config, model_config(hub, config, model).await, request)
    }

    fn resolve(config: &Config, model: ModelConfig, request: &LoadOptions) -> Self {
        let engine = &config.engine;
        let load = LoadOptions {
            context_length: request.context_length.or(model.load.context_length),
            num_batch: request.num_batch.or(model.load.num_batch),
            num_gpu: request.num_gpu.or(model.load.num_gpu),
            main_gpu: request.main_gpu.or(model.load.main_gpu),
            use_mmap: request.use_mmap.or(model.load.use_mmap),
            num_thread: request.num_thread.or(model.load.num_thread),
        };
        Self {
            system: model.system.clone(),
            keep_alive: model.keep_alive.unwrap_or(engine.keep_alive),
            flash_attention: model.flash_attention.unwrap_or(engine.flash_attention),
            kv_type_k: model.kv_cache_type_k.unwrap_or(engine.kv_cache_type_k),
            kv_type_v: model.kv_cache_type_v.unwrap_or(engine.kv_cache_type_v),
            requested_context_length: request.context_length,
            default_context_length: match engine.context_length {
                0 => DEFAULT_CONTEXT_LENGTH,
                length => length,
            },
            parallel: model.parallel.unwrap_or(engine.parallel),
            load,
            model,
        }
    }

    /// Context window of one sequence, never more than the model was trained with.
    pub(super) fn context_length(&self, facts: &ModelFacts) -> u32 {
        let wanted = self
            .load
            .context_length
            .unwrap_or(self.default_context_length)
            .max(MIN_CONTEXT_LENGTH);
        match facts.context_length {
            0 => wanted,
            trained => wanted.min(trained),
        }
    }

    /// Context window of a request on a model that is loaded with `loaded` tokens: smaller if the request asked for less.
    pub(super) fn window(&self, facts: &ModelFacts, loaded: u32) -> u32 {
        match self.requested_context_length {
            Some(_) => self.context_length(facts).min(loaded),
            None => loaded,
        }
    }

    pub(super) fn parallel(&self, kv_bytes_per_token: u64, context_length: u32) -> u32 {
        match self.parallel {
            0 => lifecycle::default_parallel(kv_bytes_per_token, context_length),
            parallel => parallel,
        }
    }

    /// Sampler, largest number of tokens, tokens kept on a shift, stop strings.
    pub(super) fn sampling(
        &self,
        config: &Config,
        request: &SamplingOptions,
        context: u32,
    ) -> (SamplerSettings, u32, u32, Vec<String>) {
        let layers = [request, &self.model.sampling, &config.engine.sampling];
        macro_rules! first {
            ($field:ident, $default:expr) => {
                layers
                    .iter()
                    .find_map(|layer| layer.$field.clone())
                    .unwrap_or($default)
            };
        }
        let sampler = SamplerSettings {
            seed: u32::try_from(first!(seed, -1) & i64::from(u32::MAX))
                .ok()
                .filter(|_| first!(seed, -1) >= 0),
            temperature: finite(first!(temperature, 0.8)),
            top_k: first!(top_k, 40),
            top_p: finite(first!(top_p, 0.9)),
            min_p: finite(first!(min_p, 0.0)),
            typical_p: finite(first!(typical_p, 1.0)),
            repeat_last_n: first!(repeat_last_n, 64),
            // Zero would divide by it.
            repeat_penalty: finite(first!(repeat_penalty, 1.0)).max(MIN_REPEAT_PENALTY),
            presence_penalty: finite(first!(presence_penalty, 0.0)),
            frequency_penalty: finite(first!(frequency_penalty, 0.0)),
            logit_bias: request.logit_bias.clone(),
        };
        let unlimited = context.saturating_mul(UNLIMITED_WINDOWS);
        let max_tokens = u32::try_from(first!(num_predict, -1))
            .unwrap_or(unlimited)
            .min(unlimited);
        let keep = u32::try_from(first!(num_keep, 4)).unwrap_or(context);
        (sampler, max_tokens, keep, first!(stop, Vec::new()))
    }

    /// What `/api/show` prints as parameters: the model's own settings, in Go's spelling.
    pub(super) fn parameters(&self) -> Vec<(String, String)> {
        let sampling = &self.model.sampling;
        let mut out = Vec::new();
        let mut add = |name: &str, value: Option<String>| out.extend(value.map(|value| (name.to_owned(), value)));
        add("num_ctx", self.model.load.context_length.map(|value| value.to_string()));
        add("num_gpu", self.model.load.num_gpu.map(|value| value.to_string()));
        add("num_predict", sampling.num_predict.map(|value| value.to_string()));
        add("seed", sampling.seed.map(|value| value.to_string()));
        add("temperature", sampling.temperature.map(|value| value.to_string()));
        add("top_k", sampling.top_k.map(|value| value.to_string()));
        add("top_p", sampling.top_p.map(|value| value.to_string()));
        add("min_p", sampling.min_p.map(|value| value.to_string()));
        add("repeat_penalty", sampling.repeat_penalty.map(|value| value.to_string()));
        for stop in sampling.stop.iter().flatten() {
            add("stop", Some(format!("{stop:?}")));
        }
        out
    }
}

/// Whether two names of models that are not on disk are one: equal but for case, or equal where one has no selector.
fn is_same(name: &HfName, configured: &HfName) -> bool {
    let selector = |name: &HfName| name.selector.as_ref().map(ToString::to_string);
    name.repo_id().eq_ignore_ascii_case(&configured.repo_id())
        && name.has_adapters_of(configured)
        && match (selector(name), selector(configured)) {
            (Some(a), Some(b)) => a.eq_ignore_ascii_case(&b),
            _ => true,
        }
}

/// The settings of a model; an entry that says more about which model it is for goes before one for the whole repository.
/// What is said of a base holds with adapters, too.
async fn model_config(hub: &Library, config: &Config, model: &LocalModel) -> ModelConfig {
    let mut found: Option<((bool, bool, bool), &ModelConfig)> = None;
    let base = LocalModel {
        adapters: Vec::new(),
        ..model.clone()
    };
    for (name, settings) in &config.models {
        let Ok(name) = HfName::parse(name) else { continue };
        let is_of_base = name.adapters.is_empty();
        let exactness = (!is_of_base, name.selector.is_some(), name.revision.is_some());
        let model = if is_of_base { &base } else { model };
        let is_better = found.is_none_or(|(best, _)| exactness > best);
        if is_better && hub.means(&config.hub, &name, model).await {
            found = Some((exactness, settings));
        }
    }
    found.map(|(_, settings)| settings.clone()).unwrap_or_default()
}

/// Every hf: name that the configuration mentions.
pub(super) fn named_models(config: &Config) -> Vec<String> {
    config.models.keys().chain(config.aliases.values()).cloned().collect()
}

/// Whether a name that is not on disk is pulled when it is first used.
pub(super) fn pulls_on_use(config: &Config, name: &HfName) -> bool {
    config.hub.auto_pull
        || named_models(config)
            .iter()
            .filter_map(|configured| HfName::parse(configured).ok())
            .any(|configured| is_same(name, &configured))
}
