//! Which provider answers a name. Pure over the configuration snapshot; the providers themselves are fixed at start.

use std::sync::Arc;

use super::Provider;
use crate::config::{Config, ProviderName};

/// Who answers for a name.
#[derive(Clone, Debug)]
pub enum Owner {
    /// A real Ollama: forward the bytes.
    Forward,
    /// One of our providers, under this name (an alias is already replaced by what it stands for).
    Serve {
        /// The provider.
        provider: Arc<dyn Provider>,
        /// The name to ask it for.
        name: String,
        /// Whether the name that was asked for is an alias: Ollama may have a model of that name too.
        alias: bool,
    },
}

/// Routes names to providers.
#[derive(Clone, Debug)]
pub struct Registry {
    hugging_face: Arc<dyn Provider>,
}

impl Registry {
    /// A registry over the provider of hf: names.
    pub fn new(hugging_face: Arc<dyn Provider>) -> Self {
        Self { hugging_face }
    }

    /// Every provider that serves by itself.
    pub fn providers(&self) -> impl Iterator<Item = &Arc<dyn Provider>> {
        std::iter::once(&self.hugging_face)
    }

    /// Who answers `name` (as the client wrote it) under `config`.
    ///
    /// `hf:foo` without a slash is a legal Ollama name and goes there; with a slash every `hf:` name is ours, also a
    /// malformed one, since Ollama refuses them all.
    #[must_use]
    pub fn owner(&self, config: &Config, name: &str) -> Owner {
        let name = name.trim();
        if !config.hub.enabled {
            return Owner::Forward;
        }
        if is_hugging_face(config, name) {
            return self.serve(name, false);
        }
        match alias(config, name) {
            Some(target) => self.serve(target, true),
            None => Owner::Forward,
        }
    }

    fn serve(&self, name: &str, alias: bool) -> Owner {
        Owner::Serve {
            provider: Arc::clone(&self.hugging_face),
            name: name.to_owned(),
            alias,
        }
    }
}

/// Whether Ollama answers a name that both know: an alias of ours that is also a model of its.
#[must_use]
pub fn prefers_ollama(config: &Config) -> bool {
    config.ollama.enabled && config.ollama.priority.first() == Some(&ProviderName::Ollama)
}

fn is_hugging_face(config: &Config, name: &str) -> bool {
    if let Some(rest) = strip_prefix_ignore_case(name, "hf:") {
        return rest.contains('/');
    }
    config.hub.claim_hf_co
        && ["hf.co/", "huggingface.co/"]
            .iter()
            .any(|prefix| strip_prefix_ignore_case(name, prefix).is_some())
}

/// The alias that `name` is, with or without Ollama's default tag.
fn alias<'a>(config: &'a Config, name: &str) -> Option<&'a str> {
    let bare = name.strip_suffix(":latest").unwrap_or(name);
    config
        .aliases
        .iter()
        .find(|(alias, _)| {
            alias
                .strip_suffix(":latest")
                .unwrap_or(alias)
                .eq_ignore_ascii_case(bare)
        })
        .map(|(_, target)| target.as_str())
}

fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}
