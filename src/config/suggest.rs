//! Suggestions for misspelled names.

/// Returns the name most similar to `wrong`, if it is similar enough for `wrong` to be a typing error.
pub(super) fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // No known name is that long, and a comparison takes time proportional to the product of both lengths.
    if wrong.len() > 64 {
        return None;
    }
    let wrong = wrong.to_ascii_lowercase().replace('-', "_");
    names
        .into_iter()
        .map(|name| (distance(&wrong, &name.to_ascii_lowercase()), name))
        .filter(|(distance, name)| *distance <= (name.len().max(wrong.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Returns a hint such as ` (did you mean "listen"?)`, or an empty text.
pub(super) fn hint<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(wrong, names)
        .map(|name| format!(" (did you mean \"{name}\"?)"))
        .unwrap_or_default()
}

/// Returns the number of insertions, deletions, replacements and swaps of neighboring characters that turn `a` into `b`
/// (optimal string alignment distance).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_and_nothing_else() {
        let names = ["listen", "origins", "max_connections", "keep_alive"];
        assert_eq!(nearest("lisetn", names), Some("listen"));
        assert_eq!(nearest("max-connection", names), Some("max_connections"));
        assert_eq!(nearest("keepalive", names), Some("keep_alive"));
        assert_eq!(nearest("Listen", names), Some("listen"));
        assert_eq!(nearest("temperature", names), None);
        assert_eq!(nearest("x", names), None);
    }
}
