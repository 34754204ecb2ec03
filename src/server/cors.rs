//! Which web pages may call: cross-origin rules as Ollama has them.
//!
//! Pure functions over header values. Pages of other origins are refused before the request is looked at, because a
//! daemon on localhost is within reach of every page that its user opens.

use hyper::{
    HeaderMap, Method,
    header::{self, HeaderValue},
};

/// Origins that are always allowed. One `*` stands for anything.
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

const ALLOW_METHODS: &str = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS";

const ALLOW_HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,\
    X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,\
    X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
    X-Stainless-Runtime-Version,X-Stainless-Timeout";

const MAX_AGE_SECONDS: &str = "43200";

/// What the `Origin` of a request means for its reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No cross-origin request: no header.
    SameOrigin,
    /// Refuse with 403.
    Refused,
    /// Answer, with [`Grant::ordinary`].
    Allowed(Grant),
    /// Answer 204 with [`Grant::preflight`].
    Preflight(Grant),
}

/// The value of `Access-Control-Allow-Origin`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// Everybody.
    Any,
    /// This origin.
    Origin(HeaderValue),
}

/// Judges a request by its headers; `host` is the host and port it was sent to.
pub(super) fn check(method: &Method, headers: &HeaderMap, host: &str, configured: &[String]) -> Verdict {
    let Some(value) = headers.get(header::ORIGIN).filter(|value| !value.is_empty()) else {
        return Verdict::SameOrigin;
    };
    let Ok(origin) = value.to_str() else {
        return Verdict::Refused;
    };
    if ["http://", "https://"]
        .iter()
        .any(|scheme| origin.strip_prefix(scheme) == Some(host))
    {
        return Verdict::SameOrigin;
    }
    let grant = if configured.iter().any(|pattern| pattern.trim() == "*") {
        Grant::Any
    } else if configured
        .iter()
        .map(String::as_str)
        .chain(DEFAULT_ORIGINS)
        .any(|pattern| matches(pattern, origin))
    {
        Grant::Origin(value.clone())
    } else {
        return Verdict::Refused;
    };
    if method == Method::OPTIONS {
        Verdict::Preflight(grant)
    } else {
        Verdict::Allowed(grant)
    }
}

impl Grant {
    /// Adds what an ordinary reply carries.
    pub(super) fn ordinary(self, headers: &mut HeaderMap) {
        if matches!(self, Self::Origin(_)) {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.value());
    }

    /// Adds what the reply to a preflight request carries.
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
    match pattern.split_once('*') {
        None => pattern == origin,
        Some((start, end)) => origin.starts_with(start) && origin.ends_with(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(method: Method, origin: &str, configured: &[&str]) -> Verdict {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::try_from(origin).unwrap());
        let configured: Vec<String> = configured.iter().map(|&origin| origin.to_owned()).collect();
        check(&method, &headers, "127.0.0.1:11435", &configured)
    }

    #[test]
    fn origins() {
        let allowed = |origin: &str| Verdict::Allowed(Grant::Origin(HeaderValue::try_from(origin).unwrap()));
        for (origin, configured, expected) in [
            ("http://localhost", &[][..], allowed("http://localhost")),
            ("http://localhost:3000", &[], allowed("http://localhost:3000")),
            ("https://127.0.0.1:1", &[], allowed("https://127.0.0.1:1")),
            ("app://obsidian.md", &[], allowed("app://obsidian.md")),
            ("http://127.0.0.1:11435", &[], Verdict::SameOrigin),
            ("https://127.0.0.1:11435", &[], Verdict::SameOrigin),
            ("", &[], Verdict::SameOrigin),
            ("null", &[], Verdict::Refused),
            ("http://localhost.evil.example", &[], Verdict::Refused),
            ("chrome-extension://abc", &[], Verdict::Refused),
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
            ("http://evil.example", &["https://q", "*"], Verdict::Allowed(Grant::Any)),
        ] {
            assert_eq!(
                verdict(Method::GET, origin, configured),
                expected,
                "{origin} {configured:?}"
            );
        }
        assert_eq!(check(&Method::GET, &HeaderMap::new(), "a", &[]), Verdict::SameOrigin);
        assert_eq!(
            verdict(Method::OPTIONS, "http://evil.example", &["*"]),
            Verdict::Preflight(Grant::Any)
        );
        assert_eq!(verdict(Method::OPTIONS, "http://evil.example", &[]), Verdict::Refused);
    }

    #[test]
    fn everybody_is_a_star_without_vary() {
        let mut headers = HeaderMap::new();
        Grant::Any.ordinary(&mut headers);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        Grant::Any.preflight(&mut headers);
        assert!(!headers.contains_key(header::VARY));
    }
}
