//! Steps around the handler of each request: routing, CORS, host check, catching panics, and the list of open requests.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    header::{self, HeaderValue},
    http::uri::PathAndQuery,
};

use super::{
    cors::{self, CorsDecision},
    host::{self, HostKind},
    routes::{Routed, Routes},
};
use crate::{
    api::{ApiEndpoint, RequestHandler},
    config::Config,
    http::body::{self, Body},
    stdx::sync::lock,
};

/// Dispatcher of the requests of all connections.
pub(super) struct Dispatcher {
    pub(super) routes: Routes,
    pub(super) handler: Arc<dyn RequestHandler>,
    pub(super) settings: Arc<ArcSwap<Config>>,
    pub(super) in_flight: InFlight,
}

impl Dispatcher {
    /// Answers one request. The order of the checks is Ollama's: redirects first, then CORS, then the host, then the
    /// method.
    pub(super) async fn dispatch(&self, mut request: Request<Body>, check_host: bool) -> Response<Body> {
        let routed = self.routes.route(request.method(), request.uri());
        if let Routed::Redirect { status, location } = routed {
            return redirect(request.method(), status, &location);
        }
        let host = requested_host(&request);
        let origins = &self.settings.load().server.origins;
        let grant = match cors::check(request.method(), request.headers(), host, origins) {
            CorsDecision::Refused => return with_allow(empty(StatusCode::FORBIDDEN), &routed),
            CorsDecision::Preflight(grant) => {
                let mut response = empty(StatusCode::NO_CONTENT);
                grant.preflight(response.headers_mut());
                return with_allow(response, &routed);
            }
            CorsDecision::Allowed(grant) => Some(grant),
            CorsDecision::SameOrigin => None,
        };
        let refusal = if check_host {
            refuse_host(request.method(), host)
        } else {
            None
        };
        let mut response = match (refusal, routed) {
            (Some(response), routed) => with_allow(response, &routed),
            (None, Routed::To { endpoint, target }) => {
                // The handler forwards this URI, and Ollama would answer a doubled slash with a redirect.
                if let Some(target) = target {
                    *request.uri_mut() = with_target(request.uri(), target);
                }
                self.handle(endpoint, request).await
            }
            // gin's text for such a request.
            (None, routed) => with_allow(text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed"), &routed),
        };
        if let Some(grant) = grant {
            grant.ordinary(response.headers_mut());
        }
        response
    }

    async fn handle(&self, endpoint: ApiEndpoint, request: Request<Body>) -> Response<Body> {
        let entry = self
            .in_flight
            .enter(format!("{} {}", request.method(), request.uri().path()));
        // A panic leaves nothing half changed for others: the request owns its state, and shared state is behind locks
        // that are whole between two statements (`stdx::sync`).
        let answer = AssertUnwindSafe(async { self.handler.handle(endpoint, request).await }).catch_unwind();
        match answer.await {
            Ok(response) => response.map(|body| body::retain(body, entry)),
            Err(_) => {
                // The panic hook has already printed the place.
                tracing::error!(
                    request = %entry.what,
                    "a handler panicked; its request is answered with 500"
                );
                empty(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }
}

/// List of the requests whose response is not completely sent.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight {
    requests: Arc<Mutex<OpenRequests>>,
}

#[derive(Debug, Default)]
struct OpenRequests {
    next: u64,
    /// Method and path by order of arrival.
    open: BTreeMap<u64, Arc<str>>,
}

/// Entry of a request in [`InFlight`], removed when it is dropped. The response body owns it.
pub(super) struct RequestEntry {
    key: u64,
    what: Arc<str>,
    list: InFlight,
}

impl InFlight {
    fn enter(&self, what: String) -> RequestEntry {
        let what: Arc<str> = what.into();
        let mut requests = lock(&self.requests);
        let key = requests.next;
        requests.next += 1;
        requests.open.insert(key, Arc::clone(&what));
        drop(requests);
        RequestEntry {
            key,
            what,
            list: self.clone(),
        }
    }

    /// Returns the number of requests, and the oldest `limit` of them.
    pub(super) fn oldest(&self, limit: usize) -> (usize, Vec<Arc<str>>) {
        let requests = lock(&self.requests);
        (
            requests.open.len(),
            requests.open.values().take(limit).cloned().collect(),
        )
    }
}

impl Drop for RequestEntry {
    fn drop(&mut self) {
        lock(&self.list.requests).open.remove(&self.key);
    }
}

/// Returns the host that a request was sent to. As in Go, an absolute request target takes precedence over the header.
fn requested_host(request: &Request<Body>) -> &str {
    match (request.uri().authority(), request.headers().get(header::HOST)) {
        (Some(authority), _) => authority.as_str(),
        // A header that is not ASCII: a blank is in no host name, so the check fails.
        (None, Some(host)) => host.to_str().unwrap_or(" "),
        (None, None) => "",
    }
}

fn refuse_host(method: &Method, host: &str) -> Option<Response<Body>> {
    match host::judge(host) {
        HostKind::Foreign => Some(empty(StatusCode::FORBIDDEN)),
        // Ollama's middleware answers OPTIONS for the names of this machine itself, but not for addresses.
        HostKind::Name if method == Method::OPTIONS => Some(empty(StatusCode::NO_CONTENT)),
        HostKind::Name | HostKind::Address => None,
    }
}

fn with_target(uri: &Uri, target: PathAndQuery) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

fn redirect(method: &Method, status: StatusCode, location: &str) -> Response<Body> {
    let mut response = empty(status);
    // Go's `http.Redirect` writes a body for GET only, but a content type for HEAD, too.
    if method == Method::GET {
        *response.body_mut() = body::full(format!("<a href=\"{}\">Moved Permanently</a>.\n\n", escaped(location)));
    }
    if [Method::GET, Method::HEAD].contains(method) {
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, html);
    }
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Escapes text for HTML as Go's `http.Redirect` does.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;")
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    response
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn with_allow(mut response: Response<Body>, routed: &Routed) -> Response<Body> {
    if let Routed::MethodNotAllowed { allow } = routed {
        response
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::future::BoxFuture;
    use http_body_util::BodyExt;

    use super::*;

    /// Handler that repeats its request, or panics.
    struct Echo;

    impl RequestHandler for Echo {
        fn handle(&self, endpoint: ApiEndpoint, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
            assert_ne!(request.uri().path(), "/api/ps", "wanted by a test");
            let text = format!("{endpoint:?} {}", request.uri());
            Box::pin(async { Response::new(body::full(text)) })
        }
    }

    fn dispatcher() -> Dispatcher {
        Dispatcher {
            routes: Routes::new(),
            handler: Arc::new(Echo),
            settings: Arc::new(ArcSwap::from_pointee(Config::default())),
            in_flight: InFlight::default(),
        }
    }

    async fn send(method: &str, target: &str, headers: &[(&str, &str)]) -> (StatusCode, Vec<(String, String)>, String) {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let dispatcher = dispatcher();
        let response = dispatcher.dispatch(request.body(body::empty()).unwrap(), true).await;
        let (parts, body) = response.into_parts();
        let mut headers: Vec<_> = parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()))
            .collect();
        headers.sort();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert_eq!(dispatcher.in_flight.oldest(1).0, 0);
        (parts.status, headers, text)
    }

    /// The responses that the server makes itself equal those recorded from Ollama.
    #[tokio::test]
    async fn refusals_are_those_of_ollama() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ollama-recordings");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let ours = ["cors-", "host-", "wrong-method", "trailing-slash-", "ps-head"];
            if ours.iter().any(|start| name.starts_with(start)) {
                names.push(name);
            }
        }
        assert!(names.len() >= 18, "{names:?}");
        for name in names {
            let text = std::fs::read_to_string(folder.join(&name)).unwrap();
            let recording: serde_json::Value = serde_json::from_str(&text).unwrap();
            let (request, response) = (&recording["request"], &recording["response"]);
            let headers: Vec<_> = request["headers"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
                .collect();
            let (status, headers, body) = send(
                request["method"].as_str().unwrap(),
                request["path"].as_str().unwrap(),
                &headers,
            )
            .await;
            assert_eq!(status.as_u16(), response["status"].as_u64().unwrap() as u16, "{name}");

            let connection = ["date", "content-length", "connection"];
            let mut expected: Vec<_> = response["headers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|line| {
                    (
                        line[0].as_str().unwrap().to_ascii_lowercase(),
                        line[1].as_str().unwrap().to_owned(),
                    )
                })
                .filter(|(name, _)| !connection.contains(&name.as_str()))
                .collect();
            if status.is_success() && status != 204 {
                // The content type comes from the handler.
                expected.retain(|(name, _)| name != "content-type");
            } else if request["method"] != "HEAD" {
                let text: String = response["chunks"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|chunk| chunk["text"].as_str().unwrap())
                    .collect();
                assert_eq!(body, text, "{name}");
            }
            expected.sort();
            assert_eq!(headers, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn options_without_an_origin_follow_the_host() {
        for (target, host, expected) in [
            ("/api/chat", "localhost:11435", 204),
            ("/api/chat", "127.0.0.1:11435", 405),
            ("/api/chat", "evil.example", 403),
            ("/api/nothing", "127.0.0.1", 200),
        ] {
            assert_eq!(
                send("OPTIONS", target, &[("host", host)]).await.0,
                expected,
                "{target} {host}"
            );
        }
    }

    #[tokio::test]
    async fn cors_headers_are_on_errors_too() {
        let origin = [("host", "127.0.0.1"), ("origin", "app://a")];
        let (status, headers, _) = send("GET", "/api/chat", &origin).await;
        assert_eq!(status, 405);
        assert!(
            headers.contains(&("access-control-allow-origin".into(), "app://a".into())),
            "{headers:?}"
        );
        assert!(headers.contains(&("allow".into(), "POST".into())), "{headers:?}");
    }

    // A base URL that ends with a slash leads to a doubled one. Ollama redirects it with 301, which turns POST into GET
    // (trap 28).
    #[tokio::test]
    async fn doubled_slashes_are_read_as_one() {
        let (_, _, text) = send("POST", "//api//chat?a//b", &[]).await;
        assert_eq!(text, "Chat /api/chat?a//b");
        let (_, _, text) = send("POST", "//api//other", &[]).await;
        assert_eq!(text, "Forward //api//other");
    }

    #[tokio::test]
    async fn a_redirect_escapes_its_page() {
        let (status, _, text) = send("GET", "/api/tags/?a&'b'", &[]).await;
        assert_eq!(
            (status.as_u16(), text.as_str()),
            (
                301,
                "<a href=\"/api/tags?a&amp;&#39;b&#39;\">Moved Permanently</a>.\n\n"
            )
        );
    }

    #[tokio::test]
    async fn a_panic_is_an_empty_500() {
        let (status, _, text) = send("GET", "/api/ps", &[]).await;
        assert_eq!((status.as_u16(), text.as_str()), (500, ""));
    }
}
