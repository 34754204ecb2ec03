//! Downloading the files of one commit.

use std::sync::Arc;

use super::{PullJob, events::event_digest, plan::targets};
use crate::{
    hub::{
        HubError,
        adopt::adopt,
        cache::{self, RepoFolder},
        client::RepoInfo,
        disk,
        download::{SharedDownload, is_present},
        partial::PartialBlob,
        resolve::RepoFile,
        target::BlobTarget,
    },
    library::{blocking, error::LibraryError},
};

impl PullJob {
    /// Downloads those files of a commit that are missing, and links all of them into the snapshot at once, so that
    /// nobody sees half a model.
    ///
    /// # Errors
    /// If the disk is too small, a download fails, or a file was deleted meanwhile.
    pub(super) async fn download(
        &self,
        info: &RepoInfo,
        files: &[RepoFile],
        revision: Option<&str>,
    ) -> Result<(), LibraryError> {
        let client = self.library.client(Arc::clone(&self.config))?;
        let targets = targets(&self.config, info, files)?;
        self.adopt_from_extra_caches(&targets).await?;
        check_space(&format!("{}/{}", info.org, info.repo), &targets).await?;
        let shared = &self.library.0;
        let mut downloads: Vec<Arc<SharedDownload>> = Vec::new();
        for target in &targets {
            let (blob, size) = (target.blob.clone(), target.size);
            if blocking(move || Ok(is_present(&blob, size))).await? {
                self.events.complete_file(&event_digest(&target.etag), size).await?;
            } else {
                let download = shared.downloads.join(&client, target, &shared.ledger);
                self.events.follow(&download, target).await?;
                downloads.push(download);
            }
        }
        // A file is hashed while the next one is fetched, so the last hashes may still be running.
        self.events.status("verifying sha256 digest").await?;
        for download in downloads {
            download.done().await?;
        }
        self.events.status("writing manifest").await?;
        let folder = RepoFolder::new(&self.config.cache_dir, &info.org, &info.repo);
        let (commit, revision) = (info.commit.clone(), revision.unwrap_or("main").to_owned());
        blocking(move || Ok(link_all(&folder, &commit, &revision, &targets)?)).await
    }

    /// Links content that another user's cache holds, so that it is not downloaded.
    async fn adopt_from_extra_caches(&self, targets: &[BlobTarget]) -> Result<(), LibraryError> {
        if self.config.extra_caches.is_empty() {
            return Ok(());
        }
        let (library, caches, targets) = (self.library.clone(), self.config.extra_caches.clone(), targets.to_vec());
        blocking(move || {
            let mut targets = targets.iter();
            Ok(targets.try_for_each(|target| adopt(target, &caches, &library.0.ledger))?)
        })
        .await
    }
}

/// Links downloaded blobs into the snapshot of a commit, and points the revision to it.
fn link_all(folder: &RepoFolder, commit: &str, revision: &str, targets: &[BlobTarget]) -> Result<(), HubError> {
    for target in targets {
        folder.link(&target.commit, &target.path, &target.etag)?;
    }
    // Checked after the links exist: from here on a deletion of another model does not take the blobs.
    if let Some(gone) = targets.iter().find(|target| !is_present(&target.blob, target.size)) {
        return Err(HubError::Interrupted {
            path: gone.path.clone(),
            reason: "it was deleted from the cache".to_owned(),
        });
    }
    if !cache::is_commit(revision) {
        folder.write_reference(revision, commit)?;
    }
    Ok(())
}

/// Refuses a pull whose files do not all fit on the disk, before the first of them is fetched.
async fn check_space(repo: &str, targets: &[BlobTarget]) -> Result<(), LibraryError> {
    let (repo, targets) = (repo.to_owned(), targets.to_vec());
    blocking(move || {
        let missing = targets.iter().filter(|target| !is_present(&target.blob, target.size));
        let needed = missing.fold(0_u64, |sum, target| {
            let left = target.size.saturating_sub(PartialBlob::peek(&target.blob, target.size));
            sum.saturating_add(left)
        });
        match targets.first() {
            Some(first) => Ok(disk::check_space(&repo, &first.blob, needed)?),
            None => Ok(()),
        }
    })
    .await
}
