//! The source files as data: their text, their code without tests and comments, and the module that each one is.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file of `src`.
pub(super) struct Source {
    /// Path below `src`.
    pub path: PathBuf,
    /// Path of the module that the file is: `["hub", "client"]`, `["hub"]` for `hub/mod.rs`, empty for `lib.rs`.
    pub module: Vec<String>,
    /// The whole file.
    pub text: String,
    /// The file up to its tests, without whole-line comments.
    pub code: String,
}

impl Source {
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The first folder below `src`, or the stem of a file that stands in `src` itself.
    pub(super) fn top(&self) -> &str {
        match self.module.first() {
            Some(name) => name,
            None => self.path.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8"),
        }
    }

    /// The folder below `src` in which the file stands.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().expect("a file has a folder")
    }

    /// True for `lib.rs` and `main.rs`.
    pub(super) fn is_root(&self) -> bool {
        self.module.is_empty()
    }
}

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a folder, sorted.
pub(super) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    walk(folder, &mut out);
    out.sort();
    out
}

/// Every file of `src` that is compiled into the program, so without files of tests.
pub(super) fn sources() -> Vec<Source> {
    let src = root().join("src");
    let texts: Vec<(PathBuf, String)> = rust_files(&src)
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).expect("UTF-8")))
        .collect();
    let tests: Vec<PathBuf> = texts.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    texts
        .into_iter()
        .filter(|(path, _)| {
            !tests
                .iter()
                .any(|test| path == test || path.starts_with(test.with_extension("")))
        })
        .map(|(path, text)| {
            let path = path.strip_prefix(&src).expect("below src").to_owned();
            let mut module: Vec<String> = path
                .with_extension("")
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .collect();
            if module
                .last()
                .is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main"))
            {
                module.pop();
            }
            Source {
                code: code_of(&text),
                path,
                module,
                text,
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
    }
    out
}

/// The text up to its tests, which stand last, without whole-line comments.
fn code_of(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let is_tests = |at: usize| {
        let declared = lines[at + 1..].iter().find(|line| !line.starts_with("#["));
        lines[at] == "#[cfg(test)]" && declared.is_some_and(|line| line.contains("mod ") && line.ends_with('{'))
    };
    if let Some(end) = (0..lines.len()).find(|at| is_tests(*at)) {
        lines.truncate(end);
    }
    lines.retain(|line| !line.trim_start().starts_with("//"));
    lines.join("\n")
}
