//! JSON schemas as token masks.
//!
//! llguidance's `Matcher` is driven directly. llama-cpp-2 can make it a llama.cpp sampler (`From<Matcher> for
//! LlamaSampler`), but that one fails open: after an error its `llg_apply` leaves all logits as they are, and
//! `llg_accept` ignores errors, so an answer would go on without its schema. Here an error ends the answer.

use std::sync::Arc;

use llguidance::{
    JsonCompileOptions, Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::Value;

use crate::llama::{Model, TokenId};

/// Largest size of a schema's text in bytes; the time to compile one grows faster than its size.
const MAX_SCHEMA_BYTES: usize = 64 << 10;

/// Keywords of a schema that only narrow what is allowed, and that may be left out if they cannot be enforced.
const DROPPABLE: [&str; 2] = ["pattern", "patternProperties"];

/// Schema that cannot be compiled, or an answer that has left it.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("the schema has more than {} bytes", MAX_SCHEMA_BYTES)]
    TooLong,
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// llguidance's own sentence.
    #[error("{0}")]
    Engine(String),
    #[error("the schema cannot be compiled")]
    Panic,
    #[error("the model has no end-of-sequence token")]
    NoEndToken,
}

impl SchemaError {
    fn engine(error: impl std::fmt::Display) -> Self {
        Self::Engine(error.to_string())
    }
}

/// Compiler of JSON schemas for one model. It is made for the first schema, since reading the vocabulary takes some 100
/// ms.
pub(in crate::worker) struct SchemaCompiler {
    factory: ParserFactory,
}

impl SchemaCompiler {
    /// Builds the compiler from a model's vocabulary.
    pub(in crate::worker) fn new(model: &Model) -> Result<Self, SchemaError> {
        let eos = model.eos().ok_or(SchemaError::NoEndToken)?;
        let mut words: Vec<Vec<u8>> = Vec::with_capacity(model.vocab_size());
        for token in 0..model.vocab_size() as TokenId {
            let mut word = Vec::new();
            model.append_piece(token, false, &mut word);
            if word.is_empty() {
                // The text of a control token must never be mistaken for text that the grammar wants.
                word.push(TokTrie::SPECIAL_TOKEN_MARKER);
                model.append_piece(token, true, &mut word);
            }
            words.push(word);
        }
        let ends: Vec<u32> = (0..model.vocab_size() as TokenId)
            .filter(|&token| model.is_end_of_generation(token))
            .map(|token| token as u32)
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, eos as u32), &words);
        // llguidance unmasks only the end tokens that it knows. A model that ends its answers with another one than EOS
        // could never end one, and would go on until its context is full.
        let trie = if ends.is_empty() {
            trie
        } else {
            trie.with_eos_tokens(&ends)
        };
        // Approximate: it does not know how the tokenizer merges. Only forced tokens would need that, and none are
        // taken.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&environment).map_err(SchemaError::engine)?;
        Ok(Self { factory })
    }

    /// Compiles a schema; `{}` admits any JSON value. A part that cannot be enforced is refused if `strict` is set;
    /// otherwise it is left out, with a warning in the log.
    pub(in crate::worker) fn compile(&self, schema: &str, strict: bool) -> Result<SchemaMask, SchemaError> {
        if schema.len() > MAX_SCHEMA_BYTES {
            return Err(SchemaError::TooLong);
        }
        let schema: Value = serde_json::from_str(schema)?;
        match self.compile_value(schema.clone(), strict) {
            Err(error) if !strict => {
                // Patterns with look-around, for example, are no regular language.
                let mut looser = schema;
                if !drop_keywords(&mut looser) {
                    return Err(error);
                }
                let Ok(mask) = self.compile_value(looser, strict) else {
                    return Err(error);
                };
                tracing::warn!(%error, "a pattern of a JSON schema is not enforced");
                Ok(mask)
            }
            compiled => compiled,
        }
    }

    fn compile_value(&self, mut schema: Value, strict: bool) -> Result<SchemaMask, SchemaError> {
        let options = JsonCompileOptions {
            lenient: !strict,
            ..JsonCompileOptions::default()
        };
        if schema.is_object() {
            options.apply_to(&mut schema);
        }
        // The schema is untrusted, and a panic over it must not end the worker.
        let compile = || self.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let parser = std::panic::catch_unwind(std::panic::AssertUnwindSafe(compile)).map_err(|_| SchemaError::Panic)?;
        let mut matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(SchemaError::Engine(error));
        }
        for warning in matcher.grammar_warnings() {
            tracing::warn!(warning, "a part of a JSON schema is not enforced");
        }
        Ok(SchemaMask { matcher })
    }
}

/// Removes the keywords that may be left out; false if there are none. Names of properties are no keywords.
fn drop_keywords(schema: &mut Value) -> bool {
    match schema {
        Value::Object(members) => {
            let before = members.len();
            members.retain(|key, value| !(DROPPABLE.contains(&key.as_str()) && is_keyword_value(key, value)));
            let mut dropped = members.len() < before;
            for (key, value) in members {
                if matches!(
                    key.as_str(),
                    "properties" | "$defs" | "definitions" | "dependentSchemas"
                ) {
                    let Value::Object(named) = value else { continue };
                    for schema in named.values_mut() {
                        dropped |= drop_keywords(schema);
                    }
                } else if !matches!(key.as_str(), "enum" | "const" | "default" | "examples") {
                    dropped |= drop_keywords(value);
                }
            }
            dropped
        }
        Value::Array(items) => items
            .iter_mut()
            .fold(false, |dropped, item| drop_keywords(item) | dropped),
        _ => false,
    }
}

fn is_keyword_value(key: &str, value: &Value) -> bool {
    match key {
        "pattern" => value.is_string(),
        _ => value.is_object(),
    }
}

impl std::fmt::Debug for SchemaCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SchemaCompiler")
    }
}

/// State of one answer under a schema.
pub(in crate::worker) struct SchemaMask {
    matcher: Matcher,
}

impl std::fmt::Debug for SchemaMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SchemaMask")
    }
}

impl SchemaMask {
    /// Returns the tokens that may come next; only end-of-generation ones if the answer is complete.
    pub(super) fn mask(&mut self) -> Result<SimpleVob, SchemaError> {
        self.matcher.compute_mask_or_eos().map_err(SchemaError::engine)
    }

    /// Advances by the chosen token; false when the answer is complete.
    pub(super) fn accept(&mut self, token: TokenId) -> Result<bool, SchemaError> {
        self.matcher.consume_token(token as u32).map_err(SchemaError::engine)?;
        Ok(!self.matcher.is_stopped())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::drop_keywords;

    #[test]
    fn patterns_are_dropped_where_they_are_keywords_and_nowhere_else() {
        let mut schema = json!({
            "type": "object",
            "properties": {
                "pattern": {"type": "string", "pattern": "(?=x)"},
                "kind": {"enum": [{"pattern": "kept"}]},
            },
            "$defs": {"d": {"items": [{"pattern": "y"}]}},
        });
        assert!(drop_keywords(&mut schema));
        let expected = json!({
            "type": "object",
            "properties": {
                "pattern": {"type": "string"},
                "kind": {"enum": [{"pattern": "kept"}]},
            },
            "$defs": {"d": {"items": [{}]}},
        });
        assert_eq!(schema, expected);
        assert!(!drop_keywords(&mut schema));
    }
}
