//! Names that a client may give a model which it creates or copies.

use hyper::HeaderMap;

use crate::{
    api::{ApiHandler, error::ApiError, listing},
    provider::{CallContext, NameOrigin, NameOwner, PlainName, prefers_ollama},
};

/// Checks the name of a new model. `invalid` is Ollama's sentence for a malformed one, which depends on the route.
///
/// # Errors
/// Returns an error if the name is malformed, or if another model answers under it.
pub(super) async fn destination(
    api: &ApiHandler,
    call: &CallContext,
    requested: &str,
    invalid: &str,
    received: &HeaderMap,
) -> Result<PlainName, ApiError> {
    if let NameOwner::Serve { origin, .. } = api.registry.owner(&call.config, requested) {
        match origin {
            NameOrigin::Hub => {
                return Err(ApiError::bad_request(format!(
                    "{invalid}: {requested} stands for files of the Hub; choose a plain name, as my-model"
                )));
            }
            NameOrigin::Configured => {
                return Err(ApiError::bad_request(format!(
                    "{requested} is an alias of the configuration; choose another name, or change it there"
                )));
            }
            NameOrigin::Made => {}
        }
    }
    let name = PlainName::parse(requested).ok_or_else(|| ApiError::bad_request(invalid))?;
    if prefers_ollama(&call.config) && listing::upstream_has(api, call, requested, received).await {
        return Err(ApiError::bad_request(format!(
            "Ollama has a model {name} and answers for it (ollama.priority says so); choose another name, or delete that one"
        )));
    }
    Ok(name)
}

/// Returns the error for a request that would make Ollama create a model under a name that is taken here.
pub(super) fn is_taken(requested: &str, api: &ApiHandler) -> ApiError {
    let model = api.registry.aliases().get(requested);
    let model = model.as_ref().map_or("an hf: model", |alias| alias.model.as_str());
    ApiError::bad_request(format!(
        "{requested} stands for {model} here; delete it before Ollama makes a model of that name, or choose another name"
    ))
}
