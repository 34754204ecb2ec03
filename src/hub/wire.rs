//! What the Hub's answers look like: JSON bodies and headers.

use std::time::Duration;

use reqwest::{
    Response,
    header::{HeaderMap, LINK, LOCATION, RETRY_AFTER},
};
use serde::Deserialize;
use url::Url;

use super::{backoff::MAX_WAIT, cache, error::HubError, name, resolve::RepoFile};

#[derive(Deserialize)]
pub(crate) struct InfoWire {
    pub(crate) id: Option<String>,
    pub(crate) sha: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct EntryWire {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) size: u64,
    pub(crate) oid: Option<String>,
    pub(crate) lfs: Option<LfsWire>,
}

#[derive(Deserialize)]
pub(crate) struct LfsWire {
    pub(crate) oid: Option<String>,
    pub(crate) size: Option<u64>,
}

#[derive(Deserialize)]
pub(crate) struct ErrorWire {
    pub(crate) error: String,
}

#[derive(Deserialize)]
pub(crate) struct WhoWire {
    pub(crate) name: String,
}

impl EntryWire {
    pub(crate) fn into_file(self) -> Option<RepoFile> {
        let is_safe = name::is_safe_path(&self.path);
        let (lfs_oid, lfs_size) = self.lfs.map_or((None, None), |lfs| (lfs.oid, lfs.size));
        is_safe.then(|| RepoFile {
            size: lfs_size.unwrap_or(self.size),
            oid: self.oid.filter(|oid| cache::is_hex(oid, 40)),
            lfs_sha256: lfs_oid.filter(|oid| cache::is_hex(oid, 64)),
            path: self.path,
        })
    }
}

/// Where a redirect leads; a step down from https would expose what was asked for.
pub(crate) fn redirect(response: &Response) -> Result<Option<Url>, HubError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let from = response.url();
    let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    match target.and_then(|target| from.join(target).ok()) {
        Some(next) if next.scheme() == "https" || (next.scheme() == "http" && from.scheme() == "http") => {
            Ok(Some(next))
        }
        _ => Err(HubError::Protocol {
            host: from.host_str().unwrap_or_default().to_owned(),
            problem: "it redirects to an address that cannot be used".into(),
        }),
    }
}

pub(crate) fn etag(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    let value = value.strip_prefix("W/").unwrap_or(value).trim_matches('"');
    (cache::is_hex(value, 64) || cache::is_hex(value, 40)).then(|| value.to_owned())
}

pub(crate) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    number(headers, RETRY_AFTER.as_str()).map(|seconds| Duration::from_secs(seconds).min(MAX_WAIT))
}

/// The target of `Link: <…>; rel="next"`.
pub(crate) fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(LINK)?.to_str().ok()?;
    links.split('<').skip(1).find_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        parameters.contains("rel=\"next\"").then(|| target.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let mut headers = HeaderMap::new();
        headers.insert("etag", format!("W/\"{}\"", "a".repeat(40)).parse().unwrap());
        headers.insert("x-linked-etag", "\"../../etc\"".parse().unwrap());
        headers.insert(
            LINK,
            "<http://h/a?b=1>; rel=\"prev\", <http://h/a?c=,2>; rel=\"next\""
                .parse()
                .unwrap(),
        );
        assert_eq!(etag(&headers, "etag"), Some("a".repeat(40)));
        assert_eq!(etag(&headers, "x-linked-etag"), None, "it would become a file name");
        assert_eq!(next_page(&headers).as_deref(), Some("http://h/a?c=,2"));
    }
}
