//! Client of the Hub: requests for listings, locations of files and their bytes.
//!
//! [`HubClient`] is built for one operation from the current configuration and the shared [`ConnectionPool`]. Requests
//! go to the endpoints in turn (see `endpoints`). Questions that the `hf-hub` crate answers well are in `api`; errors
//! are classified in `refusal`. Nothing here writes files: `fetch` does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{
    Method, Response,
    header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, RANGE},
};
use url::Url;

use super::{
    backoff::Backoff,
    endpoints::{Endpoint, EndpointHealth, EndpointRotation},
    error::HubError,
    pool::{ApiClients, ConnectionPool, MAX_REDIRECTS, chain},
    resolve::RepoFile,
    throttle::Throttle,
    wire::{EntryWire, XetTokenWire, etag, next_page, number, redirect, xet_hash},
};
use crate::{config::HubConfig, stdx::Secret};

/// Upper limit of one JSON answer in bytes. A page of a listing has about 300 kB.
const MAX_JSON_BYTES: usize = 32 << 20;
/// Upper limit of pages of a listing. The Hub puts a thousand entries on each.
const MAX_PAGES: usize = 200;
/// Bytes that a download has to bring within the stall timeout. A connection with less only seems alive.
pub(super) const MIN_BYTES: usize = 1 << 10;

/// Client of the Hub for one operation under one configuration.
#[derive(Clone, Debug)]
pub(crate) struct HubClient {
    http: reqwest::Client,
    api_clients: Arc<ApiClients>,
    config: Arc<HubConfig>,
    endpoints: Arc<[Endpoint]>,
    health: Arc<EndpointHealth>,
    throttle: Arc<Throttle>,
}

/// Repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoInfo {
    /// Owner in the Hub's spelling.
    pub(crate) org: String,
    /// Name without the owner, in the Hub's spelling.
    pub(crate) repo: String,
    pub(crate) commit: String,
    /// License as named on the model card.
    pub(crate) license: Option<String>,
}

/// Permission to read files from the store of the xet protocol.
#[derive(Clone, Debug)]
pub(crate) struct XetAccess {
    /// Base URL of the content-addressed store.
    pub(crate) store: Url,
    pub(crate) token: Secret<String>,
    /// End of the token's validity, in seconds since 1970.
    pub(crate) expires: u64,
}

/// Location of a file's bytes. Links to a content network expire.
#[derive(Clone, Debug)]
pub(crate) struct FileLocation {
    /// Endpoint that gave the location.
    pub(crate) endpoint: Endpoint,
    pub(crate) url: Url,
    /// Hash of the content (sha256, or git's sha1 of a small file), if the endpoint announces one.
    pub(crate) etag: Option<String>,
    /// Bytes, if the endpoint announces them.
    pub(crate) size: Option<u64>,
    /// Hash by which the xet store knows the file, if it has the file: 64 hex digits.
    pub(crate) xet_hash: Option<String>,
}

/// Answer of the Hub to a plain question, for diagnosis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubReachability {
    /// Account behind the token; `None` without a token or with one that the Hub refuses.
    pub user: Option<String>,
    /// True when a token was sent and refused.
    pub token_refused: bool,
}

/// Subject of a request, for error texts. Parts that do not apply are empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestSubject<'a> {
    /// `ORG/REPO`.
    pub(crate) repo: &'a str,
    pub(crate) revision: &'a str,
    /// Path in the repository.
    pub(crate) path: &'a str,
}

impl HubClient {
    /// Creates a client from the current configuration. It is cheap: connections come from the pool.
    ///
    /// # Errors
    /// If an endpoint of the configuration is not a URL that can be used.
    pub(crate) fn new(pool: &ConnectionPool, config: Arc<HubConfig>) -> Result<Self, HubError> {
        Ok(Self {
            endpoints: Endpoint::all(&config)?.into(),
            http: pool.http(config.connect_timeout)?,
            api_clients: Arc::clone(&pool.api_clients),
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

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    pub(super) fn api_clients(&self) -> &ApiClients {
        &self.api_clients
    }

    pub(super) fn rotation(&self) -> EndpointRotation<'_> {
        EndpointRotation::new(&self.endpoints, &self.health, self.backoff())
    }

    /// Puts an endpoint whose links do not work at the end of the next rounds.
    pub(crate) fn mark_unhealthy(&self, endpoint: &Endpoint) {
        self.health.mark_unhealthy(endpoint);
    }

    /// Returns the longest wait for the head of a response.
    pub(super) fn response_timeout(&self) -> Duration {
        self.config.stall_timeout.max(self.config.connect_timeout)
    }

    /// Lists the files of a commit, without those whose paths would leave the snapshot's folder.
    ///
    /// The request is ours and not `hf-hub`'s, whose `list_tree` loses the sha256 of large files: it looks for
    /// `lfs.sha256`, and the Hub calls the field `lfs.oid`. Without it every file would need a HEAD request before it
    /// could be planned.
    pub(crate) async fn tree(&self, repo: &str, commit: &str) -> Result<Vec<RepoFile>, HubError> {
        let about = RequestSubject {
            repo,
            revision: commit,
            path: "",
        };
        let mut rotation = self.rotation();
        loop {
            match self.tree_at(rotation.current(), &about).await {
                Ok(files) => {
                    rotation.succeeded();
                    return Ok(files);
                }
                Err(error) => rotation.failed(error).await?,
            }
        }
    }

    async fn tree_at(&self, endpoint: &Endpoint, about: &RequestSubject<'_>) -> Result<Vec<RepoFile>, HubError> {
        let mut url = endpoint_url(endpoint, &["api", "models"], about.repo, &["tree", about.revision], "")?;
        url.set_query(Some("recursive=true&expand=false"));
        let mut files = Vec::new();
        for page in 0..MAX_PAGES {
            // The first page is tried once, since another endpoint may answer. The others have to come from the same
            // endpoint: cursors of one server mean nothing to another.
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

    /// Asks for the location of a file's bytes. Redirects inside the endpoint are followed; one that leads out is the
    /// answer.
    pub(crate) async fn locate(&self, about: &RequestSubject<'_>) -> Result<FileLocation, HubError> {
        let mut rotation = self.rotation();
        loop {
            match self.locate_at(rotation.current(), about).await {
                Ok(location) => {
                    rotation.succeeded();
                    return Ok(location);
                }
                Err(error) => rotation.failed(error).await?,
            }
        }
    }

    async fn locate_at(&self, endpoint: &Endpoint, about: &RequestSubject<'_>) -> Result<FileLocation, HubError> {
        let mut location = FileLocation {
            url: endpoint_url(endpoint, &[], about.repo, &["resolve", about.revision], about.path)?,
            endpoint: endpoint.clone(),
            etag: None,
            size: None,
            xet_hash: None,
        };
        for _ in 0..=MAX_REDIRECTS {
            let token = self.token(&location.url, about.repo);
            let response = self.send(Method::HEAD, &location.url, None, token).await?;
            let headers = response.headers();
            // The first hop that describes the content wins: the content network's ETag is not a hash of the content.
            location.etag = location.etag.or_else(|| etag(headers, "x-linked-etag"));
            location.size = location.size.or_else(|| number(headers, "x-linked-size"));
            location.xet_hash = location.xet_hash.or_else(|| xet_hash(headers));
            match redirect(&response)? {
                Some(next) if next.origin() == endpoint.url.origin() => location.url = next,
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

    /// Downloads a small text file; `None` if the repository does not have it.
    pub(crate) async fn text(&self, about: &RequestSubject<'_>) -> Result<Option<String>, HubError> {
        let mut rotation = self.rotation();
        loop {
            let url = endpoint_url(
                rotation.current(),
                &[],
                about.repo,
                &["resolve", about.revision],
                about.path,
            )?;
            match self.text_once(&url, about).await {
                Err(HubError::FileNotFound { .. }) => return Ok(None),
                Ok(text) => {
                    rotation.succeeded();
                    return Ok(Some(text));
                }
                Err(error) => rotation.failed(error).await?,
            }
        }
    }

    async fn text_once(&self, url: &Url, about: &RequestSubject<'_>) -> Result<String, HubError> {
        let response = self.get(url, None, about).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, about).await);
        }
        let body = self.body(response, MAX_JSON_BYTES).await?;
        String::from_utf8(body).map_err(|_| self.protocol(url, "the file is no UTF-8 text"))
    }

    /// Requests a URL once, or the bytes `range.0..range.1` of it, and follows redirects. The caller checks the status.
    pub(crate) async fn get(
        &self,
        url: &Url,
        range: Option<(u64, u64)>,
        about: &RequestSubject<'_>,
    ) -> Result<Response, HubError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            // The token is chosen anew for each hop: only the Hub itself may see it.
            let token = self.token(&url, about.repo);
            let response = self.send(Method::GET, &url, range, token).await?;
            match redirect(&response)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(self.protocol(&url, "it redirects in a circle"))
    }

    /// Asks for permission to read a repository's files over the xet protocol.
    pub(crate) async fn xet_access(
        &self,
        endpoint: &Endpoint,
        about: &RequestSubject<'_>,
    ) -> Result<XetAccess, HubError> {
        let tail = ["xet-read-token", about.revision];
        let url = endpoint_url(endpoint, &["api", "models"], about.repo, &tail, "")?;
        let (wire, _) = self.json_once::<XetTokenWire>(&url, about).await?;
        // Other schemes would make the xet crates read local files, and a step down from https would expose the token.
        let is_allowed = |store: &Url| {
            let is_secure = store.scheme() == "https" || (store.scheme() == "http" && endpoint.url.scheme() == "http");
            is_secure && store.host_str().is_some()
        };
        match Url::parse(&wire.cas_url).ok().filter(is_allowed) {
            Some(store) => Ok(XetAccess {
                store,
                token: Secret::new(wire.access_token),
                expires: wire.exp,
            }),
            None => Err(self.protocol(&url, "its store is at an address that cannot be used")),
        }
    }

    /// Reads a chunk of a download, and waits until it fits into the bandwidth limit.
    pub(crate) async fn content(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, HubError> {
        let chunk = self.chunk(response).await?;
        self.throttle(chunk.as_ref().map_or(0, bytes::Bytes::len)).await;
        Ok(chunk)
    }

    /// Waits until bytes that arrived fit into the bandwidth limit.
    pub(super) async fn throttle(&self, bytes: usize) {
        self.throttle.take(bytes as u64, self.config.max_bytes_per_second).await;
    }

    pub(crate) fn drip_detector(&self) -> DripDetector {
        DripDetector {
            since: Instant::now(),
            bytes: 0,
            after: self.config.stall_timeout,
        }
    }

    /// Reads a chunk of a response. Fails if none comes within the stall timeout.
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
        about: &RequestSubject<'_>,
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
        about: &RequestSubject<'_>,
    ) -> Result<(T, HeaderMap), HubError> {
        let response = self.get(url, None, about).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, about).await);
        }
        let headers = response.headers().clone();
        Ok((self.parsed(response).await?, headers))
    }

    async fn parsed<T: serde::de::DeserializeOwned>(&self, response: Response) -> Result<T, HubError> {
        let url = response.url().clone();
        let body = self.body(response, MAX_JSON_BYTES).await?;
        serde_json::from_slice(&body).map_err(|_| self.protocol(&url, "its answer is not the JSON of a Hub"))
    }

    pub(crate) async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, HubError> {
        let mut body = Vec::new();
        let mut drips = self.drip_detector();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if drips.is_dripping(chunk.len()) {
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

    /// Returns the token for a repository: its organization's, else the general one. Only the main endpoint receives
    /// it, no mirror and no content network.
    pub(super) fn token(&self, url: &Url, repo: &str) -> Option<&Secret<String>> {
        self.endpoints
            .first()
            .filter(|main| main.url.origin() == url.origin())?;
        let org = repo.split('/').next().unwrap_or_default().to_ascii_lowercase();
        self.config.organization_tokens.get(&org).or(self.config.token.as_ref())
    }

    pub(super) fn main_endpoint(&self) -> Result<&Endpoint, HubError> {
        self.endpoints
            .first()
            .ok_or_else(|| HubError::Endpoint("there is none".into()))
    }

    /// Sends one request and returns its response, whatever the status.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        range: Option<(u64, u64)>,
        token: Option<&Secret<String>>,
    ) -> Result<Response, HubError> {
        // A server that compresses ignores ranges and does not tell the size.
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
        let after = self.response_timeout();
        match tokio::time::timeout(after, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_builder() => Err(HubError::Endpoint(chain(&error))),
            Ok(Err(error)) => Err(HubError::Unreachable {
                endpoint: origin(url),
                reason: chain(&error),
            }),
            Err(_) => Err(HubError::Stalled { host: host(url), after }),
        }
    }
}

/// Detector of responses whose bytes come often enough, but too few of them.
#[derive(Debug)]
pub(crate) struct DripDetector {
    since: Instant,
    bytes: usize,
    after: Duration,
}

impl DripDetector {
    /// Counts bytes that arrived. True when the stall timeout has passed and too few arrived within it.
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

/// Builds `ENDPOINT/HEAD…/ORG/REPO/TAIL…/PATH…`. A slash inside a revision is escaped, one inside a path separates.
fn endpoint_url(endpoint: &Endpoint, head: &[&str], repo: &str, tail: &[&str], path: &str) -> Result<Url, HubError> {
    let mut url = endpoint.url.clone();
    let segments = head.iter().copied().chain(repo.split('/')).chain(tail.iter().copied());
    extend(
        &mut url,
        segments.chain(path.split('/')).filter(|segment| !segment.is_empty()),
    )?;
    Ok(url)
}

fn extend<'a>(url: &mut Url, segments: impl IntoIterator<Item = &'a str>) -> Result<(), HubError> {
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

/// Returns scheme, host and port, without the path: signed links are secrets while they are valid.
pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    pub(crate) fn client(endpoint: &str) -> HubClient {
        let config = HubConfig {
            endpoint: endpoint.into(),
            ..HubConfig::default()
        };
        HubClient::new(&ConnectionPool::default(), Arc::new(config)).unwrap()
    }

    #[test]
    fn urls() {
        let client = client("http://127.0.0.1:1/mirror/");
        let url = |head: &[&str], tail: &[&str], path| {
            endpoint_url(&client.endpoints[0], head, "o/r.x", tail, path)
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

    /// Answers whose bytes come one by one would keep a pull waiting for hours.
    #[tokio::test]
    async fn an_answer_that_drips_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            // A response before the request would be a protocol error.
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
            connect_timeout: Duration::from_millis(200),
            stall_timeout: Duration::from_millis(200),
            retry_attempts: 0,
            ..HubConfig::default()
        };
        let client = HubClient::new(&ConnectionPool::default(), Arc::new(config)).unwrap();
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
            let error = HubClient::new(&ConnectionPool::default(), Arc::new(config)).unwrap_err();
            assert!(matches!(error, HubError::Endpoint(_)), "{endpoint}: {error}");
        }
    }
}
