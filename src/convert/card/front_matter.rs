//! Front matter of a model card: the subset of YAML that describes a model.
//!
//! Only texts, lists in brackets and lists of lines with dashes are read. Everything else, mostly benchmark results, is
//! skipped. A card is not trusted, and without anchors and types its front matter cannot expand.

/// Limit on the front matter. That of published cards has a few kilobytes.
const MAX_BYTES: usize = 256 << 10;
const MAX_KEYS: usize = 256;
const MAX_ITEMS: usize = 1024;

/// Front matter: keys in their order, each with a text or a list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FrontMatter(Vec<(String, Entry)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Text(String),
    List(Vec<String>),
}

impl FrontMatter {
    /// Parses the lines between the first line, `---`, and the next such line.
    pub(super) fn parse(card: &str) -> Self {
        let mut found = Self::default();
        let mut lines = card.lines();
        if lines.next().map(|line| line.trim_start_matches('\u{feff}')) != Some("---") {
            return found;
        }
        let mut bytes = 0;
        // The key for which lines with dashes may follow.
        let mut open: Option<String> = None;
        for line in lines {
            bytes += line.len() + 1;
            if line == "---" || bytes > MAX_BYTES || found.0.len() == MAX_KEYS {
                break;
            }
            let text = without_comment(line);
            let content = text.trim();
            if content.is_empty() {
                continue;
            }
            let item = content.strip_prefix("- ").or((content == "-").then_some(""));
            let is_indented = text.starts_with([' ', '\t']);
            if let (Some(item), Some(key)) = (item, &open) {
                found.push(key, item);
            } else if !is_indented {
                open = found.read_key(content);
            } else {
                // A nested table, or a line of a multi-line text: neither is read.
                open = None;
            }
        }
        found
    }

    /// Reads `key: value`; returns the key if its value is on the following lines.
    fn read_key(&mut self, content: &str) -> Option<String> {
        let (key, value) = content.split_once(':')?;
        if !value.is_empty() && !value.starts_with([' ', '\t']) {
            return None;
        }
        let (key, value) = (unquoted(key.trim())?, value.trim());
        // YAML has no second value for a key. The first counts.
        if self.entry(&key).is_some() {
            return None;
        }
        if value.is_empty() {
            return Some(key);
        }
        if let Some(list) = value.strip_prefix('[') {
            let items = list.strip_suffix(']')?.split(',').map(str::trim);
            let items = items
                .filter(|item| !item.is_empty())
                .take(MAX_ITEMS)
                .filter_map(unquoted);
            self.0.push((key, Entry::List(items.collect())));
        } else if !value.starts_with(['{', '|', '>', '&', '*', '!', '%', '@', '`']) && !is_null(value) {
            self.0.push((key, Entry::Text(unquoted(value)?)));
        }
        None
    }

    fn push(&mut self, key: &str, item: &str) {
        // An item that is a table, `- name: value`, is skipped.
        let is_table = !item.starts_with(['"', '\'']) && (item.contains(": ") || item.ends_with(':'));
        let item = item.trim();
        if is_table || item.is_empty() || item.starts_with(['{', '[', '&', '*', '!', '|', '>', '-']) {
            return;
        }
        let Some(item) = unquoted(item) else {
            return;
        };
        match self.0.iter_mut().find(|(other, _)| other == key) {
            Some((_, Entry::List(list))) if list.len() < MAX_ITEMS => list.push(item),
            Some(_) => {}
            None => self.0.push((key.to_owned(), Entry::List(vec![item]))),
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|(other, _)| other == key).map(|(_, entry)| entry)
    }

    /// Returns the text of a key; `None` if it is a list.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.entry(key)? {
            Entry::Text(text) => Some(text),
            Entry::List(_) => None,
        }
    }

    /// Returns the list of a key. A single text is a list of one.
    pub(super) fn list(&self, key: &str) -> Option<&[String]> {
        match self.entry(key)? {
            Entry::Text(text) => Some(std::slice::from_ref(text)),
            Entry::List(list) => Some(list),
        }
    }
}

fn is_null(value: &str) -> bool {
    matches!(value, "~" | "null" | "Null" | "NULL")
}

/// Removes a comment: a `#` outside of quotes, at the beginning of the line or after white space.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, letter) in line.char_indices() {
        match quote {
            Some(open) if open == letter => quote = None,
            Some(_) => {}
            None if letter == '#' && before.is_whitespace() => return &line[..at],
            // A quote counts only at the beginning of a value; elsewhere it is an apostrophe.
            None if matches!(letter, '"' | '\'') && matches!(before, ' ' | '[' | ',' | '\t') => quote = Some(letter),
            None => {}
        }
        before = letter;
    }
    line
}

/// Removes quotes around a text; `None` if they do not match.
fn unquoted(text: &str) -> Option<String> {
    let inner = |quote: char| text.strip_prefix(quote).map(|rest| rest.strip_suffix(quote));
    match (inner('"'), inner('\'')) {
        (Some(inner), _) => {
            let mut out = String::new();
            let mut letters = inner?.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '\\' => match letters.next()? {
                        'n' => out.push('\n'),
                        't' => out.push('\t'),
                        // No other escapes occur in published cards.
                        other @ ('"' | '\\' | '/') => out.push(other),
                        _ => return None,
                    },
                    '"' => return None,
                    letter => out.push(letter),
                }
            }
            Some(out)
        }
        (_, Some(inner)) => Some(inner?.replace("''", "'")),
        _ => Some(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_and_lists() {
        let card = "---\n# a card\nlicense: apache-2.0 # free\nlanguage:\n- en\n  - \"no\"\ntags: [a, 'b c', \"d\"]\n\
                    base_model: \"o/r\"\nlicense_link: https://example.org/#terms\nempty:\nnothing: ~\n\
                    widget:\n- text: hello\n  example: 1\ndatasets:\n  - o/one\n  - o/two\n\
                    model-index:\n- name: x\n  results:\n  - task: y\n    metrics:\n    - deep\n\
                    extra_gated_prompt: >-\n  long\n  - text\nlicense: other\n---\nmodel_name: no\n";
        let found = FrontMatter::parse(card);
        assert_eq!(found.text("license"), Some("apache-2.0"));
        assert_eq!(found.list("license").unwrap(), ["apache-2.0"]);
        assert_eq!(found.list("language").unwrap(), ["en", "no"]);
        assert_eq!(found.list("tags").unwrap(), ["a", "b c", "d"]);
        assert_eq!(found.text("base_model"), Some("o/r"));
        assert_eq!(found.text("license_link"), Some("https://example.org/#terms"));
        assert_eq!(found.list("datasets").unwrap(), ["o/one", "o/two"]);
        for key in [
            "empty",
            "nothing",
            "widget",
            "model-index",
            "extra_gated_prompt",
            "model_name",
        ] {
            assert_eq!(found.list(key), None, "{key}");
        }
    }

    #[test]
    fn what_is_no_front_matter() {
        for card in [
            "",
            "# Title\n",
            "---",
            "text\n---\nlicense: mit\n---\n",
            "----\nlicense: mit\n",
        ] {
            assert_eq!(FrontMatter::parse(card), FrontMatter::default(), "{card:?}");
        }
        for line in [
            "license",
            "license:mit",
            "license: \"mit",
            "license: {a: b}",
            "license: *anchor",
            "license: [mit",
        ] {
            assert_eq!(
                FrontMatter::parse(&format!("---\n{line}\n---\n")).list("license"),
                None,
                "{line}"
            );
        }
        let many: String = (0..10_000).map(|at| format!("key{at}: value\n")).collect();
        assert_eq!(FrontMatter::parse(&format!("---\n{many}")).0.len(), MAX_KEYS);
        let many: String = "- item\n".repeat(10_000);
        assert_eq!(
            FrontMatter::parse(&format!("---\ntags:\n{many}"))
                .list("tags")
                .unwrap()
                .len(),
            MAX_ITEMS
        );
    }

    proptest! {
        #[test]
        fn any_card(card in "(---\n)?([a-z]{0,3}|[-:#'\"\\[\\],> \n\t\\\\]){0,80}") {
            let _ = FrontMatter::parse(&card);
        }
    }
}
