//! Comments can be read by somebody who does not know the answer yet.

use std::fs;

use super::{
    assert_none,
    source::{root, rust_files},
};

/// Words that begin a sentence without a subject, or refer to something that was not named yet.
const HEADLESS: &[&str] = &[
    "Anybody",
    "As",
    "Everybody",
    "He",
    "How",
    "However",
    "It",
    "Its",
    "Nobody",
    "Of",
    "She",
    "Somebody",
    "That",
    "The same",
    "Their",
    "Them",
    "They",
    "Those",
    "What",
    "Whatever",
    "Where",
    "Wherever",
    "Whether",
    "Which",
    "Whichever",
    "Who",
    "Whoever",
    "Whom",
    "Whose",
    "Why",
];

/// Columns of a line.
const MAX_COLUMNS: usize = 120;

/// The text of a line of a doc comment.
fn doc(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let text = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))?;
    // `////` is a plain comment.
    (!text.starts_with('/')).then(|| text.trim())
}

fn each_line(mut check: impl FnMut(&str, &str) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["src", "compat-tests"] {
        for path in rust_files(&root().join(folder)) {
            let text = fs::read_to_string(&path).expect("UTF-8");
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            let mut before = "";
            for (at, line) in text.lines().enumerate() {
                found.extend(check(before, line).map(|complaint| format!("{name}:{}: {complaint}", at + 1)));
                before = line;
            }
        }
    }
    found
}

#[test]
fn a_doc_comment_begins_with_its_subject() {
    let found = each_line(|before, line| {
        let text = doc(line).filter(|_| doc(before).is_none())?;
        let is_headless = |head: &&&str| {
            text.strip_prefix(**head)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ',', ':', '.']))
        };
        HEADLESS.iter().find(is_headless).map(|_| text.to_owned())
    });
    assert_none(&found);
}

#[test]
fn no_comment_is_wider_than_a_screen() {
    let found = each_line(|_, line| {
        let columns = line.chars().count();
        let is_comment = line.trim_start().starts_with("//");
        // A row of a Markdown table cannot be wrapped.
        let is_row = doc(line).is_some_and(|text| text.starts_with('|'));
        (is_comment && !is_row && columns > MAX_COLUMNS).then(|| format!("{columns} columns"))
    });
    assert_none(&found);
}
