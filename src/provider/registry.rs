//! Routing of model names to providers. The result depends only on the configuration snapshot and on the models that
//! clients made; the providers themselves are fixed at start.

use std::sync::Arc;

use super::{
    Provider,
    aliases::{AliasStore, AliasedProvider},
};
use crate::config::{Config, ProviderName};
use crate::stdx::text::strip_prefix_ignore_case;

/// Owner of a model name.
#[derive(Clone, Debug)]
pub enum NameOwner {
    /// Ollama: the request is forwarded as the bytes that came.
    Forward,
    /// A provider of hubllama.
    Serve {
        provider: Arc<dyn Provider>,
        /// Name to ask the provider for. An alias of the configuration is already replaced by its target.
        name: String,
        origin: NameOrigin,
    },
}

/// Reason why a name belongs to one of our providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameOrigin {
    /// The name is an hf: name.
    Hub,
    /// The name is an alias of the configuration.
    Configured,
    /// A client gave the name to a model that it created.
    Made,
}

impl NameOrigin {
    /// Returns true for a plain name, which Ollama may have, too.
    #[must_use]
    pub fn is_plain(self) -> bool {
        self != Self::Hub
    }
}

/// Router of names to providers.
#[derive(Clone, Debug)]
pub struct Registry {
    hugging_face: Arc<dyn Provider>,
    aliases: AliasStore,
}

impl Registry {
    /// Creates a registry over the provider of hf: names. Models that clients make are kept in memory only.
    pub fn new(hugging_face: Arc<dyn Provider>) -> Self {
        Self::with_aliases(hugging_face, AliasStore::default())
    }

    /// Creates a registry over the provider of hf: names and the models that clients have made.
    pub fn with_aliases(hugging_face: Arc<dyn Provider>, aliases: AliasStore) -> Self {
        Self { hugging_face, aliases }
    }

    /// Returns the models that clients have made.
    pub fn aliases(&self) -> &AliasStore {
        &self.aliases
    }

    /// Returns the providers that list and run models. Aliases are served by the provider of their model.
    pub fn providers(&self) -> impl Iterator<Item = &Arc<dyn Provider>> {
        std::iter::once(&self.hugging_face)
    }

    /// Returns the owner of `name`, as the client wrote it, under `config`.
    ///
    /// `hf:foo` without a slash is a legal name in Ollama and belongs to it. With a slash every `hf:` name is ours,
    /// even a malformed one: Ollama would refuse it with a less helpful message.
    #[must_use]
    pub fn owner(&self, config: &Config, name: &str) -> NameOwner {
        let name = name.trim();
        if !config.hub.enabled {
            return NameOwner::Forward;
        }
        if is_hugging_face(config, name) {
            return self.serve(name, NameOrigin::Hub);
        }
        // Before the names of clients: what the administrator configured cannot be taken over the wire.
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

    /// Returns the provider of hf: names, for the target of an alias.
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

/// Returns true if a name that is both an alias of ours and a model of Ollama belongs to Ollama.
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

/// Returns the target of the configured alias `name`. Both may have Ollama's default tag.
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
