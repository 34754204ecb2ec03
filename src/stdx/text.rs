//! Comparisons of text that ignore ASCII case.

/// Removes `prefix` from the front of `text`, in any ASCII case; `None` if `text` begins otherwise.
#[must_use]
pub fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Removes `suffix` from the end of `text`, in any ASCII case; `None` if `text` ends otherwise.
#[must_use]
pub fn strip_suffix_ignore_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let (rest, tail) = text.split_at_checked(text.len().checked_sub(suffix.len())?)?;
    tail.eq_ignore_ascii_case(suffix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_character_boundaries_are_respected() {
        assert_eq!(strip_prefix_ignore_case("HF:a/B", "hf:"), Some("a/B"));
        assert_eq!(strip_prefix_ignore_case("hf", "hf:"), None);
        // The second byte is inside a character.
        assert_eq!(strip_prefix_ignore_case("aé", "ab"), None);
        assert_eq!(strip_suffix_ignore_case("m.GGUF", ".gguf"), Some("m"));
        assert_eq!(strip_suffix_ignore_case("éf", "ff"), None);
        assert_eq!(strip_suffix_ignore_case("f", "ff"), None);
    }
}
