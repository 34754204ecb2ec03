//! Request bodies, read the way Go's `encoding/json` reads them into a struct.
//!
//! Keys match in any case, unknown keys are ignored, the last duplicate wins, `null` leaves a field as it was, only the
//! first JSON value is read, and a body that does not fit gets Go's own sentence. serde does none of these, and its
//! errors read differently, so a body is parsed here into a [`JsonNode`] and the dialects take their fields from it
//! with the `read_*` methods.

mod base64;
mod error;
mod fields;
mod node;
mod parse;

pub(crate) use self::base64::decode as decode_base64;
pub(crate) use self::error::DecodeError;
pub(crate) use self::fields::{FieldPath, entries_of};
pub(crate) use self::node::JsonNode;
