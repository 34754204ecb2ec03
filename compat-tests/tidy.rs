//! What the architecture page in `src/lib.rs` promises about the source, read from the source.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Modules by layer, lowest first; imports go to lower layers only. The table in `src/lib.rs` says the same.
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

/// What goes sideways all the same: who, and what of it. At the bottom the order is stdx, inference, the others.
const SIDEWAYS: &[(&str, &str)] = &[
    // Templates are filled with a conversation.
    ("go", "inference"),
    ("http", "stdx"),
    ("gguf", "stdx"),
    ("config", "stdx"),
    // Durations in the configuration are written as Ollama's settings are.
    ("config", "go::duration"),
    ("config", "inference"),
    ("llama", "inference"),
    ("llama", "gguf::GgmlType"),
    ("lifecycle", "worker::protocol"),
];

/// What goes down but is closed to most: a module, and who may use all of it.
const CLOSED: &[(&str, &[&str])] = &[
    // The daemon never calls llama.cpp.
    ("llama", &["worker"]),
    // The daemon's side shares only the protocol with its workers; the command line starts them.
    ("worker", &["cli"]),
];

/// Exceptions to that.
const OPEN: &[&str] = &["worker::protocol"];

/// Most lines of one file.
const MAX_LINES: usize = 800;

/// A file of `src` without its tests and comments.
struct Source {
    path: PathBuf,
    /// The first folder under `src`, or the file's stem.
    module: String,
    code: String,
    lines: usize,
}

impl Source {
    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut paths = Vec::new();
    files(&src, &mut paths);
    paths.sort();
    let texts: Vec<(PathBuf, String)> = paths
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).expect("UTF-8")))
        .collect();
    let test_files: Vec<PathBuf> = texts.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    texts
        .into_iter()
        .filter(|(path, _)| !test_files.contains(path))
        .map(|(path, text)| {
            let path = path.strip_prefix(&src).expect("below src").to_owned();
            let first = path.iter().next().expect("a name").to_string_lossy().into_owned();
            Source {
                module: first.trim_end_matches(".rs").to_owned(),
                lines: text.lines().count(),
                code: code_of(&text),
                path,
            }
        })
        .collect()
}

/// Files that are compiled for tests only: `#[cfg(test)] mod name;`
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let folder = match path.file_stem().is_some_and(|stem| stem == "mod" || stem == "lib") {
        true => path.parent().expect("a folder").to_owned(),
        false => path.with_extension(""),
    };
    let mut out = Vec::new();
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| **line == "#[cfg(test)]") {
        let declared = lines[at + 1..].iter().find(|line| !line.starts_with("#["));
        let name = declared.and_then(|line| line.rsplit_once("mod ")?.1.strip_suffix(';'));
        out.extend(name.map(|name| folder.join(format!("{name}.rs"))));
        let named = lines[at + 1]
            .strip_prefix("#[path = \"")
            .and_then(|rest| rest.strip_suffix("\"]"));
        out.extend(named.map(|name| path.with_file_name(name)));
    }
    out
}

/// The text up to its tests, which stand last, without whole-line comments.
fn code_of(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    if let Some(end) = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{'))
    {
        lines.truncate(end);
    }
    lines.retain(|line| !line.trim_start().starts_with("//"));
    lines.join("\n")
}

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

/// Why a module may not use a path; `None` if it may.
fn verdict(module: &str, path: &str) -> Option<&'static str> {
    let target = path.split("::").next().unwrap_or_default();
    let (Some(from), Some(to)) = (layer(module), layer(target)) else {
        return Some("a module without a layer");
    };
    let is_listed = SIDEWAYS
        .iter()
        .any(|(who, what)| *who == module && is_within(path, what));
    if module == target || is_listed {
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
    let mut checked = 0;
    for source in sources
        .iter()
        .filter(|source| !matches!(source.module.as_str(), "lib" | "main"))
    {
        for path in crate_paths(&source.code) {
            checked += 1;
            if let Some(why) = verdict(&source.module, &path) {
                found.push(format!("{}: crate::{path} is {why}", source.name()));
            }
        }
    }
    assert!(checked > 300, "only {checked} imports were understood");
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
    for source in sources().iter().filter(|source| source.module == "api") {
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
    assert_only_in("llama_cpp_sys_2", |source| source.module == "llama");
    assert_only_in("unsafe", |source| source.module == "llama");
    assert_only_in("unsafe_code", |source| source.path == Path::new("llama/mod.rs"));
}

#[test]
fn only_the_command_line_prints() {
    for print in ["println", "eprintln", "print", "eprint", "dbg"] {
        assert_only_in(&format!("{print}!"), |source| source.module == "cli");
    }
}

#[test]
fn no_http_type_is_below_the_dialects() {
    let speaks_http = |source: &Source| {
        matches!(source.module.as_str(), "http" | "hub" | "api" | "server")
            || source.path.starts_with("provider/ollama")
    };
    for crate_name in ["hyper", "hyper_util", "http_body_util"] {
        assert_only_in(crate_name, speaks_http);
    }
    // The command line asks a daemon as any client does.
    assert_only_in("reqwest", |source| matches!(source.module.as_str(), "hub" | "cli"));
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| source.lines > MAX_LINES)
        .map(|source| format!("{} has {} lines; split it by concept", source.name(), source.lines))
        .collect();
    assert_none(&long);
}

#[test]
fn every_module_says_what_lives_in_it() {
    let silent: Vec<String> = sources()
        .iter()
        .filter(|source| {
            let text = fs::read_to_string(root().join("src").join(&source.path)).expect("UTF-8");
            !text.starts_with("//!")
        })
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
