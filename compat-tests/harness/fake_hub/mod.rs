//! A Hugging Face Hub on the loopback interface: the API, the resolve routes, a content network and the store of the xet
//! protocol on ports of their own, with faults that can be switched on.

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

/// A running Hub; dropping it stops it.
#[derive(Debug)]
pub(crate) struct FakeHub {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Where a file's bytes come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Bytes(Bytes),
    /// Read at each request, so that a large model is not copied.
    Path(PathBuf),
    /// A path once it is served.
    Opened(Arc<File>),
}

/// What goes wrong. Counters say how many more times; `None` and zero are "not at all".
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Content answers with this status and an HTML page, so many times.
    pub(crate) content_status: Option<(u16, u32)>,
    /// The API answers with this status, so many times.
    pub(crate) api_status: Option<(u16, u32)>,
    /// `Retry-After` in seconds for a status that is a fault.
    pub(crate) retry_after: Option<u64>,
    /// The API takes requests and never answers.
    pub(crate) api_hangs: bool,
    /// Content bodies break off after so many bytes, so many times.
    pub(crate) truncate: Option<(u64, u32)>,
    /// Content bodies stop without an end after so many bytes, so many times.
    pub(crate) stall: Option<(u64, u32)>,
    /// Content bodies come byte by byte after so many bytes, so many times.
    pub(crate) drip: Option<(u64, u32)>,
    /// Wait before each 64 KiB of content.
    pub(crate) delay: Duration,
    /// Content is not what its hash says.
    pub(crate) wrong_content: bool,
    /// `Range` is ignored.
    pub(crate) no_ranges: bool,
    /// Links to content are refused with 403, so many times.
    pub(crate) expired_links: u32,
    /// Resolving redirects to itself.
    pub(crate) redirect_loop: bool,
    /// Small files are answered by a relative redirect.
    pub(crate) relative_redirects: bool,
    /// Entries on one page of a listing; 0 is all.
    pub(crate) page_size: usize,
    pub(crate) xet: XetFaults,
}

/// What was asked of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hits {
    pub(crate) requests: u64,
    /// Bytes of bodies that were handed to the connection.
    pub(crate) bytes: u64,
    /// Requests that carried a token.
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
    /// The size that the listing has, where it is not the true one.
    claimed: Option<u64>,
    /// The same in the store of the xet protocol.
    xet: Option<Arc<xet::Stored>>,
}

/// The one token that is valid.
pub(crate) const TOKEN: &str = "hf_loopback";

impl FakeHub {
    /// Starts on free ports, on a thread of its own.
    pub(crate) fn start() -> Self {
        // Bound here, so that connections are taken from now on; served by a runtime that is not the test's.
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
                // Connections end here, also those that stall.
                runtime.shutdown_background();
            })
            .expect("a thread");
        Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Base URL, for `HF_ENDPOINT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.shared.api)
    }

    /// Adds a large file (one with a sha256, on the content network) to a repository that is made on the way.
    pub(crate) fn add(&self, repo: &str, path: &str, source: Source) -> String {
        self.insert(repo, path, source, true)
    }

    /// Puts a large file into the store of the xet protocol too.
    pub(crate) fn store(&self, repo: &str, path: &str) {
        let mut state = self.state();
        let files = state.repos.get_mut(repo).map(|repo| &mut repo.files);
        let entry = files.and_then(|files| files.get_mut(path)).expect("it was added");
        entry.xet = Some(Arc::new(xet::Stored::new(&entry.source, entry.size, &entry.sha256)));
    }

    /// Adds a large file whose listing lies about its size.
    pub(crate) fn add_claiming(&self, repo: &str, path: &str, source: Source, size: u64) {
        self.insert(repo, path, source, true);
        let mut state = self.state();
        let files = state.repos.get_mut(repo).map(|repo| &mut repo.files);
        files.and_then(|files| files.get_mut(path)).expect("just added").claimed = Some(size);
    }

    /// Tags of a repository, as `license:mit`.
    pub(crate) fn set_tags(&self, repo: &str, tags: &[&str]) {
        self.state().repos.entry(repo.to_owned()).or_default().tags =
            tags.iter().map(|tag| (*tag).to_owned()).collect();
    }

    /// Adds a small file, which git holds itself; returns its hash.
    pub(crate) fn add_small(&self, repo: &str, path: &str, content: &str) -> String {
        self.insert(
            repo,
            path,
            Source::Bytes(Bytes::copy_from_slice(content.as_bytes())),
            false,
        )
    }

    /// Visible only with the token.
    pub(crate) fn set_private(&self, repo: &str) {
        self.state().repos.entry(repo.to_owned()).or_default().private = true;
    }

    /// Its files are visible only with the token.
    pub(crate) fn set_gated(&self, repo: &str) {
        self.state().repos.entry(repo.to_owned()).or_default().gated = true;
    }

    /// Commit of a repository; changes with its files.
    pub(crate) fn commit(&self, repo: &str) -> String {
        self.state().repos[repo].commit()
    }

    /// Changes what goes wrong.
    pub(crate) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    /// Sum over the paths that begin so. Content is at `/cdn/<sha256>`, chunks of it are at `/xorbs/<hash>`.
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
