//! Hashing what is in the cache again.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{Library, LocalModel};
use crate::{
    hub::{HubError, cache, tasks::blocking},
    stdx::hex,
};

/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// One file that was hashed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Path in the snapshot.
    pub path: PathBuf,
    /// What came out.
    pub verdict: Verdict,
}

/// What a hash says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what the Hub said it would be.
    Good,
    /// It is not.
    Corrupt {
        /// Hex digits.
        expected: String,
        /// Hex digits.
        actual: String,
    },
    /// The cache holds no hash of it: some other program put it there in its own way.
    Unknown,
}

impl Library {
    /// Hashes a model's files. `on_bytes` hears how many bytes were read, again and again.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub async fn verify(
        &self,
        model: &LocalModel,
        on_bytes: impl Fn(u64) + Send + 'static,
    ) -> Result<Vec<Checked>, HubError> {
        let files: Vec<PathBuf> = model.downloads().cloned().collect();
        blocking(move || {
            let check = |path: PathBuf| {
                let verdict = check(&path, &on_bytes).map_err(|error| HubError::io("read", &path, &error))?;
                Ok(Checked { path, verdict })
            };
            files.into_iter().map(check).collect()
        })
        .await
    }
}

fn check(path: &Path, on_bytes: &impl Fn(u64)) -> io::Result<Verdict> {
    let expected = cache::blob_name(path).unwrap_or_default();
    let mut file = File::open(path)?;
    let actual = if hex::is_hex(&expected, 64) {
        hash(&mut file, Sha256::new(), on_bytes)?
    } else if hex::is_hex(&expected, 40) {
        let length = file.metadata()?.len();
        hash(&mut file, Sha1::new_with_prefix(format!("blob {length}\0")), on_bytes)?
    } else {
        return Ok(Verdict::Unknown);
    };
    Ok(if actual == expected {
        Verdict::Good
    } else {
        Verdict::Corrupt { expected, actual }
    })
}

/// Reads to the end.
pub(crate) fn hash(file: &mut File, mut hasher: impl Digest, on_bytes: &impl Fn(u64)) -> io::Result<String> {
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
            let checked = library.verify(&model, move |bytes| {
                read.fetch_add(bytes, Ordering::Relaxed);
            });
            checked
                .await
                .unwrap()
                .into_iter()
                .map(|file| file.verdict)
                .collect::<Vec<_>>()
        };
        assert_eq!(verify().await, [Verdict::Good, Verdict::Good]);
        assert_eq!(read.load(Ordering::Relaxed), 10);
        fs::write(&blob, "weightz").unwrap();
        let expected = hex::encode(Sha256::digest("weights"));
        let actual = hex::encode(Sha256::digest("weightz"));
        assert_eq!(verify().await, [Verdict::Corrupt { expected, actual }, Verdict::Good]);
        // A file in the place of a link has no hash in its name.
        fs::remove_file(model.mmproj.as_ref().unwrap()).unwrap();
        fs::rename(eye, model.mmproj.as_ref().unwrap()).unwrap();
        assert_eq!(verify().await[1], Verdict::Unknown);
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
