//! `GET /api/ps`

use std::time::{Duration, SystemTime};

use hyper::{HeaderMap, Response};
use serde::Serialize;

use super::{details::WireDetails, tags::models};
use crate::{
    api::{
        ApiHandler,
        listing::{self, ListEntry},
        reply,
    },
    http::body::Body,
    inference::ResidentModel,
    provider::CallContext,
    stdx::timestamp,
};

/// Time to live of a model that stays forever: the longest duration of Go, some 292 years. Ollama shows a date then,
/// never a null.
const FOREVER: Duration = Duration::from_nanos(i64::MAX as u64);

#[derive(Serialize)]
struct PsEntry<'a> {
    name: &'a str,
    model: &'a str,
    size: u64,
    digest: &'a str,
    details: WireDetails<'a>,
    expires_at: String,
    size_vram: u64,
    context_length: u32,
}

/// Answers `GET /api/ps`: the resident models of Ollama and of providers, the one that stays longest first.
pub(crate) async fn ps(api: &ApiHandler, call: &CallContext, received: &HeaderMap) -> Response<Body> {
    let (upstream, ours) = futures_util::join!(
        listing::of_upstream(api, call, "/api/ps", received),
        our_entries(api, call)
    );
    models(&listing::merge(&call.config, upstream, ours))
}

async fn our_entries(api: &ApiHandler, call: &CallContext) -> Vec<ListEntry> {
    let mut entries = Vec::new();
    for provider in api.registry.providers() {
        entries.extend(
            provider
                .resident(call)
                .await
                .iter()
                .map(|model| entry(model, SystemTime::now())),
        );
    }
    entries
}

fn entry(resident: &ResidentModel, now: SystemTime) -> ListEntry {
    let ResidentModel {
        card,
        size_bytes,
        device_bytes,
        expires_at,
        context_length,
    } = resident;
    let expires_at = expires_at.or_else(|| now.checked_add(FOREVER)).unwrap_or(now);
    ListEntry {
        name: card.name.clone(),
        seconds: listing::unix_seconds(expires_at),
        json: reply::encode(&PsEntry {
            // The canonical name, as in `/api/tags`: Open WebUI matches the entries of both lists by name.
            name: &card.name,
            model: &card.name,
            size: *size_bytes,
            digest: &card.digest,
            details: WireDetails::of(card),
            expires_at: timestamp::rfc3339_local(expires_at),
            // The `ollama` command shows `Unknown` if the part on devices exceeds the size.
            size_vram: (*device_bytes).min(*size_bytes),
            context_length: *context_length,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::fake::card;

    // Clients parse the date, show the share of device memory and the context length (traps 53, 54, 55).
    #[test]
    fn an_entry_has_the_golden_form() {
        let resident = ResidentModel {
            card: card("hf:o/r:Q4_K_M"),
            size_bytes: 100,
            device_bytes: 200,
            expires_at: None,
            context_length: 4096,
        };
        let entry = entry(&resident, SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        let json: serde_json::Value = serde_json::from_slice(&entry.json).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "name",
                "model",
                "size",
                "digest",
                "details",
                "expires_at",
                "size_vram",
                "context_length"
            ]
        );
        assert_eq!(
            json["details"].to_string(),
            r#"{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"8.0B","quantization_level":"Q4_K_M"}"#
        );
        assert_eq!(json["size_vram"], 100, "never above the size");
        let year: i32 = json["expires_at"].as_str().unwrap()[..4].parse().unwrap();
        assert!((2300..2400).contains(&year), "{year}");
    }
}
