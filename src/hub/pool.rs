//! Connections to the Hub, shared by all operations of a process.
//!
//! [`ConnectionPool`] holds one HTTP client, through which every request to the Hub goes, the clients of the `hf-hub`
//! crate on top of it, and what has to be remembered between operations: the health of the endpoints and the bandwidth
//! in use.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use dashmap::DashMap;
use hf_hub::HFClient;
use reqwest::redirect::Policy;
use url::Url;

use super::{endpoints::EndpointHealth, error::HubError, throttle::Throttle};
use crate::stdx::{Secret, sync::lock};

/// Upper limit of redirects in a row. huggingface.co uses two.
pub(super) const MAX_REDIRECTS: usize = 10;
pub(super) const USER_AGENT: &str = concat!("hubllama/", env!("CARGO_PKG_VERSION"));
/// Clients kept at once, one for each pair of endpoint and token. Reloads of the configuration can leave stale ones
/// behind.
const MAX_CLIENTS: usize = 32;
/// Stands for "no token" in `hf-hub`, which would otherwise read one from the environment and show it to mirrors. It is
/// never sent, since a line feed cannot be part of a header.
const NO_TOKEN: &str = "\n";

/// State that outlives an operation: connections, health of the endpoints, bandwidth in use.
#[derive(Debug, Default)]
pub(crate) struct ConnectionPool {
    /// Rebuilt when `connect_timeout`, which is fixed at its construction, changes.
    http: Mutex<Option<(Duration, reqwest::Client)>>,
    pub(super) api_clients: Arc<ApiClients>,
    pub(super) health: Arc<EndpointHealth>,
    pub(super) throttle: Arc<Throttle>,
}

/// Clients of the `hf-hub` crate, kept because building one loads the certificates of the system.
#[derive(Debug, Default)]
pub(super) struct ApiClients(DashMap<ApiClientKey, HFClient>);

/// Properties by which the clients of the `hf-hub` crate differ.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ApiClientKey {
    /// Base URL.
    pub(super) endpoint: String,
    pub(super) token: Option<Secret<String>>,
    /// Setting of the underlying HTTP client.
    pub(super) connect_timeout: Duration,
}

impl ConnectionPool {
    /// Returns the HTTP client, whose clones share their connections.
    pub(super) fn http(&self, connect_timeout: Duration) -> Result<reqwest::Client, HubError> {
        let mut cached = lock(&self.http);
        if let Some((_, client)) = cached.as_ref().filter(|(timeout, _)| *timeout == connect_timeout) {
            return Ok(client.clone());
        }
        crate::http::client::install_tls();
        // HTTP/1 gives each range its own connection, and so its own congestion window.
        let client = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect_policy())
            .referer(false)
            .connect_timeout(connect_timeout)
            .http1_only()
            .build()
            .map_err(|error| HubError::Endpoint(chain(&error)))?;
        *cached = Some((connect_timeout, client.clone()));
        Ok(client)
    }
}

impl ApiClients {
    /// Returns the client for an endpoint and a token, and builds it if needed.
    pub(super) fn get(&self, key: ApiClientKey, http: &reqwest::Client) -> Result<HFClient, HubError> {
        if let Some(client) = self.0.get(&key) {
            return Ok(client.clone());
        }
        let client = HFClient::builder()
            .endpoint(&*key.endpoint)
            .token(key.token.as_ref().map_or(NO_TOKEN, |token| token.expose()))
            .client(http.clone())
            .user_agent(USER_AGENT)
            // Retries are the rotation's: other endpoints come first, and they honor `retry_attempts`.
            .retry_max_attempts(0)
            // An explicit folder keeps `hf-hub` from reading HF_HOME and the like.
            .cache_enabled(false)
            .cache_dir("")
            .build()
            .map_err(|error| HubError::Endpoint(error.to_string()))?;
        if self.0.len() >= MAX_CLIENTS {
            self.0.clear();
        }
        self.0.insert(key, client.clone());
        Ok(client)
    }
}

/// Follows redirects of API questions, which `hf-hub` leaves to its HTTP client: renamed repositories redirect to their
/// new name. `reqwest` drops the token where a redirect leaves the host.
///
/// Redirects of files are returned as they are: `HubClient` follows them by hand, because the headers that describe
/// the content are on the first answer.
fn redirect_policy() -> Policy {
    Policy::custom(|attempt| {
        if !attempt.previous().first().is_some_and(is_api) {
            return attempt.stop();
        }
        if attempt.previous().len() > MAX_REDIRECTS {
            return attempt.error("it redirects in a circle");
        }
        // A step down from https would expose the question.
        let from_https = attempt.previous().iter().any(|url| url.scheme() == "https");
        match attempt.url().scheme() {
            "https" => attempt.follow(),
            "http" if !from_https => attempt.follow(),
            _ => attempt.error("it redirects to an address that cannot be used"),
        }
    })
}

/// Tells API questions from files, whose path may contain anything after `/resolve/`. A mirror may have a path in
/// front.
fn is_api(url: &Url) -> bool {
    let path = url.path();
    let path = path.split_once("/resolve/").map_or(path, |(front, _)| front);
    path.ends_with("/api/whoami-v2") || path.ends_with("/api/models") || path.contains("/api/models/")
}

/// Joins the causes of an error in one line, without the URL that reqwest adds.
pub(super) fn chain(error: &reqwest::Error) -> String {
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

    #[test]
    fn api_questions_are_told_from_files() {
        for (url, expected) in [
            ("https://h/api/models", true),
            ("https://h/api/models/o/r/revision/main", true),
            ("https://h/mirror/api/models/o/r/tree/main", true),
            ("https://h/api/whoami-v2", true),
            ("https://h/o/r/resolve/main/m.gguf", false),
            ("https://h/o/r/resolve/main/api/models/m.gguf", false),
            ("https://h/api/resolve-cache/models/o/r/1/m.gguf", false),
            ("https://cdn/0123", false),
        ] {
            assert_eq!(is_api(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
