//! `DELETE /api/delete`

use hyper::Response;

use crate::{
    api::{
        decode::{DecodeError, Field, entries_of},
        dispatch::Target,
        error::ApiError,
        model::failure_of,
        reply,
    },
    http::body::Body,
    provider::Call,
};

/// Removes a model of ours. Success has no body.
pub(crate) async fn delete(call: &Call, target: Target) -> Result<Response<Body>, ApiError> {
    let Target {
        provider,
        name,
        requested,
        body,
        is_configured,
        ..
    } = target;
    let all = wants_files(body.bytes())?;
    drop(body);
    if is_configured {
        return Err(ApiError::bad_request(format!(
            "{requested} is an alias of {name} in the configuration; remove it there, or delete {name}"
        )));
    }
    let deleted = if all {
        provider.delete_files(call, &name).await
    } else {
        provider.delete(call, &name).await
    };
    deleted.map_err(|failure| failure_of(failure, &requested))?;
    Ok(reply::empty())
}

/// Our own addition to Ollama's request: remove files too that another program put into the cache.
fn wants_files(body: &[u8]) -> Result<bool, DecodeError> {
    let mut files = false;
    for (key, node) in entries_of(body, "api.DeleteRequest")? {
        if key.eq_ignore_ascii_case("files") {
            node.read_bool(&mut files, Field("DeleteRequest", "files"))?;
        }
    }
    Ok(files)
}
