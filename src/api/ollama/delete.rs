//! `DELETE /api/delete`

use hyper::Response;

use crate::{
    api::{
        error::ApiError,
        model::failure_of,
        reply,
        routed::{RoutedModel, RoutedRequest},
    },
    go::decode::{DecodeError, FieldPath, entries_of},
    http::body::Body,
    provider::{CallContext, DeleteScope},
};

/// Answers `DELETE /api/delete`: removes a model of a provider. Success has no body.
pub(crate) async fn delete(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, all) = request.decode(wants_files)?;
    let RoutedModel {
        provider,
        name,
        is_configured,
        requested,
    } = routed;
    if is_configured {
        return Err(ApiError::bad_request(format!(
            "{requested} is an alias of {name} in the configuration; remove it there, or delete {name}"
        )));
    }
    let scope = match all {
        true => DeleteScope::AllFiles,
        false => DeleteScope::OwnFiles,
    };
    let deleted = provider.delete(call, &name, scope).await;
    deleted.map_err(|failure| failure_of(failure, &requested))?;
    Ok(reply::empty())
}

/// Reads `files`, an extension of Ollama's request: if set, files that other programs put into the cache are removed,
/// too.
fn wants_files(body: &[u8]) -> Result<bool, DecodeError> {
    let mut files = false;
    for (key, node) in entries_of(body, "api.DeleteRequest")? {
        if key.eq_ignore_ascii_case("files") {
            node.read_bool(&mut files, FieldPath("DeleteRequest", "files"))?;
        }
    }
    Ok(files)
}
