//! Disk space for downloads.

use std::path::Path;

use super::error::HubError;

/// Bytes that a download leaves free on the disk.
const SPARE_BYTES: u64 = 64 << 20;

/// Checks that `needed` bytes fit on the file system of the path `at`; the error names the download `what`.
///
/// # Errors
/// [`HubError::DiskFull`] if they do not.
pub(crate) fn check_space(what: &str, at: &Path, needed: u64) -> Result<(), HubError> {
    let folder = folder_of(at);
    // Some file systems do not report their free space. The write will fail if there is none.
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
}
