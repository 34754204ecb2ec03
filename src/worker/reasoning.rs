//! Tracking of a model's place in its answer: before, inside or after its reasoning. Pure.
//!
//! Constraints rest while a model reasons, and a budget may end the reasoning for it.

use super::protocol::ReasoningSyntax;

/// Tracker of the reasoning in one answer.
#[derive(Clone, Debug)]
pub(super) struct ReasoningTracker {
    syntax: ReasoningSyntax,
    inside: bool,
    /// Number of tokens since the reasoning began.
    spent: u32,
    /// Number of tokens of all reasoning, its end included.
    total: u32,
    /// End of the text, long enough for the longest tag.
    tail: Vec<u8>,
    longest: usize,
}

/// Effect of a token on the reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReasoningStep {
    Nothing,
    /// End of the reasoning, by the end tag of this index.
    Ended {
        tag: usize,
    },
}

impl ReasoningTracker {
    pub(super) fn new(syntax: ReasoningSyntax) -> Self {
        let longest = syntax
            .ends
            .iter()
            .chain([&syntax.start])
            .map(String::len)
            .max()
            .unwrap_or(0);
        Self {
            inside: syntax.begins_inside,
            syntax,
            spent: 0,
            total: 0,
            tail: Vec::new(),
            longest,
        }
    }

    /// True while the model is reasoning.
    pub(super) fn inside(&self) -> bool {
        self.inside
    }

    /// Returns the number of tokens that were written while the model was reasoning.
    pub(super) fn tokens(&self) -> u32 {
        self.total
    }

    pub(super) fn syntax(&self) -> &ReasoningSyntax {
        &self.syntax
    }

    /// True when the budget is spent and the text so far is whole UTF-8, so that the end may be written for the model.
    pub(super) fn must_end(&self) -> bool {
        self.inside && self.syntax.budget.is_some_and(|budget| self.spent >= budget) && is_whole(&self.tail)
    }

    /// Takes the bytes of one token, control tokens as their text.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> ReasoningStep {
        if self.inside {
            self.spent = self.spent.saturating_add(1);
            self.total = self.total.saturating_add(1);
        }
        self.tail.extend_from_slice(bytes);
        let step = if self.inside {
            self.look_for_end()
        } else {
            self.look_for_start()
        };
        let surplus = self.tail.len().saturating_sub(self.longest.max(4));
        self.tail.drain(..surplus);
        step
    }

    fn look_for_start(&mut self) -> ReasoningStep {
        let Some(at) = find(&self.tail, self.syntax.start.as_bytes()) else {
            return ReasoningStep::Nothing;
        };
        self.inside = true;
        self.spent = 0;
        self.tail.drain(..at + self.syntax.start.len());
        // A token may hold both tags.
        self.look_for_end()
    }

    fn look_for_end(&mut self) -> ReasoningStep {
        let ends = self.syntax.ends.iter().enumerate();
        let found = ends.filter_map(|(tag, end)| find(&self.tail, end.as_bytes()).map(|at| (at, tag, end.len())));
        // The tag that begins first counts. Of two at one place the longer counts, which has the smaller index.
        let Some((at, tag, length)) = found.min_by_key(|&(at, tag, _)| (at, tag)) else {
            return ReasoningStep::Nothing;
        };
        self.inside = false;
        self.tail.drain(..at + length);
        ReasoningStep::Ended { tag }
    }
}

fn find(text: &[u8], tag: &[u8]) -> Option<usize> {
    if tag.is_empty() {
        return None;
    }
    memchr::memmem::find(text, tag)
}

/// True if no code point is cut at the end.
fn is_whole(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasoning(begins_inside: bool, budget: Option<u32>) -> ReasoningTracker {
        ReasoningTracker::new(ReasoningSyntax {
            start: "<think>".into(),
            ends: vec!["</think>".into(), "<tool_call>".into()],
            begins_inside,
            expected: true,
            budget,
        })
    }

    #[test]
    fn tags_are_found_however_they_are_cut() {
        let text = "<think>Hm. 1 < 2</think>\n{}";
        for size in 1..text.len() {
            let mut reasoning = reasoning(false, None);
            let mut was_inside = false;
            let mut ended = None;
            for piece in text.as_bytes().chunks(size) {
                if let ReasoningStep::Ended { tag } = reasoning.feed(piece) {
                    ended = Some(tag);
                    was_inside = true;
                }
                was_inside |= reasoning.inside();
            }
            assert!(was_inside && !reasoning.inside(), "{size}");
            assert_eq!(ended, Some(0), "{size}");
        }
    }

    #[test]
    fn a_prompt_may_end_inside_and_a_call_may_end_it() {
        let mut reasoning = reasoning(true, None);
        assert!(reasoning.inside());
        assert_eq!(reasoning.feed(b"Let me look. <tool_"), ReasoningStep::Nothing);
        assert_eq!(reasoning.feed(b"call>"), ReasoningStep::Ended { tag: 1 });
        assert!(!reasoning.inside());
        reasoning.feed(b"{}");
        assert_eq!(reasoning.tokens(), 2);
    }

    #[test]
    fn a_spent_budget_waits_for_the_end_of_a_code_point() {
        let mut reasoning = reasoning(true, Some(2));
        reasoning.feed(b"a");
        assert!(!reasoning.must_end());
        reasoning.feed(&"é".as_bytes()[..1]);
        assert!(!reasoning.must_end());
        reasoning.feed(&"é".as_bytes()[1..]);
        assert!(reasoning.must_end());
        reasoning.feed(b"</think>");
        assert!(!reasoning.must_end());
    }

    #[test]
    fn a_budget_of_nothing_ends_at_once() {
        assert!(reasoning(true, Some(0)).must_end());
        assert!(!reasoning(false, Some(0)).must_end());
    }
}
