//! Questions to the Hub over HTTP: what a repository is, what it holds, where a file lies. No file is written here.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, RANGE},
    redirect::Policy,
};
use url::Url;

use super::{
    backoff::Backoff,
    cache,
    error::HubError,
    name,
    resolve::RepoFile,
    sites::{Health, Site, Tour},
    throttle::Throttle,
    wire::{EntryWire, FoundWire, InfoWire, WhoWire, XetTokenWire, etag, next_page, number, redirect, xet_hash},
};
use crate::{
    config::HubConfig,
    stdx::{Secret, sync::lock},
};

/// Redirects of one request; huggingface.co uses two.
const MAX_REDIRECTS: usize = 10;
/// Bytes of one JSON answer; repositories with tens of thousands of files stay under it.
const MAX_JSON_BYTES: usize = 32 << 20;
/// Pages of a listing; the Hub puts a thousand entries on each.
const MAX_PAGES: usize = 200;
/// What a download must bring within the time that counts as a stall; less is a connection that only seems alive.
const MIN_BYTES: usize = 1 << 10;

/// What outlives a request: connections, what is known of addresses, the bandwidth in use.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Rebuilt when the setting that is fixed at its construction changes.
    client: Mutex<Option<(Duration, reqwest::Client)>>,
    health: Arc<Health>,
    throttle: Arc<Throttle>,
}

/// A way to ask the Hub under one configuration.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    config: Arc<HubConfig>,
    sites: Arc<[Site]>,
    health: Arc<Health>,
    throttle: Arc<Throttle>,
}

/// What a repository is at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoInfo {
    /// Spelled as the Hub spells it.
    pub(crate) org: String,
    pub(crate) repo: String,
    pub(crate) commit: String,
    /// As the model card has it.
    pub(crate) license: Option<String>,
}

/// Leave to ask the store of the xet protocol.
#[derive(Clone, Debug)]
pub(crate) struct XetAccess {
    pub(crate) store: Url,
    pub(crate) token: Secret<String>,
    pub(crate) until: SystemTime,
}

/// Where a file's bytes are, for a while: links to a content network expire.
#[derive(Clone, Debug)]
pub(crate) struct FileLocation {
    /// Which address of the Hub named it.
    pub(crate) site: Site,
    pub(crate) url: Url,
    /// Hash of the content, where the Hub announces one.
    pub(crate) etag: Option<String>,
    pub(crate) size: Option<u64>,
    /// What the xet protocol knows the file by (64 hex digits), where it does.
    pub(crate) xet_hash: Option<String>,
}

/// What the Hub says to a plain question; for diagnosis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// The account behind the token; `None` without a token, or where the Hub does not accept it.
    pub user: Option<String>,
    /// Whether a token was sent and refused.
    pub token_refused: bool,
}

/// Which repositories are looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted<'a> {
    /// Those that match some words.
    Words(&'a str),
    /// Those that have a tag.
    Tag(&'a str),
}

/// What a request is about, for its error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About<'a> {
    pub(crate) repo: &'a str,
    pub(crate) revision: &'a str,
    pub(crate) path: &'a str,
}

impl Pool {
    fn client(&self, connect_timeout: Duration) -> Result<reqwest::Client, HubError> {
        let mut cached = lock(&self.client);
        if let Some((_, client)) = cached.as_ref().filter(|(timeout, _)| *timeout == connect_timeout) {
            return Ok(client.clone());
        }
        crate::http::client::install_tls();
        // HTTP/1 gives each range a connection, and so a window, of its own. Redirects are followed by hand, because the
        // token must not travel and because the Hub's headers are on the first answer.
        let client = reqwest::Client::builder()
            .user_agent(concat!("hubllama/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(connect_timeout)
            .http1_only()
            .build()
            .map_err(|error| HubError::Endpoint(chain(&error)))?;
        *cached = Some((connect_timeout, client.clone()));
        Ok(client)
    }
}

impl Client {
    pub(crate) fn new(pool: &Pool, config: Arc<HubConfig>) -> Result<Self, HubError> {
        Ok(Self {
            sites: Site::all(&config)?.into(),
            http: pool.client(config.connect_timeout)?,
            health: Arc::clone(&pool.health),
            throttle: Arc::clone(&pool.throttle),
            config,
        })
    }

    pub(crate) fn config(&self) -> &HubConfig {
        &self.config
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(&self.config)
    }

    fn tour(&self) -> Tour<'_> {
        Tour::new(&self.sites, &self.health, self.backoff())
    }

    /// Tells that an address named a place from which nothing comes, so that another is tried first.
    pub(crate) fn blame(&self, site: &Site) {
        self.health.failed(site);
    }

    /// The repository's canonical spelling and the commit behind a revision.
    pub(crate) async fn info(&self, repo: &str, revision: &str) -> Result<RepoInfo, HubError> {
        let about = About {
            repo,
            revision,
            path: "",
        };
        let mut tour = self.tour();
        loop {
            match self.info_at(tour.site(), &about).await {
                Ok(info) => {
                    tour.worked();
                    return Ok(info);
                }
                Err(error) => tour.failed(error).await?,
            }
        }
    }

    async fn info_at(&self, site: &Site, about: &About<'_>) -> Result<RepoInfo, HubError> {
        let About { repo, revision, .. } = *about;
        let url = site_url(site, &["api", "models"], repo, &["revision", revision], "")?;
        let (body, _) = self.json_once::<InfoWire>(&url, about).await?;
        // Another spelling is taken over; another name is one that the repository was given since, and whoever asks by the
        // old one has to find it by that.
        let id = body
            .id
            .as_deref()
            .filter(|id| id.eq_ignore_ascii_case(repo))
            .unwrap_or(repo);
        let Some((org, name)) = name::split_repo_id(id) else {
            return Err(self.protocol(&url, "it gave a repository name that the Hub does not allow"));
        };
        let (org, name) = (org.to_owned(), name.to_owned());
        match body.sha.as_ref().filter(|commit| cache::is_commit(commit)) {
            Some(commit) => Ok(RepoInfo {
                org,
                repo: name,
                commit: commit.clone(),
                license: body.license(),
            }),
            None => Err(self.protocol(&url, "it gave no commit")),
        }
    }

    /// Every file of a commit; paths that would leave the snapshot's folder are not among them.
    pub(crate) async fn tree(&self, repo: &str, commit: &str) -> Result<Vec<RepoFile>, HubError> {
        let about = About {
            repo,
            revision: commit,
            path: "",
        };
        let mut tour = self.tour();
        loop {
            match self.tree_at(tour.site(), &about).await {
                Ok(files) => {
                    tour.worked();
                    return Ok(files);
                }
                Err(error) => tour.failed(error).await?,
            }
        }
    }

    async fn tree_at(&self, site: &Site, about: &About<'_>) -> Result<Vec<RepoFile>, HubError> {
        let mut url = site_url(site, &["api", "models"], about.repo, &["tree", about.revision], "")?;
        url.set_query(Some("recursive=true&expand=false"));
        let mut files = Vec::new();
        for page in 0..MAX_PAGES {
            // The first page is tried once, since another address may have it; the others are where the first was.
            let (entries, headers) = match page {
                0 => self.json_once::<Vec<EntryWire>>(&url, about).await?,
                _ => self.json::<Vec<EntryWire>>(&url, about).await?,
            };
            files.extend(
                entries
                    .into_iter()
                    .filter(|entry| entry.kind == "file")
                    .filter_map(EntryWire::into_file),
            );
            match next_page(&headers).and_then(|next| url.join(&next).ok()) {
                Some(next) if next != url => url = next,
                _ => return Ok(files),
            }
        }
        Err(self.protocol(&url, "its listing does not end"))
    }

    /// Repositories with GGUF files, the most downloaded first.
    pub(crate) async fn search(&self, wanted: Wanted<'_>, limit: usize) -> Result<Vec<FoundWire>, HubError> {
        let about = About {
            repo: "",
            revision: "",
            path: "",
        };
        let mut tour = self.tour();
        loop {
            let mut url = tour.site().url.clone();
            extend(&mut url, ["api", "models"])?;
            url.query_pairs_mut()
                .append_pair("filter", "gguf")
                .append_pair("sort", "downloads")
                .append_pair("direction", "-1")
                .append_pair("limit", &limit.to_string());
            match wanted {
                Wanted::Words(words) => url.query_pairs_mut().append_pair("search", words),
                Wanted::Tag(tag) => url.query_pairs_mut().append_pair("filter", tag),
            };
            match self.json_once::<Vec<FoundWire>>(&url, &about).await {
                Ok((mut found, _)) => {
                    tour.worked();
                    found.retain(|repo| name::split_repo_id(&repo.id).is_some());
                    found.truncate(limit);
                    return Ok(found);
                }
                Err(error) => tour.failed(error).await?,
            }
        }
    }

    /// Asks where a file's bytes are. Redirects inside the Hub are followed; one that leads out is the answer.
    pub(crate) async fn locate(&self, about: &About<'_>) -> Result<FileLocation, HubError> {
        let mut tour = self.tour();
        loop {
            match self.locate_at(tour.site(), about).await {
                Ok(location) => {
                    tour.worked();
                    return Ok(location);
                }
                Err(error) => tour.failed(error).await?,
            }
        }
    }

    async fn locate_at(&self, site: &Site, about: &About<'_>) -> Result<FileLocation, HubError> {
        let mut location = FileLocation {
            url: site_url(site, &[], about.repo, &["resolve", about.revision], about.path)?,
            site: site.clone(),
            etag: None,
            size: None,
            xet_hash: None,
        };
        for _ in 0..=MAX_REDIRECTS {
            let token = self.token(&location.url, about.repo);
            let response = self.send(Method::HEAD, &location.url, None, token).await?;
            let headers = response.headers();
            // The first hop that knows the content wins; the content network's own tags mean something else.
            location.etag = location.etag.or_else(|| etag(headers, "x-linked-etag"));
            location.size = location.size.or_else(|| number(headers, "x-linked-size"));
            location.xet_hash = location.xet_hash.or_else(|| xet_hash(headers));
            match redirect(&response)? {
                Some(next) if next.origin() == site.url.origin() => location.url = next,
                Some(next) => {
                    location.url = next;
                    return Ok(location);
                }
                None if response.status().is_success() => {
                    location.etag = location.etag.or_else(|| etag(headers, "etag"));
                    location.size = location.size.or_else(|| number(headers, "content-length"));
                    return Ok(location);
                }
                None => return Err(self.refusal(response, about).await),
            }
        }
        Err(self.protocol(&location.url, "it redirects in a circle"))
    }

    /// The content of a small text file; `None` if the repository has no such file.
    pub(crate) async fn text(&self, about: &About<'_>) -> Result<Option<String>, HubError> {
        let mut tour = self.tour();
        loop {
            let url = site_url(tour.site(), &[], about.repo, &["resolve", about.revision], about.path)?;
            match self.text_once(&url, about).await {
                Err(HubError::FileNotFound { .. }) => return Ok(None),
                Ok(text) => {
                    tour.worked();
                    return Ok(Some(text));
                }
                Err(error) => tour.failed(error).await?,
            }
        }
    }

    async fn text_once(&self, url: &Url, about: &About<'_>) -> Result<String, HubError> {
        let response = self.get(url, None, about).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, about).await);
        }
        let body = self.body(response, MAX_JSON_BYTES).await?;
        String::from_utf8(body).map_err(|_| self.protocol(url, "the file is no UTF-8 text"))
    }

    /// One try to get a file's bytes, or the bytes `range.0..range.1` of them. The status is the caller's to look at.
    pub(crate) async fn get(
        &self,
        url: &Url,
        range: Option<(u64, u64)>,
        about: &About<'_>,
    ) -> Result<Response, HubError> {
        self.follow(url, range, |url| self.token(url, about.repo)).await
    }

    /// The same of somebody else than the Hub, who is shown another token or none.
    pub(crate) async fn get_with(
        &self,
        url: &Url,
        range: Option<(u64, u64)>,
        token: Option<&Secret<String>>,
    ) -> Result<Response, HubError> {
        self.follow(url, range, |now| token.filter(|_| now.origin() == url.origin()))
            .await
    }

    async fn follow<'t>(
        &self,
        url: &Url,
        range: Option<(u64, u64)>,
        token: impl Fn(&Url) -> Option<&'t Secret<String>>,
    ) -> Result<Response, HubError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(Method::GET, &url, range, token(&url)).await?;
            match redirect(&response)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(self.protocol(&url, "it redirects in a circle"))
    }

    /// Asks for leave to read a repository's files over the xet protocol.
    pub(crate) async fn xet_access(&self, site: &Site, about: &About<'_>) -> Result<XetAccess, HubError> {
        let tail = ["xet-read-token", about.revision];
        let url = site_url(site, &["api", "models"], about.repo, &tail, "")?;
        let (wire, _) = self.json_once::<XetTokenWire>(&url, about).await?;
        let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(wire.exp));
        match (Url::parse(&wire.cas_url), until) {
            (Ok(store), Some(until)) => Ok(XetAccess {
                store,
                token: Secret::new(wire.access_token),
                until,
            }),
            _ => Err(self.protocol(&url, "it names no store that could be asked")),
        }
    }

    /// Whether the Hub answers, and what it thinks of the token.
    pub(crate) async fn reachable(&self) -> Result<Reachable, HubError> {
        let mut url = self.main()?.url.clone();
        extend(&mut url, ["api", "whoami-v2"])?;
        let about = About {
            repo: "",
            revision: "",
            path: "",
        };
        let response = self.get(&url, None, &about).await?;
        match response.status() {
            StatusCode::OK => {
                let body = self.body(response, MAX_JSON_BYTES).await?;
                let user = serde_json::from_slice::<WhoWire>(&body).ok().map(|who| who.name);
                Ok(Reachable {
                    user,
                    token_refused: false,
                })
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Reachable {
                user: None,
                token_refused: self.config.token.is_some(),
            }),
            // A mirror need not know accounts.
            StatusCode::NOT_FOUND => Ok(Reachable {
                user: None,
                token_refused: false,
            }),
            _ => Err(self.refusal(response, &about).await),
        }
    }

    /// Reads a chunk of a download, no faster than the setting allows.
    pub(crate) async fn content(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, HubError> {
        let chunk = self.chunk(response).await?;
        let length = chunk.as_ref().map_or(0, bytes::Bytes::len);
        self.throttle
            .take(length as u64, self.config.max_bytes_per_second)
            .await;
        Ok(chunk)
    }

    /// Watches the pace of one response.
    pub(crate) fn pace(&self) -> Pace {
        Pace {
            since: Instant::now(),
            bytes: 0,
            after: self.config.stall_timeout,
        }
    }

    /// Reads a chunk, unless none comes for too long.
    pub(crate) async fn chunk(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, HubError> {
        let after = self.config.stall_timeout;
        match tokio::time::timeout(after, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(HubError::Interrupted {
                path: response.url().path().to_owned(),
                reason: chain(&error),
            }),
            Err(_) => Err(HubError::Stalled {
                host: host(response.url()),
                after,
            }),
        }
    }

    pub(crate) fn protocol(&self, url: &Url, problem: &str) -> HubError {
        HubError::Protocol {
            host: host(url),
            problem: problem.to_owned(),
        }
    }

    async fn json<T: serde::de::DeserializeOwned>(
        &self,
        url: &Url,
        about: &About<'_>,
    ) -> Result<(T, HeaderMap), HubError> {
        let mut backoff = self.backoff();
        loop {
            match self.json_once(url, about).await {
                Ok(answer) => return Ok(answer),
                Err(error) => backoff.wait(error).await?,
            }
        }
    }

    async fn json_once<T: serde::de::DeserializeOwned>(
        &self,
        url: &Url,
        about: &About<'_>,
    ) -> Result<(T, HeaderMap), HubError> {
        let response = self.get(url, None, about).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, about).await);
        }
        let headers = response.headers().clone();
        Ok((self.parsed(response).await?, headers))
    }

    /// The JSON of an answer.
    pub(crate) async fn parsed<T: serde::de::DeserializeOwned>(&self, response: Response) -> Result<T, HubError> {
        let url = response.url().clone();
        let body = self.body(response, MAX_JSON_BYTES).await?;
        serde_json::from_slice(&body).map_err(|_| self.protocol(&url, "its answer is not the JSON of a Hub"))
    }

    pub(crate) async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, HubError> {
        let mut body = Vec::new();
        let mut pace = self.pace();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if pace.is_dripping(chunk.len()) {
                return Err(HubError::Stalled {
                    host: host(response.url()),
                    after: self.config.stall_timeout,
                });
            }
            if body.len() + chunk.len() > limit {
                return Err(self.protocol(response.url(), "its answer is too long"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The token for a repository: its organisation's, else the general one. Only the Hub itself is shown it, no mirror and no
    /// content network.
    fn token(&self, url: &Url, repo: &str) -> Option<&Secret<String>> {
        self.sites.first().filter(|main| main.url.origin() == url.origin())?;
        let org = repo.split('/').next().unwrap_or_default().to_ascii_lowercase();
        self.config.organisation_tokens.get(&org).or(self.config.token.as_ref())
    }

    fn main(&self) -> Result<&Site, HubError> {
        self.sites
            .first()
            .ok_or_else(|| HubError::Endpoint("there is none".into()))
    }

    /// One request, one answer.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        range: Option<(u64, u64)>,
        token: Option<&Secret<String>>,
    ) -> Result<Response, HubError> {
        // A server that compresses would ignore ranges and hide the size.
        let mut request = self
            .http
            .request(method, url.clone())
            .header(ACCEPT_ENCODING, "identity");
        if let Some((start, end)) = range {
            request = request.header(RANGE, format!("bytes={start}-{}", end - 1));
        }
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let after = self.config.stall_timeout.max(self.config.connect_timeout);
        match tokio::time::timeout(after, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_builder() => Err(HubError::Endpoint(chain(&error))),
            Ok(Err(error)) => Err(HubError::Unreachable {
                endpoint: site(url),
                reason: chain(&error),
            }),
            Err(_) => Err(HubError::Stalled { host: host(url), after }),
        }
    }
}

/// Finds out that a body drips: bytes come often enough, but too few of them.
#[derive(Debug)]
pub(crate) struct Pace {
    since: Instant,
    bytes: usize,
    after: Duration,
}

impl Pace {
    /// Counts what came; whether it is too little for the time that it took.
    pub(crate) fn is_dripping(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        if self.since.elapsed() < self.after {
            return false;
        }
        let is_dripping = self.bytes < MIN_BYTES;
        (self.since, self.bytes) = (Instant::now(), 0);
        is_dripping
    }
}

/// `ADDRESS/HEAD…/ORG/REPO/TAIL…/PATH…`, where a slash inside a revision is escaped and one inside a path is not.
fn site_url(site: &Site, head: &[&str], repo: &str, tail: &[&str], path: &str) -> Result<Url, HubError> {
    let mut url = site.url.clone();
    let segments = head.iter().copied().chain(repo.split('/')).chain(tail.iter().copied());
    extend(
        &mut url,
        segments.chain(path.split('/')).filter(|segment| !segment.is_empty()),
    )?;
    Ok(url)
}

pub(super) fn extend<'a>(url: &mut Url, segments: impl IntoIterator<Item = &'a str>) -> Result<(), HubError> {
    match url.path_segments_mut() {
        Ok(mut path) => {
            path.pop_if_empty().extend(segments);
            Ok(())
        }
        Err(()) => Err(HubError::Endpoint("it has no path".into())),
    }
}

pub(crate) fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// Scheme, host and port, without the path: signed links are secrets for as long as they hold.
fn site(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// An error and its causes in one line, without the address that reqwest adds.
fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    if text.is_empty() {
        "the request failed".into()
    } else {
        text
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    pub(crate) fn client(endpoint: &str) -> Client {
        let config = HubConfig {
            endpoint: endpoint.into(),
            ..HubConfig::default()
        };
        Client::new(&Pool::default(), Arc::new(config)).unwrap()
    }

    #[test]
    fn urls() {
        let client = client("http://127.0.0.1:1/mirror/");
        let url = |head: &[&str], tail: &[&str], path| {
            site_url(&client.sites[0], head, "o/r.x", tail, path)
                .unwrap()
                .to_string()
        };
        assert_eq!(
            url(&["api", "models"], &["tree", "refs/pr/1"], ""),
            "http://127.0.0.1:1/mirror/api/models/o/r.x/tree/refs%2Fpr%2F1"
        );
        assert_eq!(
            url(&[], &["resolve", "main"], "a b/c%?.gguf"),
            "http://127.0.0.1:1/mirror/o/r.x/resolve/main/a%20b/c%25%3F.gguf"
        );
    }

    /// An answer whose bytes come one by one would keep a pull waiting for hours.
    #[tokio::test]
    async fn an_answer_that_drips_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            // An answer before the question is no answer.
            let asked = socket.read(&mut [0; 1024]).await.unwrap();
            assert!(asked > 0);
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n";
            let mut sent = socket.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
                sent = socket.write_all(b" ").await;
            }
        });
        let config = HubConfig {
            endpoint,
            stall_timeout: Duration::from_millis(200),
            retry_attempts: 0,
            ..HubConfig::default()
        };
        let client = Client::new(&Pool::default(), Arc::new(config)).unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(20), client.info("o/r", "main"));
        let error = asked.await.expect("it ends").unwrap_err();
        assert!(matches!(error, HubError::Stalled { .. }), "{error}");
        server.abort();
    }

    #[test]
    fn bad_endpoints() {
        for endpoint in ["", "huggingface.co", "ftp://x", "http://"] {
            let config = HubConfig {
                endpoint: endpoint.into(),
                ..HubConfig::default()
            };
            let error = Client::new(&Pool::default(), Arc::new(config)).unwrap_err();
            assert!(matches!(error, HubError::Endpoint(_)), "{endpoint}: {error}");
        }
    }
}
