//! Environment variables that set keys, and the form in which each family of variables writes its values.
//!
//! The environment is passed in as a map. Nothing here reads the process's own, so tests need not change it.

use std::collections::BTreeMap;

use super::{suggest::hint, value::flag_word};

/// Values of environment variables by name.
pub(super) type Environment = BTreeMap<String, String>;

/// The variable that names the configuration file; it sets no key.
pub(super) const CONFIG_PATH: &str = "HUBLLAMA_CONFIG";

/// Ollama's "no limit" for a load, as a duration.
const TEN_YEARS: &str = "87600h";

/// Form in which a variable writes its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The form of the key itself.
    Plain,
    Milliseconds,
    /// A boolean of huggingface_hub: 1, ON, YES and TRUE are true, everything else is false.
    HubFlag,
    /// A boolean of huggingface_hub that switches a feature off.
    HubOff,
    /// The parent folder of the cache.
    HubHome,
    /// A duration in which zero and negative values mean no limit.
    OllamaLoadTimeout,
    /// A boolean of Ollama: a value that cannot be parsed is true.
    OllamaSwitch,
    /// A log level: 1 is debug, 2 is trace.
    OllamaDebug,
    /// The first provider in the order of priority.
    FirstProvider,
    /// `cpu` or a type of device.
    Device,
}

/// An environment variable that sets a key.
#[derive(Clone, Copy, Debug)]
struct Name {
    name: &'static str,
    key: &'static str,
    form: Form,
    /// Current name of a variable that has been renamed. The old name still works, with a warning.
    replaced_by: Option<&'static str>,
}

const fn name(name: &'static str, key: &'static str, form: Form) -> Name {
    Name {
        name,
        key,
        form,
        replaced_by: None,
    }
}

/// Table of all variables, from the least to the most specific: Ollama's, those of Hugging Face's libraries, those of
/// the original design, hubllama's own. If several set the same key, the last one wins.
const NAMES: &[Name] = &[
    name("OLLAMA_ORIGINS", "server.origins", Form::Plain),
    name("OLLAMA_KEEP_ALIVE", "engine.keep_alive", Form::Plain),
    name("OLLAMA_CONTEXT_LENGTH", "engine.context_length", Form::Plain),
    name("OLLAMA_NUM_PARALLEL", "engine.parallel", Form::Plain),
    name("OLLAMA_MAX_LOADED_MODELS", "engine.max_loaded_models", Form::Plain),
    name("OLLAMA_MAX_QUEUE", "engine.max_queue", Form::Plain),
    name("OLLAMA_LOAD_TIMEOUT", "engine.load_timeout", Form::OllamaLoadTimeout),
    name("OLLAMA_FLASH_ATTENTION", "engine.flash_attention", Form::OllamaSwitch),
    name("OLLAMA_KV_CACHE_TYPE", "engine.kv_cache_type", Form::Plain),
    name("OLLAMA_DEBUG", "log.level", Form::OllamaDebug),
    name("HF_HOME", "hub.cache_dir", Form::HubHome),
    name("HUGGINGFACE_HUB_CACHE", "hub.cache_dir", Form::Plain),
    name("HF_HUB_CACHE", "hub.cache_dir", Form::Plain),
    name("HF_ENDPOINT", "hub.endpoint", Form::Plain),
    name("HF_TOKEN_PATH", "hub.token_file", Form::Plain),
    name("HUGGING_FACE_HUB_TOKEN", "hub.token", Form::Plain),
    name("HF_TOKEN", "hub.token", Form::Plain),
    name("TRANSFORMERS_OFFLINE", "hub.offline", Form::HubFlag),
    name("HF_HUB_OFFLINE", "hub.offline", Form::HubFlag),
    name("HF_HUB_DISABLE_XET", "hub.xet", Form::HubOff),
    name("HUGGINGFACE_ENABLED", "hub.enabled", Form::Plain),
    name("HUGGINGFACE_CACHE_DIR", "hub.cache_dir", Form::Plain),
    name("HUGGINGFACE_DEVICE", "engine.gpu_layers", Form::Device),
    name("DEFAULT_MODEL_PROVIDER", "ollama.priority", Form::FirstProvider),
    name("MODEL_PROVIDER_PRIORITY", "ollama.priority", Form::Plain),
    name("MAX_CONCURRENT_MODELS", "engine.max_loaded_models", Form::Plain),
    name("MODEL_LOAD_TIMEOUT_MS", "engine.load_timeout", Form::Milliseconds),
    name("STREAM_TIMEOUT_MS", "engine.stream_timeout", Form::Milliseconds),
    name("RETRY_ATTEMPTS", "hub.retry_attempts", Form::Plain),
    name("RETRY_DELAY_MS", "hub.retry_delay", Form::Milliseconds),
    name("HUBLLAMA_LISTEN", "server.listen", Form::Plain),
    name("HUBLLAMA_UPSTREAM", "ollama.url", Form::Plain),
    Name {
        replaced_by: Some("HUBLLAMA_ORGANIZATION_TOKENS"),
        ..name("HUBLLAMA_ORGANISATION_TOKENS", "hub.organization_tokens", Form::Plain)
    },
    name("HUBLLAMA_ORGANIZATION_TOKENS", "hub.organization_tokens", Form::Plain),
    name("HUBLLAMA_STATE", "state_dir", Form::Plain),
    name("HUBLLAMA_LOG", "log.level", Form::Plain),
];

/// Variables of the original design that have no effect, each with an alternative.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    (
        "HUGGINGFACE_MODELS_PATH",
        "models are kept in the Hub's cache; set HUGGINGFACE_CACHE_DIR",
    ),
    (
        "HUGGINGFACE_PRECISION",
        "the precision is part of a model's name, as in hf:org/repo:Q8_0",
    ),
    (
        "HUGGINGFACE_MAX_MEMORY",
        "memory is measured; MAX_CONCURRENT_MODELS bounds the number of models",
    ),
    ("ENABLE_MODEL_MONITORING", "workers are always watched"),
    (
        "MODEL_HEALTH_CHECK_INTERVAL_MS",
        "a worker's end is seen at once, without an interval",
    ),
    (
        "MEMORY_CLEANUP_INTERVAL_MS",
        "memory is given back as soon as a model is unloaded; set keep_alive",
    ),
];

/// A variable that is set, with its value in the form of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub name: &'static str,
    pub key: &'static str,
    pub text: Result<String, String>,
    /// Current name of the variable, if this one is deprecated.
    pub replaced_by: Option<&'static str>,
    /// If set, a value that cannot be parsed is a warning and not an error, as in the program that defines the
    /// variable.
    pub lenient: bool,
}

/// Returns every key that the environment sets, from the least to the most specific variable.
pub(super) fn settings(environment: &Environment) -> Vec<Setting> {
    // With this variable huggingface_hub sends a token only when a call asks for it.
    let no_token = lookup(environment, "HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(hub_flag);
    let mut settings = Vec::new();
    for Name {
        name,
        key,
        form,
        replaced_by,
    } in NAMES
    {
        let Some(text) = lookup(environment, name) else {
            continue;
        };
        if no_token && key.starts_with("hub.token") {
            continue;
        }
        if let Some(text) = translate(*form, text).transpose() {
            settings.push(Setting {
                name,
                key,
                text,
                replaced_by: *replaced_by,
                lenient: name.starts_with("OLLAMA_"),
            });
        }
    }
    settings
}

/// Returns the variables that are set but have no effect, each with a sentence.
pub(super) fn without_effect(environment: &Environment) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in environment.keys() {
        if let Some((_, instead)) = WITHOUT_EFFECT.iter().find(|(known, _)| known == name) {
            found.push((name.clone(), format!("has no effect here: {instead}")));
        } else if name.starts_with("HUBLLAMA_") && name != CONFIG_PATH && !NAMES.iter().any(|known| known.name == name)
        {
            let current = NAMES.iter().filter(|known| known.replaced_by.is_none());
            let ours = current.map(|known| known.name).chain([CONFIG_PATH]);
            let ours = ours.filter(|known| known.starts_with("HUBLLAMA_"));
            found.push((name.clone(), format!("is not a setting{}", hint(name, ours))));
        }
    }
    found
}

/// Returns the variables that set `key`, the most specific first.
pub(super) fn names_of(key: &str) -> Vec<&'static str> {
    NAMES
        .iter()
        .rev()
        .filter(|name| name.key == key && name.replaced_by.is_none())
        .map(|name| name.name)
        .collect()
}

/// Returns a variable's value without surrounding blanks and quotes; `None` if it is unset or empty. Ollama removes the
/// same, since env files that Docker reads pass quotes on.
pub(super) fn lookup<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    let text = environment.get(name)?.trim();
    let unquoted = ['"', '\'']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
    Some(unquoted.unwrap_or(text).trim()).filter(|text| !text.is_empty())
}

pub(super) fn hub_flag(text: &str) -> bool {
    matches!(text.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

fn translate(form: Form, text: &str) -> Result<Option<String>, String> {
    Ok(Some(match form {
        Form::Plain => text.to_owned(),
        Form::Milliseconds => {
            let millis: u64 = text
                .parse()
                .map_err(|_| format!("expected whole milliseconds, found {text:?}"))?;
            format!("{millis}ms")
        }
        Form::HubFlag => hub_flag(text).to_string(),
        Form::HubOff if hub_flag(text) => "off".to_owned(),
        // The variable can only switch xet off: with a false value the default stays in force.
        Form::HubOff => return Ok(None),
        Form::HubHome => format!("{}/hub", text.trim_end_matches('/')),
        Form::OllamaLoadTimeout if text.starts_with('-') || matches!(text, "0" | "0s") => TEN_YEARS.to_owned(),
        Form::OllamaLoadTimeout => text.to_owned(),
        Form::OllamaSwitch => (if flag_word(text).unwrap_or(true) { "on" } else { "off" }).to_owned(),
        Form::OllamaDebug => match (text, flag_word(text)) {
            // The variable can only raise the level.
            (_, Some(false)) => return Ok(None),
            ("2", _) => "trace".to_owned(),
            _ => "debug".to_owned(),
        },
        Form::FirstProvider => match text.to_ascii_lowercase().as_str() {
            "huggingface" | "hf" => "huggingface,ollama".to_owned(),
            "ollama" => "ollama,huggingface".to_owned(),
            _ => return Err(format!("expected \"ollama\" or \"huggingface\", found {text:?}")),
        },
        Form::Device => match text.to_ascii_lowercase().as_str() {
            "cpu" => "0".to_owned(),
            "cuda" | "mps" | "gpu" | "auto" => "-1".to_owned(),
            _ => {
                return Err(format!(
                    "expected \"cpu\", \"cuda\", \"mps\" or \"auto\", found {text:?}"
                ));
            }
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::{super::keys, *};

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn every_name_sets_a_known_key() {
        for name in NAMES {
            assert!(keys::find(name.key).is_some(), "{} sets {}", name.name, name.key);
        }
    }

    #[test]
    fn each_family_writes_in_its_own_way() {
        let cases = [
            (
                "MODEL_LOAD_TIMEOUT_MS",
                "30000",
                Some(("engine.load_timeout", "30000ms")),
            ),
            ("HF_HUB_OFFLINE", "yes", Some(("hub.offline", "true"))),
            ("HF_HUB_OFFLINE", "2", Some(("hub.offline", "false"))),
            ("HF_HUB_DISABLE_XET", "1", Some(("hub.xet", "off"))),
            ("HF_HUB_DISABLE_XET", "0", None),
            ("HF_HOME", "/data/hf/", Some(("hub.cache_dir", "/data/hf/hub"))),
            ("OLLAMA_LOAD_TIMEOUT", "-1", Some(("engine.load_timeout", TEN_YEARS))),
            (
                "OLLAMA_FLASH_ATTENTION",
                "maybe",
                Some(("engine.flash_attention", "on")),
            ),
            ("OLLAMA_FLASH_ATTENTION", "0", Some(("engine.flash_attention", "off"))),
            ("OLLAMA_DEBUG", "0", None),
            ("OLLAMA_DEBUG", "1", Some(("log.level", "debug"))),
            ("OLLAMA_DEBUG", "2", Some(("log.level", "trace"))),
            ("OLLAMA_KEEP_ALIVE", " \"10m\" ", Some(("engine.keep_alive", "10m"))),
            ("OLLAMA_HOST", "0.0.0.0:11434", None),
            ("HUGGINGFACE_DEVICE", "cpu", Some(("engine.gpu_layers", "0"))),
            (
                "DEFAULT_MODEL_PROVIDER",
                "huggingface",
                Some(("ollama.priority", "huggingface,ollama")),
            ),
            ("HUBLLAMA_LISTEN", "", None),
        ];
        for (name, value, expected) in cases {
            let found = settings(&environment(&[(name, value)]));
            let found = found
                .first()
                .map(|setting| (setting.key, setting.text.as_deref().unwrap_or("?")));
            assert_eq!(found, expected, "{name}={value}");
        }
    }

    #[test]
    fn more_specific_names_come_later() {
        let set = [
            ("HF_HOME", "/a"),
            ("HF_HUB_CACHE", "/b"),
            ("HUGGINGFACE_CACHE_DIR", "/c"),
        ];
        let found: Vec<_> = settings(&environment(&set))
            .into_iter()
            .map(|setting| setting.name)
            .collect();
        assert_eq!(found, ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_CACHE_DIR"]);
    }

    #[test]
    fn token_is_not_taken_unasked() {
        let set = [("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert_eq!(settings(&environment(&set)), []);
    }

    #[test]
    fn slips_and_leftovers_are_told() {
        let set = [
            ("HUBLLAMA_LISTN", "x"),
            ("HUGGINGFACE_PRECISION", "float16"),
            ("HUBLLAMA_CONFIG", "/x"),
        ];
        let found = without_effect(&environment(&set));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].1, "is not a setting (did you mean \"HUBLLAMA_LISTEN\"?)");
        assert!(found[1].1.starts_with("has no effect here"));
    }
}
