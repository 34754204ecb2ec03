//! Wire form of errors: one envelope for each dialect, in two layers.
//!
//! Ollama answers its `/v1` routes in two layers, and clients see which of them an error comes from. The *shim*, a
//! middleware in front, reads the foreign body; gin's `AbortWithStatusJSON` sends its errors as `application/json;
//! charset=utf-8` without a line feed. Behind it stands the native *handler*; its errors go through the shim's response
//! writer, which encodes them again with a `json.FrameEncoder`: `application/json`, with a line feed. Recordings of
//! Ollama have both, so a handler here says for each error which layer finds it: [`LayeredError::Shim`] for a body that
//! cannot be read, and [`LayeredError::Handler`] for all that comes later. Native routes have no shim, and one form.

use hyper::Response;
use serde::Serialize;

use super::{
    error::ApiError,
    reply::{self, JSON, JSON_UTF8},
};
use crate::{go::decode::DecodeError, http::body::Body};

/// Error with the layer of Ollama that finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LayeredError {
    /// Error of the middleware that reads bodies of other dialects.
    Shim(ApiError),
    /// Error of the native handler behind it.
    Handler(ApiError),
}

impl LayeredError {
    /// Returns the error for a request that names no model: what is wrong with its body comes first, then `missing`.
    pub(crate) fn without_model<T>(decoded: Result<T, ApiError>, missing: ApiError) -> Self {
        match decoded {
            Err(error) => Self::Shim(error),
            Ok(_) => Self::Handler(missing),
        }
    }

    pub(crate) fn error(&self) -> &ApiError {
        match self {
            Self::Shim(error) | Self::Handler(error) => error,
        }
    }

    /// Sends the envelope of a `/v1` dialect in the form of the layer.
    pub(crate) fn respond(&self, envelope: &impl Serialize) -> Response<Body> {
        let mut bytes = reply::encode(envelope);
        match self {
            Self::Shim(error) => reply::bytes(error.status, JSON_UTF8, bytes),
            Self::Handler(error) => {
                bytes.push(b'\n');
                reply::bytes(error.status, JSON, bytes)
            }
        }
    }
}

impl From<ApiError> for LayeredError {
    fn from(error: ApiError) -> Self {
        Self::Handler(error)
    }
}

/// Converts an error of decoding as the shim words it. An empty body is `EOF` there: only the native routes check for
/// it first and say `missing request body`.
pub(crate) fn shim_error(error: DecodeError) -> ApiError {
    match error {
        // Go's `json.Decoder` returns `io.EOF`, whose text is this word.
        DecodeError::Empty => ApiError::bad_request("EOF"),
        other => other.into(),
    }
}
