//! Putting a file that is on this machine into the cache, as if it had been pulled.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::{Library, LocalModel, key};
use crate::{
    config::HubConfig,
    hub::{
        HfName, HubError, Selector,
        cache::{self, RepoFolder},
        disk,
        download::is_present,
        ledger::Note,
        name::is_safe_path,
        resolve::{self, RepoFile},
        tasks::blocking,
    },
    stdx::{fs::temporary_name, hex},
};

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;

impl Library {
    /// Copies a GGUF file, and the other parts of it where it is one of several, into the cache under a name. `on_bytes`
    /// hears how many bytes were copied, again and again.
    ///
    /// # Errors
    /// If the file is not there or its name does not fit, the name asks for adapters, or the file system refuses.
    pub async fn import(
        &self,
        config: &HubConfig,
        source: &Path,
        name: &HfName,
        on_bytes: impl Fn(u64) + Send + 'static,
    ) -> Result<LocalModel, HubError> {
        if let [adapter, ..] = name.adapters.as_slice() {
            return Err(HubError::Import {
                path: source.display().to_string(),
                reason: format!("it would be one model, without +{adapter}"),
            });
        }
        let (library, root, source, name) = (self.clone(), config.cache_dir.clone(), source.to_owned(), name.clone());
        blocking(move || {
            let files = files(&source, &name)?;
            // Spelled as what is there already, so that there are not two folders.
            let folder = RepoFolder::find(&root, &name.org, &name.repo)
                .unwrap_or_else(|| RepoFolder::new(&root, &name.org, &name.repo));
            let needed = files.iter().fold(0_u64, |sum, (from, _)| {
                sum.saturating_add(fs::metadata(from).map_or(0, |meta| meta.len()))
            });
            disk::check_space(&source.display().to_string(), &folder.path, needed)?;
            let mut listing = Vec::new();
            for (from, path) in &files {
                let (etag, size, is_new) = copy(from, &folder, &on_bytes)?;
                if is_new {
                    library.0.ledger.add(folder.blob(&etag))?;
                }
                listing.push(RepoFile {
                    path: path.clone(),
                    size,
                    oid: None,
                    lfs_sha256: Some(etag),
                });
            }
            let commit = name
                .revision
                .clone()
                .filter(|revision| cache::is_commit(revision))
                .unwrap_or_else(|| commit_of(&listing));
            for file in &listing {
                folder.link(&commit, &file.path, file.etag().unwrap_or_default())?;
            }
            match &name.revision {
                Some(revision) if cache::is_commit(revision) => {}
                Some(revision) => folder.write_reference(revision, &commit)?,
                // What was downloaded stays what the plain name means first.
                None if folder.has_reference("main") => {}
                None => folder.write_reference("main", &commit)?,
            }
            let resolution = resolve::resolve(&listing, None).map_err(|error| HubError::Resolve {
                repo: name.repo_id(),
                error,
            })?;
            let label = resolution.label;
            library.0.ledger.pulled(
                &key(&folder.org, &folder.repo, &label),
                Note {
                    commit: commit.clone(),
                    ..Note::default()
                },
            )?;
            let found = HfName {
                revision: Some(commit),
                selector: Selector::parse(&label).ok().flatten(),
                ..name.clone()
            };
            let model = cache::locate(&root, &found)?;
            Ok(library.local(model, name.revision))
        })
        .await
    }
}

/// The files to copy and the paths that they get in the repository.
fn files(source: &Path, name: &HfName) -> Result<Vec<(PathBuf, String)>, HubError> {
    let refuse = |reason: &str| HubError::Import {
        path: source.display().to_string(),
        reason: reason.to_owned(),
    };
    let base = source.file_name().and_then(|base| base.to_str()).unwrap_or_default();
    if !base.to_ascii_lowercase().ends_with(".gguf") || !is_safe_path(base) {
        return Err(refuse("its name does not end in .gguf"));
    }
    let parts = resolve::parts(base);
    let is_split = parts.len() > 1;
    let target = |base: &str| match &name.selector {
        Some(Selector::File(path)) => path.clone(),
        Some(Selector::Label(label)) if !resolve::has_label(base, label) => format!("{}-{label}.gguf", name.repo),
        Some(Selector::Folder { path, .. }) => format!("{path}/{base}"),
        _ => base.to_owned(),
    };
    let mut files = Vec::new();
    for part in parts {
        let from = source.with_file_name(&part);
        if !from.is_file() {
            let missing = if is_split {
                format!("its part {part} is not there")
            } else {
                "it is no file".into()
            };
            return Err(refuse(&missing));
        }
        let to = target(&part);
        if is_split && !to.ends_with(&part) {
            return Err(refuse(
                "it is in several parts, which keep their names: leave the selector out",
            ));
        }
        files.push((from, to));
    }
    Ok(files)
}

/// Copies a file to where its hash says; the hash, the size, and whether it was not there.
fn copy(from: &Path, folder: &RepoFolder, on_bytes: &impl Fn(u64)) -> Result<(String, u64, bool), HubError> {
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
    let placed = copied().and_then(|(etag, size)| {
        let blob = folder.blob(&etag);
        if is_present(&blob, size) {
            fs::remove_file(&temporary)?;
            return Ok((etag, size, false));
        }
        fs::rename(&temporary, &blob)?;
        File::open(folder.path.join("blobs"))?.sync_all()?;
        Ok((etag, size, true))
    });
    placed.map_err(|error| {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&temporary);
        HubError::io("copy", from, &error)
    })
}

/// Stands for the commit that a Hub would have given.
fn commit_of(files: &[RepoFile]) -> String {
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

    async fn import(library: &Library, config: &HubConfig, source: &Path, text: &str) -> Result<LocalModel, HubError> {
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
        assert_eq!(fs::read_to_string(&model.files[0]).unwrap(), "eight");
        // Beside it, under another label, in the folder that is there.
        let odd = file("download.gguf", "four");
        let model = import(&library, &config, &odd, "hf:me/mine:Q4_0").await.unwrap();
        assert_eq!(model.canonical, "hf:Me/Mine:Q4_0");
        assert!(model.files[0].ends_with("mine-Q4_0.gguf"));
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
        assert_eq!((model.files.len(), model.size_bytes), (2, 2));
        for bad in [
            home.path().join("absent.gguf"),
            file("text.txt", "x"),
            home.path().to_owned(),
        ] {
            let error = import(&library, &config, &bad, "hf:me/bad").await.unwrap_err();
            assert!(matches!(error, HubError::Import { .. }), "{error}");
        }
        assert!(matches!(
            library.delete(&config, &name("hf:me/mine:Q8_0")).await,
            Ok(super::super::Deleted::Removed { bytes_freed: 5 })
        ));
    }
}
