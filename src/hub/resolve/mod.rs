//! Resolving a selector: from the listing of a repository to the GGUF files that a name stands for.
//!
//! [`resolve`] chooses one model, [`all`] lists every model. Both are pure functions of a listing, so that the same
//! rules hold for the Hub's listing and for a snapshot in the cache, and are tested without either. The rules are those
//! of llama.cpp's `-hf` option and of the Hub's own pages.

use std::{cmp::Reverse, collections::BTreeMap, sync::LazyLock};

use regex::Regex;

use super::name::Selector;
use crate::stdx::text::strip_suffix_ignore_case;

/// Selectors that an error names at most: some repositories hold hundreds of files.
const MAX_NAMED: usize = 40;

/// Repository file: one file of a repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoFile {
    /// Path in the repository, separated by `/`.
    pub path: String,
    /// Bytes of the content.
    pub size: u64,
    /// Hash of the git blob, 40 hex digits. For a large file it is the hash of the LFS pointer, not of the content.
    pub oid: Option<String>,
    /// Hash of the content by sha256, 64 hex digits; only large files have one.
    pub lfs_sha256: Option<String>,
}

impl RepoFile {
    /// Returns the hash by which the cache names the content.
    #[must_use]
    pub fn etag(&self) -> Option<&str> {
        self.lfs_sha256.as_deref().or(self.oid.as_deref())
    }
}

/// Resolved model: the GGUF files of one model in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// Canonical selector: the quantization, or the path if the quantization would choose another file.
    pub label: String,
    /// Weights, first shard first.
    pub files: Vec<RepoFile>,
    /// Projector for images or audio.
    pub mmproj: Option<RepoFile>,
}

/// Marks in the names of GGUF files that are no model: importance matrices, and draft models for speculative decoding
/// of the kinds that llama.cpp knows. Only their full path selects them.
const NOT_MODELS: [&str; 5] = ["imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// Resolve error: the reason why a listing has no model for a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// No file matches the selector.
    NoSuchSelector {
        selector: String,
        /// Selectors that would match, at most 40.
        available: Vec<String>,
    },
    /// The listing has no GGUF file.
    NoGguf {
        /// True if there are safetensors, which may be a checkpoint that can be converted.
        has_safetensors: bool,
    },
    /// Some shards of the model are missing.
    IncompleteShards {
        /// Selector of the model.
        label: String,
        /// Shards in the listing.
        present: usize,
        /// Shards that the file names announce.
        expected: usize,
    },
}

/// Chooses the model that a selector means.
///
/// A path selects that file. A label selects, in this order: an equal quantization (`UD-` may be left out), a file in
/// whose path it ends a word, a folder of that name. No selector selects the preferred quantization. A folder restricts
/// the choice to the files in it. The order of `files` does not matter.
///
/// # Errors
/// If no file matches the selector, or shards of the model are missing.
pub fn resolve(files: &[RepoFile], selector: Option<&Selector>) -> Result<ResolvedModel, ResolveError> {
    let groups = groups(files);
    if !groups.iter().any(|group| group.is_candidate) {
        let has_safetensors = files
            .iter()
            .any(|file| strip_suffix_ignore_case(&file.path, ".safetensors").is_some());
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

/// Returns every complete model of a listing, sorted by path.
#[must_use]
pub fn all(files: &[RepoFile]) -> Vec<ResolvedModel> {
    let groups = groups(files);
    groups
        .iter()
        .filter(|group| group.is_candidate && group.is_complete())
        .map(|group| resolution(files, &groups, group))
        .collect()
}

/// File group: a GGUF file, or all shards of a sharded one.
#[derive(Debug)]
struct Group<'a> {
    /// First shard first, no index twice.
    files: Vec<&'a RepoFile>,
    /// Number of shards that the file names announce.
    shards: usize,
    /// Quantization in the path.
    label: Option<String>,
    /// False for [`NOT_MODELS`], which only their path selects.
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

fn resolution(files: &[RepoFile], groups: &[Group<'_>], group: &Group<'_>) -> ResolvedModel {
    ResolvedModel {
        label: selector_of(groups, group),
        files: group.files.iter().map(|&file| file.clone()).collect(),
        mmproj: projector(files, group).cloned(),
    }
}

fn groups(files: &[RepoFile]) -> Vec<Group<'_>> {
    let mut sorted: Vec<&RepoFile> = files
        .iter()
        .filter(|file| strip_suffix_ignore_case(&file.path, ".gguf").is_some() && !is_mmproj(&file.path))
        .collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    // Sorted by path, so that no choice below depends on the order of the listing, which differs between the Hub and
    // the file system.
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
        // Files that differ only in case have the same index; the second one is left out. A missing shard leaves the
        // count short.
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

/// Splits `prefix-00001-of-00003.gguf` into prefix, index and count.
fn shard_of(path: &str) -> Option<(&str, usize, usize)> {
    static SHARD: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^(.+)-([0-9]{5})-of-([0-9]{5})\.gguf$"));
    let captures = SHARD.captures(path)?;
    let prefix = captures.get(1)?.as_str();
    let index: usize = captures.get(2)?.as_str().parse().ok()?;
    let count: usize = captures.get(3)?.as_str().parse().ok()?;
    (1..=count).contains(&index).then_some((prefix, index, count))
}

/// Returns the names of all shards of a file; the file itself if it is not sharded.
pub(crate) fn shards(file: &str) -> Vec<String> {
    /// Largest number of shards. It comes from a file name, so it must not decide how much memory is used.
    const MAX_SHARDS: usize = 10_000;
    match shard_of(file) {
        Some((prefix, _, count)) if count <= MAX_SHARDS => (1..=count)
            .map(|index| format!("{prefix}-{index:05}-of-{count:05}.gguf"))
            .collect(),
        _ => vec![file.to_owned()],
    }
}

/// Returns true if the quantization in a file's name is `label`, in any case.
pub(crate) fn has_label(file: &str, label: &str) -> bool {
    let prefix = shard_of(file).map_or_else(|| stem(file), |(prefix, ..)| prefix);
    label_of(prefix).is_some_and(|own| own.eq_ignore_ascii_case(label))
}

/// Returns the last quantization in a file's name, else in the name of its folder; `stem` is the path without `.gguf`.
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
    // `find_iter` would consume the separator between two neighbors, and miss the second.
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

/// Returns true if a path is below a folder, in any case.
fn is_below(path: &str, folder: &str) -> bool {
    let head = path
        .get(..folder.len())
        .filter(|head| head.eq_ignore_ascii_case(folder));
    head.is_some() && path[folder.len()..].starts_with('/')
}

fn pick_from<'g, 'f>(groups: &[&'g Group<'f>], selector: Option<&Selector>) -> Option<&'g Group<'f>> {
    let candidates = || groups.iter().copied().filter(|group| group.is_candidate);
    match selector {
        // The caller has taken the label out of a folder.
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

/// Returns the key that breaks ties: the file nearest to the root comes first, then the alphabet decides.
fn place<'g>(group: &'g Group<'_>) -> (usize, &'g str) {
    (group.path().split('/').count(), group.path())
}

/// Returns true if `needle`, followed by a dot or a dash, is anywhere in the path. This is llama.cpp's rule for tags.
fn ends_word(path: &str, needle: &str) -> bool {
    let path = path.to_ascii_lowercase();
    path.match_indices(needle)
        .any(|(start, found)| matches!(path.as_bytes().get(start + found.len()), Some(b'.' | b'-')))
}

/// Returns the shortest selector that selects exactly this group: its label, else its path.
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

/// Returns the place of a quantization in the order of preference for a name without a selector. In the table, a
/// trailing `*` matches any rest.
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
    !NOT_MODELS.iter().any(|word| name.contains(word))
}

/// Returns the projector that is nearest to a model: in its folder or in the deepest one above that has any, then the
/// one of the same quantization, then of the most similar number of bits, then in the order F16, BF16, F32.
fn projector<'a>(files: &'a [RepoFile], group: &Group<'_>) -> Option<&'a RepoFile> {
    let model_folder: Vec<&str> = folders(group.path()).collect();
    let label = group.label.clone().unwrap_or_default();
    let same_label = format!("-{}.", label.to_ascii_lowercase());
    files
        .iter()
        .filter(|file| strip_suffix_ignore_case(&file.path, ".gguf").is_some() && is_mmproj(&file.path))
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

/// Returns the first number in a label, for example 4 for `Q4_K_M` and 16 for `BF16`; 0 for an empty label.
fn bits(label: &str) -> u32 {
    let digits: String = label
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    // The pattern of labels allows two digits at most, so that only the empty text fails to parse.
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

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern compiles")
}

#[cfg(test)]
mod tests;
