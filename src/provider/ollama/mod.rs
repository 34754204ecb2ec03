//! Pass-through to the real Ollama: requests and replies are forwarded as the bytes that come.
//!
//! Bodies are not read, except by `native`. Hop-by-hop headers are removed (RFC 9110 section 7.6.1), and those that
//! this daemon's server answers for (CORS). One header is added, with which daemons that forward to each other in a
//! circle detect that.

mod native;

pub use native::NativeProvider;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::Body as _,
    header::{self, HeaderName, HeaderValue},
    http::uri::{Authority, PathAndQuery, Scheme},
};

use super::CallContext;
use crate::{
    config::OllamaConfig,
    http::{
        body::{self, Body},
        client::{ClientError, HttpClient},
        headers,
    },
};

/// Header with the ids of the daemons that a request has passed, oldest first.
const HOP_HEADER: HeaderName = HeaderName::from_static("x-hubllama-hop");

/// Most daemons that a request may pass: a longer chain is taken for a mistake.
const MAX_HOPS: usize = 8;

/// Largest listing in bytes that is fetched to be merged with ours.
const MAX_LISTING_BYTES: usize = 16 << 20;

/// Time limit for a listing. Clients wait for the merged list, so a stuck Ollama must not hide our models for long.
const LISTING_TIMEOUT: Duration = Duration::from_secs(5);

/// Reason why Ollama did not answer. The texts are shown to the user.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The setting `ollama.enabled` is off.
    #[error("not found: only hf: models are served here, because ollama.enabled is false")]
    Disabled,
    /// The request has passed this daemon before.
    #[error("loop detected: ollama.url ({url}) leads back to this hubllama; set ollama.url to a real Ollama")]
    Loop {
        /// Value of `ollama.url`.
        url: String,
    },
    /// `ollama.url` is not an http or https URL.
    #[error("ollama.url ({url}) is not an http or https URL; mend it in the configuration")]
    Url {
        /// Value of `ollama.url`.
        url: String,
    },
    /// The request has no path that could be forwarded, such as that of `CONNECT`.
    #[error("the request target has no path")]
    Target,
    /// No connection, or no reply on it.
    #[error(
        "Ollama at {url} does not answer; hf: models go on working. Start Ollama, or set ollama.url to where it listens"
    )]
    Unreachable {
        /// Value of `ollama.url`.
        url: String,
        #[source]
        source: ClientError,
    },
    /// A reply that is read whole took too long, or its body broke off.
    #[error("Ollama at {url} did not finish its answer")]
    Unfinished {
        /// Value of `ollama.url`.
        url: String,
    },
    /// A reply that is read whole exceeds its limit.
    #[error("the answer of Ollama at {url} is longer than {limit} bytes")]
    TooLarge {
        /// Value of `ollama.url`.
        url: String,
        /// Limit in bytes.
        limit: usize,
    },
}

impl UpstreamError {
    /// Returns the status for a client.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Disabled => StatusCode::NOT_FOUND,
            Self::Loop { .. } => StatusCode::LOOP_DETECTED,
            Self::Target => StatusCode::BAD_REQUEST,
            Self::Url { .. } | Self::Unreachable { .. } | Self::Unfinished { .. } | Self::TooLarge { .. } => {
                StatusCode::BAD_GATEWAY
            }
        }
    }
}

/// Forwarder to the Ollama that the configuration of each call names.
#[derive(Debug)]
pub struct Ollama {
    /// Random id of this process in [`HOP_HEADER`].
    instance: String,
    /// Connection pool; replaced when the connect timeout changes.
    client: ArcSwapOption<HttpClient>,
}

impl Default for Ollama {
    fn default() -> Self {
        Self::new()
    }
}

impl Ollama {
    /// Creates a forwarder with a new id and an empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self {
            instance: format!("{:016x}", rand::random::<u64>()),
            client: ArcSwapOption::empty(),
        }
    }

    /// Forwards `request` and returns the reply as it comes.
    ///
    /// Dropping the future or the body of the response closes the connection to Ollama.
    ///
    /// # Errors
    /// [`UpstreamError`] if Ollama gave no reply.
    pub async fn forward(&self, call: &CallContext, request: Request<Body>) -> Result<Response<Body>, UpstreamError> {
        // Without the query, which may hold a key: the path is logged.
        let path = request.uri().path().to_owned();
        self.exchange(&call.config.ollama, request).await.inspect_err(|error| {
            tracing::warn!(path, error = error as &dyn std::error::Error, "request not forwarded");
        })
    }

    /// Fetches a listing. `received` are the headers of the request that needs it: they show whether daemons merge each
    /// other's listings in a ring.
    pub async fn get(
        &self,
        call: &CallContext,
        path: &str,
        received: &HeaderMap,
    ) -> Result<(StatusCode, Bytes), UpstreamError> {
        let config = &call.config.ollama;
        let mut request = Request::new(body::empty());
        *request.uri_mut() = path.parse().map_err(|_| UpstreamError::Target)?;
        // Of the client's headers only those that reveal a ring are sent: the list is fetched for the daemon, not for
        // the client.
        for value in received.get_all(HOP_HEADER) {
            request.headers_mut().append(HOP_HEADER, value.clone());
        }
        let fetch = async {
            let response = self.exchange(config, request).await?;
            let status = response.status();
            Ok((status, whole(config, response.into_body(), MAX_LISTING_BYTES).await?))
        };
        match tokio::time::timeout(LISTING_TIMEOUT, fetch).await {
            Ok(result) => result,
            Err(_) => Err(UpstreamError::Unfinished {
                url: config.url.clone(),
            }),
        }
    }

    /// Posts a JSON document with these headers; resolves at the head of the reply.
    async fn post(
        &self,
        call: &CallContext,
        path: &'static str,
        headers: &HeaderMap,
        json: Vec<u8>,
    ) -> Result<Response<Body>, UpstreamError> {
        let mut request = Request::new(body::full(json));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(path);
        *request.headers_mut() = headers.clone();
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.exchange(&call.config.ollama, request).await
    }

    /// Asks Ollama for its version, and returns the status of the reply.
    pub async fn reachable(&self, call: &CallContext) -> Result<StatusCode, UpstreamError> {
        self.get(call, "/api/version", &HeaderMap::new())
            .await
            .map(|(status, _)| status)
    }

    async fn exchange(&self, config: &OllamaConfig, request: Request<Body>) -> Result<Response<Body>, UpstreamError> {
        if !config.enabled {
            return Err(UpstreamError::Disabled);
        }
        // The extensions are kept in both directions: they hold the spelling of the headers and the reason phrase.
        let (mut parts, body) = request.into_parts();
        let hops = self.hops(&parts.headers).ok_or_else(|| UpstreamError::Loop {
            url: config.url.clone(),
        })?;
        let upstream = Upstream::parse(&config.url).ok_or_else(|| UpstreamError::Url {
            url: config.url.clone(),
        })?;
        // A tunnel has no path to forward, and Ollama offers none.
        if parts.method == Method::CONNECT {
            return Err(UpstreamError::Target);
        }
        parts.uri = upstream.uri(&parts.uri).ok_or(UpstreamError::Target)?;
        // The client speaks only HTTP/1.1, even if the request came over HTTP/2.
        parts.version = Version::HTTP_11;
        headers::remove_hop_by_hop(&mut parts.headers);
        // This daemon's server has checked the origin itself, and hyper has answered `Expect` when the body was first
        // polled.
        headers::remove(&mut parts.headers, &[header::ORIGIN, header::EXPECT]);
        // Ollama refuses foreign hosts as a protection against DNS rebinding, so it gets its own name.
        parts.headers.insert(header::HOST, upstream.host);
        // Inserted and not appended: `hops` holds the values that were received.
        parts.headers.insert(HOP_HEADER, hops);

        let client = self.client(config.connect_timeout);
        let response = client
            .request(Request::from_parts(parts, body))
            .await
            .map_err(|source| UpstreamError::Unreachable {
                url: config.url.clone(),
                source,
            })?;

        let (mut parts, body) = response.into_parts();
        parts.version = Version::HTTP_11;
        headers::remove_hop_by_hop(&mut parts.headers);
        // Two sets of CORS headers would make browsers refuse the reply.
        headers::remove_cors(&mut parts.headers);
        Ok(Response::from_parts(parts, body))
    }

    /// Returns the hop header to forward; `None` if the request has passed here before, or has passed too many daemons.
    fn hops(&self, received: &HeaderMap) -> Option<HeaderValue> {
        let mut hops: Vec<&[u8]> = received
            .get_all(HOP_HEADER)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        if hops.len() >= MAX_HOPS || hops.contains(&self.instance.as_bytes()) {
            return None;
        }
        hops.push(self.instance.as_bytes());
        HeaderValue::from_bytes(&hops.join(&b", "[..])).ok()
    }

    fn client(&self, connect_timeout: Duration) -> Arc<HttpClient> {
        if let Some(client) = &*self.client.load()
            && client.connect_timeout() == connect_timeout
        {
            return Arc::clone(client);
        }
        // Two requests may get here at once. The client of one is then replaced, which costs no more than its idle
        // connections.
        let client = Arc::new(HttpClient::new(connect_timeout));
        self.client.store(Some(Arc::clone(&client)));
        client
    }
}

/// Reads a body of at most `limit` bytes.
async fn whole(config: &OllamaConfig, body: Body, limit: usize) -> Result<Bytes, UpstreamError> {
    let url = || config.url.clone();
    // A body that announces too much is not read at all.
    if body.size_hint().lower() > limit as u64 {
        return Err(UpstreamError::TooLarge { url: url(), limit });
    }
    // Boxed, since the compiler cannot prove that a future over the generic body is `Send`.
    let limited = body::boxed(Limited::new(body, limit));
    match limited.collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(UpstreamError::TooLarge { url: url(), limit }),
        Err(_) => Err(UpstreamError::Unfinished { url: url() }),
    }
}

/// Parts of `ollama.url`.
struct Upstream {
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    /// Path that is put before that of each request, without a slash at its end.
    prefix: String,
}

impl Upstream {
    fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri
            .scheme()
            .filter(|scheme| [&Scheme::HTTP, &Scheme::HTTPS].contains(scheme))?
            .clone();
        let authority = uri.authority()?.clone();
        let host = match authority.port() {
            Some(port) => format!("{}:{port}", authority.host()),
            None => authority.host().to_owned(),
        };
        let host = HeaderValue::try_from(host).ok()?;
        Some(Self {
            scheme,
            authority,
            host,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Returns the URI of the same path and query, byte for byte, at this server.
    fn uri(&self, original: &Uri) -> Option<Uri> {
        let target = original.path_and_query()?;
        let target = if self.prefix.is_empty() {
            target.clone()
        } else {
            PathAndQuery::try_from(format!("{}{target}", self.prefix)).ok()?
        };
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(target)
            .build()
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_kept_byte_for_byte() {
        for (url, target, expected) in [
            ("http://127.0.0.1:11434", "/api/tags", "http://127.0.0.1:11434/api/tags"),
            (
                "http://127.0.0.1:11434/",
                "//api/x/?a=%2F&b",
                "http://127.0.0.1:11434//api/x/?a=%2F&b",
            ),
            ("https://box/ollama/", "/api/tags", "https://box/ollama/api/tags"),
            ("http://a", "http://other/api/tags?q", "http://a/api/tags?q"),
        ] {
            let upstream = Upstream::parse(url).unwrap();
            assert_eq!(upstream.uri(&target.parse().unwrap()).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn the_host_header_is_the_upstreams() {
        for (url, expected) in [
            ("http://127.0.0.1:11434", "127.0.0.1:11434"),
            ("https://me:pw@box/x", "box"),
            ("http://[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(Upstream::parse(url).unwrap().host, expected);
        }
        for url in ["", "localhost", "ftp://a", "unix:/x", "/api"] {
            assert!(Upstream::parse(url).is_none(), "{url}");
        }
    }

    #[test]
    fn hops_are_counted() {
        let ollama = Ollama::new();
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOP_HEADER, HeaderValue::try_from(value).unwrap());
            ollama.hops(&headers)
        };
        let own = ollama.instance.clone();
        assert_eq!(ollama.hops(&HeaderMap::new()).unwrap(), own.as_str());
        assert_eq!(with("a, b").unwrap(), format!("a, b, {own}").as_str());
        assert_eq!(with(&format!("a,{own} , b")), None);
        assert_eq!(with("a,b,c,d,e,f,g,h"), None);
    }
}
