//! Putting files in place so that nobody ever sees half of one.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::error::HubError;

/// Bytes that are left free on the disk.
const SPARE_BYTES: u64 = 64 << 20;

/// Refuses a download for which there is no room where `at` lies; `what` is what the error names.
pub(crate) fn check_space(what: &str, at: &Path, needed: u64) -> Result<(), HubError> {
    let folder = folder_of(at);
    // A file system that cannot tell is not a reason to refuse.
    let free = crate::stdx::fs::free_bytes(folder).unwrap_or(u64::MAX);
    if needed == 0 || free >= needed.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(HubError::DiskFull {
        path: what.to_owned(),
        folder: folder.display().to_string(),
        needed,
        free,
    })
}

/// Replaces a file so that a reader, or a crash, sees the old or the new content and nothing between.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, |temporary| {
        let mut file = fs::File::create(temporary)?;
        file.write_all(content)?;
        file.sync_all()
    })?;
    fs::File::open(folder_of(path))?.sync_all()
}

/// The same for content that may be lost with the power, as long as it is never half there.
pub(crate) fn write_lightly(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, |temporary| fs::write(temporary, content))
}

/// Replaces a link in the same way.
pub(crate) fn link_atomic(path: &Path, target: &str) -> io::Result<()> {
    replace(path, |temporary| std::os::unix::fs::symlink(target, temporary))
}

fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    fs::create_dir_all(folder_of(path))?;
    let temporary = temporary(path);
    make(&temporary)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// A name beside `path` that no other writer uses: two pulls may put the same link in place at the same time.
fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    folder_of(path).join(format!(".hubllama.{}.{count}.tmp", std::process::id()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("missing/blob");
        assert_eq!(check_space("f", &at, 0), Ok(()));
        assert_eq!(check_space("f", &at, 1), Ok(()));
        let error = check_space("f", &at, u64::MAX).unwrap_err();
        assert!(matches!(error, HubError::DiskFull { free: 1.., .. }), "{error}");
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
                        link_atomic(link, content).unwrap();
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
}
