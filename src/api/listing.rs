//! Merged lists of Ollama's models and ours. Ollama's entries are copied byte for byte, so that fields unknown here
//! stay.

use std::collections::HashSet;

use hyper::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ApiHandler;
use crate::{
    config::Config,
    hub::HfName,
    inference::ModelCard,
    provider::{CallContext, NameOrigin, NameOwner, PlainName, prefers_ollama},
};

/// Entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListEntry {
    pub(crate) name: String,
    /// Sort key in whole seconds since 1970.
    pub(crate) seconds: i64,
    /// Encoded entry.
    pub(crate) json: Vec<u8>,
}

/// Members of one of Ollama's entries that matter here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Keys {
    name: String,
    id: String,
    modified_at: String,
    expires_at: String,
    created: i64,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    // `/v1/models` calls the list `data`, and has `null` for an empty one.
    #[serde(borrow, default, alias = "data")]
    models: Option<Vec<&'a RawValue>>,
}

/// Fetches Ollama's entries; none while it is away, so that our models stay visible.
pub(crate) async fn of_upstream(
    api: &ApiHandler,
    call: &CallContext,
    path: &str,
    received: &HeaderMap,
) -> Vec<ListEntry> {
    match api.upstream.get(call, path, received).await {
        Ok((StatusCode::OK, bytes)) => parse(&bytes),
        Ok((status, _)) => {
            tracing::warn!(
                path,
                status = status.as_u16(),
                "Ollama did not answer a listing; showing hf: models only"
            );
            Vec::new()
        }
        Err(error) => {
            // No warning: hubllama may run without Ollama for good, and clients list models often.
            tracing::debug!(path, error = %error, "Ollama is not reachable; showing hf: models only");
            Vec::new()
        }
    }
}

fn parse(bytes: &[u8]) -> Vec<ListEntry> {
    let Ok(Envelope { models: Some(entries) }) = serde_json::from_slice(bytes) else {
        return Vec::new();
    };
    entries
        .into_iter()
        .map(|raw| {
            let Keys {
                name,
                id,
                modified_at,
                expires_at,
                created,
                // An entry of an unknown shape is passed on, too, and sorts last.
            } = serde_json::from_str(raw.get()).unwrap_or_default();
            // `/api/tags` has `modified_at`, `/api/ps` `expires_at`, and `/v1/models` `created`.
            let stamp = if modified_at.is_empty() {
                expires_at
            } else {
                modified_at
            };
            ListEntry {
                name: if name.is_empty() { id } else { name },
                seconds: stamp.parse().map_or(created, jiff::Timestamp::as_second),
                json: raw.get().as_bytes().to_vec(),
            }
        })
        .collect()
}

/// Returns Ollama's list at `path` merged with our models. `encode` encodes one of ours under the name that it is
/// listed by.
pub(crate) async fn of_both(
    api: &ApiHandler,
    call: &CallContext,
    path: &str,
    received: &HeaderMap,
    encode: impl Fn(&str, &ModelCard) -> Vec<u8>,
) -> Vec<ListEntry> {
    // At the same time: Ollama may take a while to answer, or not answer at all.
    let (upstream, cards) = futures_util::join!(of_upstream(api, call, path, received), our_cards(api, call));
    let ours = cards
        .iter()
        .map(|(name, card)| ListEntry {
            name: name.clone(),
            seconds: unix_seconds(card.modified_at),
            json: encode(name, card),
        })
        .collect();
    merge(&call.config, upstream, ours)
}

/// Returns true if Ollama itself lists a model of this name.
pub(crate) async fn upstream_has(api: &ApiHandler, call: &CallContext, name: &str, received: &HeaderMap) -> bool {
    let name = PlainName::parse(name).map_or_else(|| with_tag(name.trim()), |name| name.to_string());
    let listed = of_upstream(api, call, "/api/tags", received).await;
    // Ollama compares names without regard to case.
    listed.iter().any(|entry| entry.name.eq_ignore_ascii_case(&name))
}

/// Merges both lists, newest first as Ollama sorts. Of two entries of one name (ours is an alias then), the one stays
/// that a request reaches.
pub(crate) fn merge(config: &Config, upstream: Vec<ListEntry>, ours: Vec<ListEntry>) -> Vec<ListEntry> {
    let (mut merged, weaker) = if prefers_ollama(config) {
        (upstream, ours)
    } else {
        (ours, upstream)
    };
    let names: HashSet<String> = merged.iter().map(|entry| entry.name.to_ascii_lowercase()).collect();
    merged.extend(
        weaker
            .into_iter()
            .filter(|entry| !names.contains(&entry.name.to_ascii_lowercase())),
    );
    // Ollama sorts by whole seconds, too, and stably: entries of the same second keep their order.
    merged.sort_by_key(|entry| std::cmp::Reverse(entry.seconds));
    merged
}

/// Returns the entries as a JSON list.
pub(crate) fn list(entries: &[ListEntry]) -> Vec<u8> {
    // Joined as bytes, so that Ollama's entries stay as they came.
    let mut json = vec![b'['];
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        json.extend_from_slice(&entry.json);
    }
    json.push(b']');
    json
}

/// Cards of all models that are ours, each with the name to list it under: its own, then those of aliases, then models
/// that clients made, newest first.
pub(crate) async fn our_cards(api: &ApiHandler, call: &CallContext) -> Vec<(String, ModelCard)> {
    let mut cards = Vec::new();
    if !call.config.hub.enabled {
        return cards;
    }
    for provider in api.registry.providers() {
        cards.extend(
            provider
                .list(call)
                .await
                .into_iter()
                .map(|card| (card.name.clone(), card)),
        );
    }
    for alias in call.config.aliases.keys() {
        if let NameOwner::Serve { name, .. } = api.registry.owner(&call.config, alias)
            && let Some(card) = find_listed(cards.iter().map(|(_, card)| card), &name)
        {
            let card = card.clone();
            cards.push((with_tag(alias), card));
        }
    }
    for alias in api.registry.aliases().all() {
        // An alias of the configuration with the same name hides this one.
        if let NameOwner::Serve {
            origin: NameOrigin::Made,
            ..
        } = api.registry.owner(&call.config, &alias.name)
        {
            let card = alias.card(find_listed(cards.iter().map(|(_, card)| card), &alias.model));
            cards.push((alias.name.clone(), card));
        }
    }
    cards
}

/// Returns the listed model that a name means; without a selector, the one with Q4_K_M if there is one, else any.
///
/// The list is searched and the provider is not asked, since a listing must not begin a download.
pub(crate) fn find_listed<'a>(cards: impl Iterator<Item = &'a ModelCard>, name: &str) -> Option<&'a ModelCard> {
    let name = name.to_ascii_lowercase();
    // Some clients append `:latest` to every name without a tag. For hf: models it means no selector.
    let (name, adapters) = without_adapters(name.strip_suffix(":latest").unwrap_or(&name));
    let rank = |card: &ModelCard| {
        let listed = card.name.to_ascii_lowercase();
        let (listed, with) = without_adapters(&listed);
        let selector = listed.strip_prefix(name).filter(|_| with == adapters)?;
        match selector {
            "" => Some(0),
            // A name without a selector means this quantization on the Hub, too, if there is one.
            ":q4_k_m" => Some(1),
            other => other.starts_with(':').then_some(2),
        }
    };
    cards
        .filter_map(|card| Some((rank(card)?, card)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, card)| card)
}

/// Splits a name into its base and its adapters.
fn without_adapters(name: &str) -> (&str, &str) {
    let adapters = HfName::parse(name).map_or(0, |name| {
        let written = name.adapters.iter().map(|adapter| adapter.to_string().len() + 1);
        written.sum()
    });
    name.split_at(name.len() - adapters)
}

/// Returns a plain name as Ollama lists it: always with a tag.
fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

/// Returns a time in whole seconds since 1970.
pub(crate) fn unix_seconds(time: std::time::SystemTime) -> i64 {
    match time.duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProviderName;

    fn entry(name: &str, seconds: i64) -> ListEntry {
        ListEntry {
            name: name.into(),
            seconds,
            json: format!("\"{name}\"").into_bytes(),
        }
    }

    #[test]
    fn upstream_entries_keep_their_bytes() {
        let body = r#"{"models":[{"name":"a:latest","modified_at":"2026-11-23T06:50:34.024460257Z","new":1.50},{"name":"b:latest","modified_at":"2026-11-23T08:50:35+02:00"}]}"#;
        let entries = parse(body.as_bytes());
        assert_eq!(
            entries[0].json,
            br#"{"name":"a:latest","modified_at":"2026-11-23T06:50:34.024460257Z","new":1.50}"#
        );
        assert_eq!(entries[1].seconds - entries[0].seconds, 1);
        assert_eq!(
            parse(br#"{"object":"list","data":[{"id":"x","created":7}]}"#)[0].seconds,
            7
        );
        for body in ["", "{}", "[]", r#"{"models":null}"#, r#"{"object":"list","data":null}"#] {
            assert_eq!(parse(body.as_bytes()), [], "{body}");
        }
    }

    // Clients sort nothing themselves: the merged list is in Ollama's order (trap 56).
    #[test]
    fn lists_are_merged_newest_first_and_names_are_unique() {
        let merged = |priority: [ProviderName; 2]| {
            let mut config = Config::default();
            config.ollama.priority = priority.to_vec();
            let merged = merge(
                &config,
                vec![entry("new", 30), entry("Mine:latest", 25), entry("old", 10)],
                vec![entry("hf:o/r:Q4", 20), entry("mine:latest", 10)],
            );
            merged.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
        };
        let (ollama, ours) = (ProviderName::Ollama, ProviderName::HuggingFace);
        assert_eq!(merged([ollama, ours]), ["new", "Mine:latest", "hf:o/r:Q4", "old"]);
        assert_eq!(merged([ours, ollama]), ["new", "hf:o/r:Q4", "mine:latest", "old"]);
        assert_eq!(
            list(&[entry("new", 2), entry("hf:o/r:Q4", 1)]),
            br#"["new","hf:o/r:Q4"]"#
        );
        assert_eq!(list(&[]), b"[]");
    }

    #[test]
    fn a_name_without_a_selector_finds_the_usual_one() {
        let cards = ["hf:o/r:Q8_0", "hf:o/r:Q4_K_M", "hf:o/r2:Q4_K_M"].map(crate::api::tests::fake::card);
        for (name, expected) in [
            ("hf:O/R", Some("hf:o/r:Q4_K_M")),
            ("hf:o/r:latest", Some("hf:o/r:Q4_K_M")),
            ("HF:o/r:q8_0", Some("hf:o/r:Q8_0")),
            ("hf:o/r:Q2_K", None),
            ("hf:o", None),
        ] {
            assert_eq!(
                find_listed(cards.iter(), name).map(|card| card.name.as_str()),
                expected,
                "{name}"
            );
        }
        assert_eq!(find_listed(cards[..1].iter(), "hf:o/r").unwrap().name, "hf:o/r:Q8_0");
    }

    #[test]
    fn a_model_with_adapters_is_another_one() {
        let cards = ["hf:o/r:Q8_0+a/b", "hf:o/r:Q8_0", "hf:o/r:x+y.gguf"].map(crate::api::tests::fake::card);
        for (name, expected) in [
            ("hf:o/r", Some("hf:o/r:Q8_0")),
            ("hf:o/r+A/b:latest", Some("hf:o/r:Q8_0+a/b")),
            ("hf:o/r:q8_0+a/b", Some("hf:o/r:Q8_0+a/b")),
            ("hf:o/r:x+y.gguf", Some("hf:o/r:x+y.gguf")),
            ("hf:o/r+a/c", None),
        ] {
            let found = find_listed(cards.iter(), name).map(|card| card.name.as_str());
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn plain_names_are_listed_with_a_tag() {
        assert_eq!(with_tag("chat"), "chat:latest");
        assert_eq!(with_tag("chat:8b"), "chat:8b");
        assert_eq!(with_tag("host:80/a/chat"), "host:80/a/chat:latest");
    }
}
