//! The table of routes. Requests for any other path are forwarded to Ollama.
//!
//! Paths are matched like in Ollama's router (gin): decoded, case-sensitive, with a redirect for a trailing slash. Only
//! a doubled slash differs: it is read as one, where Ollama redirects, because clients do not follow redirects of a
//! POST.

use std::borrow::Cow;

use hyper::{Method, StatusCode, Uri, http::uri::PathAndQuery};
use percent_encoding::percent_decode_str;

use crate::api::ApiEndpoint;

/// Methods in the form of the `Allow` header, path pattern, and a function from the text that `{…}` matched to the
/// endpoint.
type Route = (&'static str, &'static str, fn(&str) -> ApiEndpoint);

const TABLE: [Route; 28] = [
    ("HEAD, GET", "/", |_| ApiEndpoint::Root),
    ("HEAD, GET", "/api/version", |_| ApiEndpoint::Version),
    ("HEAD, GET", "/api/tags", |_| ApiEndpoint::Tags),
    ("GET", "/api/ps", |_| ApiEndpoint::Ps),
    ("POST", "/api/show", |_| ApiEndpoint::Show),
    ("POST", "/api/chat", |_| ApiEndpoint::Chat),
    ("POST", "/api/generate", |_| ApiEndpoint::Generate),
    ("POST", "/api/pull", |_| ApiEndpoint::Pull),
    ("POST", "/api/push", |_| ApiEndpoint::Push),
    ("POST", "/api/create", |_| ApiEndpoint::Create),
    ("POST", "/api/copy", |_| ApiEndpoint::Copy),
    ("DELETE", "/api/delete", |_| ApiEndpoint::Delete),
    ("POST", "/api/embed", |_| ApiEndpoint::Embed),
    ("POST", "/api/embeddings", |_| ApiEndpoint::Embeddings),
    ("POST", "/api/tokenize", |_| ApiEndpoint::Tokenize),
    ("POST", "/api/detokenize", |_| ApiEndpoint::Detokenize),
    ("POST", "/api/apply_template", |_| ApiEndpoint::ApplyTemplate),
    ("POST", "/v1/chat/completions", |_| ApiEndpoint::OpenAiChat),
    ("POST", "/v1/completions", |_| ApiEndpoint::OpenAiCompletions),
    ("POST", "/v1/embeddings", |_| ApiEndpoint::OpenAiEmbeddings),
    ("POST", "/v1/responses", |_| ApiEndpoint::OpenAiResponses),
    ("POST", "/v1/audio/transcriptions", |_| {
        ApiEndpoint::OpenAiTranscriptions
    }),
    ("GET", "/v1/models", |_| ApiEndpoint::OpenAiModels),
    ("GET", "/v1/models/{*id}", |id| ApiEndpoint::OpenAiModel {
        id: id.to_owned(),
    }),
    ("POST", "/v1/messages", |_| ApiEndpoint::AnthropicMessages),
    ("POST", "/v1/messages/count_tokens", |_| {
        ApiEndpoint::AnthropicCountTokens
    }),
    ("GET", "/health", |_| ApiEndpoint::Health),
    ("GET", "/config", |_| ApiEndpoint::Config),
];

/// Result of routing a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Routed {
    /// The request belongs to an endpoint.
    To {
        endpoint: ApiEndpoint,
        /// Replacement of a request target that had doubled slashes.
        target: Option<PathAndQuery>,
    },
    /// The path is in the table, but not with this method.
    MethodNotAllowed {
        /// Methods of the path, for the `Allow` header.
        allow: &'static str,
    },
    /// The path without its trailing slash is in the table.
    Redirect {
        /// 301 for GET and HEAD, 307 for other methods.
        status: StatusCode,
        location: String,
    },
}

/// Matcher of paths, built from the table.
#[derive(Debug)]
pub(super) struct Routes {
    router: matchit::Router<&'static Route>,
}

impl Routes {
    pub(super) fn new() -> Self {
        let mut router = matchit::Router::new();
        for route in &TABLE {
            router
                .insert(route.1, route)
                .expect("the patterns of the table are distinct");
        }
        Self { router }
    }

    pub(super) fn route(&self, method: &Method, uri: &Uri) -> Routed {
        let path = single_slashes(uri.path());
        let decoded = percent_decode_str(&path).decode_utf8_lossy();
        if let Some((route, endpoint)) = self.find(&decoded) {
            if !allows(route.0, method) {
                return Routed::MethodNotAllowed { allow: route.0 };
            }
            let target = match &path {
                Cow::Borrowed(_) => None,
                Cow::Owned(path) => with_query(path, uri).parse().ok(),
            };
            return Routed::To { endpoint, target };
        }
        // The raw path must end with a slash, too: a redirect for an encoded one would lead to the same path again.
        if let (Some(shorter), Some(location)) = (decoded.strip_suffix('/'), path.strip_suffix('/'))
            && let Some((route, _)) = self.find(shorter)
            && allows(route.0, method)
        {
            let get = [Method::GET, Method::HEAD].contains(method);
            let status = if get {
                StatusCode::MOVED_PERMANENTLY
            } else {
                StatusCode::TEMPORARY_REDIRECT
            };
            return Routed::Redirect {
                status,
                location: with_query(location, uri),
            };
        }
        Routed::To {
            endpoint: ApiEndpoint::Forward,
            target: None,
        }
    }

    fn find(&self, path: &str) -> Option<(&'static Route, ApiEndpoint)> {
        let found = self.router.at(path).ok()?;
        // No pattern has more than one parameter.
        let matched = found.params.iter().next().map_or("", |(_, value)| value);
        Some((found.value, found.value.2(matched)))
    }
}

fn allows(methods: &str, method: &Method) -> bool {
    methods.split(", ").any(|allowed| allowed == method.as_str())
}

fn single_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut single = String::with_capacity(path.len());
    for char in path.chars() {
        if char != '/' || !single.ends_with('/') {
            single.push(char);
        }
    }
    Cow::Owned(single)
}

fn with_query(path: &str, uri: &Uri) -> String {
    match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: &str, target: &str) -> Routed {
        Routes::new().route(&method.parse().unwrap(), &target.parse().unwrap())
    }

    fn to(endpoint: ApiEndpoint) -> Routed {
        Routed::To { endpoint, target: None }
    }

    fn model(id: &str) -> Routed {
        to(ApiEndpoint::OpenAiModel { id: id.into() })
    }

    fn redirect(status: u16, location: &str) -> Routed {
        Routed::Redirect {
            status: StatusCode::from_u16(status).unwrap(),
            location: location.into(),
        }
    }

    #[test]
    fn every_row_is_reached_by_its_own_methods_only() {
        for (methods, path, endpoint) in TABLE {
            let path = path.replace("{*id}", "x");
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
                let expected = if methods.split(", ").any(|allowed| allowed == method) {
                    to(endpoint("x"))
                } else {
                    Routed::MethodNotAllowed { allow: methods }
                };
                assert_eq!(route(method, &path), expected, "{method} {path}");
            }
        }
    }

    #[test]
    fn paths() {
        for (method, target, expected) in [
            ("GET", "/v1/models/hf:org/repo:Q4", model("hf:org/repo:Q4")),
            ("GET", "/v1/models/hf%3Aorg%2Frepo", model("hf:org/repo")),
            ("GET", "/v1/models/a%252Fb", model("a%2Fb")),
            ("POST", "/api/%63hat", to(ApiEndpoint::Chat)),
            ("POST", "/API/chat", to(ApiEndpoint::Forward)),
            ("GET", "/api/nothing", to(ApiEndpoint::Forward)),
            ("GET", "//api//nothing", to(ApiEndpoint::Forward)),
            ("GET", "/api/nothing/", to(ApiEndpoint::Forward)),
            ("POST", "/api/blobs/sha256:00", to(ApiEndpoint::Forward)),
            ("GET", "http://other/api/tags?x", to(ApiEndpoint::Tags)),
            ("GET", "/api/tags/", redirect(301, "/api/tags")),
            ("HEAD", "/api/tags/?a=%2F", redirect(301, "/api/tags?a=%2F")),
            ("POST", "/api/chat/", redirect(307, "/api/chat")),
            ("GET", "/v1/models/", redirect(301, "/v1/models")),
            ("GET", "/api/tags%2F", to(ApiEndpoint::Forward)),
            ("GET", "/api/chat/", to(ApiEndpoint::Forward)),
            ("OPTIONS", "*", to(ApiEndpoint::Forward)),
            ("CONNECT", "host:1", to(ApiEndpoint::Forward)),
        ] {
            assert_eq!(route(method, target), expected, "{method} {target}");
        }
        let target = Some(PathAndQuery::from_static("/api/chat?a//b"));
        assert_eq!(
            route("POST", "//api///chat?a//b"),
            Routed::To {
                endpoint: ApiEndpoint::Chat,
                target
            }
        );
    }
}
