//! llama.cpp's own grammars (GBNF), which force well-formed tool calls.

use std::sync::Arc;

use llama_cpp_2::{GrammarError, sampling::LlamaSampler, token::LlamaToken};

use super::{LlamaError, Model, TokenCandidates, TokenId};

/// Largest size of a grammar's text in bytes. llama.cpp's parser recurses, and the time that a mask takes grows with
/// it.
const MAX_GRAMMAR_BYTES: usize = 2 << 20;
/// Largest size of a trigger in bytes; patterns are compiled by `std::regex`, which recurses.
const MAX_TRIGGER_BYTES: usize = 64 << 10;
/// Start symbol of every grammar that `common/chat` writes.
const ROOT: &str = "root";

/// Event that puts a lazy grammar in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SamplerTrigger {
    Token(TokenId),
    /// Match of a pattern in the text; the grammar begins with the match's first group.
    Pattern(String),
}

/// Grammar and its state in one answer.
#[derive(Debug)]
pub struct GrammarSampler {
    sampler: LlamaSampler,
    // llama.cpp's sampler points into the model's vocabulary, which `LlamaSampler` has no lifetime for: alone it could
    // outlive the model. Fields are dropped in this order.
    model: Arc<Model>,
}

impl GrammarSampler {
    /// Compiles a grammar that is in force from the first token, or, with triggers, from the first of them on. The
    /// start symbol is `root`.
    ///
    /// # Errors
    /// If the grammar is too long or llama.cpp cannot parse it or one of its patterns.
    pub fn new(model: &Arc<Model>, text: &str, triggers: Option<&[SamplerTrigger]>) -> Result<Self, LlamaError> {
        if text.len() > MAX_GRAMMAR_BYTES {
            return Err(LlamaError::GrammarTooLong(MAX_GRAMMAR_BYTES));
        }
        let sampler = match triggers {
            None => LlamaSampler::grammar(&model.inner, text, ROOT),
            Some(triggers) => {
                let mut patterns = Vec::new();
                let mut tokens = Vec::new();
                for trigger in triggers {
                    match trigger {
                        SamplerTrigger::Token(token) => tokens.push(LlamaToken(*token)),
                        SamplerTrigger::Pattern(pattern) if pattern.len() > MAX_TRIGGER_BYTES => {
                            return Err(LlamaError::TriggerTooLong);
                        }
                        SamplerTrigger::Pattern(pattern) => patterns.push(pattern.clone()),
                    }
                }
                LlamaSampler::grammar_lazy_patterns(&model.inner, text, ROOT, &patterns, &tokens)
            }
        };
        let sampler = sampler.map_err(|error| match error {
            GrammarError::GrammarNullBytes | GrammarError::TriggerWordNullBytes => LlamaError::Nul("grammar"),
            GrammarError::RootNotFound | GrammarError::NullGrammar => LlamaError::Grammar,
        })?;
        Ok(Self {
            sampler,
            model: Arc::clone(model),
        })
    }

    /// Removes the candidates that may not come next; does nothing while a lazy grammar sleeps.
    pub fn apply(&mut self, candidates: &mut TokenCandidates) {
        candidates.array.apply_sampler(&mut self.sampler);
        candidates.drop_impossible();
    }

    /// Advances by a token that [`GrammarSampler::apply`] left in. It must not be an end-of-generation token.
    ///
    /// # Errors
    /// [`LlamaError::NotAdmitted`] if the grammar does not admit the token.
    pub fn accept(&mut self, token: TokenId) -> Result<(), LlamaError> {
        // `llama_grammar_accept_impl` has a GGML_ABORT for an end of generation before the grammar's end; an exception,
        // which it throws for any other token that does not fit, is caught by the shim behind `try_accept`.
        debug_assert!(!self.model.is_end_of_generation(token), "llama.cpp would abort");
        let accepted = self.sampler.try_accept(LlamaToken(token));
        accepted.map_err(|_| LlamaError::NotAdmitted)
    }
}
