//! Plain names, by Ollama's rules (`types/model/name.go` of its source).

use std::fmt;

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";

/// Most characters of a host.
const MAX_HOST: usize = 350;
/// Most characters of any other part.
const MAX_PART: usize = 80;

/// Plain name `[HOST/][NAMESPACE/]MODEL[:TAG]` with Ollama's defaults filled in.
///
/// `Display` writes the form of listings: defaults are left out, except for the tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainName {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

impl PlainName {
    /// Parses a name; surrounding whitespace is ignored.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (rest, tag) = match text.rsplit_once(':') {
            // A colon before a slash belongs to the host's port.
            Some((rest, tag)) if !tag.contains('/') => (rest, tag),
            _ => (text, TAG),
        };
        let (rest, model) = rest
            .rsplit_once('/')
            .map_or((None, rest), |(rest, model)| (Some(rest), model));
        let (host, namespace) = match rest {
            None => (HOST, NAMESPACE),
            Some(rest) => rest.rsplit_once('/').unwrap_or((HOST, rest)),
        };
        let host = host.split_once("://").map_or(host, |(_, host)| host);
        let is_valid = is_part(host, MAX_HOST, ".:")
            && is_part(namespace, MAX_PART, "")
            && is_part(model, MAX_PART, ".")
            && is_part(tag, MAX_PART, ".");
        is_valid.then(|| Self {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            model: model.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// Returns a key that is equal for every spelling of the name: Ollama compares names without case.
    #[must_use]
    pub fn key(&self) -> String {
        let Self {
            host,
            namespace,
            model,
            tag,
        } = self;
        format!("{host}/{namespace}/{model}:{tag}").to_ascii_lowercase()
    }

    /// Returns the beginning of the name of a file for it.
    pub(super) fn file_stem(&self) -> String {
        format!("{}-{}", self.model, self.tag)
    }
}

impl fmt::Display for PlainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            namespace,
            model,
            tag,
        } = self;
        if !host.eq_ignore_ascii_case(HOST) {
            write!(f, "{host}/{namespace}/")?;
        } else if !namespace.eq_ignore_ascii_case(NAMESPACE) {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{model}:{tag}")
    }
}

/// Returns true for a part of letters, digits and underscores, and, behind the first character, hyphens and `others`.
fn is_part(text: &str, longest: usize, others: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= longest
        && text.starts_with(is_word)
        && text.chars().all(|c| is_word(c) || c == '-' || others.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_ollama() {
        for (text, shown) in [
            ("mario", "mario:latest"),
            (" mario:v1.2 ", "mario:v1.2"),
            ("me/Mario:v1", "me/Mario:v1"),
            ("library/mario", "mario:latest"),
            ("registry.ollama.ai/library/mario", "mario:latest"),
            ("example.com:5000/me/m", "example.com:5000/me/m:latest"),
            ("https://example.com/me/m:t", "example.com/me/m:t"),
            ("hf:foo", "hf:foo"),
            ("_a-b.c", "_a-b.c:latest"),
        ] {
            assert_eq!(
                PlainName::parse(text).map(|name| name.to_string()).as_deref(),
                Some(shown),
                "{text}"
            );
        }
        let long = "x".repeat(81);
        for text in [
            "",
            "a b",
            "-a",
            ".a",
            "a:",
            ":a",
            "/a",
            "a/",
            "a//b",
            "a.b/c",
            "hf:o/r",
            "hf:o/r:Q4",
            "a@b",
            "é",
            "a:b:c",
            &long,
        ] {
            assert_eq!(PlainName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn spellings_of_one_name_have_one_key() {
        let key = |text: &str| PlainName::parse(text).unwrap().key();
        for text in [
            "mario",
            "Mario:LATEST",
            "library/mario",
            "registry.ollama.ai/library/mario:latest",
        ] {
            assert_eq!(key(text), "registry.ollama.ai/library/mario:latest", "{text}");
        }
        assert_ne!(key("mario"), key("me/mario"));
    }
}
