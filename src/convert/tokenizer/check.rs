//! What the reference implementation makes of some texts, for a comparison with the engine.

use std::path::Path;

use super::{Files, pre, pre_table::TEXT};
use crate::convert::ConvertError;

/// Added tokens that are tried; some models have a thousand of one kind.
const MAX_ADDED: usize = 64;

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

/// Texts, and the ids that the checkpoint's own tokenizer makes of them. Empty where there is no reference.
///
/// # Errors
/// If the tokenizer's files cannot be read.
pub fn reference_tokens(folder: &Path) -> Result<Vec<(String, Vec<u32>)>, ConvertError> {
    let files = Files::read(folder)?;
    if files.json.is_none() {
        return Ok(Vec::new());
    }
    let reference = pre::reference(&files.bytes)?;
    let added = files.added_by_json().into_iter().take(MAX_ADDED);
    let added = added.map(|token| format!("one {0}two{0} three", token.text));
    let texts = TEXTS.iter().map(|text| (*text).to_owned()).chain(added);
    texts
        .map(|text| {
            let encoding = reference
                .encode(text.as_str(), false)
                .map_err(|error| ConvertError::Tokenizer(format!("{text:?} cannot be encoded: {error}")))?;
            Ok((text, encoding.get_ids().to_vec()))
        })
        .collect()
}
