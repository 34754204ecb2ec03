//! Large files that become visible only when they are complete.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::fs::{folder_of, temporary_name};

/// A new file without a name until it is complete, so that even a killed process leaves nothing behind. On a file
/// system without unnamed files it has a hidden temporary name.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    destination: PathBuf,
    /// Temporary name, removed when dropped.
    name: Option<PathBuf>,
}

impl NewFile {
    /// Creates a file that will be named `destination`.
    ///
    /// # Errors
    ///
    /// If the folder does not exist or cannot be written to.
    pub fn create(destination: &Path) -> io::Result<Self> {
        if destination.file_name().is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{CWD, Mode, OFlags, openat};
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            // Any error leads to the other way. One that is not about O_TMPFILE comes back there and is reported.
            if let Ok(file) = openat(CWD, folder_of(destination), flags, Mode::from_raw_mode(0o666)) {
                return Ok(Self {
                    file: file.into(),
                    destination: destination.to_owned(),
                    name: None,
                });
            }
        }
        Self::create_named(destination)
    }

    fn create_named(destination: &Path) -> io::Result<Self> {
        let name = temporary_name(destination)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&name)?;
        Ok(Self {
            file,
            destination: destination.to_owned(),
            name: Some(name),
        })
    }

    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes bytes at an offset and lets the disk begin at once, so that [`NewFile::finish`] need not wait for all of
    /// them.
    ///
    /// # Errors
    ///
    /// If the disk is full or broken.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        #[cfg(target_os = "linux")]
        if let Some(length) = std::num::NonZeroU64::new(bytes.len() as u64) {
            // For pages that are not on the disk yet, DontNeed starts their write-back instead of dropping them. Only a
            // hint.
            let _ = rustix::fs::fadvise(&self.file, offset, Some(length), rustix::fs::Advice::DontNeed);
        }
        Ok(())
    }

    #[must_use]
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Returns a path by which another process of the same user can open the unfinished file.
    #[must_use]
    pub fn current_path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        match &self.name {
            Some(name) => name.clone(),
            None => format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into(),
        }
    }

    /// Syncs the content to the disk and gives the file its name, replacing any file of that name.
    ///
    /// # Errors
    ///
    /// If the file system refuses. An existing file is then untouched.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.name.is_none() {
            match self.link(&self.destination) {
                // linkat cannot replace an existing file, so link to a temporary name and rename that.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let name = temporary_name(&self.destination)?;
                    self.link(&name)?;
                    self.name = Some(name);
                }
                result => result?,
            }
        }
        if let Some(name) = &self.name {
            fs::rename(name, &self.destination)?;
            self.name = None;
        }
        // The name is durable only when the folder is.
        File::open(folder_of(&self.destination))?.sync_all()
    }

    #[cfg(target_os = "linux")]
    fn link(&self, name: &Path) -> io::Result<()> {
        use std::os::fd::AsRawFd;

        use rustix::fs::{AtFlags, CWD, linkat};
        // Through /proc, since AT_EMPTY_PATH needs a capability (open(2), O_TMPFILE).
        let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(linkat(CWD, open, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn link(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Best effort: the first error is the one to report.
            let _ = fs::remove_file(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for create in [NewFile::create, NewFile::create_named] {
            create(&path).unwrap().finish().unwrap();
            assert_eq!(count(folder.path()), 1);
            fs::write(&path, "old").unwrap();
            let new = create(&path).unwrap();
            new.file().write_all(b"half").unwrap();
            assert_eq!(fs::read(new.current_path()).unwrap(), b"half");
            drop(new);
            assert_eq!(fs::read(&path).unwrap(), b"old");
            let new = create(&path).unwrap();
            new.file().write_all(b"whole").unwrap();
            new.finish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"whole");
            assert_eq!(count(folder.path()), 1);
        }
        assert!(NewFile::create(&folder.path().join("none/file")).is_err());
        assert!(NewFile::create(Path::new("/")).is_err());
    }
}
