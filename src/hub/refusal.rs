//! Classification of responses without success: status, the Hub's error code and its message become a [`HubError`].

use std::time::Duration;

use reqwest::Response;
use url::Url;

use super::{
    client::{HubClient, RequestSubject, host},
    error::HubError,
    wire::{ErrorWire, retry_after},
};

/// Upper limit of the body of an error in bytes.
const MAX_ERROR_BYTES: usize = 4 << 10;
/// Upper limit of a message that is shown, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// Response without success.
pub(super) struct HubRefusal<'a> {
    pub(super) status: u16,
    /// Header `X-Error-Code`, or empty.
    pub(super) code: &'a str,
    /// Text of the Hub for people, or empty.
    pub(super) message: &'a str,
    pub(super) retry_after: Option<Duration>,
    pub(super) url: &'a Url,
}

impl HubClient {
    /// Reads a response without success and classifies it.
    pub(crate) async fn refusal(&self, response: Response, about: &RequestSubject<'_>) -> HubError {
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
            // Only the Hub's own JSON is shown to the user, no HTML page of a proxy.
            let body = self.body(response, MAX_ERROR_BYTES).await.unwrap_or_default();
            message = serde_json::from_slice::<ErrorWire>(&body)
                .map(|wire| wire.error)
                .unwrap_or_default();
        }
        let refusal = HubRefusal {
            status,
            code: &code,
            message: &message,
            retry_after: retry_after(&headers),
            url: &url,
        };
        self.classify(&refusal, about)
    }

    pub(super) fn classify(&self, refusal: &HubRefusal<'_>, about: &RequestSubject<'_>) -> HubError {
        let HubRefusal {
            status,
            code,
            message,
            retry_after,
            url,
        } = *refusal;
        // It goes to a terminal.
        let message: String = message
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_MESSAGE_CHARS)
            .collect();
        let repo = about.repo.to_owned();
        let endpoint = self.config().endpoint.clone();
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
}

#[cfg(test)]
mod tests {
    use super::{super::client::tests::client, *};

    #[test]
    fn refusals() {
        let client = client("https://hub");
        let url = Url::parse("https://hub/x").unwrap();
        let about = RequestSubject {
            repo: "o/r",
            revision: "v1",
            path: "f.gguf",
        };
        let check = |status, code, message: &str| {
            let refusal = HubRefusal {
                status,
                code,
                message,
                retry_after: None,
                url: &url,
            };
            client.classify(&refusal, &about)
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
