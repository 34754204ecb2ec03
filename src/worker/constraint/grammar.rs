//! Grammar (GBNF) of well-formed tool calls, as `common/chat` writes it for a template.

use std::sync::Arc;

use super::super::picking::pick_from;
use crate::llama::{
    GrammarSampler, GrammarTrigger, LlamaError, Model, RenderedChat, SamplerChain, SamplerTrigger, TokenCandidates,
    TokenId,
};

// `common_grammar_trigger_type` of llama.cpp.
const TOKEN: u8 = 0;
const WORD: u8 = 1;
const PATTERN: u8 = 2;
const PATTERN_FULL: u8 = 3;

/// Grammar of one answer, with its state.
#[derive(Debug)]
pub(super) struct CallGrammar {
    model: Arc<Model>,
    grammar: GrammarSampler,
    state: GrammarState,
}

/// State of a grammar with triggers.
#[derive(Debug)]
enum GrammarState {
    /// The grammar is in force.
    Active,
    /// llama.cpp looks for the triggers, and does so in the whole text at each token.
    Searching,
    /// All triggers are words, which are looked for here: in the end of the text only, so that a long answer costs no
    /// more.
    Listening {
        words: Vec<String>,
        /// Last tokens, with the length of each one's text in bytes.
        tokens: Vec<(TokenId, usize)>,
        /// Text of those tokens.
        text: Vec<u8>,
        /// Length of the longest word in bytes.
        longest: usize,
    },
}

impl CallGrammar {
    /// Compiles the grammar of a rendered conversation; `None` if it has none.
    pub(super) fn new(model: &Arc<Model>, rendered: &RenderedChat) -> Result<Option<Self>, LlamaError> {
        if rendered.grammar.is_empty() {
            return Ok(None);
        }
        let (grammar, state) = if rendered.grammar_lazy {
            let triggers: Vec<SamplerTrigger> = rendered
                .grammar_triggers
                .iter()
                .filter_map(|trigger| read_trigger(model, rendered, trigger))
                .collect();
            if triggers.is_empty() {
                return Ok(None);
            }
            let words_only = rendered.grammar_triggers.iter().all(GrammarTrigger::is_word);
            let state = if words_only {
                let words: Vec<String> = rendered
                    .grammar_triggers
                    .iter()
                    .map(|trigger| trigger.value.clone())
                    .collect();
                GrammarState::Listening {
                    longest: words.iter().map(String::len).max().unwrap_or(0),
                    words,
                    tokens: Vec::new(),
                    text: Vec::new(),
                }
            } else {
                GrammarState::Searching
            };
            (GrammarSampler::new(model, &rendered.grammar, Some(&triggers))?, state)
        } else {
            let mut grammar = GrammarSampler::new(model, &rendered.grammar, None)?;
            // The grammar describes the assistant's whole turn, of which the template has written the beginning.
            for token in prefill(model, &rendered.generation_prompt)? {
                grammar.accept(token)?;
            }
            (grammar, GrammarState::Active)
        };
        Ok(Some(Self {
            model: Arc::clone(model),
            grammar,
            state,
        }))
    }

    /// True if a token may come next. To check the chosen token is a hundred times cheaper than to rule out all the
    /// others first.
    pub(super) fn admits(&mut self, token: TokenId, candidates: &mut TokenCandidates) -> bool {
        if matches!(self.state, GrammarState::Listening { .. }) {
            return true;
        }
        candidates.fill_one(token);
        self.grammar.apply(candidates);
        !candidates.is_empty()
    }

    /// Chooses among the tokens that may come next.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        chain: Option<&mut SamplerChain>,
        candidates: &mut TokenCandidates,
    ) -> Option<TokenId> {
        candidates.fill_all(logits);
        self.grammar.apply(candidates);
        pick_from(candidates, chain)
    }

    /// Advances by a token that was written.
    pub(super) fn accept(&mut self, token: TokenId) -> Result<(), LlamaError> {
        // An end of the answer is not part of the text, and llama.cpp would abort if the grammar is not at its end.
        if self.model.is_end_of_generation(token) {
            return Ok(());
        }
        let GrammarState::Listening {
            words,
            tokens,
            text,
            longest,
        } = &mut self.state
        else {
            return self.grammar.accept(token);
        };
        let before = text.len();
        self.model.append_piece(token, true, text);
        tokens.push((token, text.len() - before));
        let is_triggered = words
            .iter()
            .any(|word| memchr::memmem::find(text, word.as_bytes()).is_some());
        if is_triggered {
            // llama.cpp's sampler sees these few tokens instead of the whole answer, and finds the word again.
            let replay = std::mem::take(tokens);
            self.state = GrammarState::Active;
            return replay.into_iter().try_for_each(|(token, _)| self.grammar.accept(token));
        }
        // Tokens that cannot be part of a word that is still to come are forgotten.
        while let Some(&(_, length)) = tokens.first()
            && text.len() - length >= *longest
        {
            text.drain(..length);
            tokens.remove(0);
        }
        Ok(())
    }

    /// Returns the tokens that begin a call, for formats that mark a call's beginning.
    pub(super) fn openings(&self) -> Vec<Vec<TokenId>> {
        let GrammarState::Listening { words, .. } = &self.state else {
            return Vec::new();
        };
        words
            .iter()
            // A bare object could be the answer itself, which a schema describes.
            .filter(|word| !word.starts_with(['{', '[', '"']))
            .filter_map(|word| self.model.tokenize(word, false, true).ok())
            .filter(|tokens| !tokens.is_empty())
            .collect()
    }
}

/// Converts a trigger to the form that llama.cpp's sampler takes; a word that is one control token becomes its id. The
/// same as `common_sampler_init` does.
fn read_trigger(model: &Model, rendered: &RenderedChat, trigger: &GrammarTrigger) -> Option<SamplerTrigger> {
    let value = &trigger.value;
    let single = |text: &str| match model.tokenize(text, false, true).ok()?.as_slice() {
        &[token] => Some(token),
        _ => None,
    };
    match trigger.kind {
        WORD if rendered.preserved_tokens.contains(value) => match single(value) {
            Some(token) => Some(SamplerTrigger::Token(token)),
            None => Some(SamplerTrigger::Pattern(escape(value))),
        },
        WORD => Some(SamplerTrigger::Pattern(escape(value))),
        PATTERN => Some(SamplerTrigger::Pattern(value.clone())),
        PATTERN_FULL => Some(SamplerTrigger::Pattern(format!(
            "^{}$",
            value.trim_start_matches('^').trim_end_matches('$')
        ))),
        TOKEN => single(value).map(SamplerTrigger::Token),
        _ => None,
    }
}

/// Escapes a word for a pattern of ECMAScript, the dialect of `std::regex`.
fn escape(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    for letter in word.chars() {
        if r".^$|()*+?[]{}\".contains(letter) {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

/// Returns the tokens of the prompt's tail that belong to the answer.
fn prefill(model: &Model, generation_prompt: &str) -> Result<Vec<TokenId>, LlamaError> {
    let mut tokens = model.tokenize(generation_prompt, false, true)?;
    // SentencePiece vocabularies put a blank in front of a text, which the template did not write and the grammar does
    // not admit.
    if let Some(&first) = tokens.first() {
        let piece = model.detokenize(&[first], true);
        let blank = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_whitespace);
        if blank(piece.first()) && !blank(generation_prompt.as_bytes().first()) {
            tokens.remove(0);
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn words_are_escaped_for_ecmascript() {
        assert_eq!(escape("[TOOL_CALLS]"), r"\[TOOL_CALLS\]");
        assert_eq!(escape("<tool_call>{"), r"<tool_call>\{");
    }
}
