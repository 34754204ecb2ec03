//! Downloads with mirrors, with tokens of organizations, and with caches of other users.

use super::*;

/// Starts a second server with the same model.
fn mirror(content: &Bytes) -> FakeHub {
    let mirror = FakeHub::start();
    mirror.add(REPO, "tiny-Q8_0.gguf", Source::Bytes(content.clone()));
    mirror.add_small(REPO, "README.md", "text");
    mirror
}

#[tokio::test]
async fn a_mirror_helps_while_the_hub_is_away() {
    let (mut bench, content, _) = Bench::with_model(3 * MIB);
    let mirror = mirror(&content);
    bench.config.endpoint = "http://127.0.0.1:1".into();
    bench.config.mirrors = vec!["http://127.0.0.1:2".into(), mirror.url()];
    bench.config.token = Some(Secret::new(TOKEN.into()));
    bench.config.retry_attempts = 0;
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
    assert_eq!(mirror.hits("").with_token, 0, "a mirror is not shown the token");
}

#[tokio::test]
async fn the_hub_is_asked_before_its_mirrors() {
    let (mut bench, content, _) = Bench::with_model(MIB);
    let mirror = mirror(&content);
    bench.config.mirrors = vec![mirror.url()];
    bench.pull(NAME).await.unwrap();
    assert_eq!(mirror.hits("").requests, 0);
    // The mirror has a model that the Hub does not have.
    mirror.add("Only/Here", "m-Q8_0.gguf", Source::Bytes(noise(1000)));
    bench.pull("hf:only/here").await.unwrap();
    // A model that no endpoint has is not found.
    assert!(matches!(
        bench.pull("hf:o/absent").await,
        Err(HubError::RepoNotFound { .. })
    ));
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn content_that_does_not_come_is_fetched_elsewhere() {
    let (mut bench, content, _) = Bench::with_model(4 * MIB);
    let mirror = mirror(&content);
    bench.config.mirrors = vec![mirror.url()];
    bench
        .server
        .faults(|faults| faults.content_status = Some((503, 1_000_000)));
    bench.pull(NAME).await.unwrap();
    assert_eq!(mirror.hits("/cdn").bytes, content.len() as u64);
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn a_mirror_with_other_content_is_found_out() {
    let (mut bench, content, _) = Bench::with_model(2 * MIB);
    let mirror = mirror(&content);
    mirror.faults(|faults| faults.wrong_content = true);
    bench.config.mirrors = vec![mirror.url()];
    bench
        .server
        .faults(|faults| faults.content_status = Some((503, 1_000_000)));
    let error = bench.pull(NAME).await.unwrap_err();
    assert!(matches!(error, HubError::HashMismatch { .. }), "{error}");
    assert!(bench.library.locate(&bench.config, &name(NAME)).await.is_err());
    assert_eq!(bench.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_is_followed_to_its_new_address() {
    let (mut bench, content, _) = Bench::with_model(12 * MIB);
    bench.config.retry_attempts = 1;
    bench.server.faults(|faults| faults.delay = Duration::from_millis(10));
    let mut stream = bench.library.pull(&bench.config, &name(NAME));
    loop {
        match stream.next().await.unwrap().unwrap() {
            PullEvent::File { completed, .. } if completed > 4 * MIB as u64 => break,
            _ => {}
        }
    }
    let next = mirror(&content);
    drop(std::mem::replace(&mut bench.server, FakeHub::start()));
    let error = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break hub_error(error),
            None => panic!("the pull ends without the model and without an error"),
        }
    };
    assert!(error.is_transient(), "{error}");
    assert!(bench.library.locate(&bench.config, &name(NAME)).await.is_err());
    bench.config.endpoint = next.url();
    bench.pull(NAME).await.unwrap();
    assert!(
        next.hits("/cdn").bytes < content.len() as u64,
        "it goes on where it was"
    );
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn an_organisation_has_its_own_token() {
    let (mut bench, content, _) = Bench::with_model(MIB);
    bench.server.set_private(REPO);
    bench.config.token = Some(Secret::new("hf_of_somebody_else".into()));
    assert!(bench.pull(NAME).await.is_err());
    bench
        .config
        .organization_tokens
        .insert("test-org".into(), Secret::new(TOKEN.into()));
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
    assert_eq!(bench.server.hits("/cdn").with_token, 0);
}

/// Makes a cache of another user that has the model, without the state folder that tells who owns its files.
async fn pulled_by_another(bench: &Bench) -> tempfile::TempDir {
    let (theirs, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = HubConfig {
        cache_dir: theirs.path().to_owned(),
        ..bench.config.clone()
    };
    pull(&Library::new(state.path()), &config, NAME).await.unwrap();
    theirs
}

#[tokio::test]
async fn what_another_user_has_is_used_where_it_is() {
    let (mut bench, content, sha256) = Bench::with_model(2 * MIB);
    let theirs = pulled_by_another(&bench).await;
    let before = walk(theirs.path());
    let fetched = bench.server.hits("/cdn").bytes;

    bench.config.extra_caches = vec![theirs.path().to_owned()];
    let model = bench.library.locate(&bench.config, &name(NAME)).await.unwrap();
    assert!(model.base.files[0].starts_with(theirs.path()) && !model.owned);
    let events = bench.pull(NAME).await.unwrap();
    assert_eq!(shape(&events)[1], &sha256[..12]);
    assert_eq!(bench.server.hits("/cdn").bytes, fetched, "nothing is downloaded again");
    assert_eq!(walk(bench.cache.path()), Vec::<PathBuf>::new(), "nothing is copied");
    assert_eq!(
        bench.library.delete(&bench.config, &name(NAME)).await,
        Ok(DeleteOutcome::Unlisted)
    );
    assert_eq!(walk(theirs.path()), before, "their cache is as it was");
    // A pull lists it again.
    bench.pull(NAME).await.unwrap();
    assert_eq!(bench.library.list(&bench.config).await.len(), 1);

    // A new version on the Hub is downloaded into our own cache, and the name then refers to it.
    bench.server.add(REPO, "tiny-Q8_0.gguf", Source::Bytes(noise(3 * MIB)));
    bench.pull(NAME).await.unwrap();
    let model = bench.library.locate(&bench.config, &name(NAME)).await.unwrap();
    assert!(model.base.files[0].starts_with(bench.cache.path()) && model.owned);
    assert_eq!(walk(theirs.path()), before);
    drop(content);
}

#[tokio::test]
async fn what_another_user_has_a_part_of_is_completed() {
    let (mut bench, content, sha256) = Bench::with_model(2 * MIB);
    let theirs = pulled_by_another(&bench).await;
    let before = walk(theirs.path());
    // The next commit adds a projector and leaves the weights as they are.
    let projector = noise(300_000);
    let eye = bench
        .server
        .add(REPO, "mmproj-F16.gguf", Source::Bytes(projector.clone()));
    bench.config.extra_caches = vec![theirs.path().to_owned()];
    let weights = format!("/cdn/{sha256}");
    let fetched = bench.server.hits(&weights).bytes;
    let events = bench.pull(NAME).await.unwrap();
    assert_eq!(shape(&events)[1..3], [sha256[..12].to_owned(), eye[..12].to_owned()]);
    assert_eq!(bench.server.hits(&weights).bytes, fetched, "what they have is used");
    let model = bench.library.locate(&bench.config, &name(NAME)).await.unwrap();
    assert!(model.base.files[0].starts_with(bench.cache.path()) && model.owned);
    assert!(fs::read(&model.base.files[0]).unwrap() == content);
    assert!(fs::read(model.base.mmproj.as_ref().unwrap()).unwrap() == projector);
    let checked = model.verify(|_| ()).await.unwrap();
    assert!(
        checked
            .iter()
            .all(|file| file.verdict == hubllama::library::FileVerdict::Good)
    );

    // Our cache has a link and the projector, which are removed. The other user's cache stays.
    assert!(matches!(
        bench.library.delete_files(&bench.config, &name(NAME)).await,
        Ok(DeleteOutcome::Unlisted)
    ));
    let blobs: Vec<PathBuf> = walk(bench.cache.path())
        .into_iter()
        .filter(|path| path.parent().is_some_and(|folder| folder.ends_with("blobs")))
        .collect();
    assert_eq!(blobs, Vec::<PathBuf>::new());
    assert_eq!(walk(theirs.path()), before, "their cache is as it was");

    // If the other user removes the weights, the next pull downloads them.
    bench.pull(NAME).await.unwrap();
    fs::remove_dir_all(theirs.path().join("models--Test-Org--Tiny-GGUF")).unwrap();
    assert!(bench.library.locate(&bench.config, &name(NAME)).await.is_err());
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
}
