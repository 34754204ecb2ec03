//! Settings in force for one request. A value comes from the request, else from the model's table in the configuration,
//! else from `[engine]`, else from Ollama's default.

use crate::{
    config::{Config, ModelConfig},
    hub::HfName,
    inference::{
        AutoSwitch, InferencePrompt, InferenceRequest, KeepAlive, KvCacheType, LoadOptions, Message, ModelFacts,
        SamplingOptions,
    },
    library::{Library, LocalModel},
    lifecycle,
    worker::protocol::{Job, SamplerSettings},
};

use super::prepare::PreparedPrompt;

/// Context length if `engine.context_length` is 0, in tokens: Ollama's for machines with less than 23 GiB of device
/// memory.
const DEFAULT_CONTEXT_LENGTH: u32 = 4096;
/// Smallest context length, in tokens, as in Ollama.
const MIN_CONTEXT_LENGTH: u32 = 4;
/// Context windows after which an answer without a limit ends, as in Ollama.
const UNLIMITED_WINDOWS: u32 = 10;

/// Smallest repetition penalty: the sampler divides by it.
const MIN_REPEAT_PENALTY: f32 = 1e-3;

/// Replaces numbers that JSON, which carries the settings to the worker, cannot represent: NaN by 0, infinity by the
/// largest number.
fn finite(number: f32) -> f32 {
    if number.is_nan() {
        0.0
    } else {
        number.clamp(f32::MIN, f32::MAX)
    }
}

/// Settings of one model and one request.
#[derive(Clone, Debug)]
pub(super) struct RequestSettings {
    pub(super) system: Option<String>,
    pub(super) keep_alive: KeepAlive,
    pub(super) flash_attention: AutoSwitch,
    pub(super) kv_type_k: KvCacheType,
    pub(super) kv_type_v: KvCacheType,
    /// Context length that the request itself asked for.
    requested_context_length: Option<u32>,
    pub(super) load: LoadOptions,
    default_context_length: u32,
    parallel: u32,
    model: ModelConfig,
}

impl RequestSettings {
    /// Returns the settings for a located model and the load options of a request.
    pub(super) async fn of(library: &Library, config: &Config, model: &LocalModel, request: &LoadOptions) -> Self {
        Self::resolve(config, model_config(library, config, model).await, request)
    }

    fn resolve(config: &Config, model: ModelConfig, request: &LoadOptions) -> Self {
        let engine = &config.engine;
        let load = request.clone().or(&model.load);
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

    /// Returns the context length of one sequence, in tokens: at most the one that the model was trained with.
    pub(super) fn context_length(&self, facts: &ModelFacts) -> u32 {
        let length = self
            .load
            .context_length
            .unwrap_or(self.default_context_length)
            .max(MIN_CONTEXT_LENGTH);
        match facts.context_length {
            0 => length,
            trained => length.min(trained),
        }
    }

    /// Returns the context length of a request on a model that is loaded with `loaded` tokens: smaller if the request
    /// asked for less.
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

    /// Returns the conversation of a prompt, with the system prompt of the model's settings unless it has one; empty if
    /// the prompt is no conversation.
    pub(super) fn conversation(&self, prompt: &InferencePrompt) -> Vec<Message> {
        let InferencePrompt::Chat { messages, .. } = prompt else {
            return Vec::new();
        };
        let mut messages = messages.clone();
        let has_system = messages.first().is_some_and(|message| message.role.0 == "system");
        if let (Some(system), false) = (&self.system, has_system) {
            messages.insert(0, Message::text("system", system.clone()));
        }
        messages
    }

    /// Returns the job for a request on a model that grants it `context_length` tokens.
    pub(super) fn job(
        &self,
        config: &Config,
        request: &InferenceRequest,
        context_length: u32,
        prompt: PreparedPrompt,
    ) -> Job {
        let sampling = request
            .sampling
            .clone()
            .or(&self.model.sampling)
            .or(&config.engine.sampling);
        let unlimited = context_length.saturating_mul(UNLIMITED_WINDOWS);
        // A negative number, which does not convert, means no limit.
        let max_tokens = u32::try_from(sampling.num_predict.unwrap_or(-1)).unwrap_or(unlimited);
        let mut stop = sampling.stop.clone().unwrap_or_default();
        // Added and not replaced: without the stop strings of its template an answer would run on into the next turn.
        stop.extend(prompt.stops);
        Job {
            // Set when the job is sent.
            id: 0,
            prompt: prompt.prompt,
            max_tokens: max_tokens.min(unlimited),
            // A negative number, which does not convert, keeps the whole prompt, as in Ollama.
            keep: u32::try_from(sampling.num_keep.unwrap_or(4)).unwrap_or(context_length),
            stop,
            sampling: sampler_settings(sampling),
            context_length,
            shift: request.shift,
            logprobs: request.logprobs,
            return_context: request.return_context,
            chat: prompt.syntax,
            reasoning: prompt.reasoning,
            schema: prompt.schema,
        }
    }

    /// Returns the model's own settings as `/api/show` prints parameters: names of Ollama, values in Go's spelling.
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

/// Fills in Ollama's defaults.
fn sampler_settings(sampling: SamplingOptions) -> SamplerSettings {
    SamplerSettings {
        // A negative seed is random. Of a larger one the sampler uses the low 32 bits.
        seed: sampling
            .seed
            .filter(|&seed| seed >= 0)
            .and_then(|seed| u32::try_from(seed & i64::from(u32::MAX)).ok()),
        temperature: finite(sampling.temperature.unwrap_or(0.8)),
        top_k: sampling.top_k.unwrap_or(40),
        top_p: finite(sampling.top_p.unwrap_or(0.9)),
        min_p: finite(sampling.min_p.unwrap_or(0.0)),
        typical_p: finite(sampling.typical_p.unwrap_or(1.0)),
        repeat_last_n: sampling.repeat_last_n.unwrap_or(64),
        repeat_penalty: finite(sampling.repeat_penalty.unwrap_or(1.0)).max(MIN_REPEAT_PENALTY),
        presence_penalty: finite(sampling.presence_penalty.unwrap_or(0.0)),
        frequency_penalty: finite(sampling.frequency_penalty.unwrap_or(0.0)),
        logit_bias: sampling.logit_bias,
    }
}

/// Returns true if two names of models that are not on disk mean the same model: equal except for case, or equal except
/// for a selector that one of them lacks.
fn is_same(name: &HfName, configured: &HfName) -> bool {
    let selector = |name: &HfName| name.selector.as_ref().map(ToString::to_string);
    name.repo_id().eq_ignore_ascii_case(&configured.repo_id())
        && name.has_adapters_of(configured)
        && match (selector(name), selector(configured)) {
            (Some(a), Some(b)) => a.eq_ignore_ascii_case(&b),
            _ => true,
        }
}

/// Returns the table of a model in the configuration. Of several that match, the most exact one counts: a name with
/// adapters before one without, a selector before none, a revision before none. The table of a base model also applies
/// to it with adapters.
async fn model_config(library: &Library, config: &Config, model: &LocalModel) -> ModelConfig {
    let mut found: Option<((bool, bool, bool), &ModelConfig)> = None;
    let base = LocalModel {
        adapters: Vec::new(),
        ..model.clone()
    };
    for (name, settings) in &config.models {
        // The configuration checks only the outline of a name; one that does not parse matches no model.
        let Ok(name) = HfName::parse(name) else { continue };
        let is_of_base = name.adapters.is_empty();
        let exactness = (!is_of_base, name.selector.is_some(), name.revision.is_some());
        let model = if is_of_base { &base } else { model };
        let is_better = found.is_none_or(|(best, _)| exactness > best);
        if is_better && library.means(&config.hub, &name, model).await {
            found = Some((exactness, settings));
        }
    }
    found.map(|(_, settings)| settings.clone()).unwrap_or_default()
}

/// Returns every hf: name in the configuration.
pub(super) fn named_models(config: &Config) -> Vec<String> {
    config.models.keys().chain(config.aliases.values()).cloned().collect()
}

/// Returns true if a model that is not on disk is pulled when its name is first used.
pub(super) fn pulls_on_use(config: &Config, name: &HfName) -> bool {
    config.hub.auto_pull
        || named_models(config)
            .iter()
            .filter_map(|configured| HfName::parse(configured).ok())
            .any(|configured| is_same(name, &configured))
}
