//! `DELETE /api/delete`

use hyper::Response;

use crate::{
    api::{dispatch::Target, error::ApiError, model::failure_of, reply},
    http::body::Body,
    provider::Call,
};

/// Removes a model of ours. Success has no body.
pub(crate) async fn delete(call: &Call, target: Target) -> Result<Response<Body>, ApiError> {
    let Target {
        provider,
        name,
        requested,
        is_configured,
        ..
    } = target;
    if is_configured {
        return Err(ApiError::bad_request(format!(
            "{requested} is an alias of {name} in the configuration; remove it there, or delete {name}"
        )));
    }
    provider
        .delete(call, &name)
        .await
        .map_err(|failure| failure_of(failure, &requested))?;
    Ok(reply::empty())
}
