//! Numbered copies of the last good configuration files, in the state folder.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::load::read_bounded;

/// How many are kept.
const KEEP: usize = 5;

/// A copy of a file that was once in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Counts up for ever.
    pub number: u64,
    /// Where it is.
    pub path: PathBuf,
}

/// The copies in `state_dir`, oldest first.
///
/// # Errors
///
/// Where the folder is there but cannot be read.
pub fn list(state_dir: &Path) -> io::Result<Vec<Backup>> {
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

/// Keeps `text` unless it is what the newest copy holds, and removes the oldest beyond the five that are kept.
///
/// # Errors
///
/// Where the state folder cannot be written.
pub(super) fn keep(state_dir: &Path, text: &str) -> io::Result<()> {
    let mut backups = list(state_dir)?;
    let newest = backups.last();
    if newest.is_some_and(|newest| read_bounded(&newest.path).is_ok_and(|kept| kept == text)) {
        return Ok(());
    }
    let number = newest.map_or(1, |newest| newest.number.saturating_add(1));
    let path = folder(state_dir).join(format!("config-{number:06}.toml"));
    fs::create_dir_all(folder(state_dir))?;
    write_whole(&path, text)?;
    backups.push(Backup { number, path });
    for old in &backups[..backups.len().saturating_sub(KEEP)] {
        fs::remove_file(&old.path)?;
    }
    Ok(())
}

/// Puts a copy back in the place of the file at `path`, whole or not at all. The running daemon sees the change.
///
/// # Errors
///
/// Where the copy cannot be read or the file's folder not be written.
pub fn restore(backup: &Backup, path: &Path) -> io::Result<()> {
    let text = read_bounded(&backup.path)?;
    // Through a link to the file itself, so that the link stays.
    write_whole(&path.canonicalize().unwrap_or_else(|_| path.to_owned()), &text)
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("config-backups")
}

/// Temporary file, fsync, rename; readable by the owner only, since it may hold a token.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let parent = path
        .parent()
        .ok_or_else(|| io::Error::other("the path has no folder"))?;
    let temporary = path.with_extension(format!("toml.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        if let Ok(meta) = fs::metadata(path) {
            file.set_permissions(meta.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(parent)?.sync_all()
    })();
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written
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

        let file = state.path().join("config.toml");
        restore(&backups[0], &file).expect("the folder is writable");
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "b");
    }
}
