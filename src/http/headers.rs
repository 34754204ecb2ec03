//! Headers that must not be forwarded from one connection to another.

use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};

/// Headers that belong to one connection (RFC 9110 section 7.6.1, and the older ones of RFC 2616 section 13.5.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Removes the hop-by-hop headers, including those that `Connection` names. The order of the others is kept.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    keep(headers, |name, _| {
        !HOP_BY_HOP.contains(&name.as_str()) && !named.iter().any(|listed| name == listed.as_str())
    });
}

/// Removes a server's CORS headers: every `Access-Control-*`, and `Origin` from `Vary`. hubllama sets its own.
pub fn remove_cors(headers: &mut HeaderMap) {
    keep(headers, |name, _| !name.as_str().starts_with("access-control-"));
    if headers.get_all(header::VARY).iter().any(names_origin) {
        let kept: Vec<HeaderValue> = headers
            .get_all(header::VARY)
            .iter()
            .filter_map(without_origin)
            .collect();
        remove(headers, &[header::VARY]);
        for value in kept {
            headers.append(header::VARY, value);
        }
    }
}

/// Removes the headers of these names. Order is kept.
pub fn remove(headers: &mut HeaderMap, names: &[HeaderName]) {
    keep(headers, |name, _| !names.contains(name));
}

/// Keeps the headers for which `wanted` returns true. (`HeaderMap::remove` would move the last entry into the gap, and
/// the order of headers has to stay.)
fn keep(headers: &mut HeaderMap, wanted: impl Fn(&HeaderName, &HeaderValue) -> bool) {
    if headers.iter().all(|(name, value)| wanted(name, value)) {
        return;
    }
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, value)| wanted(name, value)) {
        kept.append(name.clone(), value.clone());
    }
    *headers = kept;
}

fn items(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn names_origin(value: &HeaderValue) -> bool {
    items(value).any(|item| item.eq_ignore_ascii_case(b"origin"))
}

fn without_origin(value: &HeaderValue) -> Option<HeaderValue> {
    if !names_origin(value) {
        return Some(value.clone());
    }
    let rest: Vec<&[u8]> = items(value)
        .filter(|item| !item.eq_ignore_ascii_case(b"origin"))
        .collect();
    if rest.is_empty() {
        None
    } else {
        HeaderValue::from_bytes(&rest.join(&b", "[..])).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn lines(headers: &HeaderMap) -> Vec<(&str, &str)> {
        headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect()
    }

    // A proxy must not forward hop-by-hop headers, including those that `Connection` names (trap 61).
    #[test]
    fn hop_by_hop_headers_go_and_the_order_of_others_stays() {
        let mut headers = map(&[
            ("host", "a"),
            ("connection", "close, X-Mine"),
            ("user-agent", "b"),
            ("x-mine", "c"),
            ("transfer-encoding", "chunked"),
            ("accept", "d"),
            ("te", "trailers"),
            ("accept-encoding", "gzip"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(
            lines(&headers),
            [
                ("host", "a"),
                ("user-agent", "b"),
                ("accept", "d"),
                ("accept-encoding", "gzip")
            ]
        );
    }

    #[test]
    fn cors_headers_go() {
        let mut headers = map(&[
            ("access-control-allow-origin", "*"),
            ("content-type", "a"),
            ("vary", "Origin"),
            ("vary", "Accept, origin , X"),
            ("access-control-max-age", "1"),
        ]);
        remove_cors(&mut headers);
        assert_eq!(lines(&headers), [("content-type", "a"), ("vary", "Accept, X")]);
    }
}
