//! Table of the pre-tokenizers that llama.cpp implements, as the steps of their `tokenizer.json`. The expressions come
//! from llama.cpp (`llama-vocab.cpp`, MIT) and the published files. Line ends are spelled `\r` and `\n`, and
//! contractions with `(?i:`, however a file spells them.

use PreTokenizerStep::{DigitRuns, Digits, Gpt2, Punctuation, Split};

/// Step of a pre-tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PreTokenizerStep<'a> {
    /// `Split`: each match of the regular expression is a word.
    Split(&'a str),
    /// `Digits` with `individual_digits`: each digit is a word.
    Digits,
    /// `Digits`: each run of digits is a word.
    DigitRuns,
    /// `Punctuation` with `Contiguous`: each run of punctuation is a word.
    Punctuation,
    /// `ByteLevel` with its built-in regular expression, GPT-2's.
    Gpt2,
    /// A step that no family has.
    Other,
}

/// The expression of [`PreTokenizerStep::Gpt2`], which some files spell out.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
pub(super) const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
pub(super) const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
pub(super) const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";
const CJK: &str = r"[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const YOUTU_SCRIPTS: &str = r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_WORDS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_SIGNS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK_CJK: &str = r"[一-龥ࠀ-一가-퟿]+";

/// Pre-tokenizer of a family of models.
#[derive(Debug)]
pub(super) struct PreTokenizerFamily {
    /// Value of `tokenizer.ggml.pre`.
    pub(super) name: &'static str,
    pub(super) steps: &'static [PreTokenizerStep<'static>],
    /// True if a word that is a token is taken whole, whatever the merges say.
    pub(super) ignores_merges: bool,
    /// True if llama.cpp adds BOS unless the file says otherwise.
    pub(super) adds_bos: bool,
}

const fn family(name: &'static str, steps: &'static [PreTokenizerStep<'static>]) -> PreTokenizerFamily {
    PreTokenizerFamily {
        name,
        steps,
        ignores_merges: false,
        adds_bos: false,
    }
}

const fn ignoring(
    name: &'static str,
    steps: &'static [PreTokenizerStep<'static>],
    adds_bos: bool,
) -> PreTokenizerFamily {
    PreTokenizerFamily {
        name,
        steps,
        ignores_merges: true,
        adds_bos,
    }
}

/// The families, the most common first: if no structure fits, they are tried in this order. Of several names for the
/// same pre-tokenizer only one is listed.
pub(super) const FAMILIES: &[PreTokenizerFamily] = &[
    ignoring("llama-bpe", &[Split(LLAMA3)], true),
    family("smaug-bpe", &[Split(LLAMA3)]),
    family("qwen2", &[Split(QWEN2)]),
    family("gpt-2", &[Gpt2]),
    family("gpt-2", &[Split(GPT2)]),
    family("smollm", &[Digits, Gpt2]),
    family("smollm", &[Digits, Split(GPT2)]),
    ignoring("tekken", &[Split(TEKKEN)], true),
    family("gpt-4o", &[Split(GPT4O)]),
    ignoring("granite-embed-multi-97m", &[Split(GPT4O)], false),
    family("qwen35", &[Split(QWEN35)]),
    family("deepseek-v3", &[Split(r"\p{N}{1,3}"), Split(CJK), Split(DEEPSEEK3)]),
    family(
        "deepseek-llm",
        &[
            Split(r"[\r\n]"),
            Split(DEEPSEEK_WORDS),
            Split(DEEPSEEK_SIGNS),
            Split(r"\s+$"),
            Split(DEEPSEEK_CJK),
            Digits,
        ],
    ),
    family(
        "deepseek-coder",
        &[
            Split(r"[\r\n]"),
            Split(r"\s?\p{L}+"),
            Split(r"\s?\p{P}+"),
            Split(DEEPSEEK_CJK),
            Digits,
        ],
    ),
    family("falcon", &[Punctuation, Gpt2, DigitRuns, Split("[0-9][0-9][0-9]")]),
    family("bloom", &[Split(BLOOM)]),
    family("viking", &[Split(BLOOM), Digits]),
    family("jais-2", &[Split(JAIS2)]),
    family("bailingmoe", &[Split(BAILING)]),
    family("seed-coder", &[Split(SEED_CODER)]),
    family("exaone-moe", &[Split(EXAONE_MOE)]),
    family("ufakzeka", &[Split(UFAKZEKA)]),
    family("laguna", &[Split(r"[^\n]+|[\n]+"), Split(QWEN2)]),
    ignoring("minicpm5", &[Split(r"\p{N}{1,3}"), Split(MINICPM5)], false),
    family(
        "spark2_5",
        &[Split(r"\p{N}{1,3}"), Split(CJK), Split(SPARK), Split(r"\p{N}")],
    ),
    ignoring("youtu", &[Split(YOUTU_SCRIPTS), Split(YOUTU)], false),
    family("tiny_aya", &[Split(r"\d{1,3}(?=(?:\d{3})*\b)"), Split(GPT4O)]),
];
