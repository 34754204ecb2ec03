//! Questions to the Hub over HTTP: what a repository is, what it holds, where a file lies. No file is written here.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
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
    wire::{EntryWire, ErrorWire, InfoWire, WhoWire, etag, next_page, number, redirect, retry_after},
};
use crate::config::HubConfig;

/// Redirects of one request; huggingface.co uses two.
const MAX_REDIRECTS: usize = 10;
/// Bytes of one JSON answer; repositories with tens of thousands of files stay under it.
const MAX_JSON_BYTES: usize = 32 << 20;
/// Bytes of an error's body that are looked at.
const MAX_ERROR_BYTES: usize = 4 << 10;
/// Pages of a listing; the Hub puts a thousand entries on each.
const MAX_PAGES: usize = 200;
/// The connection pool, rebuilt when the setting that is fixed at its construction changes.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Option<(Duration, reqwest::Client)>>);

/// A way to ask the Hub under one configuration.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    config: Arc<HubConfig>,
    endpoint: Url,
}

/// What a repository is at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoInfo {
    /// Spelled as the Hub spells it.
    pub(crate) org: String,
    pub(crate) repo: String,
    pub(crate) commit: String,
}

/// Where a file's bytes are, for a while: links to a content network expire.
#[derive(Clone, Debug)]
pub(crate) struct FileLocation {
    pub(crate) url: Url,
    /// Hash of the content, where the Hub announces one.
    pub(crate) etag: Option<String>,
    pub(crate) size: Option<u64>,
}

/// What the Hub says to a plain question; for diagnosis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// The account behind the token; `None` without a token, or where the Hub does not accept it.
    pub user: Option<String>,
    /// Whether a token was sent and refused.
    pub token_refused: bool,
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
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let bad = |reason: String| HubError::Endpoint(format!("{}: {reason}", config.endpoint));
        let endpoint = Url::parse(&config.endpoint).map_err(|error| bad(error.to_string()))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host_str().is_none() {
            return Err(bad("it is neither http nor https".into()));
        }
        Ok(Self {
            http: pool.client(config.connect_timeout)?,
            config,
            endpoint,
        })
    }

    pub(crate) fn config(&self) -> &HubConfig {
        &self.config
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(&self.config)
    }

    /// The repository's canonical spelling and the commit behind a revision.
    pub(crate) async fn info(&self, repo: &str, revision: &str) -> Result<RepoInfo, HubError> {
        let url = self.url(&["api", "models"], repo, &["revision", revision], "")?;
        let about = About {
            repo,
            revision,
            path: "",
        };
        let (body, _) = self.json::<InfoWire>(&url, &about).await?;
        let id = body.id.as_deref().unwrap_or(repo);
        let Some((org, name)) = name::split_repo_id(id) else {
            return Err(self.protocol(&url, "it gave a repository name that the Hub does not allow"));
        };
        match body.sha.filter(|commit| cache::is_commit(commit)) {
            Some(commit) => Ok(RepoInfo {
                org: org.to_owned(),
                repo: name.to_owned(),
                commit,
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
        let mut url = self.url(&["api", "models"], repo, &["tree", commit], "")?;
        url.set_query(Some("recursive=true&expand=false"));
        let mut files = Vec::new();
        for _ in 0..MAX_PAGES {
            let (page, headers) = self.json::<Vec<EntryWire>>(&url, &about).await?;
            files.extend(
                page.into_iter()
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

    /// Asks where a file's bytes are. Redirects inside the Hub are followed; one that leads out is the answer.
    pub(crate) async fn locate(&self, about: &About<'_>) -> Result<FileLocation, HubError> {
        let start = self.url(&[], about.repo, &["resolve", about.revision], about.path)?;
        let mut backoff = self.backoff();
        loop {
            match self.locate_once(start.clone(), about).await {
                Ok(location) => return Ok(location),
                Err(error) => backoff.wait(error).await?,
            }
        }
    }

    async fn locate_once(&self, start: Url, about: &About<'_>) -> Result<FileLocation, HubError> {
        let mut location = FileLocation {
            url: start,
            etag: None,
            size: None,
        };
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(Method::HEAD, &location.url, None).await?;
            let headers = response.headers();
            // The first hop that knows the content wins; the content network's own tags mean something else.
            location.etag = location.etag.or_else(|| etag(headers, "x-linked-etag"));
            location.size = location.size.or_else(|| number(headers, "x-linked-size"));
            match redirect(&response)? {
                Some(next) if next.origin() == self.endpoint.origin() => location.url = next,
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
        let url = self.url(&[], about.repo, &["resolve", about.revision], about.path)?;
        let mut backoff = self.backoff();
        loop {
            match self.text_once(&url, about).await {
                Err(HubError::FileNotFound { .. }) => return Ok(None),
                Ok(text) => return Ok(Some(text)),
                Err(error) => backoff.wait(error).await?,
            }
        }
    }

    async fn text_once(&self, url: &Url, about: &About<'_>) -> Result<String, HubError> {
        let response = self.get(url, None).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, about).await);
        }
        let body = self.body(response, MAX_JSON_BYTES).await?;
        String::from_utf8(body).map_err(|_| self.protocol(url, "the file is no UTF-8 text"))
    }

    /// One try to get a file's bytes, or the bytes `range.0..range.1` of them. The status is the caller's to look at.
    pub(crate) async fn get(&self, url: &Url, range: Option<(u64, u64)>) -> Result<Response, HubError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(Method::GET, &url, range).await?;
            match redirect(&response)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(self.protocol(&url, "it redirects in a circle"))
    }

    /// Whether the Hub answers, and what it thinks of the token.
    pub(crate) async fn reachable(&self) -> Result<Reachable, HubError> {
        let mut url = self.endpoint.clone();
        extend(&mut url, ["api", "whoami-v2"])?;
        let about = About {
            repo: "",
            revision: "",
            path: "",
        };
        let response = self.get(&url, None).await?;
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

    /// Turns an answer other than success into an error.
    pub(crate) async fn refusal(&self, response: Response, about: &About<'_>) -> HubError {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let url = response.url().clone();
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let code = text("x-error-code");
        let mut message = text("x-error-message");
        if message.is_empty() {
            // HTML pages of proxies are not repeated to the user, the Hub's own JSON is.
            let body = self.body(response, MAX_ERROR_BYTES).await.unwrap_or_default();
            message = serde_json::from_slice::<ErrorWire>(&body)
                .map(|wire| wire.error)
                .unwrap_or_default();
        }
        let message: String = message.chars().filter(|c| !c.is_control()).take(300).collect();
        self.classify(
            Refusal {
                status,
                code: &code,
                message,
                retry_after: retry_after(&headers),
                url: &url,
            },
            about,
        )
    }

    fn classify(&self, refusal: Refusal<'_>, about: &About<'_>) -> HubError {
        let Refusal {
            status,
            code,
            message,
            retry_after,
            url,
        } = refusal;
        let repo = about.repo.to_owned();
        let endpoint = self.config.endpoint.clone();
        match (status, code) {
            (401 | 403, "GatedRepo") => {
                let url = format!("{}/{repo}", endpoint.trim_end_matches('/'));
                HubError::Gated { repo, url }
            }
            (404, "RevisionNotFound") => HubError::RevisionNotFound {
                repo,
                revision: about.revision.to_owned(),
            },
            (404, "EntryNotFound") => HubError::FileNotFound {
                repo,
                path: about.path.to_owned(),
            },
            (401, _) if message.contains("Invalid credentials") => HubError::BadToken { endpoint },
            (401 | 404, "RepoNotFound" | "") => HubError::RepoNotFound { repo, endpoint },
            (401 | 403 | 451, _) => {
                let message = if message.is_empty() {
                    format!("status {status}")
                } else {
                    message
                };
                HubError::Forbidden {
                    repo,
                    message: message.trim_end_matches('.').to_owned(),
                }
            }
            (429, _) => HubError::RateLimited { retry_after },
            _ => {
                let message = if message.is_empty() {
                    message
                } else {
                    format!(" ({message})")
                };
                HubError::Status {
                    host: host(url),
                    status,
                    message,
                }
            }
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
        let response = self.get(url, None).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, about).await);
        }
        let headers = response.headers().clone();
        let body = self.body(response, MAX_JSON_BYTES).await?;
        let parsed =
            serde_json::from_slice(&body).map_err(|_| self.protocol(url, "its answer is not the JSON of a Hub"))?;
        Ok((parsed, headers))
    }

    async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, HubError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if body.len() + chunk.len() > limit {
                return Err(self.protocol(response.url(), "its answer is too long"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// One request, one answer; only the Hub itself is shown the token.
    async fn send(&self, method: Method, url: &Url, range: Option<(u64, u64)>) -> Result<Response, HubError> {
        // A server that compresses would ignore ranges and hide the size.
        let mut request = self
            .http
            .request(method, url.clone())
            .header(ACCEPT_ENCODING, "identity");
        if let Some((start, end)) = range {
            request = request.header(RANGE, format!("bytes={start}-{}", end - 1));
        }
        if let Some(token) = self
            .config
            .token
            .as_ref()
            .filter(|_| url.origin() == self.endpoint.origin())
        {
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

    /// `endpoint/HEAD…/ORG/REPO/TAIL…/PATH…`, where a slash inside a revision is escaped and one inside a path is not.
    fn url(&self, head: &[&str], repo: &str, tail: &[&str], path: &str) -> Result<Url, HubError> {
        let mut url = self.endpoint.clone();
        let segments = head.iter().copied().chain(repo.split('/')).chain(tail.iter().copied());
        extend(
            &mut url,
            segments.chain(path.split('/')).filter(|segment| !segment.is_empty()),
        )?;
        Ok(url)
    }
}

struct Refusal<'a> {
    status: u16,
    code: &'a str,
    message: String,
    retry_after: Option<Duration>,
    url: &'a Url,
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

fn host(url: &Url) -> String {
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
mod tests {
    use super::*;

    fn client(endpoint: &str) -> Client {
        let config = HubConfig {
            endpoint: endpoint.into(),
            ..HubConfig::default()
        };
        Client::new(&Pool::default(), Arc::new(config)).unwrap()
    }

    #[test]
    fn urls() {
        let client = client("http://127.0.0.1:1/mirror/");
        let url = |head: &[&str], tail: &[&str], path| client.url(head, "o/r.x", tail, path).unwrap().to_string();
        assert_eq!(
            url(&["api", "models"], &["tree", "refs/pr/1"], ""),
            "http://127.0.0.1:1/mirror/api/models/o/r.x/tree/refs%2Fpr%2F1"
        );
        assert_eq!(
            url(&[], &["resolve", "main"], "a b/c%?.gguf"),
            "http://127.0.0.1:1/mirror/o/r.x/resolve/main/a%20b/c%25%3F.gguf"
        );
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

    #[test]
    fn refusals() {
        let client = client("https://hub");
        let url = Url::parse("https://hub/x").unwrap();
        let about = About {
            repo: "o/r",
            revision: "v1",
            path: "f.gguf",
        };
        let check = |status, code, message: &str| {
            let refusal = Refusal {
                status,
                code,
                message: message.to_owned(),
                retry_after: None,
                url: &url,
            };
            client.classify(refusal, &about)
        };
        assert!(matches!(
            check(401, "RepoNotFound", "Repository not found"),
            HubError::RepoNotFound { .. }
        ));
        assert!(matches!(check(401, "", ""), HubError::RepoNotFound { .. }));
        assert!(matches!(check(404, "RepoNotFound", ""), HubError::RepoNotFound { .. }));
        assert!(matches!(
            check(404, "RevisionNotFound", ""),
            HubError::RevisionNotFound { .. }
        ));
        assert!(matches!(check(404, "EntryNotFound", ""), HubError::FileNotFound { .. }));
        assert!(matches!(
            check(401, "", "Invalid credentials in Authorization header"),
            HubError::BadToken { .. }
        ));
        assert!(matches!(
            check(403, "", "Access to this resource is disabled."),
            HubError::Forbidden { .. }
        ));
        assert!(matches!(check(429, "", ""), HubError::RateLimited { .. }));
        assert_eq!(
            check(403, "GatedRepo", ""),
            HubError::Gated {
                repo: "o/r".into(),
                url: "https://hub/o/r".into()
            }
        );
        assert!(check(503, "", "").is_transient());
        assert!(!check(418, "", "").is_transient());
    }
}
