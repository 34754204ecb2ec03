//! Names of public items: unique, understood alone, and used.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::LazyLock,
};

use regex::Regex;

use super::{
    assert_none,
    paths::{Tree, mentions},
    source::{Source, root, rust_files, sources},
};

/// Types of one word that may leave their folder: terms that are understood alone, and proper nouns.
const ONE_WORD: &[&str] = &[
    "Batch",
    "Body",
    "Config",
    "Context",
    "Delta",
    "Endpoint",
    "Event",
    "Failure",
    "Job",
    "Lease",
    "Ledger",
    "Library",
    "Lifecycle",
    "Message",
    "Model",
    "Ollama",
    "Provider",
    "Registry",
    "Secret",
    "Selector",
    "Source",
    "Stream",
];

static TYPE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?m)^ *pub(?:\([^)]*\))? (?:struct|enum|trait|type|union) ([A-Z]\w*)").expect("a regex")
});
static ITEM: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?m)^ *pub (?:const fn|async fn|unsafe fn|fn|struct|enum|trait|type|union|const|static) (\w+)")
        .expect("a regex")
});

fn types(source: &Source) -> BTreeSet<String> {
    TYPE.captures_iter(&source.code)
        .map(|found| found[1].to_owned())
        .collect()
}

#[test]
fn no_two_public_types_have_one_name() {
    let sources = sources();
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in &sources {
        for name in types(source) {
            places.entry(name).or_default().push(source.name());
        }
    }
    assert!(places.len() > 300, "only {} types were found", places.len());
    let twice: Vec<String> = places
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("{name} is defined in {}", places.join(" and ")))
        .collect();
    assert_none(&twice);
}

#[test]
fn a_type_that_leaves_its_folder_has_two_words() {
    let is_one_word = |name: &str| {
        let letters: Vec<char> = name.chars().collect();
        !letters
            .windows(2)
            .any(|pair| !pair[0].is_uppercase() && pair[1].is_uppercase())
    };
    let sources = sources();
    let tree = Tree::new(&sources);
    let mut found = BTreeSet::new();
    for (at, source) in sources.iter().enumerate().filter(|(_, source)| !source.is_root()) {
        for used in tree.uses(at) {
            let (home, item) = (&sources[used.file], &used.item);
            let leaves = !source.path.starts_with(home.folder());
            if leaves && is_one_word(item) && !ONE_WORD.contains(&item.as_str()) && types(home).contains(item) {
                found.insert(format!("{item} of {} is used in {}", home.name(), source.name()));
            }
        }
    }
    assert_none(&found.into_iter().collect::<Vec<_>>());
}

/// The parts of a file that its users see although they name no item: signatures, public fields, variants, and
/// implementations of traits. A type that stands there has to be public.
fn interface(code: &str) -> String {
    let mut out = String::new();
    let mut inside: Option<&str> = None;
    for line in code.lines() {
        let bare = line.trim_start();
        let indent = &line[..line.len() - bare.len()];
        if let Some(end) = inside {
            out.push_str(line);
            out.push('\n');
            let is_over = bare.ends_with([';', '{']) || bare.starts_with('}') && indent == end;
            if is_over {
                inside = None;
            }
        } else if bare.starts_with("pub ") || bare.starts_with("impl") || bare.starts_with("type ") {
            // Without its own name, which stands behind the keyword.
            let (head, signature) = bare.split_at(bare.find(['(', ':', '<', '=']).unwrap_or(bare.len()));
            out.push_str(if bare.starts_with("impl") { bare } else { signature });
            out.push('\n');
            let is_open = !bare.ends_with([';', '{', '}', ',']) || bare.ends_with('(');
            if is_open || head.starts_with("pub enum") {
                inside = Some(indent);
            }
        }
    }
    out
}

#[test]
fn every_public_item_is_used_outside_its_file() {
    let sources = sources();
    let tests: Vec<String> = rust_files(&root().join("compat-tests"))
        .iter()
        .map(|path| fs::read_to_string(path).expect("UTF-8"))
        .collect();
    let mut found = Vec::new();
    for (at, source) in sources.iter().enumerate() {
        let interface = interface(&source.code);
        for item in ITEM.captures_iter(&source.code) {
            let name = &item[1];
            let others = sources.iter().enumerate().filter(|(other, _)| *other != at);
            let is_used = others
                .map(|(_, other)| &other.code)
                .chain(&tests)
                .any(|text| mentions(text, name));
            let is_seen = name.starts_with(char::is_uppercase) && mentions(&interface, name);
            if !is_used && !is_seen {
                found.push(format!("{}: {name} is used nowhere else", source.name()));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn no_file_is_placed_by_an_attribute() {
    let found: Vec<String> = rust_files(&root().join("src"))
        .iter()
        .filter(|path| fs::read_to_string(path).expect("UTF-8").contains("#[path"))
        .map(|path| path.strip_prefix(root()).unwrap_or(Path::new("")).display().to_string())
        .collect();
    assert_none(&found);
}
