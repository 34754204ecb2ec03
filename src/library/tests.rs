//! Listing, locating and removing models, in temporary caches.

use std::time::Duration;

use super::*;
use crate::hub::cache::{
    RepoFolder,
    tests::{NEW, OLD, name, put},
};

#[tokio::test]
async fn lists_locates_and_unlists() {
    let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = HubConfig {
        cache_dir: root.path().to_owned(),
        ..HubConfig::default()
    };
    let library = Library::new(state.path());
    assert_eq!(library.list(&config).await, []);
    put(root.path(), "Org/Repo", OLD, "m-Q4_0.gguf", "weights");
    let model = library.locate(&config, &name("HF:org/REPO")).await.unwrap();
    assert_eq!(model.canonical, "hf:Org/Repo:Q4_0");
    assert!(!model.owned);
    assert_eq!(library.list(&config).await, [model]);

    assert_eq!(
        library.delete(&config, &name("hf:org/repo")).await,
        Ok(DeleteOutcome::Unlisted)
    );
    assert_eq!(library.list(&config).await, []);
    assert!(library.locate(&config, &name("hf:org/repo")).await.is_err());
    assert!(library.delete(&config, &name("hf:org/repo")).await.is_err());
    assert_eq!(
        Library::new(state.path()).list(&config).await,
        [],
        "it stays unlisted after a restart"
    );
}

#[tokio::test]
async fn a_model_is_meant_by_every_spelling_of_its_name() {
    let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = HubConfig {
        cache_dir: root.path().to_owned(),
        ..HubConfig::default()
    };
    let library = Library::new(state.path());
    for path in ["m-Q4_0.gguf", "q8/m-Q8_0.gguf", "sub/m-Q4_0.gguf", "m-UD-Q2_K.gguf"] {
        put(root.path(), "Org/Repo", OLD, path, path);
    }
    RepoFolder::new(root.path(), "Org", "Repo")
        .write_reference("main", OLD)
        .unwrap();
    let meant = |spelling: &str| {
        let (library, config, spelling) = (library.clone(), config.clone(), name(spelling));
        async move {
            let mut meant = Vec::new();
            for model in library.list(&config).await {
                if library.means(&config, &spelling, &model).await {
                    meant.push(model.base.label);
                }
            }
            meant.join(" ")
        }
    };
    for (spelling, labels) in [
        ("HF:org/REPO:q4_0", "Q4_0"),
        ("hf.co/Org/Repo:q8_0", "Q8_0"),
        ("hf:org/repo/Q8", "Q8_0"),
        ("hf:org/repo/q8:q8_0", "Q8_0"),
        ("hf:org/repo:m-q4_0.gguf", "Q4_0"),
        ("hf:org/repo/sub:Q4_0", "sub/m-Q4_0.gguf"),
        ("hf:org/repo/sub/m-Q4_0.gguf", "sub/m-Q4_0.gguf"),
        ("hf:org/repo:Q2_K", "UD-Q2_K"),
        ("hf:org/repo@main:Q4_0", "Q4_0"),
        ("hf:org/repo", "Q4_0 Q8_0 sub/m-Q4_0.gguf UD-Q2_K"),
        ("hf:org/repo:latest", "Q4_0 Q8_0 sub/m-Q4_0.gguf UD-Q2_K"),
        ("hf:org/repo@v1:Q4_0", ""),
        ("hf:org/other:Q4_0", ""),
        ("hf:org/repo:F16", ""),
    ] {
        assert_eq!(meant(spelling).await, labels, "{spelling}");
    }
}

#[tokio::test]
async fn other_caches_are_read_first_and_never_written() {
    let (own, extra, state) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let config = HubConfig {
        cache_dir: own.path().to_owned(),
        extra_caches: vec![extra.path().to_owned()],
        ..HubConfig::default()
    };
    let library = Library::new(state.path());
    put(extra.path(), "o/r", OLD, "m-Q4_0.gguf", "theirs");
    put(own.path(), "o/r", OLD, "m-Q4_0.gguf", "theirs");
    put(own.path(), "o/r", OLD, "m-Q8_0.gguf", "ours");
    let root = |text: &'static str| {
        let (library, config) = (library.clone(), config.clone());
        async move { library.locate(&config, &name(text)).await.map(|model| model.base.root) }
    };
    assert_eq!(root("hf:o/r:Q4_0").await.as_deref(), Ok(extra.path()));
    assert_eq!(root("hf:o/r:Q8_0").await.as_deref(), Ok(own.path()));
    assert_eq!(library.list(&config).await.len(), 2, "each is listed once");
    // Another commit that came later is what was asked for last.
    std::thread::sleep(Duration::from_millis(50));
    put(own.path(), "o/r", NEW, "m-Q4_0.gguf", "newer");
    assert_eq!(root("hf:o/r:Q4_0").await.as_deref(), Ok(own.path()));
    assert_eq!(library.list(&config).await[0].base.commit, NEW);

    assert_eq!(
        library.delete_files(&config, &name("hf:o/r:Q4_0")).await,
        Ok(DeleteOutcome::Unlisted)
    );
    assert!(cache::locate(own.path(), &name("hf:o/r:Q4_0")).is_err());
    assert!(cache::locate(extra.path(), &name("hf:o/r:Q4_0")).is_ok());
    assert!(root("hf:o/r:Q4_0").await.is_err());
    assert_eq!(
        library.delete_files(&config, &name("hf:o/r:Q8_0")).await,
        Ok(DeleteOutcome::Removed { bytes_freed: 4 })
    );
    assert_eq!(library.list(&config).await, []);
}
