//! Reads `use` declarations and paths out of code, and finds the file that defines what a path names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use regex::Regex;

use super::source::Source;

/// Re-exports that are followed before a path is given up as circular.
const MAX_HOPS: usize = 16;

static USE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)^\s*(pub(?:\([^)]*\))? )?use ([^;]+);").expect("a regex"));
static PATH: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b[a-z_]\w*(?:::\w+)+").expect("a regex"));
static DEFINITION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\b(?:fn|struct|enum|trait|type|const|static|mod|union|macro_rules!) (\w+)").expect("a regex")
});

/// Every path that a `use` tree names, groups in braces spelled out, with the name that it gets.
pub(super) fn expand_use(tree: &str) -> Vec<(Vec<String>, String)> {
    fn walk(tree: &str, prefix: &[String], out: &mut Vec<(Vec<String>, String)>) {
        let tree = tree.trim();
        if let Some(group) = tree.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let mut depth = 0;
            let split = group.split(|c: char| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                c == ',' && depth == 0
            });
            for part in split.filter(|part| !part.trim().is_empty()) {
                walk(part, prefix, out);
            }
            return;
        }
        if let Some((first, rest)) = tree.split_once("::").filter(|(first, _)| !first.contains('{')) {
            let mut path = prefix.to_vec();
            path.push(first.trim().to_owned());
            walk(rest, &path, out);
            return;
        }
        let (name, alias) = tree.split_once(" as ").unwrap_or((tree, tree));
        let mut path = prefix.to_vec();
        if name.trim() == "self" && !prefix.is_empty() {
            let alias = if alias == name {
                prefix[prefix.len() - 1].clone()
            } else {
                alias.trim().to_owned()
            };
            out.push((path, alias));
            return;
        }
        path.push(name.trim().to_owned());
        out.push((path, alias.trim().to_owned()));
    }
    let mut out = Vec::new();
    walk(tree, &[], &mut out);
    out
}

/// A file's `use` declarations and the names that it defines.
struct Names {
    /// Imported and re-exported names with the path that each one stands for; `None` for another crate's.
    bound: BTreeMap<String, Option<Vec<String>>>,
    /// Names that are only passed on by `pub use`.
    reexported: BTreeSet<String>,
    globs: Vec<Vec<String>>,
    defined: BTreeSet<String>,
    /// The code without its `use` declarations.
    body: String,
}

/// All files, by the module that each one is.
pub(super) struct Tree<'s> {
    sources: &'s [Source],
    files: BTreeMap<Vec<String>, usize>,
    names: Vec<Names>,
}

/// A use of one file by another.
pub(super) struct Use {
    /// Index of the file that defines it.
    pub file: usize,
    /// The item, or the module itself.
    pub item: String,
}

impl<'s> Tree<'s> {
    pub(super) fn new(sources: &'s [Source]) -> Self {
        let files = sources
            .iter()
            .enumerate()
            .filter(|(_, source)| source.path.file_name().is_some_and(|name| name != "main.rs"))
            .map(|(at, source)| (source.module.clone(), at))
            .collect();
        let mut tree = Self {
            sources,
            files,
            names: Vec::new(),
        };
        tree.names = sources.iter().map(|source| tree.names_of(source)).collect();
        tree
    }

    fn names_of(&self, source: &Source) -> Names {
        let mut names = Names {
            bound: BTreeMap::new(),
            reexported: BTreeSet::new(),
            globs: Vec::new(),
            defined: DEFINITION
                .captures_iter(&source.code)
                .map(|found| found[1].to_owned())
                .collect(),
            body: USE.replace_all(&source.code, "").into_owned(),
        };
        for found in USE.captures_iter(&source.code) {
            for (path, alias) in expand_use(&found[2]) {
                let absolute = self.absolute(&source.module, &path);
                if alias == "*" {
                    names.globs.extend(absolute.map(|mut path| {
                        path.pop();
                        path
                    }));
                    continue;
                }
                if found.get(1).is_some() {
                    names.reexported.insert(alias.clone());
                }
                names.bound.insert(alias, absolute);
            }
        }
        names
    }

    /// A path from the root of the crate; `None` for one into another crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let mut base = module.to_vec();
        let mut rest = rest;
        match first.as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                base.pop();
                while let Some(("super", more)) = rest.split_first().map(|(first, more)| (first.as_str(), more)) {
                    base.pop();
                    rest = more;
                }
            }
            child => {
                base.push(child.to_owned());
                if !self.files.contains_key(&base) {
                    return None;
                }
            }
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }

    /// The file that defines what an absolute path names, and the item; re-exports are followed.
    fn resolve(&self, path: &[String], hops: usize) -> Option<(usize, String)> {
        let length = (1..=path.len())
            .rev()
            .find(|length| self.files.contains_key(&path[..*length]))?;
        let file = self.files[&path[..length]];
        let Some(item) = path.get(length) else {
            return Some((file, path.last()?.clone()));
        };
        let names = &self.names[file];
        if hops == MAX_HOPS || names.defined.contains(item) {
            return Some((file, item.clone()));
        }
        if let Some(bound) = names.bound.get(item) {
            let mut target = bound.clone()?;
            target.extend_from_slice(&path[length + 1..]);
            return self.resolve(&target, hops + 1);
        }
        let through_glob = names.globs.iter().find_map(|glob| {
            let target: Vec<String> = glob.iter().chain([item]).cloned().collect();
            let (file, found) = self.resolve(&target, hops + 1)?;
            self.names[file].defined.contains(&found).then_some((file, found))
        });
        through_glob.or_else(|| Some((file, item.clone())))
    }

    /// True when a path names a module and not an item in it.
    fn is_module(&self, path: &[String]) -> bool {
        self.files.contains_key(path)
    }

    /// Everything that a file uses of other files. A folder's module that is only imported, so that paths can begin
    /// with it, is not used by that.
    pub(super) fn uses(&self, file: usize) -> Vec<Use> {
        let (source, names) = (&self.sources[file], &self.names[file]);
        let mut paths: BTreeSet<Vec<String>> = BTreeSet::new();
        for (name, path) in &names.bound {
            let Some(path) = path else { continue };
            let is_folder = self.is_module(path)
                && self
                    .files
                    .keys()
                    .any(|key| key.len() > path.len() && key.starts_with(path));
            let is_used = !names.reexported.contains(name) || mentions(&names.body, name);
            if is_used && !is_folder {
                paths.insert(path.clone());
            }
        }
        paths.extend(names.globs.iter().filter(|glob| self.is_module(glob)).cloned());
        for found in PATH.find_iter(&names.body) {
            let path: Vec<String> = found.as_str().split("::").map(str::to_owned).collect();
            let absolute = match names.bound.get(&path[0]) {
                Some(None) => None,
                Some(Some(module)) => Some([module, &path[1..]].concat()),
                None => self.absolute(&source.module, &path),
            };
            paths.extend(absolute);
        }
        let mut uses: Vec<Use> = paths
            .iter()
            .filter_map(|path| self.resolve(path, 0))
            .filter(|(target, _)| *target != file)
            .map(|(file, item)| Use { file, item })
            .collect();
        uses.sort_by(|a, b| (a.file, &a.item).cmp(&(b.file, &b.item)));
        uses.dedup_by(|a, b| a.file == b.file && a.item == b.item);
        uses
    }
}

/// True when `word` stands in `text` as a whole word.
pub(super) fn mentions(text: &str, word: &str) -> bool {
    let is_outside = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    text.match_indices(word)
        .any(|(at, _)| is_outside(text[..at].chars().next_back()) && is_outside(text[at + word.len()..].chars().next()))
}

#[test]
fn use_trees_are_understood() {
    let tree = "crate::{config::{self, Config, watch::{Pace, Watch as W}}, hub::*}";
    let found: Vec<String> = expand_use(tree)
        .into_iter()
        .map(|(path, name)| format!("{} as {name}", path.join("::")))
        .collect();
    let expected = [
        "crate::config as config",
        "crate::config::Config as Config",
        "crate::config::watch::Pace as Pace",
        "crate::config::watch::Watch as W",
        "crate::hub::* as *",
    ];
    assert_eq!(found, expected);
}
