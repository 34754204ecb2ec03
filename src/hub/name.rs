//! Parsing of model names such as `hf:ORG/REPO@REVISION:SELECTOR+ORG/ADAPTER`. It only looks at the text and knows
//! nothing of what exists.
//!
//! [`HfName`] is a name with its [`Selector`] and [`AdapterName`]s. The checks are strict, because parts of a name
//! become parts of paths and URLs.

use std::{fmt, str::FromStr};

use crate::stdx::text::{strip_prefix_ignore_case, strip_suffix_ignore_case};

/// Longest name in bytes. All parts but file paths have tighter bounds.
const MAX_NAME_BYTES: usize = 1024;
/// Longest `ORG/REPO` in bytes, the limit of llama.cpp.
const MAX_REPO_ID_BYTES: usize = 256;
/// Longest name of an organization or a repository in bytes, the limit of the Hub.
const MAX_PART_BYTES: usize = 96;
/// Longest label in bytes, Ollama's limit for a tag.
const MAX_LABEL_BYTES: usize = 80;
/// Longest name of a branch, tag or commit in bytes.
const MAX_REVISION_BYTES: usize = 128;
/// Largest number of adapters in one name.
const MAX_ADAPTERS: usize = 8;
const PREFIXES: [&str; 3] = ["hf:", "hf.co/", "huggingface.co/"];
const GGUF: &str = ".gguf";

/// Name of a model on the Hub: `hf:ORG/REPO[/FOLDER][@REVISION][:SELECTOR][+ORG/ADAPTER[@REVISION]]…`.
///
/// `Display` writes this form, which parses to the same value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HfName {
    /// User or organization, spelled as in the text.
    pub org: String,
    /// Repository, spelled as in the text.
    pub repo: String,
    /// Branch, tag or commit; `None` is the branch `main`.
    pub revision: Option<String>,
    /// Selector of the files; `None` lets the resolver choose.
    pub selector: Option<Selector>,
    /// LoRA adapters to apply, in order.
    pub adapters: Vec<AdapterName>,
}

/// Selector: the part of a name that chooses files of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// A quantization or another word of a file name, for example `Q4_K_M`.
    Label(String),
    /// A path that ends in `.gguf`, or the last segment of one.
    File(String),
    /// A folder of the repository, with the folders in it.
    Folder {
        path: String,
        /// Label of the files in it; `None` lets the resolver choose.
        label: Option<String>,
    },
}

/// Name of a LoRA adapter on the Hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AdapterName {
    /// User or organization.
    pub org: String,
    /// Repository.
    pub repo: String,
    /// Branch, tag or commit; `None` is the branch `main`.
    pub revision: Option<String>,
}

impl AdapterName {
    /// Returns true if both names mean the same repository, whatever their case and revision.
    pub(crate) fn is_same_repository(&self, other: &Self) -> bool {
        self.org.eq_ignore_ascii_case(&other.org) && self.repo.eq_ignore_ascii_case(&other.repo)
    }
}

/// Name error: the reason why a text is not the name of a model on the Hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text breaks the grammar.
    #[error(
        "invalid model name \"{name}\": {reason}; write hf:ORG/REPO[/FOLDER][@REVISION][:SELECTOR][+ORG/ADAPTER[@REVISION]], \
         where SELECTOR is a quantization such as Q4_K_M or the path of a .gguf file"
    )]
    Malformed {
        /// The text, shortened.
        name: String,
        /// A phrase about "it".
        reason: &'static str,
    },
    /// The name asks for a cloud model of Ollama, which is never on the Hub.
    #[error("model '{0}' not found")]
    Cloud(String),
}

impl HfName {
    /// Parses a name. Spaces around it and the case of the prefix do not matter; `:latest` and `:local` are ignored.
    ///
    /// # Errors
    /// If the text breaks the grammar or asks for a cloud model.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = text.trim();
        let malformed = |reason| NameError::Malformed {
            name: shorten(name),
            reason,
        };
        if name.len() > MAX_NAME_BYTES {
            return Err(malformed("it is longer than 1024 bytes"));
        }
        let Some(body) = PREFIXES
            .iter()
            .find_map(|prefix| strip_prefix_ignore_case(name, prefix))
        else {
            return Err(malformed("it does not begin with hf:"));
        };
        if strip_suffix_ignore_case(body, ":cloud").is_some() {
            return Err(NameError::Cloud(shorten(name)));
        }
        let body = strip_suffix_ignore_case(body, ":local").unwrap_or(body);
        // Ollama's clients append this to every name without a tag, even behind adapters.
        let body = strip_suffix_ignore_case(body, ":latest").unwrap_or(body);
        let (main, adapters) = body.split_at(end_of_main(body));
        let mut parsed = parse_main(main).map_err(malformed)?;
        for adapter in adapters.split('+').skip(1) {
            parsed.adapters.push(parse_adapter(adapter).map_err(malformed)?);
        }
        if parsed.adapters.len() > MAX_ADAPTERS {
            return Err(malformed("it has more than 8 adapters"));
        }
        Ok(parsed)
    }

    /// Returns `ORG/REPO`.
    #[must_use]
    pub fn repo_id(&self) -> String {
        format!("{}/{}", self.org, self.repo)
    }

    /// Returns true if both names have the same adapters in the same order, in any case.
    #[must_use]
    pub fn has_adapters_of(&self, other: &Self) -> bool {
        let is_same = |(one, other): (&AdapterName, &AdapterName)| {
            one.is_same_repository(other) && one.revision == other.revision
        };
        self.adapters.len() == other.adapters.len() && self.adapters.iter().zip(&other.adapters).all(is_same)
    }
}

impl Selector {
    /// Parses the text after the colon; `latest` is no selector.
    ///
    /// # Errors
    /// A phrase about "it" that says what is wrong.
    pub fn parse(text: &str) -> Result<Option<Self>, &'static str> {
        if text.is_empty() {
            return Err("its selector is empty");
        }
        if text.eq_ignore_ascii_case("latest") {
            return Ok(None);
        }
        if strip_suffix_ignore_case(text, GGUF).is_some() {
            return if is_file_path(text) {
                Ok(Some(Self::File(text.to_owned())))
            } else {
                Err("its file path has an empty, '.' or '..' segment or a forbidden character")
            };
        }
        let is_label = text.len() <= MAX_LABEL_BYTES
            && text.bytes().next().is_some_and(is_word)
            && text.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
        if is_label {
            Ok(Some(Self::Label(text.to_owned())))
        } else {
            Err("its selector is neither a quantization nor the path of a .gguf file")
        }
    }

    /// Returns the text after the colon, or for a folder its path, which stands before the colon.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Label(text) | Self::File(text) | Self::Folder { path: text, .. } => text,
        }
    }
}

impl FromStr for HfName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl fmt::Display for HfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}/{}", self.org, self.repo)?;
        if let Some(Selector::Folder { path, .. }) = &self.selector {
            write!(f, "/{path}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.selector {
            Some(Selector::Label(text) | Selector::File(text) | Selector::Folder { label: Some(text), .. }) => {
                write!(f, ":{text}")?;
            }
            Some(Selector::Folder { label: None, .. }) | None => {}
        }
        for adapter in &self.adapters {
            write!(f, "+{adapter}")?;
        }
        Ok(())
    }
}

impl fmt::Display for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.repo)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder {
                path,
                label: Some(label),
            } => write!(f, "{path}:{label}"),
            _ => f.write_str(self.as_str()),
        }
    }
}

/// Splits `ORG/REPO` and checks it by llama.cpp's rule: each `/`, `.` and `-` stands between letters, digits or
/// underscores.
///
/// The rule forbids `--`, which separates the parts of a folder name in the cache, so these names stay unambiguous.
#[must_use]
pub fn split_repo_id(id: &str) -> Option<(&str, &str)> {
    let (org, repo) = id.split_once('/')?;
    (id.len() <= MAX_REPO_ID_BYTES && is_part(org) && is_part(repo)).then_some((org, repo))
}

/// Returns true if a path from the Hub or from a user stays inside the folder that it is joined to.
#[must_use]
pub fn is_safe_path(path: &str) -> bool {
    path.len() <= MAX_NAME_BYTES
        && path.split('/').count() <= 16
        && path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
        && !path
            .chars()
            .any(|character| character.is_control() || character == '\\')
}

fn is_part(part: &str) -> bool {
    let bytes = part.as_bytes();
    bytes.len() <= MAX_PART_BYTES
        && bytes.first().copied().is_some_and(is_word)
        && bytes.last().copied().is_some_and(is_word)
        && bytes.iter().all(|&byte| is_word(byte) || matches!(byte, b'.' | b'-'))
        && bytes.windows(2).all(|pair| is_word(pair[0]) || is_word(pair[1]))
        && !part.ends_with(".git")
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_file_path(path: &str) -> bool {
    is_safe_path(path) && path.trim() == path && !path.contains(':') && path.len() > GGUF.len()
}

fn is_folder_path(path: &str) -> bool {
    is_safe_path(path) && path.trim() == path && !path.contains([':', '+', '@'])
}

fn is_revision(revision: &str) -> bool {
    revision.len() <= MAX_REVISION_BYTES
        && is_safe_path(revision)
        && !revision.starts_with('-')
        && revision
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-' | b'/'))
}

/// Returns the position at which the adapters begin. A file path may contain `+`, so the last `.gguf` that is followed
/// by a `+` or the end takes precedence over the first `+`.
fn end_of_main(body: &str) -> usize {
    let lower = body.to_ascii_lowercase();
    let file_end = lower
        .match_indices(GGUF)
        .map(|(start, found)| start + found.len())
        .filter(|&end| matches!(lower.as_bytes().get(end), None | Some(b'+')))
        .last();
    file_end.or_else(|| body.find('+')).unwrap_or(body.len())
}

fn parse_main(main: &str) -> Result<HfName, &'static str> {
    let (left, tag) = match main.split_once(':') {
        Some((left, tag)) => (left, Some(tag)),
        None => (main, None),
    };
    let (path, revision) = parse_revision(left)?;
    let mut segments = path.splitn(3, '/');
    let (Some(org), Some(repo)) = (segments.next(), segments.next()) else {
        return Err("it lacks a slash between organization and repository");
    };
    if org.len() + repo.len() >= MAX_REPO_ID_BYTES || !is_part(org) || !is_part(repo) {
        return Err("its organization or repository is not one that the Hub allows");
    }
    let tag = tag.map(Selector::parse).transpose()?.flatten();
    let selector = match (segments.next(), tag) {
        (None, tag) => tag,
        (Some(path), tag) if strip_suffix_ignore_case(path, GGUF).is_some() => match tag {
            None => Selector::parse(path)?,
            Some(_) => return Err("it names a file twice"),
        },
        (Some(path), tag) => {
            let label = match tag {
                None => None,
                Some(Selector::Label(label)) => Some(label),
                Some(_) => return Err("it names a file twice"),
            };
            let path = path.to_owned();
            if !is_folder_path(&path) {
                return Err("its folder has an empty, '.' or '..' segment or a forbidden character");
            }
            Some(Selector::Folder { path, label })
        }
    };
    Ok(HfName {
        org: org.to_owned(),
        repo: repo.to_owned(),
        revision,
        selector,
        adapters: Vec::new(),
    })
}

fn parse_adapter(text: &str) -> Result<AdapterName, &'static str> {
    let (id, revision) = parse_revision(text)?;
    let (org, repo) = split_repo_id(id).ok_or("its adapter is not ORG/ADAPTER[@REVISION]")?;
    Ok(AdapterName {
        org: org.to_owned(),
        repo: repo.to_owned(),
        revision,
    })
}

fn parse_revision(text: &str) -> Result<(&str, Option<String>), &'static str> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((rest, revision)) if is_revision(revision) => Ok((rest, Some(revision.to_owned()))),
        Some(_) => Err("its revision is not a branch, tag or commit"),
    }
}

/// Shortens a name for an error message to 200 characters.
fn shorten(name: &str) -> String {
    if name.chars().count() <= 200 {
        name.to_owned()
    } else {
        name.chars().take(200).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(
            HfName::parse(text).map(|name| name.to_string()),
            Ok(expected.to_owned()),
            "{text}"
        );
    }

    #[track_caller]
    fn refuse(text: &str) {
        match HfName::parse(text) {
            Err(error @ NameError::Malformed { .. }) => {
                assert!(
                    error.to_string().contains("hf:ORG/REPO[/FOLDER][@REVISION][:SELECTOR]"),
                    "{error}"
                );
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn good_names() {
        check("hf:org/repo", "hf:org/repo");
        check("  HF:Org/Repo.v1-2_x  ", "hf:Org/Repo.v1-2_x");
        check("hf.co/org/repo:Q4_K_M", "hf:org/repo:Q4_K_M");
        check("HuggingFace.co/org/repo", "hf:org/repo");
        check("hf:org/repo:latest", "hf:org/repo");
        check("hf:org/repo:LATEST", "hf:org/repo");
        check("hf:org/repo:q8_0:local", "hf:org/repo:q8_0");
        check("hf:org/repo:Local", "hf:org/repo");
        check("hf:org/repo@main:Q8_0", "hf:org/repo@main:Q8_0");
        check("hf:org/repo@refs/pr/12", "hf:org/repo@refs/pr/12");
        check("hf:org/repo:sub/file.gguf", "hf:org/repo:sub/file.gguf");
        check("hf:org/repo/sub/file.GGUF", "hf:org/repo:sub/file.GGUF");
        check("hf:org/repo/file.gguf@v1", "hf:org/repo@v1:file.gguf");
        check("hf:org/repo:a+b.gguf", "hf:org/repo:a+b.gguf");
        check("hf:org/repo/a+b.gguf+org/lora@v2", "hf:org/repo:a+b.gguf+org/lora@v2");
        check("hf:org/repo:Q8_0+org/lora+b/c@v2", "hf:org/repo:Q8_0+org/lora+b/c@v2");
        check("hf:org/repo:with space.gguf", "hf:org/repo:with space.gguf");
        check("hf:org/repo/sub", "hf:org/repo/sub");
        check("hf:org/repo/sub/dir@v1:Q4_K_M", "hf:org/repo/sub/dir@v1:Q4_K_M");
        check("hf.co/org/repo/UD-Q4:latest+a/b", "hf:org/repo/UD-Q4+a/b");
    }

    #[test]
    fn bad_names() {
        for text in [
            "",
            "llama3",
            "hf:",
            "hf:repo",
            "hf:/repo",
            "hf:org/",
            "hf://org/repo",
            "hf:org//repo",
            "hf:org/repo:",
            "hf:org/repo@",
            "hf:org/repo@a b",
            "hf:org/repo@../x",
            "hf:org/repo@-x",
            "hf:org/repo/sub/:Q4",
            "hf:org/repo/../sub",
            "hf:org/repo/a//b",
            "hf:org/repo/sub:a.gguf",
            "hf:org/repo/a.gguf:Q4",
            "hf:org/repo:Q4:Q5",
            "hf:org/repo:sub/Q4",
            "hf:org/repo:../x.gguf",
            "hf:org/repo:/x.gguf",
            "hf:org/repo:a//x.gguf",
            "hf:org/repo:a\\x.gguf",
            "hf:org/repo:.gguf",
            "hf:or--g/repo",
            "hf:org/re..po",
            "hf:org/repo.",
            "hf:-org/repo",
            "hf:org/.-repo",
            "hf:org/repo.git",
            "hf:örg/repo",
            "hf:org/repo:Q4_K_M+lora",
            "hf:org/repo+",
        ] {
            refuse(text);
        }
        refuse(&format!("hf:org/{}", "r".repeat(97)));
        refuse(&format!("hf:org/repo:{}", "q".repeat(81)));
        refuse(&format!("hf:org/repo:{}.gguf", "q".repeat(2000)));
        refuse(&format!("hf:org/repo{}", "+a/b".repeat(9)));
    }

    #[test]
    fn cloud_is_never_ours() {
        assert_eq!(
            HfName::parse("hf:org/repo:Cloud"),
            Err(NameError::Cloud("hf:org/repo:Cloud".into()))
        );
    }

    #[test]
    fn repo_ids() {
        assert_eq!(split_repo_id("org/repo"), Some(("org", "repo")));
        assert_eq!(split_repo_id("../etc"), None);
        assert_eq!(split_repo_id("a/b/c"), None);
        assert_eq!(split_repo_id("gpt2"), None);
    }

    prop_compose! {
        fn part()(text in "[A-Za-z0-9_]{1,12}([.-][A-Za-z0-9_]{1,6}){0,3}") -> String { text }
    }

    fn revision() -> impl Strategy<Value = Option<String>> {
        prop::option::of("[a-z0-9_]{1,8}(/[a-z0-9._]{0,5}[a-z0-9]){0,2}")
    }

    fn selector() -> impl Strategy<Value = Option<Selector>> {
        prop::option::of(prop_oneof![
            "[A-Za-z0-9_][A-Za-z0-9_-]{0,20}".prop_map(Selector::Label),
            "([a-zA-Z0-9 +_@-]{0,5}[a-z]/){0,3}[a-z][a-z0-9+@. -]{0,9}[a-z][.]gguf".prop_map(Selector::File),
            (
                "[a-zA-Z0-9_][a-zA-Z0-9 _.-]{0,6}[a-z](/[a-z0-9_-]{1,5}){0,2}",
                prop::option::of("[A-Z][A-Z0-9_]{0,9}")
            )
                .prop_map(|(path, label)| Selector::Folder { path, label }),
        ])
        .prop_filter("words with a meaning of their own", |selector| {
            selector.as_ref().is_none_or(|selector| {
                !["latest", "local", "cloud"]
                    .iter()
                    .any(|word| selector.as_str().eq_ignore_ascii_case(word))
                    && selector.as_str().trim() == selector.as_str()
            })
        })
    }

    proptest! {
        #[test]
        fn display_parses_to_the_same_name(
            org in part(),
            repo in part(),
            revision in revision(),
            selector in selector(),
            adapters in prop::collection::vec(
                (part(), part(), revision()).prop_map(|(org, repo, revision)| AdapterName { org, repo, revision }), 0..3),
        ) {
            let name = HfName { org, repo, revision, selector, adapters };
            let text = name.to_string();
            // An organisation, repository or revision that ends like a file has two readings; the file wins.
            prop_assume!(text.to_ascii_lowercase().matches(".gguf").count()
                == usize::from(matches!(name.selector, Some(Selector::File(_)))));
            prop_assume!(!text.contains(".git/") && !text.ends_with(".git"));
            if is_part(&name.org) && is_part(&name.repo) {
                prop_assert_eq!(HfName::parse(&text), Ok(name));
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,64}", tail in "[a-z:@+/.Q4_-]{0,40}") {
            let _ = HfName::parse(&text);
            let _ = HfName::parse(&format!("hf:{tail}"));
        }
    }
}
