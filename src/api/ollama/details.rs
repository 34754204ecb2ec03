//! The `details` object of listings, and the full entry of a model.

use serde::Serialize;

use crate::{
    gguf,
    inference::{ModelCard, ModelFacts},
    stdx::timestamp,
};

/// `details` as `/api/ps` and `/api/show` have it.
#[derive(Serialize)]
pub(super) struct Details<'a> {
    parent_model: &'a str,
    format: &'static str,
    family: &'a str,
    families: Option<&'a [String]>,
    parameter_size: String,
    quantization_level: &'a str,
}

/// `details` as `/api/tags` has it.
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

/// An entry of `/api/tags`.
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

impl<'a> Details<'a> {
    pub(super) fn of(card: &'a ModelCard) -> Self {
        let facts = &card.facts;
        Self {
            parent_model: &card.parent_model,
            format: "gguf",
            family: &facts.architecture,
            families: families(facts),
            parameter_size: gguf::parameter_size(facts.parameter_count),
            quantization_level: &facts.quantization,
        }
    }
}

impl<'a> TagsEntry<'a> {
    pub(super) fn of(name: &'a str, card: &'a ModelCard) -> Self {
        let Details {
            parent_model,
            format,
            family,
            families,
            parameter_size,
            quantization_level,
        } = Details::of(card);
        Self {
            name,
            model: name,
            modified_at: timestamp::rfc3339_local(card.modified_at),
            size: card.size_bytes,
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
            capabilities: capabilities(&card.facts),
        }
    }
}

/// The words of a model's capabilities.
pub(super) fn capabilities(facts: &ModelFacts) -> Vec<&'static str> {
    facts
        .capabilities
        .iter()
        .map(|capability| capability.as_str())
        .collect()
}

/// `null` where there are none, as a nil slice of Go.
fn families(facts: &ModelFacts) -> Option<&[String]> {
    Some(facts.families.as_slice()).filter(|families| !families.is_empty())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
