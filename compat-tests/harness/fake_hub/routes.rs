//! Routes of the Hub (API and resolve) and of the content network.

use std::{convert::Infallible, sync::Arc};

use hyper::{
    HeaderMap, Method, Request, Response,
    body::Incoming,
    header::{AUTHORIZATION, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    Entry, Repo, Shared, TOKEN,
    answers::{Body, describe, empty, error, json_response, page, redirect, take},
    content::bytes,
    xet,
};

/// Server that a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Api,
    /// Content network.
    Content,
    /// Store of the xet protocol, with its content network.
    Store,
}

/// Serves one of the ports until the runtime ends.
pub(super) async fn accept(listener: TcpListener, shared: &Arc<Shared>, port: Port) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            return;
        };
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(&shared, &request, port);
                let faults = shared.state().faults.clone();
                let is_search = request.uri().path() == "/api/models";
                let hangs = port == Port::Api && (faults.api_hangs || is_search && faults.search_hangs);
                async move {
                    if hangs {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            // Ignored: many tests drop the client in the middle of a response.
            let _ = http.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

fn answer(shared: &Arc<Shared>, request: &Request<Incoming>, port: Port) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let has_token = token == Some(&format!("Bearer {TOKEN}"));
    {
        let mut state = shared.state();
        let hits = state.hits.entry(path.clone()).or_default();
        hits.requests += 1;
        hits.with_token += u64::from(token.is_some());
    }
    let segments: Vec<String> = path
        .split('/')
        .skip(1)
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let mut response = match (port, segments.as_slice()) {
        (Port::Content, ["cdn", sha256]) => content(shared, &path, sha256, request.headers()),
        (Port::Content, _) => error(404, "", "no such content"),
        (Port::Store, ["v1", "reconstructions", hash]) => xet::reconstruction(shared, 1, hash, request.headers()),
        (Port::Store, ["v2", "reconstructions", hash]) => xet::reconstruction(shared, 2, hash, request.headers()),
        (Port::Store, ["xorbs", hash]) => xet::xorb(shared, &path, hash, &query, request.headers()),
        (Port::Store, _) => error(404, "", "no such route"),
        (Port::Api, ["api", "whoami-v2"]) if has_token => json_response(&json!({"name": "loopback", "type": "user"})),
        (Port::Api, ["api", "whoami-v2"]) => error(401, "", "Invalid credentials in Authorization header"),
        (Port::Api, ["api", "models"]) => search(shared, &query, has_token),
        (Port::Api, ["api", "models", org, repo, rest @ ..]) => {
            api(shared, &format!("{org}/{repo}"), rest, &query, has_token)
        }
        (Port::Api, ["api", "resolve-cache", "models", org, repo, commit, file]) => {
            small(shared, &path, &format!("{org}/{repo}"), commit, file, request.headers())
        }
        (Port::Api, [org, repo, "resolve", revision, file @ ..]) => {
            let repo = format!("{org}/{repo}");
            resolve(
                shared,
                &path,
                &repo,
                revision,
                &file.join("/"),
                has_token,
                request.headers(),
            )
        }
        _ => error(404, "", "Sorry, we can't find the page you are looking for."),
    };
    if request.method() == Method::HEAD {
        let length = response.headers().get("content-length").cloned();
        let (mut parts, _) = response.into_parts();
        if let Some(length) = length {
            parts.headers.insert("content-length", length);
        }
        response = Response::from_parts(parts, empty());
    }
    response
}

/// Answer for a repository that does not exist, or that the client may not see.
fn no_repository(has_token: bool) -> Response<Body> {
    let status = if has_token { 404 } else { 401 };
    error(status, "RepoNotFound", "Repository not found")
}

fn api(shared: &Shared, id: &str, rest: &[&str], query: &str, has_token: bool) -> Response<Body> {
    let mut state = shared.state();
    let retry_after = state.faults.retry_after;
    if let Some(status) = take(&mut state.faults.api_status) {
        let mut response = error(status, "", "");
        if let Some(seconds) = retry_after {
            response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
        }
        return response;
    }
    let named = state.renamed.get(id).map_or(id, String::as_str);
    let known = state.repos.iter().find(|(known, _)| known.eq_ignore_ascii_case(named));
    let Some((canonical, repo)) = known.filter(|(_, repo)| has_token || !repo.private) else {
        return no_repository(has_token);
    };
    if canonical != id {
        let tail: String = rest
            .iter()
            .map(|part| format!("/{}", part.replace('/', "%2F")))
            .collect();
        return redirect(307, &format!("/api/models/{canonical}{tail}"));
    }
    let commit = repo.commit();
    let revision = rest.get(1).copied().unwrap_or("main");
    if revision != "main" && revision != commit && revision != "refs/pr/1" {
        return error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    }
    match rest {
        ["xet-read-token", _] => {
            drop(state);
            xet::token(shared)
        }
        [] | ["revision", _] => {
            let siblings: Vec<_> = repo.files.keys().map(|path| json!({"rfilename": path})).collect();
            let gated: Value = if repo.gated { "auto".into() } else { false.into() };
            let mut info = json!({
                "id": canonical, "sha": commit, "private": repo.private, "gated": gated, "tags": repo.tags,
                "siblings": siblings,
            });
            let expanded: Vec<&str> = query
                .split('&')
                .filter_map(|pair| pair.strip_prefix("expand="))
                .collect();
            if let Some(properties) = info.as_object_mut()
                && !expanded.is_empty()
            {
                properties.retain(|key, _| key == "id" || expanded.contains(&key.as_str()));
            }
            json_response(&info)
        }
        ["refs"] => json_response(&json!({
            "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit}], "tags": [], "converts": [],
        })),
        ["tree", _] => {
            let entries: Vec<_> = repo.files.iter().map(|(path, entry)| listed(path, entry)).collect();
            let size = if state.faults.page_size == 0 {
                usize::MAX
            } else {
                state.faults.page_size
            };
            let cursor = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("cursor="))
                .unwrap_or("0");
            let start = cursor.parse::<usize>().unwrap_or(0).min(entries.len());
            let end = start.saturating_add(size).min(entries.len());
            let mut response = json_response(&json!(entries[start..end]));
            if end < entries.len() {
                let next = format!(
                    "<http://{}/api/models/{id}/tree/{revision}?recursive=true&cursor={end}>; rel=\"next\"",
                    shared.api
                );
                response
                    .headers_mut()
                    .insert("link", HeaderValue::try_from(next).expect("a URL"));
            }
            response
        }
        _ => error(404, "", "no such route"),
    }
}

fn listed(path: &str, entry: &Entry) -> Value {
    let size = entry.claimed.unwrap_or(entry.size);
    let mut listed = json!({"type": "file", "oid": entry.oid, "size": size, "path": path});
    if entry.lfs {
        listed["lfs"] = json!({"oid": entry.sha256, "size": size, "pointerSize": 130});
    }
    if let Some(stored) = &entry.xet {
        listed["xetHash"] = stored.hash.as_str().into();
    }
    listed
}

/// Answers `GET /api/models?search=…&filter=…&limit=…` with the repositories whose names have all words and that have
/// all tags.
fn search(shared: &Shared, query: &str, has_token: bool) -> Response<Body> {
    let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let all = |key: &'static str| {
        pairs
            .iter()
            .filter(move |pair| pair.0 == key)
            .map(|pair| pair.1.as_str())
    };
    let words = all("search").next().unwrap_or_default().to_lowercase();
    let limit = all("limit").next().and_then(|limit| limit.parse().ok()).unwrap_or(1000);
    let state = shared.state();
    let has_tag = |repo: &Repo, tag: &str| match tag {
        "gguf" => repo.files.keys().any(|path| path.ends_with(".gguf")),
        tag => repo.tags.iter().any(|own| own == tag),
    };
    let found: Vec<Value> = state
        .repos
        .iter()
        .filter(|(_, repo)| !repo.private || has_token)
        .filter(|(id, _)| words.split_whitespace().all(|word| id.to_lowercase().contains(word)))
        .filter(|(_, repo)| all("filter").all(|tag| has_tag(repo, tag)))
        .map(|(id, repo)| {
            // The Hub lists the format of a repository's files among its tags.
            let format = has_tag(repo, "gguf").then(|| "gguf".to_owned());
            let tags: Vec<String> = repo.tags.iter().cloned().chain(format).collect();
            json!({"id": id, "downloads": 1234, "gated": repo.gated, "tags": tags})
        })
        .take(limit)
        .collect();
    json_response(&json!(found))
}

fn resolve(
    shared: &Arc<Shared>,
    path: &str,
    id: &str,
    revision: &str,
    file: &str,
    has_token: bool,
    headers: &HeaderMap,
) -> Response<Body> {
    let state = shared.state();
    if let Some(new) = state.renamed.get(id) {
        return redirect(307, &path.replacen(id, new, 1));
    }
    let Some(repo) = state.repos.get(id).filter(|repo| has_token || !repo.private) else {
        return no_repository(has_token);
    };
    if repo.gated && !has_token {
        let text = format!("Access to model {id} is restricted. You must have access to it and be authenticated.");
        return error(401, "GatedRepo", &text);
    }
    if state.faults.redirect_loop {
        return redirect(307, path);
    }
    let commit = repo.commit();
    if revision != "main" && revision != commit {
        return error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    }
    let Some(entry) = repo.files.get(file).cloned() else {
        return error(404, "EntryNotFound", "Entry not found");
    };
    let relative = state.faults.relative_redirects;
    drop(state);
    if !entry.lfs && relative {
        return redirect(
            307,
            &format!("/api/resolve-cache/models/{id}/{commit}/{}", file.replace('/', "%2F")),
        );
    }
    if !entry.lfs {
        return small(shared, path, id, &commit, file, headers);
    }
    let mut response = redirect(302, &format!("http://{}/cdn/{}", shared.content, entry.sha256));
    describe(&mut response, &commit, &entry);
    if let Some(stored) = &entry.xet {
        let link = format!(
            "<http://{}/api/models/{id}/xet-read-token/{commit}>; rel=\"xet-auth\"",
            shared.api
        );
        let headers = response.headers_mut();
        headers.insert("x-xet-hash", HeaderValue::try_from(&stored.hash).expect("hex digits"));
        headers.insert("link", HeaderValue::try_from(link).expect("a URL"));
    }
    response
}

fn small(shared: &Arc<Shared>, path: &str, id: &str, commit: &str, file: &str, headers: &HeaderMap) -> Response<Body> {
    let entry = shared
        .state()
        .repos
        .get(id)
        .and_then(|repo| repo.files.get(file).cloned());
    let Some(entry) = entry else {
        return error(404, "EntryNotFound", "Entry not found");
    };
    if headers
        .get("if-none-match")
        .is_some_and(|tag| tag == format!("\"{}\"", entry.oid).as_str())
    {
        return Response::builder().status(304).body(empty()).expect("a valid response");
    }
    let mut response = bytes(shared, path, &entry.source, headers);
    describe(&mut response, commit, &entry);
    response
}

fn content(shared: &Arc<Shared>, path: &str, sha256: &str, headers: &HeaderMap) -> Response<Body> {
    let mut state = shared.state();
    let found = state.repos.values().find_map(|repo| {
        repo.files
            .values()
            .find(|entry| entry.sha256 == sha256)
            .map(|entry| (repo.commit(), entry.clone()))
    });
    let Some((commit, entry)) = found else {
        return error(404, "", "no such content");
    };
    if state.faults.expired_links > 0 {
        state.faults.expired_links -= 1;
        return page(403, "<html>Request has expired</html>");
    }
    if let Some(status) = take(&mut state.faults.content_status) {
        let mut response = page(status, "<html>Internal Error</html>");
        if let Some(seconds) = state.faults.retry_after {
            response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
        }
        return response;
    }
    drop(state);
    let mut response = bytes(shared, path, &entry.source, headers);
    // Python's client compares host names without ports. It takes this server for the Hub and expects the headers
    // again.
    describe(&mut response, &commit, &entry);
    response
}
