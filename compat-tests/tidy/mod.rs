//! Rules for the source, checked by reading it: what the architecture page in `src/lib.rs` promises, and what keeps
//! names and comments readable.
//!
//! Each test fails with a list of places, one on a line.

mod circles;
mod comments;
mod names;
mod paths;
mod source;

use std::{collections::BTreeSet, fs, path::Path};

use source::{Source, root, sources};

/// Layer of each module, lowest first. Imports go to lower layers only. `src/lib.rs` documents the same table.
const LAYERS: &[(&str, u8)] = &[
    ("stdx", 0),
    ("inference", 0),
    ("go", 0),
    ("http", 0),
    ("gguf", 0),
    ("config", 0),
    ("llama", 0),
    ("convert", 1),
    ("hub", 1),
    ("observability", 1),
    ("worker", 2),
    ("lifecycle", 2),
    ("library", 3),
    ("provider", 4),
    ("api", 5),
    ("server", 6),
    ("daemon", 7),
    ("cli", 8),
];

/// Imports between modules of one layer that are allowed: the importing module, the path, and the reason.
const SIDEWAYS: &[(&str, &str, &str)] = &[
    ("http", "stdx", "stdx is the bottom of the lowest layer"),
    ("config", "stdx", "stdx is the bottom of the lowest layer"),
    (
        "config",
        "inference",
        "settings are defaults for the options of a request",
    ),
    (
        "config",
        "go::duration",
        "durations are written as in Ollama's settings",
    ),
    (
        "go",
        "inference",
        "templates are filled with the messages of a conversation",
    ),
    ("llama", "inference", "a load takes the options of a request"),
    (
        "llama",
        "gguf::GgmlType",
        "llama.cpp's tensor types are those of the file format",
    ),
    (
        "lifecycle",
        "worker::protocol",
        "both ends of the socket share its messages",
    ),
];

/// Modules of a lower layer that only some modules may import.
const CLOSED: &[(&str, &[&str])] = &[
    // The daemon never calls llama.cpp.
    ("llama", &["worker"]),
    // The daemon's side shares only the protocol with its workers; the command line starts them.
    ("worker", &["cli"]),
];

/// Parts of closed modules that every higher module may import.
const OPEN: &[&str] = &["worker::protocol"];

/// Most lines of one file.
const MAX_LINES: usize = 800;

/// Every path that begins with `crate::`, groups in braces spelled out.
fn crate_paths(code: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        // Not the end of another word, and not a macro's `$crate`.
        let before = code[..at].chars().next_back().unwrap_or(' ');
        if !before.is_alphanumeric() && !matches!(before, '_' | '$') {
            expand(&code[at + prefix.len()..], "", &mut out);
        }
    }
    out
}

/// Reads one path or group at the front of `text`; returns what is behind it.
fn expand<'a>(text: &'a str, prefix: &str, out: &mut Vec<String>) -> &'a str {
    let mut rest = text.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        rest = group.trim_start();
        while !rest.starts_with('}') && !rest.is_empty() {
            rest = expand(rest, prefix, out).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        return rest.get(1..).unwrap_or_default();
    }
    let end = rest
        .find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*')
        .unwrap_or(rest.len());
    let (word, behind) = rest.split_at(end);
    let path = if prefix.is_empty() {
        word.to_owned()
    } else {
        format!("{prefix}::{word}")
    };
    if let Some(behind) = behind.strip_prefix("::") {
        return expand(behind, &path, out);
    }
    out.push(path);
    // A renamed import, or something unexpected: on to the next in the group.
    let end = behind.find([',', '}', ';', '\n']).unwrap_or(behind.len());
    &behind[end..]
}

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The index in [`SIDEWAYS`] of the entry that allows an import.
fn sideways(module: &str, path: &str) -> Option<usize> {
    SIDEWAYS
        .iter()
        .position(|(from, to, _)| *from == module && is_within(path, to))
}

/// The reason for which a module may not import a path; `None` if it may.
fn verdict(module: &str, path: &str) -> Option<&'static str> {
    let target = path.split("::").next().unwrap_or_default();
    let (Some(from), Some(to)) = (layer(module), layer(target)) else {
        return Some("a module without a layer");
    };
    if module == target || sideways(module, path).is_some() {
        return None;
    }
    if to >= from {
        return Some(if to > from { "upward" } else { "sideways" });
    }
    let is_open = OPEN.iter().any(|open| is_within(path, open));
    let is_closed = CLOSED
        .iter()
        .any(|(closed, who)| *closed == target && !who.contains(&module));
    (is_closed && !is_open).then_some("closed to this module")
}

#[track_caller]
fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn imports_go_down_only() {
    let sources = sources();
    assert!(sources.len() > 80, "the source is found");
    let mut found = Vec::new();
    let mut needed = BTreeSet::new();
    let mut checked = 0;
    for source in sources.iter().filter(|source| !source.is_root()) {
        for path in crate_paths(&source.code) {
            checked += 1;
            needed.extend(sideways(source.top(), &path));
            if let Some(why) = verdict(source.top(), &path) {
                found.push(format!("{}: crate::{path} is {why}", source.name()));
            }
        }
    }
    assert!(checked > 300, "only {checked} imports were understood");
    let unneeded = SIDEWAYS.iter().enumerate().filter(|(at, _)| !needed.contains(at));
    found.extend(unneeded.map(|(_, (from, to, _))| format!("{from} no longer imports {to}; remove the exception")));
    assert_none(&found);
}

#[test]
fn the_table_in_the_documentation_is_the_one_that_is_checked() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("UTF-8");
    let mut documented: Vec<(String, u8)> = lib
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("//! | ")?.split(" | ");
            let layer: u8 = cells.next()?.parse().ok()?;
            let names = cells.next()?.split(", ");
            Some(
                names
                    .map(move |name| (name.trim_matches(['[', ']', '`']).to_owned(), layer))
                    .collect::<Vec<_>>(),
            )
        })
        .flatten()
        .collect();
    let mut checked: Vec<(String, u8)> = LAYERS
        .iter()
        .map(|(name, layer)| ((*name).to_owned(), *layer))
        .collect();
    let mut modules: Vec<String> = lib
        .lines()
        .filter_map(|line| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned()))
        .collect();
    documented.sort();
    checked.sort();
    modules.sort();
    assert_eq!(documented, checked);
    assert_eq!(checked.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), modules);
}

#[test]
fn no_dialect_knows_another() {
    let mut found = Vec::new();
    let dialects = ["ollama", "openai", "anthropic"];
    for source in sources().iter().filter(|source| source.top() == "api") {
        let Some(own) = dialects.iter().find(|dialect| {
            source.path.starts_with(format!("api/{dialect}")) || source.path.ends_with(format!("api/{dialect}.rs"))
        }) else {
            continue;
        };
        for other in dialects.iter().filter(|other| *other != own) {
            let uses = crate_paths(&source.code)
                .iter()
                .any(|path| is_within(path, &format!("api::{other}")))
                || source.code.contains(&format!("super::{other}"));
            if uses {
                found.push(format!("{} uses {other}", source.name()));
            }
        }
    }
    assert_none(&found);
}

/// Fails where `needle` is in the code of a file that `allowed` does not admit.
#[track_caller]
fn assert_only_in(needle: &str, allowed: impl Fn(&Source) -> bool) {
    let is_word = |code: &str, at: usize| {
        let outside = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        outside(code[..at].chars().next_back()) && outside(code[at + needle.len()..].chars().next())
    };
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| !allowed(source))
        .flat_map(|source| {
            let lines = source.code.lines();
            lines
                .filter(|line| line.match_indices(needle).any(|(at, _)| is_word(line, at)))
                .map(|line| format!("{}: {}", source.name(), line.trim()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_none(&found);
}

#[test]
fn only_one_folder_names_the_binding_and_is_unsafe() {
    assert_only_in("llama_cpp_sys_2", |source| source.top() == "llama");
    assert_only_in("unsafe", |source| source.top() == "llama");
    assert_only_in("unsafe_code", |source| source.path == Path::new("llama/mod.rs"));
}

#[test]
fn only_the_command_line_prints() {
    for print in ["println", "eprintln", "print", "eprint", "dbg"] {
        assert_only_in(&format!("{print}!"), |source| source.top() == "cli");
    }
}

#[test]
fn no_http_type_is_below_the_dialects() {
    let speaks_http = |source: &Source| {
        matches!(source.top(), "http" | "hub" | "api" | "server") || source.path.starts_with("provider/ollama")
    };
    for crate_name in ["hyper", "hyper_util", "http_body_util"] {
        assert_only_in(crate_name, speaks_http);
    }
    // The command line asks a daemon as any client does.
    assert_only_in("reqwest", |source| matches!(source.top(), "hub" | "cli"));
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<String> = sources()
        .iter()
        .map(|source| (source.name(), source.text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(name, lines)| format!("{name} has {lines} lines; split it by concept"))
        .collect();
    assert_none(&long);
}

#[test]
fn every_module_says_what_lives_in_it() {
    let silent: Vec<String> = sources()
        .iter()
        .filter(|source| !source.text.starts_with("//!"))
        .map(Source::name)
        .collect();
    assert_none(&silent);
}

/// The reader of imports reads what it should.
#[test]
fn groups_and_inline_paths_are_understood() {
    let code = "use crate::{\n    config::{self, Config, watch::{Pace, Watch}},\n    hub::Hub as H,\n};\n\
                fn f() { crate::stdx::fs::free(x); $crate::no; mycrate::no }\nuse crate::llama::*;\n";
    assert_eq!(
        crate_paths(code),
        [
            "config::self",
            "config::Config",
            "config::watch::Pace",
            "config::watch::Watch",
            "hub::Hub",
            "stdx::fs::free",
            "llama::*"
        ]
    );
    assert_eq!(verdict("hub", "api::Api"), Some("upward"));
    assert_eq!(verdict("hub", "observability::init"), Some("sideways"));
    assert_eq!(verdict("lifecycle", "worker::protocol::Job"), None);
    assert_eq!(verdict("lifecycle", "worker::run"), Some("sideways"));
    assert_eq!(verdict("provider", "worker::run"), Some("closed to this module"));
    assert_eq!(verdict("provider", "llama::Model"), Some("closed to this module"));
    assert_eq!(verdict("api", "provider::Call"), None);
}
