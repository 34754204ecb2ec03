//! Which files of a repository a name stands for. Pure over a listing, so that it is tested without a network, and so
//! that the same rules hold for the Hub's listing and for what is in the cache.

use std::{cmp::Reverse, collections::BTreeMap, sync::LazyLock};

use regex::Regex;

use super::name::Selector;

/// Selectors that an error names at most; some repositories hold hundreds of files.
const MAX_NAMED: usize = 40;

/// One file of one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoFile {
    /// Path in the repository, with `/`.
    pub path: String,
    /// Bytes of the content.
    pub size: u64,
    /// Hash of the git blob (40 hex digits); for large files that is the pointer's, not the content's.
    pub oid: Option<String>,
    /// sha256 of the content (64 hex digits); only large files have one.
    pub lfs_sha256: Option<String>,
}

impl RepoFile {
    /// The hash of the content by which the cache names it.
    #[must_use]
    pub fn etag(&self) -> Option<&str> {
        self.lfs_sha256.as_deref().or(self.oid.as_deref())
    }
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The selector to print: the label, or the path where the label would choose another file.
    pub label: String,
    /// The weights, first shard first.
    pub files: Vec<RepoFile>,
    /// The projector for images or audio.
    pub mmproj: Option<RepoFile>,
    /// Small models beside it that can guess its next tokens, the kind that guesses best first, one of each.
    pub drafts: Vec<Draft>,
}

/// A model that guesses what another will say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// What its file's name has in front: `mtp`, `dspark`, `dflash` or `eagle3`.
    pub kind: &'static str,
    /// The weights.
    pub file: RepoFile,
}

/// Kinds of drafts in the order of preference, and how llama.cpp knows them; in this case only.
const DRAFTS: [(&str, &str); 4] = [
    ("mtp", "mtp-"),
    ("dspark", "dspark-"),
    ("dflash", "dflash-"),
    ("eagle3", "eagle3-"),
];

/// Why a listing has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// Nothing matches the selector.
    NoSuchSelector {
        /// What was asked for.
        selector: String,
        /// What could be asked for.
        available: Vec<String>,
    },
    /// There is no GGUF file at all.
    NoGguf {
        /// Whether there are safetensors, which could be converted.
        has_safetensors: bool,
    },
    /// The set of shards is not whole.
    IncompleteShards {
        /// The set that was asked for.
        label: String,
        /// Shards in the listing.
        present: usize,
        /// Shards that there should be.
        expected: usize,
    },
}

/// Chooses files by llama.cpp's and the Hub's rules.
///
/// A path is taken as it is; a label first by equality (`UD-` may be left out), then wherever it ends a word of the path,
/// then as a folder's name; without a selector the preferred quantisation is taken. A folder leaves only what is in it. The
/// order of `files` does not matter.
///
/// # Errors
/// If nothing, or only an incomplete set of shards, answers to the selector.
pub fn resolve(files: &[RepoFile], selector: Option<&Selector>) -> Result<Resolution, ResolveError> {
    let groups = groups(files);
    if !groups.iter().any(|group| group.is_candidate) {
        let has_safetensors = files
            .iter()
            .any(|file| ends_with_ignore_case(&file.path, ".safetensors"));
        return Err(ResolveError::NoGguf { has_safetensors });
    }
    let Some(group) = pick(&groups, selector) else {
        let selector = selector.map(ToString::to_string).unwrap_or_default();
        return Err(ResolveError::NoSuchSelector {
            selector,
            available: available(&groups),
        });
    };
    if !group.is_complete() {
        return Err(ResolveError::IncompleteShards {
            label: selector_of(&groups, group),
            present: group.files.len(),
            expected: group.shards,
        });
    }
    Ok(resolution(files, &groups, group))
}

/// Every model of a listing, in the order in which a list shows them; incomplete sets are left out.
#[must_use]
pub fn all(files: &[RepoFile]) -> Vec<Resolution> {
    let groups = groups(files);
    groups
        .iter()
        .filter(|group| group.is_candidate && group.is_complete())
        .map(|group| resolution(files, &groups, group))
        .collect()
}

/// A model's file, or all shards of one.
#[derive(Debug)]
struct Group<'a> {
    /// First shard first, no index twice.
    files: Vec<&'a RepoFile>,
    shards: usize,
    label: Option<String>,
    /// Drafts and importance matrices are GGUF files, but nobody means them unless by their path.
    is_candidate: bool,
}

impl Group<'_> {
    fn path(&self) -> &str {
        self.files.first().map_or("", |file| file.path.as_str())
    }

    fn is_complete(&self) -> bool {
        self.files.len() == self.shards
    }

    fn has_label(&self, label: &str) -> bool {
        self.label.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(label))
    }
}

fn resolution(files: &[RepoFile], groups: &[Group<'_>], group: &Group<'_>) -> Resolution {
    Resolution {
        label: selector_of(groups, group),
        files: group.files.iter().map(|&file| file.clone()).collect(),
        mmproj: companion(files, group, |file| is_mmproj(&file.path)).cloned(),
        drafts: DRAFTS
            .iter()
            .filter_map(|(kind, word)| {
                let is_kind = |file: &&RepoFile| !is_mmproj(&file.path) && file_name(&file.path).contains(word);
                let is_other = |file: &RepoFile| !group.files.iter().any(|own| own.path == file.path);
                let file = companion(files, group, |file| is_kind(&file) && is_other(file))?;
                Some(Draft {
                    kind,
                    file: file.clone(),
                })
            })
            .collect(),
    }
}

fn groups(files: &[RepoFile]) -> Vec<Group<'_>> {
    let mut sorted: Vec<&RepoFile> = files
        .iter()
        .filter(|file| ends_with_ignore_case(&file.path, ".gguf") && !is_mmproj(&file.path))
        .collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    // A map keeps the order of paths, which makes every choice below independent of the listing's order.
    let mut groups: BTreeMap<(String, usize), Group<'_>> = BTreeMap::new();
    for file in sorted {
        let (key, (prefix, index, shards)) = match shard_of(&file.path) {
            Some(shard) => ((shard.0.to_lowercase(), shard.2), shard),
            None => ((file.path.clone(), 0), (stem(&file.path), 1, 1)),
        };
        let group = groups.entry(key).or_insert_with(|| Group {
            files: Vec::new(),
            shards,
            label: label_of(prefix),
            is_candidate: is_candidate(&file.path),
        });
        // Sorted by path, so by index; a set that lacks a shard in the middle stays incomplete by its count.
        if group
            .files
            .last()
            .and_then(|last| shard_of(&last.path))
            .is_none_or(|(_, last, _)| last < index)
        {
            group.files.push(file);
        }
    }
    groups.into_values().collect()
}

/// Prefix, index and count of `prefix-00001-of-00003.gguf`.
fn shard_of(path: &str) -> Option<(&str, usize, usize)> {
    static SHARD: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^(.+)-([0-9]{5})-of-([0-9]{5})\.gguf$"));
    let captures = SHARD.captures(path)?;
    let prefix = captures.get(1)?.as_str();
    let index: usize = captures.get(2)?.as_str().parse().ok()?;
    let count: usize = captures.get(3)?.as_str().parse().ok()?;
    (1..=count).contains(&index).then_some((prefix, index, count))
}

/// The names of all parts of a file: itself, where it is whole.
pub(crate) fn parts(file: &str) -> Vec<String> {
    /// More parts than any model has; their number comes from a file's name.
    const MAX_PARTS: usize = 10_000;
    match shard_of(file) {
        Some((prefix, _, count)) if count <= MAX_PARTS => (1..=count)
            .map(|index| format!("{prefix}-{index:05}-of-{count:05}.gguf"))
            .collect(),
        _ => vec![file.to_owned()],
    }
}

/// Whether a file has this label, in whatever case.
pub(crate) fn has_label(file: &str, label: &str) -> bool {
    let prefix = shard_of(file).map_or_else(|| stem(file), |(prefix, ..)| prefix);
    label_of(prefix).is_some_and(|own| own.eq_ignore_ascii_case(label))
}

/// The label of a path without its suffix: the last quantisation in the file's name, else in the folder's.
fn label_of(stem: &str) -> Option<String> {
    let mut segments = stem.rsplit('/');
    let name = segments.next()?;
    label_in(name).or_else(|| segments.next().and_then(label_in))
}

fn label_in(name: &str) -> Option<String> {
    static LABEL: LazyLock<Regex> = LazyLock::new(|| {
        pattern(concat!(
            r"(?:^|[^A-Z0-9])((?:UD-)?",
            r"(?:BF16|F16|F32|Q[2-8]_K_XL|Q[2-8]_K(?:_[SML])?|Q4_0_[48]_[48]|Q[1-8]_[01]",
            r"|IQ[1-4]_(?:XXS|XS|NL|S|M)|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4)",
            r"(?:_[A-Z0-9]+)?)(?:$|[^A-Z0-9])"
        ))
    });
    let name = name.to_ascii_uppercase();
    let mut last = None;
    let mut at = 0;
    // `find_iter` would eat the separator between two neighbours.
    while let Some(found) = LABEL.captures_at(&name, at).and_then(|captures| captures.get(1)) {
        last = Some(found.as_str().to_owned());
        at = found.end();
    }
    last
}

fn pick<'g, 'f>(groups: &'g [Group<'f>], selector: Option<&Selector>) -> Option<&'g Group<'f>> {
    match selector {
        Some(Selector::Folder { path, label }) => {
            let inside: Vec<&Group<'f>> = groups.iter().filter(|group| is_below(group.path(), path)).collect();
            pick_from(&inside, label.clone().map(Selector::Label).as_ref())
        }
        selector => pick_from(&groups.iter().collect::<Vec<_>>(), selector),
    }
}

/// Whether a path is in a folder, in whatever case that is spelled.
fn is_below(path: &str, folder: &str) -> bool {
    let head = path
        .get(..folder.len())
        .filter(|head| head.eq_ignore_ascii_case(folder));
    head.is_some() && path[folder.len()..].starts_with('/')
}

fn pick_from<'g, 'f>(groups: &[&'g Group<'f>], selector: Option<&Selector>) -> Option<&'g Group<'f>> {
    let candidates = || groups.iter().copied().filter(|group| group.is_candidate);
    match selector {
        // A folder in a folder is not written.
        None | Some(Selector::Folder { .. }) => candidates().min_by_key(|group| {
            let label = group.label.as_deref().unwrap_or_default();
            (
                !group.is_complete(),
                rank(label),
                label.starts_with("UD-"),
                place(group),
            )
        }),
        Some(Selector::File(path)) => {
            let tests: [fn(&str, &str) -> bool; 4] = [
                |path, wanted| path == wanted,
                |path, wanted| file_name(path) == wanted,
                |path, wanted| path.eq_ignore_ascii_case(wanted),
                |path, wanted| file_name(path).eq_ignore_ascii_case(wanted),
            ];
            tests.iter().find_map(|test| {
                best(
                    groups
                        .iter()
                        .copied()
                        .filter(|group| group.files.iter().any(|file| test(&file.path, path))),
                )
            })
        }
        Some(Selector::Label(label)) => {
            let with_ud = format!("UD-{label}");
            let needle = label.to_ascii_lowercase();
            best(candidates().filter(|group| group.has_label(label)))
                .or_else(|| best(candidates().filter(|group| group.has_label(&with_ud))))
                .or_else(|| best(candidates().filter(|group| ends_word(group.path(), &needle))))
                .or_else(|| {
                    best(candidates().filter(|group| folders(group.path()).any(|f| f.eq_ignore_ascii_case(label))))
                })
        }
    }
}

fn best<'g, 'f: 'g>(groups: impl Iterator<Item = &'g Group<'f>>) -> Option<&'g Group<'f>> {
    groups.min_by_key(|group| (!group.is_complete(), place(group)))
}

/// Ties go to the file nearer to the root, then to the alphabet.
fn place<'g>(group: &'g Group<'_>) -> (usize, &'g str) {
    (group.path().split('/').count(), group.path())
}

/// llama.cpp's test: the tag, followed by a dot or a dash, anywhere in the path.
fn ends_word(path: &str, needle: &str) -> bool {
    let path = path.to_ascii_lowercase();
    path.match_indices(needle)
        .any(|(start, found)| matches!(path.as_bytes().get(start + found.len()), Some(b'.' | b'-')))
}

/// The selector that finds exactly this group.
fn selector_of(groups: &[Group<'_>], group: &Group<'_>) -> String {
    group
        .label
        .clone()
        .filter(|label| {
            pick(groups, Some(&Selector::Label(label.clone()))).is_some_and(|found| found.path() == group.path())
        })
        .unwrap_or_else(|| group.path().to_owned())
}

fn available(groups: &[Group<'_>]) -> Vec<String> {
    let mut named: Vec<(usize, String)> = groups
        .iter()
        .filter(|group| group.is_candidate && group.is_complete())
        .map(|group| {
            (
                rank(group.label.as_deref().unwrap_or_default()),
                selector_of(groups, group),
            )
        })
        .collect();
    named.sort();
    named.truncate(MAX_NAMED);
    named.into_iter().map(|(_, selector)| selector).collect()
}

/// Place of a label in the order in which a default is looked for; a trailing `*` stands for the rest.
fn rank(label: &str) -> usize {
    const ORDER: [&str; 20] = [
        "Q4_K_M", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_*", "Q4_K_XL", "Q4_K_S", "MXFP4*", "IQ4_*", "Q4_*", "Q8_*",
        "BF16", "F16", "F32", "Q3_*", "IQ3_*", "Q2_*", "IQ2_*", "*",
    ];
    let label = label.strip_prefix("UD-").unwrap_or(label);
    ORDER
        .iter()
        .position(|entry| {
            entry
                .strip_suffix('*')
                .map_or(label == *entry, |head| label.starts_with(head))
        })
        .unwrap_or(ORDER.len())
}

fn is_mmproj(path: &str) -> bool {
    file_name(path).to_ascii_lowercase().contains("mmproj")
}

fn is_candidate(path: &str) -> bool {
    let name = file_name(path).to_ascii_lowercase();
    !["imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"]
        .iter()
        .any(|word| name.contains(word))
}

/// The file of a kind that is nearest to the model: in its folder or one above, the deepest; then the one of the same label,
/// then of the nearest width, then the float format that loses least.
fn companion<'a>(
    files: &'a [RepoFile],
    group: &Group<'_>,
    is_kind: impl Fn(&RepoFile) -> bool,
) -> Option<&'a RepoFile> {
    let model_folder: Vec<&str> = folders(group.path()).collect();
    let label = group.label.clone().unwrap_or_default();
    let same_label = format!("-{}.", label.to_ascii_lowercase());
    files
        .iter()
        .filter(|file| ends_with_ignore_case(&file.path, ".gguf") && is_kind(file))
        .filter(|file| model_folder.starts_with(&folders(&file.path).collect::<Vec<_>>()))
        .min_by_key(|file| {
            let own = label_in(stem(file_name(&file.path))).unwrap_or_default();
            let is_same = !label.is_empty() && file.path.to_ascii_lowercase().contains(&same_label);
            let float = ["F16", "BF16", "F32"]
                .iter()
                .position(|format| own == *format)
                .unwrap_or(3);
            let depth = folders(&file.path).count();
            (
                Reverse(depth),
                !is_same,
                bits(&own).abs_diff(bits(&label)),
                float,
                file.path.as_str(),
            )
        })
}

/// The first number in a label: 4 of `Q4_K_M`, 16 of `BF16`.
fn bits(label: &str) -> u32 {
    let digits: String = label
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    // Labels come from a pattern, so that there are two digits at most; none means no label.
    digits.parse().unwrap_or(0)
}

fn folders(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').take(path.matches('/').count())
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn stem(path: &str) -> &str {
    path.get(..path.len().saturating_sub(".gguf".len())).unwrap_or(path)
}

fn ends_with_ignore_case(text: &str, suffix: &str) -> bool {
    text.len()
        .checked_sub(suffix.len())
        .and_then(|at| text.get(at..))
        .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix))
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern compiles")
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
