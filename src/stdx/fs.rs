//! Files and links that are replaced as a whole, and free disk space.
//!
//! The functions whose name ends in `_atomic` write under a temporary name in the same folder and rename. A reader,
//! also after a crash, finds all of the old content or all of the new. Missing folders are created. On an error the old
//! file is untouched and the temporary one is removed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Permissions of a new file before the process's umask is applied.
const MODE_SHARED: u32 = 0o666;
/// Permissions of a new file that only its owner may read.
const MODE_PRIVATE: u32 = 0o600;

/// Replaces a file durably: the new content survives a loss of power. An existing file's permissions are kept.
///
/// # Errors
///
/// If the folder cannot be created or written to, or the disk is full.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_durably(path, bytes, MODE_SHARED)
}

/// Replaces a file like [`write_atomic`]; a new file can be read by its owner only.
///
/// # Errors
///
/// The errors of [`write_atomic`].
pub fn write_private_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_durably(path, bytes, MODE_PRIVATE)
}

/// Replaces a file without waiting for the disk: a loss of power may bring the old content back.
///
/// # Errors
///
/// The errors of [`write_atomic`].
pub fn write_unsynced_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |temporary| fs::write(temporary, bytes))
}

/// Replaces the symbolic link at `path` by one to `target`, without waiting for the disk.
///
/// # Errors
///
/// The errors of [`write_atomic`].
pub fn symlink_atomic(path: &Path, target: impl AsRef<Path>) -> io::Result<()> {
    replace(path, |temporary| symlink(target, temporary))
}

fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace(path, |temporary| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(temporary)?;
        // Before the content is written: it must at no time be readable by more users than the old file was.
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        file.write_all(bytes)?;
        file.sync_all()
    })?;
    // The rename is durable only when the folder is.
    File::open(folder_of(path))?.sync_all()
}

fn replace(path: &Path, create: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary_name(path)?;
    fs::create_dir_all(folder_of(path))?;
    create(&temporary)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| {
            // Best effort: the first error is the one to report.
            let _ = fs::remove_file(&temporary);
        })
}

/// Returns a name for a temporary file in the folder of `path`, because a rename does not cross file systems. No other
/// writer, in this process or another one, uses the name.
///
/// The name is hidden, so that scans of the folder skip it, and begins with `.hubllama.`, which identifies a file that
/// a killed process left in a shared folder.
///
/// # Errors
///
/// If `path` has no file name.
pub fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // In a container every run has the same process id, so that the id alone would meet the leftovers of an earlier
    // run.
    static STARTED: LazyLock<u64> = LazyLock::new(|| {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(time.as_micros()).unwrap_or_default()
    });
    if path.file_name().is_none() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (process, started) = (std::process::id(), *STARTED);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    Ok(folder_of(path).join(format!(".hubllama.{process}-{started:x}-{number}.tmp")))
}

/// Returns the folder of `path`; the current folder for a bare file name.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Returns the bytes that an unprivileged process may still write to the file system of `path`, which need not exist.
///
/// # Errors
///
/// If the file system cannot be queried.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let existing = path.ancestors().find(|folder| folder.exists());
    // A relative path's last ancestor is empty.
    let existing = existing.unwrap_or(Path::new("."));
    let status = rustix::fs::statvfs(existing)?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write_atomic(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn missing_folders_are_made_and_private_files_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/secret");
        write_private_atomic(&path, b"token").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_atomic(&path, b"x").is_err());
        assert!(write_unsynced_atomic(&path, b"x").is_err());
        assert!(symlink_atomic(&path, "x").is_err());
        assert!(write_atomic(Path::new("/"), b"x").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(write_atomic(&folder.path().join("file/below"), b"x").is_err());
    }

    #[test]
    fn writers_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a/file"), folder.path().join("a/link"));
        std::thread::scope(|scope| {
            for content in ["one", "two", "six", "ten"] {
                let (file, link) = (&file, &link);
                scope.spawn(move || {
                    for _ in 0..50 {
                        write_atomic(file, content.as_bytes()).unwrap();
                        symlink_atomic(link, content).unwrap();
                        assert_eq!(fs::read(file).unwrap().len(), 3);
                        assert_eq!(fs::read_link(link).unwrap().as_os_str().len(), 3);
                    }
                });
            }
        });
        assert_eq!(
            fs::read_dir(folder.path().join("a")).unwrap().count(),
            2,
            "no temporary file is left"
        );
    }

    #[test]
    fn free_space_of_a_path_that_is_yet_to_come() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(&folder.path().join("a/b/c")).unwrap() > 0);
        assert!(free_bytes(Path::new("surely/not/there")).unwrap() > 0);
    }
}
