//! Bounds on parsing: how often, since the parser reads the text from the beginning each time, and how deep, since it
//! recurses over brackets.

/// Number of bytes that may be parsed independently of the answer's length.
const FREE_BYTES: usize = 64 << 10;
/// Number of bytes that may be parsed for each byte of the answer.
const BYTES_PER_BYTE: usize = 32;
/// Largest depth of nested brackets. serde_json refuses arguments that are nested deeper than 128, so no call is lost
/// by this; the parser needs about 5 KiB of stack for each level.
const MAX_DEPTH: usize = 256;

/// Budget of parsed bytes in one answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ParseBudget {
    spent: usize,
    parses: usize,
}

impl ParseBudget {
    /// True if a text of this length may be parsed now. A long one has to wait until it has grown by a part of itself,
    /// so that all parses together cost as much as a fixed number of parses of the whole answer.
    pub(super) fn allows(self, length: usize) -> bool {
        self.spent + length <= FREE_BYTES + BYTES_PER_BYTE * length
    }

    pub(super) fn spend(&mut self, length: usize) {
        self.spent += length;
        self.parses += 1;
    }

    /// Returns the number of bytes and of parses so far.
    #[cfg(test)]
    pub(super) fn spent(self) -> (usize, usize) {
        (self.spent, self.parses)
    }
}

/// Counter of nested brackets. Brackets inside strings count too: this is a bound, not a grammar.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NestingLimit {
    depth: usize,
    seen: usize,
}

impl NestingLimit {
    /// Counts the brackets in the new part of `whole`; returns the length of the part that may be parsed, if that is
    /// not all of it.
    pub(super) fn limit(&mut self, whole: &str) -> Option<usize> {
        for byte in &whole.as_bytes()[self.seen..] {
            match byte {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            // Brackets are ASCII, so that this is the start of a character.
            if self.depth > MAX_DEPTH {
                return Some(self.seen);
            }
            self.seen += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_at_every_byte_costs_a_fixed_number_of_passes() {
        for total in [100, 10_000, 300_000] {
            let mut budget = ParseBudget::default();
            for length in 1..=total {
                if budget.allows(length) {
                    budget.spend(length);
                }
            }
            let (spent, parses) = budget.spent();
            assert!(spent <= FREE_BYTES + BYTES_PER_BYTE * total, "{total}: {spent}");
            assert!(parses >= total.min(300), "{total}: {parses}");
        }
    }

    #[test]
    fn nesting_is_found_wherever_the_text_is_cut() {
        let text = format!("[x]{}y", "[{".repeat(MAX_DEPTH));
        let whole = NestingLimit::default().limit(&text);
        assert_eq!(whole, Some(3 + MAX_DEPTH));
        let mut piecewise = NestingLimit::default();
        let found = (0..=text.len()).find_map(|end| piecewise.limit(&text[..end]));
        assert_eq!(found, whole);
        assert_eq!(NestingLimit::default().limit(&"[]{}".repeat(MAX_DEPTH)), None);
    }
}
