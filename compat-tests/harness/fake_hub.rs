//! A Hugging Face Hub on the loopback interface: the API, the resolve routes and a content network on a port of its own,
//! with faults that can be switched on.

use std::{
    collections::BTreeMap,
    convert::Infallible,
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
use futures_util::stream;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{AUTHORIZATION, HeaderValue, RANGE},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, sync::oneshot};

/// Bytes of one frame of a body.
const CHUNK: u64 = 64 << 10;

type Body = UnsyncBoxBody<Bytes, io::Error>;

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
        let (api, content) = (bind(), bind());
        let address =
            |listener: &std::net::TcpListener| listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            api: address(&api),
            content: address(&content),
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
                    let (api, content) = (tokio(api), tokio(content));
                    tokio::select! {
                        () = accept(api, &served, false) => {}
                        () = accept(content, &served, true) => {}
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

    /// Sum over the paths that begin so. Content is at `/cdn/<sha256>`.
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

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }
}

async fn accept(listener: TcpListener, shared: &Arc<Shared>, is_content: bool) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            return;
        };
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(&shared, &request, is_content);
                let hangs = !is_content && shared.state().faults.api_hangs;
                async move {
                    if hangs {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            // A client that goes away is part of most tests.
            let _ = http.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

fn answer(shared: &Arc<Shared>, request: &Request<Incoming>, is_content: bool) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let has_token = token == Some(&format!("Bearer {TOKEN}"));
    {
        let mut state = shared.state();
        let hits = state.hits.entry(path.clone()).or_default();
        hits.requests += 1;
        hits.with_token += u64::from(token.is_some());
    }
    let segments: Vec<String> = path
        .split('/')
        .skip(1)
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let mut response = match (is_content, segments.as_slice()) {
        (true, ["cdn", sha256]) => content(shared, &path, sha256, request.headers()),
        (true, _) => error(404, "", "no such content"),
        (false, ["api", "whoami-v2"]) if has_token => json_response(&json!({"name": "loopback", "type": "user"})),
        (false, ["api", "whoami-v2"]) => error(401, "", "Invalid credentials in Authorization header"),
        (false, ["api", "models"]) => search(shared, &query, has_token),
        (false, ["api", "models", org, repo, rest @ ..]) => {
            api(shared, &format!("{org}/{repo}"), rest, &query, has_token)
        }
        (false, ["api", "resolve-cache", "models", org, repo, commit, file]) => {
            small(shared, &path, &format!("{org}/{repo}"), commit, file, request.headers())
        }
        (false, [org, repo, "resolve", revision, file @ ..]) => {
            let repo = format!("{org}/{repo}");
            resolve(
                shared,
                &path,
                &repo,
                revision,
                &file.join("/"),
                has_token,
                request.headers(),
            )
        }
        _ => error(404, "", "Sorry, we can't find the page you are looking for."),
    };
    if request.method() == Method::HEAD {
        let length = response.headers().get("content-length").cloned();
        let (mut parts, _) = response.into_parts();
        if let Some(length) = length {
            parts.headers.insert("content-length", length);
        }
        response = Response::from_parts(parts, empty());
    }
    response
}

fn api(shared: &Shared, id: &str, rest: &[&str], query: &str, has_token: bool) -> Response<Body> {
    let mut state = shared.state();
    let retry_after = state.faults.retry_after;
    if let Some(status) = take(&mut state.faults.api_status) {
        let mut response = error(status, "", "");
        if let Some(seconds) = retry_after {
            response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
        }
        return response;
    }
    let Some((canonical, repo)) = state.repos.iter().find(|(known, _)| known.eq_ignore_ascii_case(id)) else {
        return error(
            if has_token { 404 } else { 401 },
            "RepoNotFound",
            "Repository not found",
        );
    };
    if repo.private && !has_token {
        return error(401, "RepoNotFound", "Repository not found");
    }
    if canonical != id {
        let tail: String = rest
            .iter()
            .map(|part| format!("/{}", part.replace('/', "%2F")))
            .collect();
        return redirect(307, &format!("/api/models/{canonical}{tail}"));
    }
    let commit = repo.commit();
    let revision = rest.get(1).copied().unwrap_or("main");
    if revision != "main" && revision != commit && revision != "refs/pr/1" {
        return error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    }
    match rest {
        [] | ["revision", _] => {
            let siblings: Vec<_> = repo.files.keys().map(|path| json!({"rfilename": path})).collect();
            let gated: Value = if repo.gated { "auto".into() } else { false.into() };
            json_response(&json!({
                "id": canonical, "sha": commit, "private": repo.private, "gated": gated, "tags": repo.tags,
                "siblings": siblings,
            }))
        }
        ["refs"] => json_response(&json!({
            "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit}], "tags": [], "converts": [],
        })),
        ["tree", _] => {
            let entries: Vec<_> = repo.files.iter().map(|(path, entry)| listed(path, entry)).collect();
            let size = if state.faults.page_size == 0 {
                usize::MAX
            } else {
                state.faults.page_size
            };
            let cursor = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("cursor="))
                .unwrap_or("0");
            let start = cursor.parse::<usize>().unwrap_or(0).min(entries.len());
            let end = start.saturating_add(size).min(entries.len());
            let mut response = json_response(&json!(entries[start..end]));
            if end < entries.len() {
                let next = format!(
                    "<http://{}/api/models/{id}/tree/{revision}?recursive=true&cursor={end}>; rel=\"next\"",
                    shared.api
                );
                response
                    .headers_mut()
                    .insert("link", HeaderValue::try_from(next).expect("a URL"));
            }
            response
        }
        _ => error(404, "", "no such route"),
    }
}

fn listed(path: &str, entry: &Entry) -> Value {
    let size = entry.claimed.unwrap_or(entry.size);
    let mut listed = json!({"type": "file", "oid": entry.oid, "size": size, "path": path});
    if entry.lfs {
        listed["lfs"] = json!({"oid": entry.sha256, "size": size, "pointerSize": 130});
    }
    listed
}

/// Repositories whose name has all the words, as `GET /api/models?search=…&limit=…` gives them.
fn search(shared: &Shared, query: &str, has_token: bool) -> Response<Body> {
    let pairs: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let words = pairs.get("search").cloned().unwrap_or_default().to_lowercase();
    let limit = pairs.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(1000);
    let state = shared.state();
    let found: Vec<Value> = state
        .repos
        .iter()
        .filter(|(_, repo)| !repo.private || has_token)
        .filter(|(id, _)| words.split_whitespace().all(|word| id.to_lowercase().contains(word)))
        .map(|(id, repo)| json!({"id": id, "downloads": 1234, "gated": repo.gated, "tags": repo.tags}))
        .take(limit)
        .collect();
    json_response(&json!(found))
}

fn resolve(
    shared: &Arc<Shared>,
    path: &str,
    id: &str,
    revision: &str,
    file: &str,
    has_token: bool,
    headers: &HeaderMap,
) -> Response<Body> {
    let state = shared.state();
    let Some(repo) = state.repos.get(id) else {
        return error(
            if has_token { 404 } else { 401 },
            "RepoNotFound",
            "Repository not found",
        );
    };
    if repo.private && !has_token {
        return error(401, "RepoNotFound", "Repository not found");
    }
    if repo.gated && !has_token {
        let text = format!("Access to model {id} is restricted. You must have access to it and be authenticated.");
        return error(401, "GatedRepo", &text);
    }
    if state.faults.redirect_loop {
        return redirect(307, path);
    }
    let commit = repo.commit();
    if revision != "main" && revision != commit {
        return error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    }
    let Some(entry) = repo.files.get(file).cloned() else {
        return error(404, "EntryNotFound", "Entry not found");
    };
    let relative = state.faults.relative_redirects;
    drop(state);
    if !entry.lfs && relative {
        return redirect(
            307,
            &format!("/api/resolve-cache/models/{id}/{commit}/{}", file.replace('/', "%2F")),
        );
    }
    if !entry.lfs {
        return small(shared, path, id, &commit, file, headers);
    }
    let mut response = redirect(302, &format!("http://{}/cdn/{}", shared.content, entry.sha256));
    describe(&mut response, &commit, &entry);
    response
}

fn small(shared: &Arc<Shared>, path: &str, id: &str, commit: &str, file: &str, headers: &HeaderMap) -> Response<Body> {
    let entry = shared
        .state()
        .repos
        .get(id)
        .and_then(|repo| repo.files.get(file).cloned());
    let Some(entry) = entry else {
        return error(404, "EntryNotFound", "Entry not found");
    };
    if headers
        .get("if-none-match")
        .is_some_and(|tag| tag == format!("\"{}\"", entry.oid).as_str())
    {
        return Response::builder().status(304).body(empty()).expect("a valid response");
    }
    let mut response = bytes(shared, path, &entry, headers);
    describe(&mut response, commit, &entry);
    response
}

fn content(shared: &Arc<Shared>, path: &str, sha256: &str, headers: &HeaderMap) -> Response<Body> {
    let mut state = shared.state();
    let found = state.repos.values().find_map(|repo| {
        repo.files
            .values()
            .find(|entry| entry.sha256 == sha256)
            .map(|entry| (repo.commit(), entry.clone()))
    });
    let Some((commit, entry)) = found else {
        return error(404, "", "no such content");
    };
    if state.faults.expired_links > 0 {
        state.faults.expired_links -= 1;
        return page(403, "<html>Request has expired</html>");
    }
    if let Some(status) = take(&mut state.faults.content_status) {
        let mut response = page(status, "<html>Internal Error</html>");
        if let Some(seconds) = state.faults.retry_after {
            response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
        }
        return response;
    }
    drop(state);
    let mut response = bytes(shared, path, &entry, headers);
    // Python's client takes this port for the Hub's own and wants to read these again.
    describe(&mut response, &commit, &entry);
    response
}

/// The bytes of a file, as much of them as was asked for and as the faults let through.
fn bytes(shared: &Arc<Shared>, path: &str, entry: &Entry, headers: &HeaderMap) -> Response<Body> {
    let mut state = shared.state();
    let faults = &mut state.faults;
    let range = headers
        .get(RANGE)
        .and_then(|value| value.to_str().ok())
        .filter(|_| !faults.no_ranges);
    let (start, end, status) = match range.map(|range| parse_range(range, entry.size)) {
        None => (0, entry.size, StatusCode::OK),
        Some(Some((start, end))) => (start, end, StatusCode::PARTIAL_CONTENT),
        Some(None) => {
            let mut response = page(416, "");
            let size = format!("bytes */{}", entry.size);
            response
                .headers_mut()
                .insert("content-range", HeaderValue::try_from(size).expect("digits"));
            return response;
        }
    };
    let mut plan = BodyPlan {
        shared: Arc::clone(shared),
        path: path.to_owned(),
        source: entry.source.clone(),
        at: start,
        end,
        last: end,
        breaks: None,
        delay: faults.delay,
        drips_from: u64::MAX,
        wrong: faults.wrong_content,
    };
    if let Some((bytes, count)) = faults.drip.as_mut().filter(|(_, count)| *count > 0) {
        *count -= 1;
        plan.drips_from = start + *bytes;
    }
    for (fault, kind) in [(&mut faults.truncate, Break::Cut), (&mut faults.stall, Break::Hang)] {
        if let Some((bytes, count)) = fault.as_mut().filter(|(_, count)| *count > 0) {
            *count -= 1;
            plan.last = end.min(start + *bytes);
            plan.breaks = Some(kind);
        }
    }
    drop(state);
    let mut response = Response::builder()
        .status(status)
        .header("content-type", "application/octet-stream")
        .header("content-length", end - start);
    if !shared.state().faults.no_ranges {
        response = response.header("accept-ranges", "bytes");
    }
    if status == StatusCode::PARTIAL_CONTENT {
        response = response.header("content-range", format!("bytes {start}-{}/{}", end - 1, entry.size));
    }
    let body = StreamBody::new(stream::unfold(plan, BodyPlan::next));
    response.body(body.boxed_unsync()).expect("a valid response")
}

#[derive(Clone, Copy, Debug)]
enum Break {
    Cut,
    Hang,
}

struct BodyPlan {
    shared: Arc<Shared>,
    path: String,
    source: Source,
    at: u64,
    end: u64,
    /// Where the body breaks, if it does before its end.
    last: u64,
    breaks: Option<Break>,
    delay: Duration,
    /// From here on it comes byte by byte.
    drips_from: u64,
    wrong: bool,
}

impl BodyPlan {
    async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        if self.at >= self.last {
            if self.last == self.end {
                return None;
            }
            match self.breaks {
                Some(Break::Hang) => std::future::pending::<()>().await,
                // What was written has to leave the socket before the connection is torn down.
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            return Some((Err(io::Error::other("the connection breaks here")), self));
        }
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let mut length = CHUNK.min(self.last - self.at);
        if self.at >= self.drips_from {
            tokio::time::sleep(Duration::from_millis(20)).await;
            length = 1;
        }
        let read = self.source.read(self.at, length);
        self.at += length;
        self.shared.state().hits.entry(self.path.clone()).or_default().bytes += length;
        let chunk = match read {
            Ok(chunk) if self.wrong => chunk.iter().map(|byte| byte ^ 1).collect(),
            Ok(chunk) => chunk,
            Err(error) => return Some((Err(error), self)),
        };
        Some((Ok(Frame::data(chunk)), self))
    }
}

fn parse_range(range: &str, size: u64) -> Option<(u64, u64)> {
    let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = start.parse().ok()?;
    let end = if end.is_empty() {
        size
    } else {
        end.parse::<u64>().ok()? + 1
    };
    (start < size && start < end).then_some((start, end.min(size)))
}

fn describe(response: &mut Response<Body>, commit: &str, entry: &Entry) {
    let mut set = |name: &'static str, value: String| {
        response
            .headers_mut()
            .insert(name, HeaderValue::try_from(value).expect("hex digits"));
    };
    set("x-repo-commit", commit.to_owned());
    set("etag", format!("\"{}\"", entry.oid));
    if entry.lfs {
        set("x-linked-etag", format!("\"{}\"", entry.sha256));
        set("x-linked-size", entry.size.to_string());
    }
}

/// One more time of a fault that is counted.
fn take(fault: &mut Option<(u16, u32)>) -> Option<u16> {
    let (status, count) = fault.as_mut().filter(|(_, count)| *count > 0)?;
    *count -= 1;
    Some(*status)
}

fn json_response(value: &Value) -> Response<Body> {
    Response::builder()
        .header("content-type", "application/json")
        .body(full(value.to_string()))
        .expect("a valid response")
}

fn error(status: u16, code: &str, message: &str) -> Response<Body> {
    let mut response = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    if !code.is_empty() {
        response = response.header("x-error-code", code);
    }
    if !message.is_empty() {
        response = response.header("x-error-message", message);
    }
    response
        .body(full(json!({"error": message}).to_string()))
        .expect("a valid response")
}

fn page(status: u16, html: &str) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "text/html")
        .body(full(html.to_owned()))
        .expect("a valid response")
}

fn redirect(status: u16, location: &str) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("location", location)
        .body(empty())
        .expect("a valid response")
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
