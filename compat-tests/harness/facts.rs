//! Facts that a test run records for `docs/compatibility.md`: one text file for each fact, in the folder that `make
//! test` sets. Without that folder, nothing is recorded.

use std::{fs, path::PathBuf};

/// Environment variable with the folder of facts.
const VARIABLE: &str = "HUBLLAMA_TEST_FACTS";

/// Fact of a check that cannot run on this machine.
pub(crate) const SKIPPED: &str = "skipped";

fn path(kind: &str, name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty())?;
    Some(PathBuf::from(folder).join(format!("{kind}.{}", name.replace('/', "%"))))
}

/// Records a fact.
pub(crate) fn put(kind: &str, name: &str, lines: &[String]) {
    if let Some(path) = path(kind, name) {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for what was found");
        fs::write(path, lines.join("\n")).expect("what was found is kept");
    }
}

/// Returns a fact; `None` if this run has not recorded it.
pub(crate) fn get(kind: &str, name: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(path(kind, name)?).ok()?;
    Some(text.lines().map(str::to_owned).collect())
}
