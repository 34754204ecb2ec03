//! Request whose model is served here: the result of routing, and the input of every dialect's handlers.

use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;

use crate::provider::Provider;

/// Request for a model of one of our providers.
pub(crate) struct RoutedRequest {
    pub(crate) model: RoutedModel,
    pub(crate) headers: HeaderMap,
    /// The whole body, unpacked.
    pub(super) body: Bytes,
}

impl RoutedRequest {
    /// Decodes the body, and frees it: it may hold many megabytes of base64, and an answer may take minutes.
    pub(crate) fn decode<T, E>(self, decode: impl FnOnce(&[u8]) -> Result<T, E>) -> Result<(RoutedModel, T), E> {
        let decoded = decode(&self.body)?;
        Ok((self.model, decoded))
    }
}

/// Model that a request names, with the provider that serves it.
pub(crate) struct RoutedModel {
    pub(crate) provider: Arc<dyn Provider>,
    /// Name to ask the provider for.
    pub(crate) name: String,
    /// True when the name is an alias of the configuration.
    pub(crate) is_configured: bool,
    /// Name as the client sent it.
    pub(crate) requested: String,
}
