//! Which provider answers a name. Pure over the configuration snapshot and the models that clients made; the providers
//! themselves are fixed at start.

use std::sync::Arc;

use super::{
    Provider,
    aliases::{AliasStore, AliasedProvider},
};
use crate::config::{Config, ProviderName};
use crate::stdx::text::strip_prefix_ignore_case;

/// Who answers for a name.
#[derive(Clone, Debug)]
pub enum NameOwner {
    /// A real Ollama: forward the bytes.
    Forward,
    /// One of our providers, under this name (an alias of the configuration is already replaced by what it stands for).
    Serve {
        /// The provider.
        provider: Arc<dyn Provider>,
        /// The name to ask it for.
        name: String,
        /// How the name came to be ours.
        origin: NameOrigin,
    },
}

/// How a name came to be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameOrigin {
    /// It is a name of the Hub.
    Hub,
    /// The configuration says so.
    Configured,
    /// A client made it.
    Made,
}

impl NameOrigin {
    /// Whether it is a plain name, which Ollama may have too.
    #[must_use]
    pub fn is_plain(self) -> bool {
        self != Self::Hub
    }
}

/// Routes names to providers.
#[derive(Clone, Debug)]
pub struct Registry {
    hugging_face: Arc<dyn Provider>,
    aliases: AliasStore,
}

impl Registry {
    /// A registry over the provider of hf: names. Models that clients make live as long as it does.
    pub fn new(hugging_face: Arc<dyn Provider>) -> Self {
        Self::with_aliases(hugging_face, AliasStore::default())
    }

    /// The same, over models that clients have made.
    pub fn with_aliases(hugging_face: Arc<dyn Provider>, aliases: AliasStore) -> Self {
        Self { hugging_face, aliases }
    }

    /// The models that clients have made.
    pub fn aliases(&self) -> &AliasStore {
        &self.aliases
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
    pub fn owner(&self, config: &Config, name: &str) -> NameOwner {
        let name = name.trim();
        if !config.hub.enabled {
            return NameOwner::Forward;
        }
        if is_hugging_face(config, name) {
            return self.serve(name, NameOrigin::Hub);
        }
        if let Some(target) = alias(config, name) {
            return self.serve(target, NameOrigin::Configured);
        }
        match self.aliases.get(name) {
            Some(alias) => NameOwner::Serve {
                name: alias.name.clone(),
                provider: Arc::new(AliasedProvider::new(
                    Arc::clone(&self.hugging_face),
                    alias,
                    self.aliases.clone(),
                )),
                origin: NameOrigin::Made,
            },
            None => NameOwner::Forward,
        }
    }

    /// Who answers the hf: name that an alias stands for.
    #[must_use]
    pub fn hub(&self) -> Arc<dyn Provider> {
        Arc::clone(&self.hugging_face)
    }

    fn serve(&self, name: &str, origin: NameOrigin) -> NameOwner {
        NameOwner::Serve {
            provider: self.hub(),
            name: name.to_owned(),
            origin,
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
