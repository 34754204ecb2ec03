//! Finds the comments in the sources of tests that refer to traps.

use std::{
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;

/// Syntax of a test in each language: file extension, text that must occur between the comment and the name, and the
/// pattern of the line with the name.
const LANGUAGES: [(&str, &str, &str); 4] = [
    ("rs", "test]", r"\bfn (\w+)"),
    ("py", "@check", r"^def (\w+)"),
    ("mjs", "", r"^\s*await check\('([^']+)'"),
    ("go", "", r#"^\s*check\("([^"]+)""#),
];

/// Returns every trap number in a comment with the name of the test below the comment.
pub(super) fn named() -> Vec<(u8, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for folder in ["compat-tests", "src"] {
        collect(&root.join(folder), &mut paths);
    }
    paths.sort();
    let comment =
        Regex::new(r"^\s*(?://|#) (?:Traps? (?<alone>\d+(?:, \d+)*)|.*\(traps? (?<behind>\d+(?:, \d+)*)\)\.?)$")
            .expect("a pattern");
    let mut found = Vec::new();
    for path in paths {
        let ending = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let Some((_, attribute, name)) = LANGUAGES.iter().find(|(language, ..)| *language == ending) else {
            continue;
        };
        let name = Regex::new(name).expect("a pattern");
        let text = fs::read_to_string(&path).expect("UTF-8");
        let shown = path.strip_prefix(root).expect("below the root");
        let shown = shown.strip_prefix("compat-tests").unwrap_or(shown).display();
        let lines: Vec<&str> = text.lines().collect();
        for (at, numbers) in lines
            .iter()
            .enumerate()
            .filter_map(|(at, line)| Some((at, comment.captures(line)?)))
        {
            let below = lines[at + 1..]
                .iter()
                .position(|line| name.is_match(line))
                .map(|below| at + 1 + below);
            // Only a few attributes may come between comment and test.
            let test = below.filter(|below| {
                below - at <= 4
                    && (attribute.is_empty() || lines[at + 1..*below].iter().any(|line| line.contains(attribute)))
            });
            let test = test.unwrap_or_else(|| panic!("{shown}:{}: no test follows this comment", at + 1));
            let test = name.captures(lines[test]).expect("it matched")[1].replace('_', " ");
            let numbers = numbers.name("alone").or(numbers.name("behind")).expect("one of both");
            let numbers = numbers
                .as_str()
                .split(", ")
                .map(|number| number.parse().expect("a number"));
            found.extend(numbers.map(|number| (number, format!("`{shown}`: {test}"))));
        }
    }
    found
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => collect(&path, paths),
            false => paths.push(path),
        }
    }
}
