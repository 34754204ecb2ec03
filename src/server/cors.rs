//! Cross-origin rules for web pages, the same as Ollama's, as pure functions over header values.
//!
//! Pages of other origins are refused before the request is handled, because every page that a user opens can reach a
//! daemon on localhost.

use hyper::{
    HeaderMap, Method,
    header::{self, HeaderValue},
};

/// Origins that are always allowed. A `*` matches any text.
const DEFAULT_ORIGINS: [&str; 17] = [
    "http://localhost",
    "https://localhost",
    "http://localhost:*",
    "https://localhost:*",
    "http://127.0.0.1",
    "https://127.0.0.1",
    "http://127.0.0.1:*",
    "https://127.0.0.1:*",
    "http://0.0.0.0",
    "https://0.0.0.0",
    "http://0.0.0.0:*",
    "https://0.0.0.0:*",
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
];

/// Default of gin-contrib/cors, which Ollama uses.
const ALLOW_METHODS: &str = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS";

/// Ollama's list. The `X-Stainless` headers are those that OpenAI's SDKs send with each request.
const ALLOW_HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,\
    X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,\
    X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
    X-Stainless-Runtime-Version,X-Stainless-Timeout";

/// Time for which a browser keeps the answer to a preflight request: 12 hours, the default of gin-contrib/cors.
const MAX_AGE_SECONDS: &str = "43200";

/// Decision about a request by its `Origin` header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CorsDecision {
    /// Not a cross-origin request; the response gets no CORS header.
    SameOrigin,
    /// Refused with 403.
    Refused,
    /// Allowed; the response gets the headers of [`CorsGrant::ordinary`].
    Allowed(CorsGrant),
    /// A preflight request; the response is 204 with the headers of [`CorsGrant::preflight`].
    Preflight(CorsGrant),
}

/// Value of `Access-Control-Allow-Origin`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CorsGrant {
    /// `*`.
    Any,
    /// The origin of the request.
    Origin(HeaderValue),
}

/// Decides about a request; `host` is the host and port that it was sent to.
pub(super) fn check(method: &Method, headers: &HeaderMap, host: &str, configured: &[String]) -> CorsDecision {
    // gin-contrib/cors takes an empty header for a missing one.
    let Some(value) = headers.get(header::ORIGIN).filter(|value| !value.is_empty()) else {
        return CorsDecision::SameOrigin;
    };
    let Ok(origin) = value.to_str() else {
        return CorsDecision::Refused;
    };
    if ["http://", "https://"]
        .iter()
        .any(|scheme| origin.strip_prefix(scheme) == Some(host))
    {
        return CorsDecision::SameOrigin;
    }
    let grant = if configured.iter().any(|pattern| pattern.trim() == "*") {
        CorsGrant::Any
    } else if configured
        .iter()
        .map(String::as_str)
        .chain(DEFAULT_ORIGINS)
        .any(|pattern| matches(pattern, origin))
    {
        CorsGrant::Origin(value.clone())
    } else {
        return CorsDecision::Refused;
    };
    if method == Method::OPTIONS {
        CorsDecision::Preflight(grant)
    } else {
        CorsDecision::Allowed(grant)
    }
}

impl CorsGrant {
    /// Adds the headers of an ordinary response.
    pub(super) fn ordinary(self, headers: &mut HeaderMap) {
        if matches!(self, Self::Origin(_)) {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.value());
    }

    /// Adds the headers of the response to a preflight request.
    pub(super) fn preflight(self, headers: &mut HeaderMap) {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static(ALLOW_METHODS),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static(ALLOW_HEADERS),
        );
        headers.insert(
            header::ACCESS_CONTROL_MAX_AGE,
            HeaderValue::from_static(MAX_AGE_SECONDS),
        );
        if matches!(self, Self::Origin(_)) {
            for name in [
                "Origin",
                "Access-Control-Request-Method",
                "Access-Control-Request-Headers",
            ] {
                headers.append(header::VARY, HeaderValue::from_static(name));
            }
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.value());
    }

    fn value(self) -> HeaderValue {
        match self {
            Self::Any => HeaderValue::from_static("*"),
            Self::Origin(value) => value,
        }
    }
}

fn matches(pattern: &str, origin: &str) -> bool {
    let pattern = pattern.trim().to_ascii_lowercase();
    let origin = origin.to_ascii_lowercase();
    // No pattern has more than one `*`: the configuration refuses such an origin.
    match pattern.split_once('*') {
        None => pattern == origin,
        Some((start, end)) => origin.starts_with(start) && origin.ends_with(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(method: Method, origin: &str, configured: &[&str]) -> CorsDecision {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::try_from(origin).unwrap());
        let configured: Vec<String> = configured.iter().map(|&origin| origin.to_owned()).collect();
        check(&method, &headers, "127.0.0.1:11435", &configured)
    }

    #[test]
    fn origins() {
        let allowed = |origin: &str| CorsDecision::Allowed(CorsGrant::Origin(HeaderValue::try_from(origin).unwrap()));
        for (origin, configured, expected) in [
            ("http://localhost", &[][..], allowed("http://localhost")),
            ("http://localhost:3000", &[], allowed("http://localhost:3000")),
            ("https://127.0.0.1:1", &[], allowed("https://127.0.0.1:1")),
            ("app://obsidian.md", &[], allowed("app://obsidian.md")),
            ("http://127.0.0.1:11435", &[], CorsDecision::SameOrigin),
            ("https://127.0.0.1:11435", &[], CorsDecision::SameOrigin),
            ("", &[], CorsDecision::SameOrigin),
            ("null", &[], CorsDecision::Refused),
            ("http://localhost.evil.example", &[], CorsDecision::Refused),
            ("chrome-extension://abc", &[], CorsDecision::Refused),
            (
                "chrome-extension://abc",
                &["chrome-extension://*"],
                allowed("chrome-extension://abc"),
            ),
            (
                "https://a.box.lan",
                &["https://*.box.lan"],
                allowed("https://a.box.lan"),
            ),
            (
                "https://a.box.lan",
                &["https://Q", " https://A.box.lan"],
                allowed("https://a.box.lan"),
            ),
            ("http://localhost:1", &["https://q"], allowed("http://localhost:1")),
            (
                "http://evil.example",
                &["https://q", "*"],
                CorsDecision::Allowed(CorsGrant::Any),
            ),
        ] {
            assert_eq!(
                verdict(Method::GET, origin, configured),
                expected,
                "{origin} {configured:?}"
            );
        }
        assert_eq!(
            check(&Method::GET, &HeaderMap::new(), "a", &[]),
            CorsDecision::SameOrigin
        );
        assert_eq!(
            verdict(Method::OPTIONS, "http://evil.example", &["*"]),
            CorsDecision::Preflight(CorsGrant::Any)
        );
        assert_eq!(
            verdict(Method::OPTIONS, "http://evil.example", &[]),
            CorsDecision::Refused
        );
    }

    #[test]
    fn everybody_is_a_star_without_vary() {
        let mut headers = HeaderMap::new();
        CorsGrant::Any.ordinary(&mut headers);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        CorsGrant::Any.preflight(&mut headers);
        assert!(!headers.contains_key(header::VARY));
    }
}
