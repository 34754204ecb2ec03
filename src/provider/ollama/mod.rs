//! The real Ollama: requests go to it and replies come back as they are.
//!
//! Nothing but `native` reads a body. What is left out of the headers is what belongs to one connection, and what our own
//! server answers for (CORS); what is added is one header that lets a chain of daemons notice that it is a ring.

mod native;

pub use native::Native;

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

/// Names every daemon that a request has come through, oldest first.
const HOP_HEADER: HeaderName = HeaderName::from_static("x-hubllama-hop");

/// Daemons in a row that are still taken for intended.
const MAX_HOPS: usize = 8;

/// Bytes of a listing that is fetched to be merged with ours.
const MAX_LISTING_BYTES: usize = 16 << 20;

/// Time for a listing: clients wait for the merged one.
const LISTING_TIMEOUT: Duration = Duration::from_secs(5);

/// Why Ollama did not answer. The text of each is fit for the user.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// `ollama.enabled` is off.
    #[error("not found: only hf: models are served here, because ollama.enabled is false")]
    Disabled,
    /// The request has been here before.
    #[error("loop detected: ollama.url ({url}) leads back to this hubllama; set ollama.url to a real Ollama")]
    Loop {
        /// The setting.
        url: String,
    },
    /// The setting is not a URL that can be called.
    #[error("ollama.url ({url}) is not an http or https URL; mend it in the configuration")]
    Url {
        /// The setting.
        url: String,
    },
    /// The request has no path that could be sent on.
    #[error("the request target has no path")]
    Target,
    /// No connection, or none that gave an answer.
    #[error(
        "Ollama at {url} does not answer; hf: models go on working. Start Ollama, or set ollama.url to where it listens"
    )]
    Unreachable {
        /// The setting.
        url: String,
        /// What happened.
        #[source]
        source: ClientError,
    },
    /// An answer that is read whole took longer than its bound, or its body broke off.
    #[error("Ollama at {url} did not finish its answer")]
    Unfinished {
        /// The setting.
        url: String,
    },
    /// An answer that is read whole is longer than its bound.
    #[error("the answer of Ollama at {url} is longer than {limit} bytes")]
    TooLarge {
        /// The setting.
        url: String,
        /// The bound.
        limit: usize,
    },
}

impl UpstreamError {
    /// The status that says this to a client.
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

/// Passes requests to the Ollama that the configuration of each call names.
#[derive(Debug)]
pub struct Ollama {
    /// Names this process in [`HOP_HEADER`].
    instance: String,
    /// Remade when the time to connect changes.
    client: ArcSwapOption<HttpClient>,
}

impl Default for Ollama {
    fn default() -> Self {
        Self::new()
    }
}

impl Ollama {
    /// A pass-through with an identity of its own and an empty pool.
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
    /// If Ollama gave no reply.
    pub async fn forward(&self, call: &CallContext, request: Request<Body>) -> Result<Response<Body>, UpstreamError> {
        let path = request.uri().path().to_owned();
        self.exchange(&call.config.ollama, request).await.inspect_err(|error| {
            tracing::warn!(path, error = error as &dyn std::error::Error, "request not forwarded");
        })
    }

    /// Fetches `path` (a listing) whole. `received` are the headers of the request that asks for it, so that a ring of
    /// daemons that merge each other's listings is noticed.
    pub async fn get(
        &self,
        call: &CallContext,
        path: &str,
        received: &HeaderMap,
    ) -> Result<(StatusCode, Bytes), UpstreamError> {
        let config = &call.config.ollama;
        let mut request = Request::new(body::empty());
        *request.uri_mut() = path.parse().map_err(|_| UpstreamError::Target)?;
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

    /// Sends a JSON document of our own making; resolves at the head of the reply. `headers` are sent with it.
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

    /// Whether Ollama answers at all; the status is what it says of its version.
    pub async fn reachable(&self, call: &CallContext) -> Result<StatusCode, UpstreamError> {
        self.get(call, "/api/version", &HeaderMap::new())
            .await
            .map(|(status, _)| status)
    }

    async fn exchange(&self, config: &OllamaConfig, request: Request<Body>) -> Result<Response<Body>, UpstreamError> {
        if !config.enabled {
            return Err(UpstreamError::Disabled);
        }
        // The extensions are kept on both ways: they hold the spelling of the headers and the reason phrase.
        let (mut parts, body) = request.into_parts();
        let hops = self.hops(&parts.headers).ok_or_else(|| UpstreamError::Loop {
            url: config.url.clone(),
        })?;
        let upstream = Upstream::parse(&config.url).ok_or_else(|| UpstreamError::Url {
            url: config.url.clone(),
        })?;
        if parts.method == Method::CONNECT {
            return Err(UpstreamError::Target);
        }
        parts.uri = upstream.uri(&parts.uri).ok_or(UpstreamError::Target)?;
        parts.version = Version::HTTP_11;
        headers::remove_hop_by_hop(&mut parts.headers);
        // Origins are our own server's affair, and it has answered `Expect` when the body was first asked for.
        headers::remove(&mut parts.headers, &[header::ORIGIN, header::EXPECT]);
        parts.headers.insert(header::HOST, upstream.host);
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
        headers::remove_cors(&mut parts.headers);
        Ok(Response::from_parts(parts, body))
    }

    /// The hop header to send on; `None` where the request has been here before, or nearly everywhere.
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
        let client = Arc::new(HttpClient::new(connect_timeout));
        self.client.store(Some(Arc::clone(&client)));
        client
    }
}

/// All of a body that has no more than `limit` bytes.
async fn whole(config: &OllamaConfig, body: Body, limit: usize) -> Result<Bytes, UpstreamError> {
    let url = || config.url.clone();
    if body.size_hint().lower() > limit as u64 {
        return Err(UpstreamError::TooLarge { url: url(), limit });
    }
    // Boxed: the compiler cannot see that a future over the generic body may cross threads.
    let limited = body::boxed(Limited::new(body, limit));
    match limited.collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(UpstreamError::TooLarge { url: url(), limit }),
        Err(_) => Err(UpstreamError::Unfinished { url: url() }),
    }
}

/// The parts of `ollama.url`.
struct Upstream {
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    /// Path in front of every request's own, without a slash at its end.
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

    /// The same path and query, byte for byte, at this server.
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
