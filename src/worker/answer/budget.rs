//! How often, and how deep, a text may be parsed. The parser reads from the beginning each time and recurses over brackets.

/// Bytes that may be parsed whatever the length of the answer.
const FREE_BYTES: usize = 64 << 10;
/// Bytes that may be parsed for each byte of the answer.
const BYTES_PER_BYTE: usize = 32;
/// Brackets inside each other. serde_json refuses arguments that are nested deeper than 128, so that no call is lost;
/// the parser needs about 5 KiB of stack for each.
const MAX_DEPTH: usize = 256;

/// What parsing has cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ParseBudget {
    spent: usize,
    parses: usize,
}

impl ParseBudget {
    /// Whether a text of this length may be parsed now. A long one has to wait until it has grown by a part of itself, so
    /// that all parses together cost what a fixed number of them over the whole answer would.
    pub(super) fn allows(self, length: usize) -> bool {
        self.spent + length <= FREE_BYTES + BYTES_PER_BYTE * length
    }

    pub(super) fn spend(&mut self, length: usize) {
        self.spent += length;
        self.parses += 1;
    }

    /// Bytes and calls so far.
    #[cfg(test)]
    pub(super) fn spent(self) -> (usize, usize) {
        (self.spent, self.parses)
    }
}

/// Finds the place where a text is nested too deep. Brackets inside strings count too: it is a bound, no grammar.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NestingLimit {
    depth: usize,
    seen: usize,
}

impl NestingLimit {
    /// Looks at what is new in `whole`; returns the length of the part that may be parsed, if that is not all of it.
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
