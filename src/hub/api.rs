//! Questions to the Hub's API that go through the `hf-hub` crate: repository information, search, and the account
//! behind a token.
//!
//! `hf-hub` knows the routes and the JSON. Connections, endpoint rotation, tokens, deadlines and retries stay with
//! [`HubClient`], because `hf-hub` has no deadlines, no mirrors and one token per client. Its downloads are not used at
//! all: they store error pages as blobs, and neither resume nor verify. Nor is its scan of the cache, which follows
//! symbolic links to folders, blocks the thread that it is polled on, and reads the whole cache each time; `cache`
//! reads what has changed.

use futures_util::TryStreamExt as _;
use hf_hub::{HFClient, HFError, HFResult, repository::ModelInfo};
use reqwest::StatusCode;
use tokio::time::timeout;
use url::Url;

use super::{
    backoff::MAX_WAIT,
    cache,
    client::{HubClient, HubReachability, RepoInfo, RequestSubject, host, origin},
    endpoints::Endpoint,
    error::HubError,
    name,
    pool::{ApiClientKey, chain},
    refusal::HubRefusal,
    wire::license_in,
};

/// Results requested for a tag. `gguf` is a second tag, which is filtered here.
const TAG_RESULTS: usize = 100;
/// Properties of a repository that are requested. The complete answer lists every file, which is megabytes for some
/// repositories.
const INFO_PROPERTIES: [&str; 2] = ["sha", "tags"];

/// Condition on the repositories of a search.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SearchFilter<'a> {
    /// Words that occur in the name or the model card.
    Words(&'a str),
    /// Tag such as `base_model:quantized:ORG/REPO`.
    Tag(&'a str),
}

impl HubClient {
    /// Returns the canonical spelling of a repository and the commit of a revision.
    pub(crate) async fn info(&self, repo: &str, revision: &str) -> Result<RepoInfo, HubError> {
        let about = RequestSubject {
            repo,
            revision,
            path: "",
        };
        let mut rotation = self.rotation();
        loop {
            match self.info_at(rotation.current(), &about).await {
                Ok(info) => {
                    rotation.succeeded();
                    return Ok(info);
                }
                Err(error) => rotation.failed(error).await?,
            }
        }
    }

    async fn info_at(&self, endpoint: &Endpoint, about: &RequestSubject<'_>) -> Result<RepoInfo, HubError> {
        let RequestSubject { repo, revision, .. } = *about;
        let (owner, name) = hf_hub::split_id(repo);
        let repository = self.api(endpoint, repo)?.model(owner, name);
        let properties = INFO_PROPERTIES.map(str::to_owned).to_vec();
        let question = repository.info().revision(revision).expand(properties).send();
        let info = self.ask(endpoint, about, question).await?;
        // The Hub's spelling of the same name is taken over. Another name means that the repository was renamed: it
        // stays under the name that was asked for, under which the user will ask again.
        let id = if info.id.eq_ignore_ascii_case(repo) {
            &info.id
        } else {
            repo
        };
        let Some((org, name)) = name::split_repo_id(id) else {
            return Err(self.protocol(&endpoint.url, "it gave a repository name that the Hub does not allow"));
        };
        match info.sha.as_ref().filter(|commit| cache::is_commit(commit)) {
            Some(commit) => Ok(RepoInfo {
                org: org.to_owned(),
                repo: name.to_owned(),
                commit: commit.clone(),
                license: license_in(info.tags.as_deref().unwrap_or_default()),
            }),
            None => Err(self.protocol(&endpoint.url, "it gave no commit")),
        }
    }

    /// Finds repositories with GGUF files, the most downloaded first.
    pub(crate) async fn search(&self, filter: SearchFilter<'_>, limit: usize) -> Result<Vec<ModelInfo>, HubError> {
        let about = RequestSubject {
            repo: "",
            revision: "",
            path: "",
        };
        let mut rotation = self.rotation();
        loop {
            match self.search_at(rotation.current(), &about, filter, limit).await {
                Ok(mut found) => {
                    rotation.succeeded();
                    found.retain(|repo| name::split_repo_id(&repo.id).is_some());
                    found.truncate(limit);
                    return Ok(found);
                }
                Err(error) => rotation.failed(error).await?,
            }
        }
    }

    async fn search_at(
        &self,
        endpoint: &Endpoint,
        about: &RequestSubject<'_>,
        filter: SearchFilter<'_>,
        limit: usize,
    ) -> Result<Vec<ModelInfo>, HubError> {
        let api = self.api(endpoint, "")?;
        let (words, tag, limit) = match filter {
            SearchFilter::Words(words) => (Some(words), "gguf", limit),
            SearchFilter::Tag(tag) => (None, tag, TAG_RESULTS),
        };
        let question = api.list_models().maybe_search(words).filter(tag);
        let found = question.sort("downloads").limit(limit).send();
        let found = found.map_err(|error| HubError::Endpoint(error.to_string()))?;
        let mut found: Vec<ModelInfo> = self.ask(endpoint, about, found.try_collect()).await?;
        if let SearchFilter::Tag(tag) = filter {
            // `hf-hub` sends one tag only. Mirrors may ignore even that.
            let has = |repo: &ModelInfo, wanted: &str| {
                let tags = repo.tags.as_deref().unwrap_or_default();
                tags.iter().any(|tag| tag.eq_ignore_ascii_case(wanted))
            };
            found.retain(|repo| has(repo, tag) && has(repo, "gguf"));
        }
        Ok(found)
    }

    /// Asks the main endpoint for the account behind the token.
    pub(crate) async fn reachable(&self) -> Result<HubReachability, HubError> {
        let endpoint = self.main_endpoint()?;
        let about = RequestSubject {
            repo: "",
            revision: "",
            path: "",
        };
        let api = self.api(endpoint, "")?;
        let answer = |user, token_refused| HubReachability { user, token_refused };
        match self.timed(endpoint, api.whoami().send()).await? {
            Ok(account) => Ok(answer(Some(account.username), false)),
            Err(HFError::AuthRequired { .. } | HFError::Forbidden { .. }) => {
                Ok(answer(None, self.config().token.is_some()))
            }
            // A server that imitates the Hub need not have accounts.
            Err(HFError::Http { context }) if context.status == StatusCode::NOT_FOUND => Ok(answer(None, false)),
            Err(error) if is_json_error(&error) => Ok(answer(None, false)),
            Err(error) => Err(self.api_error(error, endpoint, &about).await),
        }
    }

    /// Returns the `hf-hub` client for an endpoint, with the token that this endpoint may see.
    fn api(&self, endpoint: &Endpoint, repo: &str) -> Result<HFClient, HubError> {
        let key = ApiClientKey {
            endpoint: endpoint.url.as_str().to_owned(),
            token: self.token(&endpoint.url, repo).cloned(),
            connect_timeout: self.config().connect_timeout,
        };
        self.api_clients().get(key, self.http())
    }

    async fn ask<T>(
        &self,
        endpoint: &Endpoint,
        about: &RequestSubject<'_>,
        question: impl Future<Output = HFResult<T>>,
    ) -> Result<T, HubError> {
        match self.timed(endpoint, question).await? {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.api_error(error, endpoint, about).await),
        }
    }

    /// Waits for an answer as long as for the head of any response. `hf-hub` itself would wait for ever. The answers
    /// are short, so one limit also covers those that come byte by byte.
    async fn timed<T>(
        &self,
        endpoint: &Endpoint,
        question: impl Future<Output = HFResult<T>>,
    ) -> Result<HFResult<T>, HubError> {
        let after = self.response_timeout();
        timeout(after, question).await.map_err(|_| HubError::Stalled {
            host: host(&endpoint.url),
            after,
        })
    }

    /// Classifies an error by its status and the Hub's error code. The variants of [`HFError`] are too coarse: they
    /// depend on the call, and a missing repository without a token is an `AuthRequired`.
    async fn api_error(&self, error: HFError, endpoint: &Endpoint, about: &RequestSubject<'_>) -> HubError {
        let (context, retry_after) = match error {
            HFError::RateLimited { retry_after, context } => (context, retry_after),
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::RepoNotFound {
                context: Some(context), ..
            }
            | HFError::RevisionNotFound {
                context: Some(context), ..
            } => (context, None),
            HFError::Request { source, .. } => return self.transport_error(&source, &endpoint.url),
            _ => return self.protocol(&endpoint.url, "its answer is not the JSON of a Hub"),
        };
        if context.status.is_redirection() {
            return self.protocol(&endpoint.url, "it redirects to an address that cannot be used");
        }
        if context.status == StatusCode::TOO_MANY_REQUESTS && retry_after.is_none() {
            // The Hub tells the time to wait in a header that `hf-hub` does not read. Asking once more is cheap, and
            // guessing too short a time would use up all retries.
            if let Ok(url) = Url::parse(&context.url)
                && let Ok(response) = self.get(&url, None, about).await
                && !response.status().is_success()
            {
                return self.refusal(response, about).await;
            }
        }
        let refusal = HubRefusal {
            status: context.status.as_u16(),
            code: context.error_code.as_deref().unwrap_or_default(),
            message: context.server_message.as_deref().unwrap_or_default(),
            retry_after: retry_after.map(|wait| wait.min(MAX_WAIT)),
            url: &endpoint.url,
        };
        self.classify(&refusal, about)
    }

    fn transport_error(&self, error: &reqwest::Error, url: &Url) -> HubError {
        if error.is_builder() {
            HubError::Endpoint(chain(error))
        } else if error.is_redirect() {
            self.protocol(url, &chain(error))
        } else if caused_by_json(error) {
            self.protocol(url, "its answer is not the JSON of a Hub")
        } else {
            HubError::Unreachable {
                endpoint: origin(url),
                reason: chain(error),
            }
        }
    }
}

fn is_json_error(error: &HFError) -> bool {
    match error {
        HFError::Json(_) => true,
        HFError::Request { source, .. } => caused_by_json(source),
        _ => false,
    }
}

fn caused_by_json(error: &reqwest::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(<dyn std::error::Error>::is::<serde_json::Error>)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{config::HubConfig, hub::pool::ConnectionPool, stdx::Secret};

    /// Asks a server that gives this answer to every request; returns the result and the head of the first request.
    async fn asked(answer: &'static str, token: Option<&str>) -> (Result<RepoInfo, HubError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let mut first = None;
            while let Ok(Ok((mut socket, _))) = timeout(Duration::from_millis(300), listener.accept()).await {
                let mut head = [0; 4096];
                let read = socket.read(&mut head).await.unwrap();
                first.get_or_insert_with(|| String::from_utf8_lossy(&head[..read]).into_owned());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            first.unwrap_or_default()
        });
        let config = HubConfig {
            endpoint,
            token: token.map(|token| Secret::new(token.to_owned())),
            retry_attempts: 0,
            ..HubConfig::default()
        };
        let client = HubClient::new(&ConnectionPool::default(), Arc::new(config)).unwrap();
        let result = client.info("o/r", "refs/pr/1").await;
        drop(client);
        (result, server.await.unwrap())
    }

    #[tokio::test]
    async fn what_is_sent_and_what_is_read() {
        let answer = concat!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
            r#"{"id":"O/R","sha":"0123456789012345678901234567890123456789","tags":["license:mit"]}"#
        );
        let (info, head) = asked(answer, Some("hf_x")).await;
        let info = info.unwrap();
        assert_eq!(
            (&*info.org, &*info.repo, info.license.as_deref()),
            ("O", "R", Some("mit"))
        );
        let head = head.to_ascii_lowercase();
        assert!(
            head.starts_with("get /api/models/o/r/revision/refs%2fpr%2f1?expand=sha&expand=tags "),
            "{head}"
        );
        assert!(head.contains("\r\nauthorization: bearer hf_x\r\n"), "{head}");
        assert!(head.contains("\r\nuser-agent: hubllama/"), "{head}");
        let (_, head) = asked(answer, None).await;
        assert!(!head.to_ascii_lowercase().contains("authorization"), "{head}");
    }

    #[tokio::test]
    async fn answers_that_are_not_the_hubs() {
        let (error, _) = asked("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>", None).await;
        assert!(matches!(error, Err(HubError::Protocol { .. })), "{error:?}");
        let loops = "HTTP/1.1 307 Moved\r\nconnection: close\r\nlocation: /api/models/o/r\r\ncontent-length: 0\r\n\r\n";
        let (error, _) = asked(loops, None).await;
        assert!(matches!(error, Err(HubError::Protocol { .. })), "{error:?}");
        let cut = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{";
        let (error, _) = asked(cut, None).await;
        assert!(error.as_ref().is_err_and(HubError::is_transient), "{error:?}");
    }

    /// The Hub's own way to tell the time, which `hf-hub` does not read.
    #[tokio::test]
    async fn rate_limits_without_retry_after() {
        let limited =
            "HTTP/1.1 429 Slow down\r\nconnection: close\r\nratelimit: \"api\";r=0;t=7\r\ncontent-length: 0\r\n\r\n";
        let (error, _) = asked(limited, None).await;
        assert_eq!(
            error,
            Err(HubError::RateLimited {
                retry_after: Some(Duration::from_secs(7))
            })
        );
    }
}
