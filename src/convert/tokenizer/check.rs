//! A comparison of the engine with the reference implementation, on texts in which tokenizers differ.

use super::{Added, pre_hashes::TEXT};

/// Added tokens that are tried; some models have a thousand of one kind.
const MAX_ADDED: usize = 64;
/// One text in so many may be cut otherwise by the engine than by the reference: it does not know every normalisation.
const TOLERATED: usize = 10;

/// Texts in which tokenizers differ: spaces, digits, contractions, cases, scripts, signs, code.
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

/// Texts to compare: those, and some with added tokens in them.
pub(super) fn texts(added: &[Added]) -> Vec<String> {
    let added = added.iter().take(MAX_ADDED);
    let added = added.map(|token| format!("one {0}two{0} three", token.text));
    TEXTS.iter().map(|text| (*text).to_owned()).chain(added).collect()
}

/// How the engine's tokens compare with those of the checkpoint's own tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerCheck {
    /// Texts that become other tokens.
    pub wrong: usize,
    /// Texts that were compared.
    pub all: usize,
    /// The first of those that differ.
    first: Option<String>,
    /// Whether the structure of the tokenizer is that of a known one; if not, all texts must be equal.
    is_known: bool,
}

impl TokenizerCheck {
    /// Compares what the engine made of the texts.
    pub(super) fn new(cuts: &[(String, Vec<u32>)], found: &[Vec<i32>], is_known: bool) -> Self {
        let equals = |found: &[i32], expected: &[u32]| {
            let found = found.iter().map(|token| i64::from(*token));
            found.eq(expected.iter().map(|token| i64::from(*token)))
        };
        let mut wrong = cuts
            .iter()
            .enumerate()
            .filter(|(at, (_, expected))| !found.get(*at).is_some_and(|found| equals(found, expected)));
        let first = wrong.next().map(|(_, (text, _))| text.clone());
        Self {
            wrong: usize::from(first.is_some()) + wrong.count(),
            all: cuts.len(),
            first,
            is_known,
        }
    }

    /// Whether the model would read other texts than those that it is given.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.wrong * if self.is_known { TOLERATED } else { self.all + 1 } > self.all
    }

    /// For people: a sentence, without a full stop.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Some(first) = &self.first else {
            return format!(
                "the engine cuts {} of {0} texts into the checkpoint's own tokens",
                self.all
            );
        };
        format!(
            "the engine cuts {} of {} texts into other tokens than the checkpoint's own tokenizer, the first being {first:?}",
            self.wrong, self.all
        )
    }

    /// What the file says of it.
    pub(in crate::convert) fn value(&self) -> String {
        let verdict = match (self.wrong, self.is_doubtful()) {
            (0, _) => "equal",
            (_, false) => "tolerable",
            (_, true) => "doubtful",
        };
        format!("{verdict}: {}", self.sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_in_ten_may_differ_where_the_structure_is_known() {
        let cuts: Vec<(String, Vec<u32>)> = (0..20).map(|id| (format!("text {id}"), vec![id])).collect();
        let found = |wrong: i32| {
            (0..20)
                .map(|id| vec![if id < wrong { -1 } else { id }])
                .collect::<Vec<_>>()
        };
        for (wrong, is_known, verdict) in [
            (0, true, "equal: the engine cuts 20 of 20"),
            (2, true, "tolerable: the engine cuts 2 of 20"),
            (3, true, "doubtful: the engine cuts 3 of 20"),
            (0, false, "equal"),
            (1, false, "doubtful"),
        ] {
            let check = TokenizerCheck::new(&cuts, &found(wrong), is_known);
            assert!(check.value().starts_with(verdict), "{}", check.value());
            assert_eq!(check.wrong, wrong as usize);
        }
        let check = TokenizerCheck::new(&cuts, &[], true);
        assert_eq!((check.wrong, check.is_doubtful()), (20, true));
        assert!(check.sentence().ends_with("\"text 0\""));
    }
}
