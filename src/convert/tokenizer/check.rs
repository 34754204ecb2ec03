//! Comparison of llama.cpp's tokenizer with the reference implementation, on texts by which tokenizers differ. A model
//! whose prompts are split into other tokens than in training answers badly without any error, so a mismatch is
//! reported.

use super::{Added, pre_hashes::TEXT};

/// Limit on added tokens that are tried. Some models have a thousand of one kind.
const MAX_ADDED: usize = 64;
/// Tolerance: one text in so many may be tokenized differently, because llama.cpp does not implement every
/// normalization.
const TOLERATED: usize = 10;

/// Sample texts: spaces, digits, contractions, case, scripts, symbols and code.
const TEXTS: &[&str] = &[
    TEXT,
    "Hello, world! How are you?",
    "  leading, trailing and   inner spaces  ",
    "tabs\tand\t\ttabs, lines\nand\n\nlines\r\nof both kinds\n\n\n",
    "1 12 123 1234 12345 1,234.56 0x1f 3.14e-10 2026-01-31",
    "I'm, you're, he'll, we've, she'd, it's, I'M, YOU'RE, don't, rock'n'roll",
    "MiXeD CaSe, UPPER, lower, CamelCase, snake_case, kebab-case",
    "fn main() {\n    let x: Vec<u8> = vec![0; 10];\n    assert_eq!(x.len(), 10);\n}\n",
    "def f(a, b=None):\n\treturn {'a': a, \"b\": [b] * 2} if a else None  # a comment",
    "<p class=\"x\">&amp; &lt;tag&gt;</p> https://example.org/a?b=c&d=%20#e me@example.org",
    "Stra\u{df}e, na\u{ef}ve caf\u{e9}, cafe\u{301}, \u{c5}ngstr\u{f6}m, \u{fb01}ne, \u{2460}\u{ff21}",
    "\u{41f}\u{440}\u{438}\u{432}\u{435}\u{442}, \u{43c}\u{438}\u{440}! \u{395}\u{3bb}\u{3bb}\u{3b7}\u{3bd}\u{3b9}\u{3ba}\u{3ac}",
    "\u{65e5}\u{672c}\u{8a9e}\u{306e}\u{30c6}\u{30ad}\u{30b9}\u{30c8}\u{3002}\u{6211}\u{5728}\u{5317}\u{4eac}\u{3002} \u{d55c}\u{ad6d}\u{c5b4} \u{bb38}\u{c7a5}",
    "\u{645}\u{631}\u{62d}\u{628}\u{627} \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947} \u{e2a}\u{e27}\u{e31}\u{e2a}\u{e14}\u{e35}",
    "\u{1f600}\u{1f44d}\u{1f3fd} \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{1f1e9}\u{1f1ea} \u{2764}\u{fe0f}",
    "a\u{a0}b\u{2003}c\u{3000}d\u{200b}e\u{feff}f \u{2026} \u{2014} \u{201c}q\u{201d}",
    "!?...;:,.--==>><<||&&**//\\\\((([[[{{{}}}]]])))@#$%^~`",
    "$\\int_0^1 x^2\\,dx = \\frac{1}{3}$",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbb    cccc",
    "x",
    " ",
    "\n",
];

/// Returns the texts to compare: the samples, and one for each of the first added tokens.
pub(super) fn texts(added: &[Added]) -> Vec<String> {
    let added = added.iter().take(MAX_ADDED);
    // The token stands once after a space and once before one: some added tokens take such spaces (`lstrip`, `rstrip`).
    let added = added.map(|token| format!("one {0}two{0} three", token.text));
    TEXTS.iter().map(|text| (*text).to_owned()).chain(added).collect()
}

/// Result of comparing llama.cpp's tokens with those of the checkpoint's own tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerCheck {
    /// Texts that are tokenized differently.
    pub wrong: usize,
    /// Texts that were compared.
    pub all: usize,
    /// First text that differs.
    first: Option<String>,
    /// True when the pre-tokenizer has a structure that llama.cpp implements. If not, no difference is tolerated.
    is_known: bool,
}

impl TokenizerCheck {
    /// Compares `found`, llama.cpp's token ids, with the expected ones.
    pub(super) fn new(expected: &[(String, Vec<u32>)], found: &[Vec<i32>], is_known: bool) -> Self {
        let equals = |found: &[i32], expected: &[u32]| {
            let found = found.iter().map(|token| i64::from(*token));
            found.eq(expected.iter().map(|token| i64::from(*token)))
        };
        let mut wrong = expected
            .iter()
            .enumerate()
            .filter(|(at, (_, expected))| !found.get(*at).is_some_and(|found| equals(found, expected)));
        let first = wrong.next().map(|(_, (text, _))| text.clone());
        Self {
            wrong: usize::from(first.is_some()) + wrong.count(),
            all: expected.len(),
            first,
            is_known,
        }
    }

    /// Returns true if too many texts differ for the model to be usable.
    #[must_use]
    pub fn is_mismatch(&self) -> bool {
        // For an unknown structure a single difference exceeds the limit.
        self.wrong * if self.is_known { TOLERATED } else { self.all + 1 } > self.all
    }

    /// Returns a sentence for the user, without a full stop.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Some(first) = &self.first else {
            return format!(
                "llama.cpp tokenizes {} of {0} texts like the checkpoint's own tokenizer",
                self.all
            );
        };
        format!(
            "llama.cpp tokenizes {} of {} texts differently from the checkpoint's own tokenizer, the first being {first:?}",
            self.wrong, self.all
        )
    }

    /// Returns the value of [`TOKENIZER_CHECK_KEY`](crate::gguf::TOKENIZER_CHECK_KEY).
    pub(in crate::convert) fn value(&self) -> String {
        let verdict = match (self.wrong, self.is_mismatch()) {
            (0, _) => "equal",
            (_, false) => "tolerable",
            (_, true) => "mismatch",
        };
        format!("{verdict}: {}", self.sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_in_ten_may_differ_where_the_structure_is_known() {
        let samples: Vec<(String, Vec<u32>)> = (0..20).map(|id| (format!("text {id}"), vec![id])).collect();
        let found = |wrong: i32| {
            (0..20)
                .map(|id| vec![if id < wrong { -1 } else { id }])
                .collect::<Vec<_>>()
        };
        for (wrong, is_known, verdict) in [
            (0, true, "equal: llama.cpp tokenizes 20 of 20"),
            (2, true, "tolerable: llama.cpp tokenizes 2 of 20"),
            (3, true, "mismatch: llama.cpp tokenizes 3 of 20"),
            (0, false, "equal"),
            (1, false, "mismatch"),
        ] {
            let check = TokenizerCheck::new(&samples, &found(wrong), is_known);
            assert!(check.value().starts_with(verdict), "{}", check.value());
            assert_eq!(check.wrong, wrong as usize);
        }
        let check = TokenizerCheck::new(&samples, &[], true);
        assert_eq!((check.wrong, check.is_mismatch()), (20, true));
        assert!(check.sentence().ends_with("\"text 0\""));
    }
}
