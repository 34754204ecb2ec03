//! Downloads from a loopback Hub that misbehaves in every way that was observed on real networks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use hubllama::{
    config::HubConfig,
    hub::{HfName, HubError, ResolveError},
    inference::PullEvent,
    library::{DeleteOutcome, Library, LibraryError},
    stdx::Secret,
};

use crate::harness::fake_hub::{FakeHub, Source, TOKEN};

mod addresses;
mod daemon;
mod processes;
mod python;
mod xet;

const REPO: &str = "Test-Org/Tiny-GGUF";
const NAME: &str = "hf:Test-Org/Tiny-GGUF:Q8_0";
const MIB: usize = 1 << 20;

pub(crate) struct Bench {
    server: FakeHub,
    library: Library,
    config: HubConfig,
    cache: tempfile::TempDir,
    state: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = FakeHub::start();
        let config = HubConfig {
            endpoint: server.url(),
            cache_dir: cache.path().to_owned(),
            stall_timeout: Duration::from_secs(5),
            retry_attempts: 3,
            retry_delay: Duration::from_millis(5),
            parallel_ranges: 4,
            ..HubConfig::default()
        };
        Self {
            library: Library::new(state.path()),
            server,
            config,
            cache,
            state,
        }
    }

    /// Adds one model of `size` bytes; returns its content and sha256.
    fn with_model(size: usize) -> (Self, Bytes, String) {
        let bench = Self::new();
        let content = noise(size);
        let sha256 = bench.server.add(REPO, "tiny-Q8_0.gguf", Source::Bytes(content.clone()));
        bench.server.add_small(REPO, "README.md", "text");
        (bench, content, sha256)
    }

    async fn pull(&self, name: &str) -> Result<Vec<PullEvent>, HubError> {
        pull(&self.library, &self.config, name).await
    }

    /// Checks that the model is complete and that nothing else is left in the cache. Returns the path of its file.
    async fn assert_complete(&self, content: &Bytes) -> PathBuf {
        let model = self
            .library
            .locate(&self.config, &name(NAME))
            .await
            .expect("the model is in the cache");
        assert!(
            fs::read(&model.base.files[0]).unwrap() == *content,
            "the content differs"
        );
        assert!(model.owned);
        assert_eq!(self.leftovers(), Vec::<PathBuf>::new());
        model.base.files[0].clone()
    }

    /// Lists partial and temporary files in the cache.
    fn leftovers(&self) -> Vec<PathBuf> {
        walk(self.cache.path())
            .into_iter()
            .filter(|path| {
                path.to_string_lossy().contains(".hubllama.") || path.extension().is_some_and(|e| e == "tmp")
            })
            .collect()
    }
}

/// The error of the Hub in an error of the library; these tests meet no other.
fn hub_error(error: LibraryError) -> HubError {
    match error {
        LibraryError::Hub(error) => error,
        error => panic!("{error}"),
    }
}

async fn pull(library: &Library, config: &HubConfig, text: &str) -> Result<Vec<PullEvent>, HubError> {
    let mut stream = library.pull(config, &name(text));
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event.map_err(hub_error)?);
    }
    Ok(events)
}

fn name(text: &str) -> HfName {
    HfName::parse(text).unwrap()
}

/// Generates bytes that do not repeat, so that a range at the wrong offset is noticed.
fn noise(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(size).collect::<Vec<_>>().into()
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()))
        } else {
            found.push(entry.path())
        }
    }
    found
}

/// Reduces events to statuses and digests in their order, without repetitions.
fn shape(events: &[PullEvent]) -> Vec<String> {
    let mut shape: Vec<String> = events
        .iter()
        .map(|event| match event {
            PullEvent::Status(status) => (*status).to_owned(),
            PullEvent::File { digest, .. } | PullEvent::Converting { digest, .. } => digest[..12].to_owned(),
        })
        .collect();
    shape.dedup();
    shape
}

// Clients need the digest of each layer, and `success` at the end (trap 58).
#[tokio::test]
async fn frames_come_in_ollamas_order() {
    let (bench, content, sha256) = Bench::with_model(9 * MIB);
    bench.server.faults(|faults| faults.delay = Duration::from_millis(4));
    let events = bench.pull("HF:test-org/tiny-gguf").await.unwrap();
    let expected = [
        "pulling manifest",
        &sha256[..12],
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ];
    assert_eq!(shape(&events), expected);
    let completed: Vec<u64> = events
        .iter()
        .filter_map(|event| match event {
            PullEvent::File {
                digest,
                total,
                completed,
            } => {
                assert_eq!((digest, *total), (&sha256, content.len() as u64));
                Some(*completed)
            }
            PullEvent::Status(_) | PullEvent::Converting { .. } => None,
        })
        .collect();
    assert!(completed.is_sorted() && completed.len() > 2, "{completed:?}");
    assert_eq!(
        (completed[0], completed[completed.len() - 1]),
        (0, content.len() as u64)
    );
    let path = bench.assert_complete(&content).await;
    // The folder is spelled as on the Hub, and has the layout that all programs of the shared cache read.
    let commit = bench.server.commit(REPO);
    let folder = bench.cache.path().join("models--Test-Org--Tiny-GGUF");
    assert_eq!(path, folder.join("snapshots").join(&commit).join("tiny-Q8_0.gguf"));
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../blobs").join(&sha256));
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), commit);
    assert!(
        bench
            .cache
            .path()
            .join(".locks/models--Test-Org--Tiny-GGUF")
            .join(format!("{sha256}.lock"))
            .exists()
    );
}

#[tokio::test]
async fn a_second_pull_fetches_nothing() {
    let (bench, _, sha256) = Bench::with_model(MIB);
    bench.pull(NAME).await.unwrap();
    let before = bench.server.hits("/cdn");
    let events = bench.pull(NAME).await.unwrap();
    let whole = |completed| PullEvent::File {
        digest: sha256.clone(),
        total: MIB as u64,
        completed,
    };
    assert_eq!(
        events,
        [
            PullEvent::Status("pulling manifest"),
            whole(0),
            whole(MIB as u64),
            PullEvent::Status("verifying sha256 digest"),
            PullEvent::Status("writing manifest"),
            PullEvent::Status("success"),
        ]
    );
    assert_eq!(bench.server.hits("/cdn"), before);
}

#[tokio::test]
async fn works_without_the_hub_where_the_cache_is_complete() {
    let (mut bench, content, _) = Bench::with_model(MIB);
    bench.pull(NAME).await.unwrap();
    let requests = bench.server.hits("").requests;
    bench.config.offline = true;
    assert_eq!(bench.pull(NAME).await.unwrap().len(), 6);
    assert_eq!(bench.server.hits("").requests, requests, "offline asks nobody");
    let error = bench.pull("hf:a/b").await.unwrap_err();
    assert_eq!(error, HubError::Offline("hf:a/b".into()));

    bench.config.offline = false;
    bench.config.endpoint = "http://127.0.0.1:1".into();
    bench.config.retry_attempts = 0;
    assert_eq!(bench.pull(NAME).await.unwrap().len(), 6);
    assert!(matches!(bench.pull("hf:a/b").await, Err(HubError::Unreachable { .. })));
    assert!(matches!(
        bench.library.reachable(&bench.config).await.map_err(hub_error),
        Err(HubError::Unreachable { .. })
    ));
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn short_outages_are_ridden_out() {
    let (bench, content, _) = Bench::with_model(3 * MIB);
    bench.server.faults(|faults| {
        faults.content_status = Some((500, 2));
        faults.api_status = Some((503, 2));
        faults.expired_links = 1;
        faults.truncate = Some((100_000, 2));
    });
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn an_error_page_is_never_a_model() {
    let (bench, content, _) = Bench::with_model(MIB);
    for status in [500, 404, 418] {
        bench
            .server
            .faults(|faults| faults.content_status = Some((status, 1000)));
        bench.pull(NAME).await.expect_err("the server answers with errors only");
        assert!(bench.library.locate(&bench.config, &name(NAME)).await.is_err());
        assert!(bench.library.list(&bench.config).await.is_empty());
    }
    bench.server.faults(|faults| faults.content_status = None);
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn a_cut_is_resumed_by_the_next_pull() {
    let (mut bench, content, _) = Bench::with_model(5 * MIB);
    bench.config.retry_attempts = 0;
    bench.config.parallel_ranges = 1;
    // The cut is inside the second request: pieces of this file are 1.25 MiB.
    bench.server.faults(|faults| faults.truncate = Some((700_000, 1)));
    let error = bench.pull(NAME).await.unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }), "{error}");
    assert!(
        bench.library.locate(&bench.config, &name(NAME)).await.is_err(),
        "half a model is no model"
    );
    assert_eq!(bench.leftovers().len(), 2, "the partial file and its ranges");
    assert_eq!(bench.server.hits("/cdn").bytes, 700_000);
    // A new process resumes as well.
    bench.library = Library::new(bench.state.path());
    bench.pull(NAME).await.unwrap();
    assert_eq!(
        bench.server.hits("/cdn").bytes,
        content.len() as u64,
        "no byte is fetched twice"
    );
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn cuts_inside_one_pull_cost_nothing() {
    let (bench, content, _) = Bench::with_model(6 * MIB);
    bench.server.faults(|faults| faults.truncate = Some((200_000, 12)));
    bench.pull(NAME).await.unwrap();
    assert_eq!(bench.server.hits("/cdn").bytes, content.len() as u64);
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn dropping_a_pull_keeps_what_arrived() {
    let (bench, content, _) = Bench::with_model(16 * MIB);
    bench.server.faults(|faults| faults.delay = Duration::from_millis(10));
    let mut stream = bench.library.pull(&bench.config, &name(NAME));
    loop {
        match stream.next().await.unwrap().unwrap() {
            PullEvent::File { completed, .. } if completed > 4 * MIB as u64 => break,
            _ => {}
        }
    }
    drop(stream);
    bench.server.faults(|faults| faults.delay = Duration::ZERO);
    bench.pull(NAME).await.unwrap();
    // Each of four connections loses the bytes that it had not written yet, and those in its socket.
    let fetched = bench.server.hits("/cdn").bytes - content.len() as u64;
    assert!(
        fetched < 12 * MIB as u64 && fetched < content.len() as u64 - 2 * MIB as u64,
        "{fetched} bytes twice"
    );
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn two_pulls_share_one_download() {
    let (bench, content, _) = Bench::with_model(8 * MIB);
    bench.server.faults(|faults| faults.delay = Duration::from_millis(3));
    let (first, second) = tokio::join!(bench.pull(NAME), bench.pull("hf:test-org/tiny-gguf"));
    assert_eq!(shape(&first.unwrap()), shape(&second.unwrap()));
    assert_eq!(bench.server.hits("/cdn").bytes, content.len() as u64);
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn one_of_two_pulls_may_be_dropped() {
    let (bench, content, _) = Bench::with_model(8 * MIB);
    bench.server.faults(|faults| faults.delay = Duration::from_millis(3));
    let mut first = bench.library.pull(&bench.config, &name(NAME));
    while !matches!(
        first.next().await.unwrap().unwrap(),
        PullEvent::File { completed: 1.., .. }
    ) {}
    let second = tokio::spawn({
        let (library, config) = (bench.library.clone(), bench.config.clone());
        async move { pull(&library, &config, NAME).await }
    });
    while bench.server.hits("/api/models").requests < 4 {
        tokio::task::yield_now().await;
    }
    drop(first);
    second.await.unwrap().unwrap();
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn processes_wait_for_each_other() {
    let (bench, content, _) = Bench::with_model(8 * MIB);
    bench.server.faults(|faults| faults.delay = Duration::from_millis(5));
    let other_state = tempfile::tempdir().unwrap();
    // Two handles share nothing but the lock on the blob, like two processes.
    let other = Library::new(other_state.path());
    let (first, second) = tokio::join!(bench.pull(NAME), pull(&other, &bench.config, NAME));
    first.unwrap();
    second.unwrap();
    assert_eq!(bench.server.hits("/cdn").bytes, content.len() as u64);
    let mut makers = 0;
    for library in [&bench.library, &other] {
        makers += usize::from(library.locate(&bench.config, &name(NAME)).await.unwrap().owned);
    }
    assert_eq!(makers, 1, "one of them made it, the other found it");
    assert_eq!(bench.leftovers(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_server_without_ranges_is_read_in_one_go() {
    let (bench, content, _) = Bench::with_model(4 * MIB);
    bench.server.faults(|faults| {
        faults.no_ranges = true;
        faults.truncate = Some((1_500_000, 2));
    });
    bench.pull(NAME).await.unwrap();
    assert_eq!(bench.server.hits("/cdn").bytes, content.len() as u64 + 3_000_000);
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn wrong_content_is_discarded() {
    let (bench, content, sha256) = Bench::with_model(2 * MIB);
    bench.server.faults(|faults| faults.wrong_content = true);
    match bench.pull(NAME).await.unwrap_err() {
        HubError::HashMismatch { path, expected, actual } => {
            assert_eq!((path.as_str(), &expected), ("tiny-Q8_0.gguf", &sha256));
            assert_ne!(actual, sha256);
        }
        other => panic!("{other}"),
    }
    assert_eq!(bench.leftovers(), Vec::<PathBuf>::new());
    assert!(bench.library.locate(&bench.config, &name(NAME)).await.is_err());
    bench.server.faults(|faults| faults.wrong_content = false);
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn a_stalled_connection_is_given_up() {
    let (mut bench, content, _) = Bench::with_model(2 * MIB);
    bench.config.stall_timeout = Duration::from_millis(150);
    bench.server.faults(|faults| faults.stall = Some((300_000, 1)));
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn a_dripping_connection_is_given_up() {
    let (mut bench, content, _) = Bench::with_model(2 * MIB);
    bench.config.stall_timeout = Duration::from_millis(300);
    bench.server.faults(|faults| faults.drip = Some((200_000, 2)));
    let started = std::time::Instant::now();
    bench.pull(NAME).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "it would take hours");
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn a_cached_model_does_not_wait_for_the_hub() {
    let (mut bench, content, _) = Bench::with_model(MIB);
    bench.pull(NAME).await.unwrap();
    let rate_limit = |faults: &mut crate::harness::fake_hub::Faults| {
        faults.api_status = Some((429, 100));
        faults.retry_after = Some(3600);
    };
    bench.server.faults(rate_limit);
    let started = std::time::Instant::now();
    assert_eq!(bench.pull(NAME).await.unwrap().len(), 6);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    // A Hub that accepts connections and does not answer delays a pull by at most five seconds.
    bench.server.faults(|faults| faults.api_hangs = true);
    bench.config.connect_timeout = Duration::from_millis(300);
    let started = std::time::Instant::now();
    assert_eq!(bench.pull(NAME).await.unwrap().len(), 6);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn a_limit_on_content_is_obeyed_in_the_middle_of_a_file() {
    let (bench, content, _) = Bench::with_model(4 * MIB);
    bench.server.faults(|faults| {
        faults.content_status = Some((429, 2));
        faults.retry_after = Some(1);
    });
    let started = std::time::Instant::now();
    bench.pull(NAME).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn the_bandwidth_has_a_limit() {
    let (mut bench, content, _) = Bench::with_model(3 * MIB);
    bench.config.max_bytes_per_second = 2 * MIB as u64;
    let started = std::time::Instant::now();
    bench.pull(NAME).await.unwrap();
    let took = started.elapsed();
    assert!(
        took > Duration::from_millis(1200) && took < Duration::from_secs(10),
        "{took:?}"
    );
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn hostile_sizes_are_refused_before_anything_is_fetched() {
    let bench = Bench::new();
    for size in [u64::MAX, 1 << 60, 0] {
        bench
            .server
            .add_claiming(REPO, "tiny-Q8_0.gguf", Source::Bytes(noise(MIB)), size);
        let error = bench.pull(NAME).await.unwrap_err();
        match size {
            0 => assert!(
                matches!(error, HubError::Protocol { .. } | HubError::HashMismatch { .. }),
                "{error}"
            ),
            _ => assert!(matches!(error, HubError::DiskFull { .. }), "{error}"),
        }
        assert_eq!(bench.server.hits("/cdn").requests, 0);
        assert!(bench.library.locate(&bench.config, &name(NAME)).await.is_err());
    }
}

#[tokio::test]
async fn hostile_paths_are_no_files() {
    let bench = Bench::new();
    let folder = bench.cache.path().to_owned();
    for path in [
        "../../../evil-Q4_K_M.gguf",
        "/tmp/evil-Q4_K_M.gguf",
        "a/../../../evil-Q4_K_M.gguf",
        "a//evil-Q4_K_M.gguf",
        "a\\evil-Q4_K_M.gguf",
        "evil\u{1b}[2J-Q4_K_M.gguf",
        "weights.pkl",
        "pytorch_model.bin",
    ] {
        bench.server.add(REPO, path, Source::Bytes(noise(1000)));
    }
    let error = bench.pull(NAME).await.unwrap_err();
    assert!(matches!(error, HubError::Resolve { .. }), "{error}");
    bench.server.add(REPO, "good-Q8_0.gguf", Source::Bytes(noise(MIB)));
    bench.pull("hf:test-org/tiny-gguf").await.unwrap();
    let found = walk(&folder);
    let links: Vec<&PathBuf> = found.iter().filter(|path| path.is_symlink()).collect();
    assert!(links.len() == 1 && links[0].ends_with("good-Q8_0.gguf"), "{links:?}");
    assert_eq!(
        bench.server.hits("/cdn").bytes,
        MIB as u64,
        "only this file was fetched"
    );
    assert!(!folder.parent().unwrap().join("evil-Q4_K_M.gguf").exists());
}

#[tokio::test]
async fn updates_are_known_without_a_download() {
    let (mut bench, ..) = Bench::with_model(MIB);
    bench.pull(NAME).await.unwrap();
    assert_eq!(bench.library.update(&bench.config, &name(NAME)).await, Ok(None));
    bench.server.add_small(REPO, "README.md", "another text");
    assert_eq!(
        bench.library.update(&bench.config, &name(NAME)).await,
        Ok(None),
        "a commit without other weights is no update"
    );
    bench.server.add(REPO, "tiny-Q8_0.gguf", Source::Bytes(noise(2 * MIB)));
    let before = bench.server.hits("/cdn").requests;
    let update = bench.library.update(&bench.config, &name(NAME)).await.unwrap().unwrap();
    assert_eq!(
        (update.commit, update.bytes),
        (bench.server.commit(REPO), 2 * MIB as u64)
    );
    assert_eq!(bench.server.hits("/cdn").requests, before);
    bench.pull(NAME).await.unwrap();
    assert_eq!(bench.library.update(&bench.config, &name(NAME)).await, Ok(None));
    bench.config.offline = true;
    assert!(matches!(
        bench
            .library
            .update(&bench.config, &name(NAME))
            .await
            .map_err(hub_error),
        Err(HubError::SwitchedOff)
    ));
}

#[tokio::test]
async fn a_repository_that_was_renamed_is_found_by_its_old_name() {
    let (bench, content, _) = Bench::with_model(2 * MIB);
    bench.server.rename(REPO, "New-Org/New-Name");
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
    assert_eq!(bench.library.update(&bench.config, &name(NAME)).await, Ok(None));
    bench.pull("hf:new-org/new-name").await.unwrap();
    assert_eq!(
        bench.library.list(&bench.config).await.len(),
        2,
        "they are two to whoever asks"
    );
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let (bench, ..) = Bench::with_model(MIB);
    bench.server.faults(|faults| faults.redirect_loop = true);
    let error = bench.pull(NAME).await.unwrap_err();
    assert!(matches!(error, HubError::Protocol { .. }), "{error}");
    assert!(bench.server.hits("/Test-Org").requests <= 12);
}

#[tokio::test]
async fn rate_limits_are_obeyed() {
    let (mut bench, content, _) = Bench::with_model(MIB);
    bench.server.faults(|faults| {
        faults.api_status = Some((429, 1));
        faults.retry_after = Some(1);
    });
    let started = std::time::Instant::now();
    bench.pull(NAME).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    bench.assert_complete(&content).await;
    bench.config.retry_attempts = 0;
    bench.server.faults(|faults| faults.api_status = Some((429, 1)));
    let error = bench.pull("hf:Test-Org/Tiny-GGUF:F16").await.unwrap_err();
    assert_eq!(
        error,
        HubError::RateLimited {
            retry_after: Some(Duration::from_secs(1))
        }
    );
}

#[tokio::test]
async fn tokens_open_doors_and_stay_with_the_hub() {
    let (mut bench, content, _) = Bench::with_model(2 * MIB);
    bench.server.set_private(REPO);
    assert!(matches!(bench.pull(NAME).await, Err(HubError::RepoNotFound { .. })));
    bench.config.token = Some(Secret::new("wrong".into()));
    assert!(bench.library.reachable(&bench.config).await.unwrap().token_refused);
    bench.config.token = Some(Secret::new(TOKEN.into()));
    assert_eq!(
        bench.library.reachable(&bench.config).await.unwrap().user.as_deref(),
        Some("loopback")
    );
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
    assert!(bench.server.hits("/Test-Org").with_token > 0);
    assert_eq!(
        bench.server.hits("/cdn").with_token,
        0,
        "the content network never sees the token"
    );
}

#[tokio::test]
async fn gates_say_where_to_go() {
    let (bench, ..) = Bench::with_model(MIB);
    bench.server.set_gated(REPO);
    let url = format!("{}/{REPO}", bench.server.url());
    assert_eq!(
        bench.pull(NAME).await.unwrap_err(),
        HubError::Gated { repo: REPO.into(), url }
    );
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (bench, ..) = Bench::with_model(MIB);
    bench
        .server
        .add("o/safe", "model.safetensors", Source::Bytes(noise(10)));
    bench
        .server
        .add("o/part", "m-Q8_0-00001-of-00002.gguf", Source::Bytes(noise(10)));
    assert!(matches!(
        bench.pull("hf:o/absent").await,
        Err(HubError::RepoNotFound { .. })
    ));
    assert!(matches!(
        bench.pull("hf:Test-Org/Tiny-GGUF@v9").await,
        Err(HubError::RevisionNotFound { .. })
    ));
    assert!(matches!(
        bench.pull("hf:Test-Org/Tiny-GGUF+o/lora").await,
        Err(HubError::RepoNotFound { repo, .. }) if repo == "o/lora"
    ));
    let resolve = |result: Result<Vec<PullEvent>, HubError>| match result {
        Err(HubError::Resolve { error, .. }) => error,
        other => panic!("{other:?}"),
    };
    let available = vec!["Q8_0".to_owned()];
    let selector = "Q4_0".to_owned();
    assert_eq!(
        resolve(bench.pull("hf:Test-Org/Tiny-GGUF:Q4_0").await),
        ResolveError::NoSuchSelector { selector, available }
    );
    assert_eq!(
        resolve(bench.pull("hf:o/safe").await),
        ResolveError::NoGguf { has_safetensors: true }
    );
    assert!(matches!(
        resolve(bench.pull("hf:o/part").await),
        ResolveError::IncompleteShards { .. }
    ));
}

#[tokio::test]
async fn shards_projectors_folders_pages_and_small_files() {
    let bench = Bench::new();
    bench.server.faults(|faults| {
        faults.page_size = 3;
        faults.relative_redirects = true;
    });
    for index in 1..=5 {
        let content = noise(MIB + index);
        bench.server.add(
            REPO,
            &format!("big dir/m-Q8_0-0000{index}-of-00005.gguf"),
            Source::Bytes(content),
        );
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("eye"), noise(70_000)).unwrap();
    bench
        .server
        .add(REPO, "mmproj-F16.gguf", Source::Path(folder.path().join("eye")));
    bench
        .server
        .add_small("o/small", "a/b-F16.gguf", "too small for large file storage");

    let events = bench.pull("hf:Test-Org/Tiny-GGUF@refs/pr/1").await.unwrap();
    assert_eq!(shape(&events).len(), 4 + 6);
    assert!(bench.server.hits("/api/models/Test-Org/Tiny-GGUF/tree").requests >= 2);
    let model = bench
        .library
        .locate(&bench.config, &name("hf:test-org/tiny-gguf@refs/pr/1:q8_0"))
        .await
        .unwrap();
    assert_eq!(model.canonical, "hf:Test-Org/Tiny-GGUF@refs/pr/1:Q8_0");
    assert_eq!(model.base.files.len(), 5);
    assert!(model.base.files[0].ends_with("big dir/m-Q8_0-00001-of-00005.gguf"));
    assert_eq!(fs::read(model.base.mmproj.unwrap()).unwrap(), noise(70_000));
    assert_eq!(model.size_bytes, 5 * MIB as u64 + 15 + 70_000);

    bench.pull("hf:o/small").await.unwrap();
    let model = bench.library.locate(&bench.config, &name("hf:o/small")).await.unwrap();
    assert_eq!(
        fs::read_to_string(&model.base.files[0]).unwrap(),
        "too small for large file storage"
    );
    let listed: Vec<_> = bench
        .library
        .list(&bench.config)
        .await
        .into_iter()
        .map(|model| model.canonical)
        .collect();
    assert_eq!(listed, ["hf:o/small:F16", "hf:Test-Org/Tiny-GGUF:Q8_0"]);
}

#[tokio::test]
async fn delete_takes_only_what_hubllama_brought() {
    let (mut bench, content, sha256) = Bench::with_model(MIB);
    bench.pull(NAME).await.unwrap();
    let freed = DeleteOutcome::Removed {
        bytes_freed: MIB as u64,
    };
    assert_eq!(bench.library.delete(&bench.config, &name(NAME)).await, Ok(freed));
    assert!(!walk(bench.cache.path()).iter().any(|path| path.ends_with(&sha256)));
    assert!(bench.library.delete(&bench.config, &name(NAME)).await.is_err());

    // Another user of the cache downloads it, so that this handle does not own it.
    let state = tempfile::tempdir().unwrap();
    pull(&Library::new(state.path()), &bench.config, NAME).await.unwrap();
    assert_eq!(
        bench.library.delete(&bench.config, &name(NAME)).await,
        Ok(DeleteOutcome::Unlisted)
    );
    assert!(bench.library.locate(&bench.config, &name(NAME)).await.is_err());
    assert_eq!(bench.library.list(&bench.config).await, []);
    let fetched = bench.server.hits("/cdn").bytes;
    bench.pull(NAME).await.unwrap();
    assert_eq!(
        bench.server.hits("/cdn").bytes,
        fetched,
        "listing it again needs no download"
    );
    let model = bench.library.locate(&bench.config, &name(NAME)).await.unwrap();
    assert!(!model.owned && fs::read(&model.base.files[0]).unwrap() == content);
    bench.config.offline = true;
    assert_eq!(bench.library.list(&bench.config).await, [model]);
}
