//! Constraint on an answer: JSON of a schema, well-formed tool calls, or either.
//!
//! A schema describes the answer's text, so it rests while the model reasons. A grammar of calls is `common/chat`'s
//! own: a lazy one sleeps until the model begins a call, any other describes the whole answer with its reasoning.
//!
//! A constraint is *enforced* when every token is chosen under a mask, because the answer must satisfy the schema or
//! begin with a call. In place of JSON such an answer may begin with an opening, the tokens that start the reasoning or
//! a call; once one has begun, the rest of it is written for the model. A grammar of calls alone only forbids malformed
//! calls.

mod grammar;
mod schema;

use std::sync::Arc;

use llguidance::toktrie::SimpleVob;

pub(super) use self::schema::{SchemaCompiler, SchemaError};
use self::{grammar::CallGrammar, schema::SchemaMask};
use super::{
    WorkerError,
    picking::{pick_from, pick_from_all},
    protocol::{ChatSyntax, ReasoningSyntax},
};
use crate::llama::{Model, SamplerChain, TokenCandidates, TokenId};

/// Constraint of one answer, with the answer's state.
#[derive(Debug)]
pub(super) struct AnswerConstraint {
    schema: Option<SchemaMask>,
    calls: Option<CallGrammar>,
    /// True if the grammar of calls describes the whole answer.
    whole: bool,
    /// True if a call has to come, and has not begun.
    must_call: bool,
    position: ConstraintPosition,
    openings: Vec<Opening>,
}

/// Position in an answer whose constraint is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConstraintPosition {
    /// Before the first token: an opening may come.
    Start,
    /// Inside an opening, of which this many tokens were written.
    Opening { index: usize, written: usize },
    /// Inside the text that the schema describes.
    Body,
}

/// Tokens that may come in place of JSON.
#[derive(Debug)]
struct Opening {
    tokens: Vec<TokenId>,
    kind: OpeningKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpeningKind {
    Reasoning,
    Call,
}

impl AnswerConstraint {
    /// Makes the constraint of a job; `None` if the answer is free.
    pub(super) fn new(
        model: &Arc<Model>,
        schema: Option<SchemaMask>,
        chat: Option<&ChatSyntax>,
        reasoning: Option<&ReasoningSyntax>,
    ) -> Result<Option<Self>, WorkerError> {
        let calls = match chat {
            Some(chat) => CallGrammar::new(model, &chat.rendered)?,
            None => None,
        };
        if schema.is_none() && calls.is_none() {
            return Ok(None);
        }
        let whole = chat.is_some_and(|chat| !chat.rendered.grammar_lazy);
        let must_call = chat.is_some_and(|chat| chat.must_call);
        let mut openings = Vec::new();
        if schema.is_some() || must_call {
            if let Some(reasoning) = reasoning.filter(|reasoning| reasoning.expected) {
                openings.push(Opening {
                    tokens: model.tokenize(&reasoning.start, false, true)?,
                    kind: OpeningKind::Reasoning,
                });
            }
            let words = calls.iter().flat_map(CallGrammar::openings);
            openings.extend(words.map(|tokens| Opening {
                tokens,
                kind: OpeningKind::Call,
            }));
            openings.retain(|opening| !opening.tokens.is_empty());
        }
        if must_call && !openings.iter().any(|opening| opening.kind == OpeningKind::Call) {
            return Err(WorkerError::NoCallMark);
        }
        Ok(Some(Self {
            schema,
            calls,
            whole,
            must_call,
            position: ConstraintPosition::Start,
            openings,
        }))
    }

    /// True if the constraint is not in force while the model reasons.
    pub(super) fn pauses_while_reasoning(&self) -> bool {
        self.schema.is_some() || !self.whole
    }

    /// Chooses the next token; `None` if no token is left.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        mut chain: Option<&mut SamplerChain>,
        candidates: &mut TokenCandidates,
    ) -> Result<Option<TokenId>, WorkerError> {
        if self.is_enforced() {
            return self.choose_under_mask(logits, chain, candidates);
        }
        // The free choice is checked first: it is nearly always right, and a mask over the vocabulary costs a hundred
        // times as much.
        let free = pick_from_all(logits, chain.as_deref_mut(), candidates);
        let (Some(calls), Some(token)) = (&mut self.calls, free) else {
            return Ok(free);
        };
        if calls.admits(token, candidates) {
            return Ok(free);
        }
        Ok(calls.choose(logits, chain, candidates))
    }

    /// True if each token is chosen under the mask of a schema or an opening, so that the answer has to hold what they
    /// describe.
    pub(super) fn is_enforced(&self) -> bool {
        self.schema.is_some() || self.must_call
    }

    fn choose_under_mask(
        &mut self,
        logits: &[f32],
        chain: Option<&mut SamplerChain>,
        candidates: &mut TokenCandidates,
    ) -> Result<Option<TokenId>, WorkerError> {
        if let ConstraintPosition::Opening { index, written } = self.position {
            return Ok(self.openings[index].tokens.get(written).copied());
        }
        let mask = match &mut self.schema {
            Some(schema) if !self.must_call => Some(schema.mask()?),
            _ => None,
        };
        let openings: &[Opening] = match self.position {
            ConstraintPosition::Start => &self.openings,
            _ => &[],
        };
        // Only the first token of an opening is a candidate here; the model decides with it whether the opening comes.
        candidates.fill(logits, |id| {
            let opens = |opening: &Opening| usize::try_from(opening.tokens[0]) == Ok(id);
            // `is_allowed` panics on an id beyond the mask.
            let masked = |mask: &SimpleVob| id < mask.len() && mask.is_allowed(id as u32);
            mask.as_ref().is_some_and(masked) || openings.iter().any(opens)
        });
        Ok(pick_from(candidates, chain))
    }

    /// Advances by a written token; false when the answer is complete with it.
    pub(super) fn accept(&mut self, token: TokenId) -> Result<bool, WorkerError> {
        if self.is_enforced() {
            let (index, written) = match self.position {
                ConstraintPosition::Opening { index, written } => (Some(index), written),
                ConstraintPosition::Start => (self.openings.iter().position(|opening| opening.tokens[0] == token), 0),
                ConstraintPosition::Body => (None, 0),
            };
            match index {
                Some(index) => self.continue_opening(index, written + 1),
                None => {
                    self.position = ConstraintPosition::Body;
                    return match &mut self.schema {
                        Some(schema) => Ok(schema.accept(token)?),
                        None => Ok(true),
                    };
                }
            }
        }
        self.advance_calls(&[token]);
        Ok(true)
    }

    fn continue_opening(&mut self, index: usize, written: usize) {
        let opening = &self.openings[index];
        if written < opening.tokens.len() {
            self.position = ConstraintPosition::Opening { index, written };
            return;
        }
        match opening.kind {
            // The schema ends here. The grammar of calls has seen the tokens of the opening one by one, as they came.
            OpeningKind::Call => (self.schema, self.must_call) = (None, false),
            OpeningKind::Reasoning => self.openings.retain(|opening| opening.kind != OpeningKind::Reasoning),
        }
        self.position = ConstraintPosition::Start;
    }

    /// Tells the constraint that the reasoning has ended with these tokens, which may also begin a call.
    pub(super) fn after_reasoning(&mut self, end: &[TokenId]) {
        if self.pauses_while_reasoning() {
            self.advance_calls(end);
        }
    }

    /// Advances the grammar of calls. A model that leaves the format of calls keeps its words: the grammar gives up,
    /// not the answer.
    fn advance_calls(&mut self, tokens: &[TokenId]) {
        let Some(calls) = &mut self.calls else { return };
        if let Err(error) = tokens.iter().try_for_each(|&token| calls.accept(token)) {
            tracing::warn!(%error, "the grammar of tool calls gives up");
            self.calls = None;
        }
    }
}
