//! Hashing the files of a model again, to find content that changed on the disk.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{LocalModel, blocking, error::LibraryError};
use crate::{
    hub::{HubError, cache},
    stdx::hex,
};

/// Bytes that are read and hashed at a time.
const READ_BYTES: usize = 1 << 20;

/// Verified file: a file of a model and the verdict on its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedFile {
    /// Path in the snapshot.
    pub path: PathBuf,
    pub verdict: FileVerdict,
}

/// File verdict: the outcome of comparing a file's content with the hash that the Hub gave for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileVerdict {
    Good,
    /// The hashes differ. Both are hex digits.
    Corrupt {
        expected: String,
        actual: String,
    },
    /// The cache holds no hash of the file, because another program stored it in a way of its own.
    Unknown,
}

impl LocalModel {
    /// Hashes the downloaded files of the model and compares the hashes with the names of their blobs. `on_bytes` is
    /// called with the number of bytes after each read.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub async fn verify(&self, on_bytes: impl Fn(u64) + Send + 'static) -> Result<Vec<VerifiedFile>, LibraryError> {
        let files: Vec<PathBuf> = self.downloads().cloned().collect();
        blocking(move || {
            let check = |path: PathBuf| {
                let verdict = check(&path, &on_bytes).map_err(|error| HubError::io("read", &path, &error))?;
                Ok(VerifiedFile { path, verdict })
            };
            files.into_iter().map(check).collect()
        })
        .await
    }
}

fn check(path: &Path, on_bytes: &impl Fn(u64)) -> io::Result<FileVerdict> {
    let expected = cache::blob_name(path).unwrap_or_default();
    let mut file = File::open(path)?;
    let actual = if hex::is_hex(&expected, 64) {
        hash(&mut file, Sha256::new(), on_bytes)?
    } else if hex::is_hex(&expected, 40) {
        // The Hub names small files, which are not in LFS, by the hash that git gives a blob.
        let length = file.metadata()?.len();
        hash(&mut file, Sha1::new_with_prefix(format!("blob {length}\0")), on_bytes)?
    } else {
        return Ok(FileVerdict::Unknown);
    };
    Ok(if actual == expected {
        FileVerdict::Good
    } else {
        FileVerdict::Corrupt { expected, actual }
    })
}

/// Hashes a file from its current position to its end; returns hex digits.
fn hash(file: &mut File, mut hasher: impl Digest, on_bytes: &impl Fn(u64)) -> io::Result<String> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hasher.finalize())),
            Ok(length) => {
                hasher.update(&buffer[..length]);
                on_bytes(length as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use super::*;
    use crate::{
        config::HubConfig,
        hub::cache::tests::{OLD, name, put},
        library::Library,
    };

    #[tokio::test]
    async fn finds_what_has_changed() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = HubConfig {
            cache_dir: root.path().to_owned(),
            ..HubConfig::default()
        };
        let library = Library::new(state.path());
        let blob = put(root.path(), "o/r", OLD, "m-Q4_0.gguf", "weights");
        let eye = put(root.path(), "o/r", OLD, "mmproj-F16.gguf", "eye");
        let model = library.locate(&config, &name("hf:o/r")).await.unwrap();
        let read = Arc::new(AtomicU64::new(0));
        let verify = || async {
            let read = Arc::clone(&read);
            let checked = model.verify(move |bytes| {
                read.fetch_add(bytes, Ordering::Relaxed);
            });
            checked
                .await
                .unwrap()
                .into_iter()
                .map(|file| file.verdict)
                .collect::<Vec<_>>()
        };
        assert_eq!(verify().await, [FileVerdict::Good, FileVerdict::Good]);
        assert_eq!(read.load(Ordering::Relaxed), 10);
        fs::write(&blob, "weightz").unwrap();
        let expected = hex::encode(Sha256::digest("weights"));
        let actual = hex::encode(Sha256::digest("weightz"));
        assert_eq!(
            verify().await,
            [FileVerdict::Corrupt { expected, actual }, FileVerdict::Good]
        );
        // A file in the place of a link has no hash in its name.
        fs::remove_file(model.base.mmproj.as_ref().unwrap()).unwrap();
        fs::rename(eye, model.base.mmproj.as_ref().unwrap()).unwrap();
        assert_eq!(verify().await[1], FileVerdict::Unknown);
        let provenance = library.provenance(&model).await;
        assert_eq!(provenance.repository, "o/r");
        assert_eq!(provenance.files[0].path, "m-Q4_0.gguf");
        assert_eq!(provenance.files[0].sha256, Some(hex::encode(Sha256::digest("weights"))));
        assert_eq!(provenance.files[1].sha256, None);
        let keys = provenance.keys("file");
        assert_eq!(keys["hubllama.commit"], OLD);
        assert_eq!(
            keys["hubllama.files"][1],
            serde_json::json!({"path": "mmproj-F16.gguf", "size": 3})
        );
        assert!(!keys.contains_key("hubllama.license"));
    }
}
