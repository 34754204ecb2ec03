//! JSON schemas as token masks.
//!
//! llguidance's `Matcher` is driven directly: the adapters that make it a llama.cpp sampler fail open (a mask error
//! would let every token through).

use std::sync::Arc;

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};

use crate::llama::{Model, Token};

/// Bytes of a schema's text; compiling takes time that grows faster than this.
const MAX_SCHEMA_BYTES: usize = 64 << 10;

/// What all constraints of one model share; made with the first one, since it takes some 100 ms.
pub(super) struct Constraints {
    factory: ParserFactory,
}

impl Constraints {
    /// Reads the vocabulary.
    pub(super) fn new(model: &Model) -> Result<Self, String> {
        let eos = model.eos().ok_or("the model has no end-of-sequence token")?;
        let mut words: Vec<Vec<u8>> = Vec::with_capacity(model.vocab_size());
        for token in 0..model.vocab_size() as Token {
            let mut word = Vec::new();
            model.append_piece(token, false, &mut word);
            if word.is_empty() {
                // A control token: its text must never be mistaken for text that the grammar wants.
                word.push(TokTrie::SPECIAL_TOKEN_MARKER);
                model.append_piece(token, true, &mut word);
            }
            words.push(word);
        }
        let ends: Vec<u32> = (0..model.vocab_size() as Token)
            .filter(|&token| model.is_end_of_generation(token))
            .map(|token| token as u32)
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, eos as u32), &words);
        let trie = if ends.is_empty() {
            trie
        } else {
            trie.with_eos_tokens(&ends)
        };
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
        Ok(Self { factory })
    }

    /// Compiles a schema; `{}` admits any JSON value.
    pub(super) fn compile(&self, schema: &str) -> Result<Constraint, String> {
        if schema.len() > MAX_SCHEMA_BYTES {
            return Err(format!("the schema has more than {MAX_SCHEMA_BYTES} bytes"));
        }
        let schema = serde_json::from_str(schema).map_err(|error| error.to_string())?;
        // What a stranger wrote is compiled here; a panic over it must not take the model from everybody.
        let compile = || self.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let parser = std::panic::catch_unwind(std::panic::AssertUnwindSafe(compile))
            .map_err(|_| "the schema cannot be compiled".to_owned())?;
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(error),
            None => Ok(Constraint { matcher }),
        }
    }
}

impl std::fmt::Debug for Constraints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraints")
    }
}

/// The state of one constrained answer.
pub(super) struct Constraint {
    matcher: Matcher,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

impl Constraint {
    /// The tokens that may come next; only end-of-generation ones where the answer is complete.
    pub(super) fn mask(&mut self) -> Result<SimpleVob, String> {
        self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())
    }

    /// Advances by the chosen token; `false` when the answer is complete.
    pub(super) fn accept(&mut self, token: Token) -> Result<bool, String> {
        self.matcher
            .consume_token(token as u32)
            .map_err(|error| error.to_string())?;
        Ok(!self.matcher.is_stopped())
    }
}
