//! The `details` object of listings, and the entry of a model in `/api/tags`.

use serde::Serialize;

use crate::{
    inference::{ModelCard, ModelFacts},
    stdx::timestamp,
};

/// `details` in `/api/ps` and `/api/show`.
#[derive(Serialize)]
pub(super) struct WireDetails<'a> {
    parent_model: &'a str,
    format: &'static str,
    family: &'a str,
    families: Option<&'a [String]>,
    parameter_size: String,
    quantization_level: &'a str,
}

/// `details` in `/api/tags`.
#[derive(Serialize)]
struct LongDetails<'a> {
    parent_model: &'a str,
    format: &'static str,
    family: &'a str,
    families: Option<&'a [String]>,
    parameter_size: String,
    quantization_level: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    context_length: u32,
    #[serde(skip_serializing_if = "is_zero")]
    embedding_length: u32,
}

/// Entry of `/api/tags`.
#[derive(Serialize)]
pub(super) struct TagsEntry<'a> {
    name: &'a str,
    model: &'a str,
    modified_at: String,
    size: u64,
    digest: &'a str,
    details: LongDetails<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    capabilities: Vec<&'static str>,
}

impl<'a> WireDetails<'a> {
    pub(super) fn of(card: &'a ModelCard) -> Self {
        let facts = &card.facts;
        Self {
            parent_model: &card.parent_model,
            // Models of safetensors are converted to GGUF, so the word is right for them, too.
            format: "gguf",
            family: &facts.architecture,
            families: families(facts),
            parameter_size: parameter_size(facts.parameter_count),
            quantization_level: &facts.quantization,
        }
    }
}

impl<'a> TagsEntry<'a> {
    pub(super) fn of(name: &'a str, card: &'a ModelCard) -> Self {
        let WireDetails {
            parent_model,
            format,
            family,
            families,
            parameter_size,
            quantization_level,
        } = WireDetails::of(card);
        Self {
            name,
            // Ollama sends the same name in both members, and clients read one or the other.
            model: name,
            modified_at: timestamp::rfc3339_local(card.modified_at),
            size: card.size_bytes,
            // Without `sha256:`, as in Ollama, whose command shows the first 12 digits.
            digest: &card.digest,
            details: LongDetails {
                parent_model,
                format,
                family,
                families,
                parameter_size,
                quantization_level,
                context_length: card.facts.context_length,
                embedding_length: card.facts.embedding_length,
            },
            // The same list as in `/api/show`. Ollama's listing does not read Jinja templates and misses `tools` there,
            // but some clients decide by the listing alone.
            capabilities: capabilities(&card.facts),
        }
    }
}

/// Formats a number of parameters as Ollama's listings do: `8.0B`, `7B`, `134.52M`, `300K`.
fn parameter_size(parameters: u64) -> String {
    let scaled = |unit: u64, decimals: usize, letter: char| {
        // Ollama prints `7B` for a whole number, but `8.0B` for one that only rounds to it.
        let decimals = if parameters.is_multiple_of(unit) { 0 } else { decimals };
        format!("{:.decimals$}{letter}", parameters as f64 / unit as f64)
    };
    match parameters {
        1_000_000_000.. => scaled(1_000_000_000, 1, 'B'),
        1_000_000.. => scaled(1_000_000, 2, 'M'),
        1_000.. => scaled(1_000, 0, 'K'),
        few => few.to_string(),
    }
}

/// Returns the words for a model's capabilities.
pub(super) fn capabilities(facts: &ModelFacts) -> Vec<&'static str> {
    facts
        .capabilities
        .iter()
        .map(|capability| capability.as_str())
        .collect()
}

/// Returns the families; `None`, encoded as `null` like a nil slice of Go, if there are none.
fn families(facts: &ModelFacts) -> Option<&[String]> {
    Some(facts.families.as_slice()).filter(|families| !families.is_empty())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_sizes() {
        for (count, expected) in [
            (8_030_261_248, "8.0B"),
            (134_515_008, "134.52M"),
            (7_000_000_000, "7B"),
            (137_000_000, "137M"),
            (999_999_999, "1000.00M"),
            (22_567_000, "22.57M"),
            (300_000, "300K"),
            (1_500, "2K"),
            (999, "999"),
            (0, "0"),
        ] {
            assert_eq!(parameter_size(count), expected);
        }
    }
}
