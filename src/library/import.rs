//! Importing a GGUF file of this machine into the cache, as if it had been pulled.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::{Library, LocalModel, blocking, error::LibraryError, key};
use crate::{
    config::HubConfig,
    hub::{
        HfName, HubError, Selector,
        cache::{self, RepoFolder},
        disk,
        download::is_present,
        ledger::PullRecord,
        name::is_safe_path,
        resolve::{self, RepoFile},
    },
    stdx::{fs::temporary_name, hex},
};

/// Bytes that are copied and hashed at a time.
const COPY_BYTES: usize = 1 << 20;

impl Library {
    /// Copies a GGUF file, with all shards of a sharded one, into the cache under a name. `on_bytes` is called with the
    /// number of bytes after each write.
    ///
    /// # Errors
    /// If the file does not exist or its name does not fit, the name asks for adapters, or the file system refuses.
    pub async fn import(
        &self,
        config: &HubConfig,
        source: &Path,
        name: &HfName,
        on_bytes: impl Fn(u64) + Send + 'static,
    ) -> Result<LocalModel, LibraryError> {
        if let [adapter, ..] = name.adapters.as_slice() {
            return Err(LibraryError::Import {
                path: source.display().to_string(),
                reason: format!("it would be one model, without +{adapter}"),
            });
        }
        let (library, root, source, name) = (self.clone(), config.cache_dir.clone(), source.to_owned(), name.clone());
        blocking(move || library.import_blocking(&root, &source, &name, &on_bytes)).await
    }

    fn import_blocking(
        &self,
        root: &Path,
        source: &Path,
        name: &HfName,
        on_bytes: &impl Fn(u64),
    ) -> Result<LocalModel, LibraryError> {
        let ledger = &self.0.ledger;
        let files = files(source, name)?;
        // A second folder in another spelling would hide one of the two.
        let folder = RepoFolder::find(root, &name.org, &name.repo)
            .unwrap_or_else(|| RepoFolder::new(root, &name.org, &name.repo));
        let needed = files.iter().fold(0_u64, |sum, (from, _)| {
            sum.saturating_add(fs::metadata(from).map_or(0, |meta| meta.len()))
        });
        disk::check_space(&source.display().to_string(), &folder.path, needed)?;
        let mut listing = Vec::new();
        for (from, path) in &files {
            let copied = copy(from, &folder, on_bytes)?;
            if copied.is_new {
                ledger.add(folder.blob(&copied.sha256))?;
            }
            listing.push(RepoFile {
                path: path.clone(),
                size: copied.size,
                oid: None,
                lfs_sha256: Some(copied.sha256),
            });
        }
        let commit = name
            .revision
            .clone()
            .filter(|revision| cache::is_commit(revision))
            .unwrap_or_else(|| synthetic_commit(&listing));
        for file in &listing {
            folder.link(&commit, &file.path, file.etag().unwrap_or_default())?;
        }
        match &name.revision {
            Some(revision) if cache::is_commit(revision) => {}
            Some(revision) => folder.write_reference(revision, &commit)?,
            // A name without a revision keeps meaning the download first.
            None if folder.has_reference("main") => {}
            None => folder.write_reference("main", &commit)?,
        }
        let resolution = resolve::resolve(&listing, None).map_err(|error| HubError::Resolve {
            repo: name.repo_id(),
            error,
        })?;
        let label = resolution.label;
        let record = PullRecord {
            commit: commit.clone(),
            ..PullRecord::default()
        };
        ledger.pulled(&key(&folder.org, &folder.repo, &label), record)?;
        let found = HfName {
            revision: Some(commit),
            selector: Selector::parse(&label).ok().flatten(),
            ..name.clone()
        };
        let model = cache::locate(root, &found)?;
        Ok(self.local(model, name.revision.as_deref()))
    }
}

/// Returns the files to copy, each with its future path in the repository.
fn files(source: &Path, name: &HfName) -> Result<Vec<(PathBuf, String)>, LibraryError> {
    let refuse = |reason: &str| LibraryError::Import {
        path: source.display().to_string(),
        reason: reason.to_owned(),
    };
    let base = source.file_name().and_then(|base| base.to_str()).unwrap_or_default();
    if !base.to_ascii_lowercase().ends_with(".gguf") || !is_safe_path(base) {
        return Err(refuse("its name does not end in .gguf"));
    }
    let shards = resolve::shards(base);
    let is_sharded = shards.len() > 1;
    // A selector in the name decides the path; the resolver has to find the file by it again.
    let target = |base: &str| match &name.selector {
        Some(Selector::File(path)) => path.clone(),
        Some(Selector::Label(label)) if !resolve::has_label(base, label) => format!("{}-{label}.gguf", name.repo),
        Some(Selector::Folder { path, .. }) => format!("{path}/{base}"),
        _ => base.to_owned(),
    };
    let mut files = Vec::new();
    for shard in shards {
        let from = source.with_file_name(&shard);
        if !from.is_file() {
            let missing = if is_sharded {
                format!("its part {shard} does not exist")
            } else {
                "it does not exist or is not a file".into()
            };
            return Err(refuse(&missing));
        }
        let to = target(&shard);
        // llama.cpp finds the other shards by the name of the first.
        if is_sharded && !to.ends_with(&shard) {
            return Err(refuse(
                "it is in several parts, which keep their names: leave the selector out",
            ));
        }
        files.push((from, to));
    }
    Ok(files)
}

/// Copied blob: the result of copying a file into the `blobs` folder of a repository.
struct CopiedBlob {
    /// 64 hex digits, and the name of the blob.
    sha256: String,
    size: u64,
    /// False if the cache held the content before.
    is_new: bool,
}

/// Copies a file into a repository's folder, under the hash of its content.
fn copy(from: &Path, folder: &RepoFolder, on_bytes: &impl Fn(u64)) -> Result<CopiedBlob, HubError> {
    let temporary = temporary_name(&folder.blob("import")).map_err(|error| HubError::io("copy", from, &error))?;
    let copied = || -> io::Result<(String, u64)> {
        fs::create_dir_all(folder.path.join("blobs"))?;
        let (mut source, mut target) = (File::open(from)?, File::create(&temporary)?);
        let (mut hasher, mut size) = (Sha256::new(), 0);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let length = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&buffer[..length]);
            target.write_all(&buffer[..length])?;
            size += length as u64;
            on_bytes(length as u64);
        }
        target.sync_all()?;
        Ok((hex::encode(hasher.finalize()), size))
    };
    let placed = copied().and_then(|(sha256, size)| {
        let blob = folder.blob(&sha256);
        let is_new = !is_present(&blob, size);
        if is_new {
            fs::rename(&temporary, &blob)?;
            // The rename is durable only when the folder is.
            File::open(folder.path.join("blobs"))?.sync_all()?;
        } else {
            fs::remove_file(&temporary)?;
        }
        Ok(CopiedBlob { sha256, size, is_new })
    });
    placed.map_err(|error| {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&temporary);
        HubError::io("copy", from, &error)
    })
}

/// Returns 40 hex digits that stand for the commit that the Hub would have given. They depend on the content alone, so
/// the same import gives the same commit.
fn synthetic_commit(files: &[RepoFile]) -> String {
    let mut hasher = Sha1::new_with_prefix("hubllama import\n");
    for file in files {
        hasher.update(format!("{} {}\n", file.etag().unwrap_or_default(), file.path));
    }
    hex::encode(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::cache::tests::name;

    async fn import(
        library: &Library,
        config: &HubConfig,
        source: &Path,
        text: &str,
    ) -> Result<LocalModel, LibraryError> {
        library.import(config, source, &name(text), |_| ()).await
    }

    #[tokio::test]
    async fn files_become_models() {
        let (root, state, home) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        let config = HubConfig {
            cache_dir: root.path().to_owned(),
            ..HubConfig::default()
        };
        let library = Library::new(state.path());
        let file = |name: &str, content: &str| {
            fs::write(home.path().join(name), content).unwrap();
            home.path().join(name)
        };
        let plain = file("mine-Q8_0.gguf", "eight");
        let model = import(&library, &config, &plain, "hf:Me/Mine").await.unwrap();
        assert_eq!((model.canonical.as_str(), model.owned), ("hf:Me/Mine:Q8_0", true));
        assert_eq!(
            library.locate(&config, &name("hf:me/mine")).await.unwrap().digest,
            model.digest
        );
        assert_eq!(fs::read_to_string(&model.base.files[0]).unwrap(), "eight");
        // Beside it, under another label, in the folder that is there.
        let odd = file("download.gguf", "four");
        let model = import(&library, &config, &odd, "hf:me/mine:Q4_0").await.unwrap();
        assert_eq!(model.canonical, "hf:Me/Mine:Q4_0");
        assert!(model.base.files[0].ends_with("mine-Q4_0.gguf"));
        let model = import(&library, &config, &odd, "hf:me/mine@v2:sub/x.gguf")
            .await
            .unwrap();
        assert_eq!(model.canonical, "hf:Me/Mine@v2:sub/x.gguf");
        assert_eq!(library.list(&config).await.len(), 3);
        // Once more changes nothing.
        import(&library, &config, &plain, "hf:Me/Mine").await.unwrap();
        assert_eq!(library.list(&config).await.len(), 3);

        let first = file("big-F16-00001-of-00002.gguf", "a");
        let error = import(&library, &config, &first, "hf:me/big").await.unwrap_err();
        assert!(error.to_string().contains("big-F16-00002-of-00002.gguf"), "{error}");
        file("big-F16-00002-of-00002.gguf", "b");
        let model = import(&library, &config, &first, "hf:me/big").await.unwrap();
        assert_eq!((model.base.files.len(), model.size_bytes), (2, 2));
        for bad in [
            home.path().join("absent.gguf"),
            file("text.txt", "x"),
            home.path().to_owned(),
        ] {
            let error = import(&library, &config, &bad, "hf:me/bad").await.unwrap_err();
            assert!(matches!(error, LibraryError::Import { .. }), "{error}");
        }
        assert!(matches!(
            library.delete(&config, &name("hf:me/mine:Q8_0")).await,
            Ok(crate::library::DeleteOutcome::Removed { bytes_freed: 5 })
        ));
    }
}
