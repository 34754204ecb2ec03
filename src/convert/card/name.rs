//! Analysis of a model's name, by the rules of `gguf-py`'s `Metadata.get_model_id_components`: `Qwen3-0.6B-Instruct-v2`
//! has a base name, a size, a fine-tuning and a version.

use std::{borrow::Cow, collections::HashSet};

/// Longest name that is analyzed. Names on the Hub are shorter.
const MAX_BYTES: usize = 192;

/// Parts of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NameParts {
    /// Name without the organization.
    pub(super) name: Option<String>,
    pub(super) organization: Option<String>,
    pub(super) basename: Option<String>,
    pub(super) finetune: Option<String>,
    pub(super) version: Option<String>,
    pub(super) size_label: Option<String>,
}

/// Possible meanings of a part of a name. Several may apply.
#[derive(Clone, Copy, Debug, Default)]
struct Kinds {
    basename: bool,
    size: bool,
    finetune: bool,
    version: bool,
    element_type: bool,
}

impl Kinds {
    fn count(self) -> usize {
        [self.basename, self.size, self.finetune, self.version, self.element_type]
            .iter()
            .filter(|kind| **kind)
            .count()
    }
}

impl NameParts {
    /// Analyzes a name, with or without `org/`. The number of parameters tells a size from a context length.
    pub(super) fn new(id: &str, parameters: u64) -> Self {
        if id.is_empty() || id.len() > MAX_BYTES {
            return Self::default();
        }
        // A title or a sentence, not a name of the Hub: it has no parts.
        if id.contains(' ') {
            return Self {
                name: Some(id.to_owned()),
                ..Self::default()
            };
        }
        let (organization, full) = match id.split_once('/') {
            // `./name` is a path, whose folder is no organization.
            Some((organization, name)) => (Some(organization).filter(|text| !text.starts_with('.')), name),
            None => (None, id),
        };
        let mut parts: Vec<(Cow<'_, str>, Kinds)> = full
            .split('-')
            .filter(|part| !part.is_empty())
            .enumerate()
            .map(|(at, part)| annotated(part, at == 0, parameters))
            .collect();
        // Words such as "small" count as a size only if no part has a number.
        let has_digits = |part: &str| part.chars().any(|letter| letter.is_ascii_digit());
        if parts.iter().any(|(part, kinds)| kinds.size && has_digits(part)) {
            for (part, kinds) in &mut parts {
                kinds.size &= !part.chars().all(char::is_alphabetic);
            }
        }
        let mut at_start = true;
        for (part, kinds) in &mut parts {
            let is_word = kinds.count() == 0 && part.starts_with(char::is_alphabetic);
            if at_start && (is_word || kinds.version) {
                kinds.basename = true;
            } else {
                at_start = false;
                kinds.finetune |= kinds.count() == 0;
            }
        }
        // A version at the end of the base name is not part of it.
        for (_, kinds) in parts.iter_mut().rev() {
            if !kinds.basename || kinds.count() < 2 {
                break;
            }
            kinds.basename = false;
        }
        let joined = |is: fn(Kinds) -> bool| {
            let mut seen = HashSet::new();
            let fitting = parts
                .iter()
                .filter(|(_, kinds)| is(*kinds))
                .map(|(part, _)| part.as_ref());
            let all: Vec<&str> = fitting.collect();
            let unique: Vec<&str> = all.iter().copied().filter(|part| seen.insert(*part)).collect();
            (
                (!all.is_empty()).then(|| all.join("-")),
                (!unique.is_empty()).then(|| unique.join("-")),
            )
        };
        let mut found = Self {
            name: Some(full.to_owned()),
            organization: organization.map(str::to_owned),
            basename: joined(|kinds| kinds.basename).0,
            finetune: joined(|kinds| kinds.finetune).0,
            version: joined(|kinds| kinds.version && !kinds.basename).0,
            size_label: joined(|kinds| kinds.size).1,
        };
        if found.size_label.is_none() && found.finetune.is_none() && found.version.is_none() {
            // Like in `gguf-py`, which finds a base name without any other part too ambiguous.
            found.basename = None;
        }
        found
    }
}

/// Returns a part in its canonical spelling, with its meanings regardless of its neighbors.
fn annotated(part: &str, is_first: bool, parameters: u64) -> (Cow<'_, str>, Kinds) {
    let lower = part.to_ascii_lowercase();
    let mut kinds = Kinds::default();
    if is_version(&lower) {
        kinds.version = true;
    } else if is_element_type(&lower) {
        kinds.element_type = true;
        return (part.to_uppercase().into(), kinds);
    } else if !is_first && is_size(&lower) {
        let (part, is_length) = size(part, parameters);
        (kinds.size, kinds.finetune) = (!is_length, is_length);
        return (part.into(), kinds);
    } else if !is_first && matches!(lower.as_str(), "chat" | "instruct" | "vision" | "lora") {
        kinds.finetune = true;
    }
    (part.into(), kinds)
}

/// Returns true for digits with dots between: `1`, `3.2`.
fn is_number(text: &str) -> bool {
    text.split('.')
        .all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_version(lower: &str) -> bool {
    let bare = lower.strip_prefix('v').or_else(|| lower.strip_prefix("iter"));
    is_number(bare.unwrap_or(lower))
}

/// Returns true for a weight type: `Q4_K_M`, `iq2_xs`, `bf16`, `fp32`.
fn is_element_type(lower: &str) -> bool {
    let floats = ["f16", "f32", "fp16", "fp32", "bf16", "bf32", "bfp16", "bfp32"];
    if floats.contains(&lower) {
        return true;
    }
    let mut groups = lower.strip_prefix('i').unwrap_or(lower).split('_');
    let is_first = groups.next().is_some_and(|first| {
        first.len() == 2 && first.starts_with('q') && first.ends_with(|digit: char| digit.is_ascii_digit())
    });
    is_first && groups.all(|group| group.chars().count() == 1 && group.chars().all(char::is_alphanumeric))
}

/// Returns true for a size: `7b`, `A3B`, `8x7b`, `1_5b`, `7b1`, or a word such as `small`.
fn is_size(lower: &str) -> bool {
    if matches!(lower, "small" | "mini" | "medium" | "large" | "xl" | "xxl") {
        return true;
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let rest = match lower.split_once('x') {
        Some((experts, rest)) if digits(experts) => rest,
        _ => lower.strip_prefix('a').unwrap_or(lower),
    };
    let Some(unit) = rest.find(['k', 'm', 'b', 't']) else {
        return false;
    };
    let (number, unit) = rest.split_at(unit);
    let is_unit = unit.len() == 1 || unit.len() == 2 && digits(&unit[1..]);
    let (whole, fraction) = number.split_once(['.', '_']).unwrap_or((number, "0"));
    is_unit && digits(whole) && digits(fraction)
}

/// Returns a size in its canonical spelling, and whether it must be a context length (`128k`) because it is far from
/// the number of parameters.
fn size(part: &str, parameters: u64) -> (String, bool) {
    let mut part = part.replace('_', ".");
    // BLOOM's 7b1 means 7.1b.
    if part.ends_with(|last: char| last.is_ascii_digit())
        && let Some(digit) = part.pop()
        && let Some(unit) = part.pop()
    {
        part.extend(['.', digit, unit]);
    }
    let unit = part.pop().unwrap_or_default();
    let follows_digit = part.ends_with(|last: char| last.is_ascii_digit());
    let unit = if follows_digit && "kmbt".contains(unit) {
        unit.to_ascii_uppercase()
    } else {
        unit
    };
    let power = " KMBT".find(unit).and_then(|power| i32::try_from(power).ok());
    if let (Ok(number), Some(power), true) = (part.parse::<f64>(), power, parameters > 0) {
        let said = number * 1000f64.powi(power);
        let parameters = parameters as f64;
        // The converter's limit: a size may differ from the number of parameters by at most seven eighths of it.
        if (said - parameters).abs() > (7.0 * parameters / 8.0).floor() {
            part.push(unit.to_ascii_lowercase());
            return (part, true);
        }
    }
    part.push(unit);
    (part, false)
}

/// Returns a name as a title: `tiny-llama-7b` becomes `Tiny Llama 7b` (`id_to_title`).
pub(super) fn title(name: &str) -> String {
    let spaced = name.trim().replace('-', " ");
    let words = spaced.split_whitespace().map(|word| {
        let has_lower = word.chars().any(char::is_lowercase);
        let is_lower = has_lower && !word.chars().any(char::is_uppercase);
        let is_version = word.strip_prefix('v').is_some_and(is_number);
        if is_lower && !is_version && !word.starts_with(|first: char| first.is_ascii_digit()) {
            capitalized(word)
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<String>>().join(" ")
}

/// Capitalizes every letter that follows a non-letter, like Python's `str.title`.
fn capitalized(word: &str) -> String {
    let mut before = ' ';
    let mut out = String::with_capacity(word.len());
    for letter in word.chars() {
        if before.is_alphabetic() {
            out.push(letter);
        } else {
            out.extend(letter.to_uppercase());
        }
        before = letter;
    }
    out
}
