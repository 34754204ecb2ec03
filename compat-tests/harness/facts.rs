//! What a run has found, for `docs/compatibility.md`: one file of lines for each fact, below the folder that `make test`
//! names. Without one, nothing is kept.

use std::{fs, path::PathBuf};

/// Names the folder.
const VARIABLE: &str = "HUBLLAMA_TEST_FACTS";

/// Stands for the lines of what could not be checked on this machine.
pub(crate) const SKIPPED: &str = "skipped";

fn path(kind: &str, name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty())?;
    Some(PathBuf::from(folder).join(format!("{kind}.{}", name.replace('/', "%"))))
}

/// Keeps what was found.
pub(crate) fn put(kind: &str, name: &str, lines: &[String]) {
    if let Some(path) = path(kind, name) {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for what was found");
        fs::write(path, lines.join("\n")).expect("what was found is kept");
    }
}

/// What this run kept; `None` if it has not come to that.
pub(crate) fn get(kind: &str, name: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(path(kind, name)?).ok()?;
    Some(text.lines().map(str::to_owned).collect())
}
