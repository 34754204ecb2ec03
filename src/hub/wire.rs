//! Wire format of the Hub: JSON bodies and headers. Everything in them is checked here before it becomes a path or a
//! URL.

use std::time::{Duration, SystemTime};

use reqwest::{
    Response,
    header::{CONTENT_RANGE, HeaderMap, LINK, LOCATION, RETRY_AFTER},
};
use serde::Deserialize;
use url::Url;

use super::{backoff::MAX_WAIT, error::HubError, name, resolve::RepoFile};
use crate::stdx::hex;

/// Finds the license of a repository, which the Hub repeats among its tags.
pub(crate) fn license_in(tags: &[String]) -> Option<String> {
    let license = tags.iter().find_map(|tag| tag.strip_prefix("license:"))?;
    Some(license.chars().filter(|c| !c.is_control()).take(100).collect())
}

/// Entry of `GET /api/models/ORG/REPO/tree/REVISION`.
#[derive(Deserialize)]
pub(crate) struct EntryWire {
    /// `file` or `directory`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) size: u64,
    /// Git's sha1 of the file, or of the pointer to a large file.
    pub(crate) oid: Option<String>,
    /// Present for large files only.
    pub(crate) lfs: Option<LfsWire>,
}

#[derive(Deserialize)]
pub(crate) struct LfsWire {
    /// sha256 of the content.
    pub(crate) oid: Option<String>,
    pub(crate) size: Option<u64>,
}

#[derive(Deserialize)]
pub(crate) struct ErrorWire {
    pub(crate) error: String,
}

/// Answer to `GET /api/models/ORG/REPO/xet-read-token/REVISION`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct XetTokenWire {
    pub(crate) access_token: String,
    /// End of the validity, in seconds since 1970.
    pub(crate) exp: u64,
    /// Base URL of the content-addressed store.
    pub(crate) cas_url: String,
}

impl EntryWire {
    /// Checks an entry; `None` if its path would leave the folder of the snapshot. Malformed hashes are dropped, since
    /// they would become names of files.
    pub(crate) fn into_file(self) -> Option<RepoFile> {
        let is_safe = name::is_safe_path(&self.path);
        let (lfs_oid, lfs_size) = self.lfs.map_or((None, None), |lfs| (lfs.oid, lfs.size));
        is_safe.then(|| RepoFile {
            size: lfs_size.unwrap_or(self.size),
            oid: self.oid.filter(|oid| hex::is_hex(oid, 40)),
            lfs_sha256: lfs_oid.filter(|oid| hex::is_hex(oid, 64)),
            path: self.path,
        })
    }
}

/// Returns the hash by which the xet store knows a file, in lower case.
pub(crate) fn xet_hash(headers: &HeaderMap) -> Option<String> {
    let hash = headers.get("x-xet-hash")?.to_str().ok()?.to_ascii_lowercase();
    hex::is_hex(&hash, 64).then_some(hash)
}

/// Returns the target of a redirect; `None` for other responses.
///
/// # Errors
/// If the target is no URL, or a step down from https, which would expose the request.
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

/// Returns a hash from an ETag header. Other kinds of ETag are ignored: the hash becomes the name of a file.
pub(crate) fn etag(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    let value = value.strip_prefix("W/").unwrap_or(value).trim_matches('"');
    (hex::is_hex(value, 64) || hex::is_hex(value, 40)).then(|| value.to_owned())
}

pub(crate) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// Parses `Content-Range: bytes START-END/SIZE` and returns the start and the size of the whole file.
pub(crate) fn content_range(response: &Response) -> Option<(u64, u64)> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, size.parse().ok()?))
}

/// Returns the pause that a server asks for: `Retry-After` in seconds or as a date, else the `t=` of the `RateLimit`
/// header, which huggingface.co sends. At most [`MAX_WAIT`].
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let asked = number(headers, RETRY_AFTER.as_str())
        .map(Duration::from_secs)
        .or_else(|| {
            let date = headers.get(RETRY_AFTER)?.to_str().ok()?;
            let until = httpdate::parse_http_date(date).ok()?;
            Some(until.duration_since(SystemTime::now()).unwrap_or_default())
        })
        .or_else(|| {
            // `"api";r=0;t=55` means that no request is left for 55 seconds.
            let limit = headers.get("ratelimit")?.to_str().ok()?;
            let seconds = limit.split(';').find_map(|part| part.trim().strip_prefix("t="))?;
            seconds.parse().ok().map(Duration::from_secs)
        });
    asked.map(|asked| asked.min(MAX_WAIT))
}

/// Returns the target of `Link: <…>; rel="next"`, which leads to the next page of a listing.
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
    #[test]
    fn entries_from_strangers() {
        let file = |json: &str| {
            serde_json::from_str::<EntryWire>(json)
                .ok()
                .and_then(EntryWire::into_file)
        };
        let oid = "a".repeat(40);
        let good = file(&format!(
            r#"{{"type":"file","path":"a/b.gguf","size":3,"oid":"{oid}"}}"#
        ));
        assert_eq!(good.and_then(|file| file.oid), Some(oid));
        for path in [
            "../x.gguf",
            "/x.gguf",
            "a/./x.gguf",
            "a/../x.gguf",
            "",
            "a\\\\b.gguf",
            "a\\u0000.gguf",
        ] {
            assert_eq!(file(&format!(r#"{{"type":"file","path":"{path}"}}"#)), None, "{path}");
        }
        // Hashes become names of files, so that malformed ones are dropped.
        let odd = file(r#"{"type":"file","path":"x.gguf","oid":"../../etc","lfs":{"oid":"AB","size":7}}"#).unwrap();
        assert_eq!((odd.etag(), odd.size), (None, 7));
        for json in [
            r#"{"type":"file","path":"x.gguf","size":-1}"#,
            r#"{"type":"file","path":"x.gguf","size":99999999999999999999999}"#,
            r#"{"path":7}"#,
        ] {
            assert_eq!(file(json), None, "{json}");
        }
    }

    #[test]
    fn waits() {
        let asked = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(asked("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("retry-after", "99999"), Some(MAX_WAIT));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
        assert!(asked("retry-after", &soon).is_some_and(|asked| asked > Duration::from_secs(20)));
        assert_eq!(
            asked("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT"),
            Some(Duration::ZERO)
        );
        assert_eq!(
            asked("ratelimit", "\"resolvers\";r=0;t=12"),
            Some(Duration::from_secs(12))
        );
        assert_eq!(asked("retry-after", "soon"), None);
    }
}
