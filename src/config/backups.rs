//! Numbered copies of the last good configuration files, in the folder `config-backups` of the state folder.
//!
//! A person can copy one back over the file after a mistake; the daemon only writes them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::load::read_bounded;
use crate::stdx::fs::write_private_atomic;

/// Copies that are kept.
const KEEP: usize = 5;

/// A copy of a configuration file that was in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Backup {
    /// Part of the file name; counts up and is never used again.
    number: u64,
    path: PathBuf,
}

/// Lists the copies in `state_dir`, oldest first.
fn list(state_dir: &Path) -> io::Result<Vec<Backup>> {
    let entries = match fs::read_dir(folder(state_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut backups = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("config-").and_then(|name| name.strip_suffix(".toml"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            backups.push(Backup { number, path });
        }
    }
    backups.sort_by_key(|backup| backup.number);
    Ok(backups)
}

/// Keeps `text`, unless the newest copy has the same content, and removes the oldest copies above [`KEEP`].
///
/// # Errors
///
/// If the state folder cannot be read or written.
pub(super) fn keep(state_dir: &Path, text: &str) -> io::Result<()> {
    let mut backups = list(state_dir)?;
    let newest = backups.last();
    if newest.is_some_and(|newest| read_bounded(&newest.path).is_ok_and(|kept| kept == text)) {
        return Ok(());
    }
    let number = newest.map_or(1, |newest| newest.number.saturating_add(1));
    let path = folder(state_dir).join(format!("config-{number:06}.toml"));
    // The file may hold a token.
    write_private_atomic(&path, text.as_bytes())?;
    backups.push(Backup { number, path });
    // Removed last: if the new copy cannot be written, the old ones stay.
    for old in &backups[..backups.len().saturating_sub(KEEP)] {
        fs::remove_file(&old.path)?;
    }
    Ok(())
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("config-backups")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keeps_five_and_no_repetition() {
        let state = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(list(state.path()).expect("no folder yet"), []);
        for text in ["a", "a", "b", "c", "d", "e", "f", "f"] {
            keep(state.path(), text).expect("the folder is writable");
        }
        let backups = list(state.path()).expect("the folder is readable");
        let numbers: Vec<u64> = backups.iter().map(|backup| backup.number).collect();
        assert_eq!(numbers, [2, 3, 4, 5, 6]);
        let mode = fs::metadata(&backups[0].path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
