//! llama.cpp's own grammars (GBNF), which force well-formed tool calls.

use std::{ffi::CString, ptr::NonNull, sync::Arc};

use llama_cpp_sys_2 as sys;

use super::{Model, TokenCandidates, TokenId};

/// Bytes of a grammar's text. Its parser recurses, and the time of a mask grows with it.
const MAX_GRAMMAR_BYTES: usize = 2 << 20;
/// Bytes of one trigger; patterns are compiled by `std::regex`, which recurses.
const MAX_TRIGGER_BYTES: usize = 64 << 10;

/// What wakes a lazy grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SamplerTrigger {
    /// This token.
    Token(TokenId),
    /// A match of this pattern in the text; the grammar begins with the match's first group.
    Pattern(String),
}

/// A grammar and its state in one answer.
#[derive(Debug)]
pub struct GrammarSampler {
    raw: NonNull<sys::llama_sampler>,
    /// The sampler points into its vocabulary.
    model: Arc<Model>,
}

// SAFETY: a sampler has no thread affinity and is used through `&mut self`; the model is `Sync`.
unsafe impl Send for GrammarSampler {}

impl GrammarSampler {
    /// A grammar that is in force from the first token, or, with triggers, from the first of them on. The start symbol is `root`.
    ///
    /// # Errors
    /// A sentence when llama.cpp cannot parse it.
    pub fn new(model: &Arc<Model>, text: &str, triggers: Option<&[SamplerTrigger]>) -> Result<Self, String> {
        let c_string = |text: &str| CString::new(text).map_err(|_| "the grammar holds a NUL character".to_owned());
        if text.len() > MAX_GRAMMAR_BYTES {
            return Err(format!("the grammar has more than {MAX_GRAMMAR_BYTES} bytes"));
        }
        let grammar = c_string(text)?;
        let raw = match triggers {
            // SAFETY: the strings outlive the call and are copied; the vocabulary lives as long as `model`.
            None => unsafe {
                sys::llama_rs_sampler_init_grammar(model.vocab_ptr(), grammar.as_ptr(), c"root".as_ptr())
            },
            Some(triggers) => {
                let mut patterns = Vec::new();
                let mut tokens = Vec::new();
                for trigger in triggers {
                    match trigger {
                        SamplerTrigger::Token(token) => tokens.push(*token),
                        SamplerTrigger::Pattern(pattern) if pattern.len() > MAX_TRIGGER_BYTES => {
                            return Err("a trigger of the grammar is too long".to_owned());
                        }
                        SamplerTrigger::Pattern(pattern) => patterns.push(c_string(pattern)?),
                    }
                }
                let mut pointers: Vec<*const std::ffi::c_char> = patterns.iter().map(|text| text.as_ptr()).collect();
                // SAFETY: as above; both lists have the stated lengths.
                unsafe {
                    sys::llama_rs_sampler_init_grammar_lazy_patterns(
                        model.vocab_ptr(),
                        grammar.as_ptr(),
                        c"root".as_ptr(),
                        pointers.as_mut_ptr(),
                        pointers.len(),
                        tokens.as_ptr(),
                        tokens.len(),
                    )
                }
            }
        };
        NonNull::new(raw)
            .map(|raw| Self {
                raw,
                model: Arc::clone(model),
            })
            .ok_or_else(|| "llama.cpp cannot parse the grammar".to_owned())
    }

    /// Takes out the candidates that may not come next; does nothing while a lazy grammar sleeps.
    pub fn apply(&mut self, candidates: &mut TokenCandidates) {
        let mut array = candidates.raw();
        // SAFETY: the array describes `candidates`, which outlives the call; a grammar only lowers logits.
        unsafe { sys::llama_sampler_apply(self.raw.as_ptr(), &raw mut array) };
        candidates.drop_impossible();
    }

    /// Advances by a token that [`GrammarSampler::apply`] left in. An end-of-generation token must not get here.
    ///
    /// # Errors
    /// When the grammar does not admit the token.
    pub fn accept(&mut self, token: TokenId) -> Result<(), String> {
        debug_assert!(!self.model.is_end_of_generation(token), "llama.cpp would abort");
        // SAFETY: the sampler is valid; the shim catches exceptions.
        match unsafe { sys::llama_rs_sampler_accept(self.raw.as_ptr(), token) } {
            sys::LLAMA_RS_STATUS_OK => Ok(()),
            _ => Err("the grammar does not admit the token".to_owned()),
        }
    }
}

impl Drop for GrammarSampler {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned.
        unsafe { sys::llama_sampler_free(self.raw.as_ptr()) };
    }
}
