//! Hugging Face Hub on the loopback interface: API and resolve routes on one port, a content network and the store of
//! the xet protocol on two others, with faults that can be switched on.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, sync::oneshot};

mod answers;
mod content;
mod routes;
mod xet;

pub(crate) use xet::XetFaults;

use answers::hex;
use routes::{Port, accept};

/// Running Hub. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct FakeHub {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Source of a file's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Bytes(Bytes),
    /// File that is read at each request, so that a large model is not copied into memory.
    Path(PathBuf),
    /// File that is open already; [`Source::Path`] becomes this when it is added.
    Opened(Arc<File>),
}

/// Faults of the Hub. A counter says how many more times its fault occurs; `None` and zero mean never.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Status of content requests (with an HTML page as body), and a counter.
    pub(crate) content_status: Option<(u16, u32)>,
    /// Status of API requests, and a counter.
    pub(crate) api_status: Option<(u16, u32)>,
    /// Seconds of `Retry-After` in answers with one of these statuses.
    pub(crate) retry_after: Option<u64>,
    /// If set, API requests are never answered.
    pub(crate) api_hangs: bool,
    /// If set, searches are never answered.
    pub(crate) search_hangs: bool,
    /// Bytes after which content bodies break off, and a counter.
    pub(crate) truncate: Option<(u64, u32)>,
    /// Bytes after which content bodies stall, and a counter.
    pub(crate) stall: Option<(u64, u32)>,
    /// Bytes after which content bodies arrive byte by byte, and a counter.
    pub(crate) drip: Option<(u64, u32)>,
    /// Pause before each 64 KiB of content.
    pub(crate) delay: Duration,
    /// If set, content does not match its hash.
    pub(crate) wrong_content: bool,
    /// If set, `Range` is ignored.
    pub(crate) no_ranges: bool,
    /// Counter of links to content that are refused with 403.
    pub(crate) expired_links: u32,
    /// If set, resolve routes redirect to themselves.
    pub(crate) redirect_loop: bool,
    /// If set, resolve routes of small files answer with a relative redirect.
    pub(crate) relative_redirects: bool,
    /// Entries on one page of a listing; 0 means all.
    pub(crate) page_size: usize,
    pub(crate) xet: XetFaults,
}

/// Requests that a path received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hits {
    pub(crate) requests: u64,
    /// Bytes of bodies that were written to the connection.
    pub(crate) bytes: u64,
    /// Requests with an `Authorization` header.
    pub(crate) with_token: u64,
}

#[derive(Debug)]
struct Shared {
    api: SocketAddr,
    content: SocketAddr,
    store: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    repos: BTreeMap<String, Repo>,
    /// New names of repositories, by their old names.
    renamed: BTreeMap<String, String>,
    faults: Faults,
    hits: BTreeMap<String, Hits>,
}

#[derive(Clone, Debug, Default)]
struct Repo {
    files: BTreeMap<String, Entry>,
    private: bool,
    gated: bool,
    tags: Vec<String>,
}

#[derive(Clone, Debug)]
struct Entry {
    source: Source,
    size: u64,
    sha256: String,
    oid: String,
    lfs: bool,
    /// Size in the listing, if it differs from the true one.
    claimed: Option<u64>,
    /// Copy in the store of the xet protocol.
    xet: Option<Arc<xet::Stored>>,
}

/// The only valid token.
pub(crate) const TOKEN: &str = "hf_loopback";

impl FakeHub {
    /// Starts a Hub on free ports, in its own thread.
    pub(crate) fn start() -> Self {
        // Bound here, so that connections are accepted at once. Served by another runtime than the test's, which may be
        // paused or dropped.
        let bind = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("a socket can be non-blocking");
            listener
        };
        let (api, content, store) = (bind(), bind(), bind());
        let address =
            |listener: &std::net::TcpListener| listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            api: address(&api),
            content: address(&content),
            store: address(&store),
            state: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fake-hub".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    let tokio = |listener| TcpListener::from_std(listener).expect("a listener");
                    let (api, content, store) = (tokio(api), tokio(content), tokio(store));
                    tokio::select! {
                        () = accept(api, &served, Port::Api) => {}
                        () = accept(content, &served, Port::Content) => {}
                        () = accept(store, &served, Port::Store) => {}
                        _ = stopped => {}
                    }
                });
                // Ends all connections, including those that stall.
                runtime.shutdown_background();
            })
            .expect("a thread");
        Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Returns the base URL, for `HF_ENDPOINT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.shared.api)
    }

    /// Adds a large file (one with a sha256, on the content network), and its repository if needed. Returns the sha256.
    pub(crate) fn add(&self, repo: &str, path: &str, source: Source) -> String {
        self.insert(repo, path, source, true)
    }

    /// Puts a large file into the store of the xet protocol as well.
    pub(crate) fn store(&self, repo: &str, path: &str) {
        let mut state = self.state();
        let files = state.repos.get_mut(repo).map(|repo| &mut repo.files);
        let entry = files.and_then(|files| files.get_mut(path)).expect("it was added");
        entry.xet = Some(Arc::new(xet::Stored::new(&entry.source, entry.size, &entry.sha256)));
    }

    /// Adds a large file with a wrong size in the listing.
    pub(crate) fn add_claiming(&self, repo: &str, path: &str, source: Source, size: u64) {
        self.insert(repo, path, source, true);
        let mut state = self.state();
        let files = state.repos.get_mut(repo).map(|repo| &mut repo.files);
        files.and_then(|files| files.get_mut(path)).expect("just added").claimed = Some(size);
    }

    /// Sets the tags of a repository, such as `license:mit`.
    pub(crate) fn set_tags(&self, repo: &str, tags: &[&str]) {
        self.state().repos.entry(repo.to_owned()).or_default().tags =
            tags.iter().map(|tag| (*tag).to_owned()).collect();
    }

    /// Adds a small file, which is stored in git itself. Returns git's hash of it.
    pub(crate) fn add_small(&self, repo: &str, path: &str, content: &str) -> String {
        self.insert(
            repo,
            path,
            Source::Bytes(Bytes::copy_from_slice(content.as_bytes())),
            false,
        )
    }

    /// Renames a repository. The old name redirects to the new one.
    pub(crate) fn rename(&self, old: &str, new: &str) {
        let mut state = self.state();
        let repo = state.repos.remove(old).expect("it was added");
        state.repos.insert(new.to_owned(), repo);
        state.renamed.insert(old.to_owned(), new.to_owned());
    }

    /// Hides a repository from clients without the token.
    pub(crate) fn set_private(&self, repo: &str) {
        self.state().repos.entry(repo.to_owned()).or_default().private = true;
    }

    /// Hides the files of a repository from clients without the token.
    pub(crate) fn set_gated(&self, repo: &str) {
        self.state().repos.entry(repo.to_owned()).or_default().gated = true;
    }

    /// Returns the commit of a repository, which changes with its files.
    pub(crate) fn commit(&self, repo: &str) -> String {
        self.state().repos[repo].commit()
    }

    /// Changes the faults.
    pub(crate) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    /// Sums the requests to all paths with a prefix. Content is at `/cdn/<sha256>`, xorbs are at `/xorbs/<hash>`.
    pub(crate) fn hits(&self, prefix: &str) -> Hits {
        let state = self.state();
        state
            .hits
            .iter()
            .filter(|(path, _)| path.starts_with(prefix))
            .fold(Hits::default(), |sum, (_, hits)| Hits {
                requests: sum.requests + hits.requests,
                bytes: sum.bytes + hits.bytes,
                with_token: sum.with_token + hits.with_token,
            })
    }

    fn insert(&self, repo: &str, path: &str, source: Source, lfs: bool) -> String {
        let entry = Entry::new(source, lfs);
        let etag = entry.etag().to_owned();
        self.state()
            .repos
            .entry(repo.to_owned())
            .or_default()
            .files
            .insert(path.to_owned(), entry);
        etag
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Entry {
    fn new(source: Source, lfs: bool) -> Self {
        let source = match source {
            Source::Path(path) => Source::Opened(Arc::new(File::open(path).expect("the file is there"))),
            source => source,
        };
        let size = source.size();
        let (mut sha256, mut git) = (Sha256::new(), Sha1::new());
        git.update(format!("blob {size}\0"));
        let mut at = 0;
        while at < size {
            let part = source.read(at, (size - at).min(1 << 20)).expect("the file is readable");
            sha256.update(&part);
            git.update(&part);
            at += part.len() as u64;
        }
        Self {
            source,
            size,
            sha256: hex(&sha256.finalize()),
            oid: hex(&git.finalize()),
            lfs,
            claimed: None,
            xet: None,
        }
    }

    fn etag(&self) -> &str {
        if self.lfs { &self.sha256 } else { &self.oid }
    }
}

impl Source {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Path(path) => std::fs::metadata(path).expect("the file is there").len(),
            Self::Opened(file) => file.metadata().expect("it is open").len(),
        }
    }

    fn read(&self, at: u64, length: u64) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.slice(at as usize..(at + length) as usize)),
            Self::Path(path) => Self::Opened(Arc::new(File::open(path)?)).read(at, length),
            Self::Opened(file) => {
                let mut buffer = vec![0; length as usize];
                file.read_exact_at(&mut buffer, at)?;
                Ok(buffer.into())
            }
        }
    }
}

impl Repo {
    fn commit(&self) -> String {
        let mut hasher = Sha1::new();
        for (path, entry) in &self.files {
            hasher.update(format!("{path} {}\n", entry.oid));
        }
        hex(&hasher.finalize())
    }
}

impl State {
    fn stored(&self) -> impl Iterator<Item = Arc<xet::Stored>> {
        let files = self.repos.values().flat_map(|repo| repo.files.values());
        files.filter_map(|entry| entry.xet.clone())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }
}
