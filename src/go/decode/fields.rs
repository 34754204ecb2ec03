//! Typed reading of single fields, as `encoding/json` assigns values to the fields of a struct.
//!
//! `null` leaves a scalar unchanged. Errors name the Go struct and field of Ollama's source (`api.ChatRequest`, …),
//! since they are shown to people and compared by clients' tests.

use super::{
    error::DecodeError,
    node::{JsonMembers, JsonNode},
    parse::first_value,
};

/// Place of a value for the error text: the name of Ollama's Go struct, and the path of keys in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldPath(pub(crate) &'static str, pub(crate) &'static str);

/// Returns the members of the JSON object in a body. `null` is an empty object, as in Go.
pub(crate) fn entries_of<'a>(body: &'a [u8], go_type: &str) -> Result<JsonMembers<'a>, DecodeError> {
    match first_value(body)? {
        JsonNode::Null => Ok(JsonMembers::new()),
        JsonNode::Object(entries) => Ok(entries),
        other => Err(DecodeError::new(format!(
            "json: cannot unmarshal {} into Go value of type {go_type}",
            other.kind()
        ))),
    }
}

impl<'a> JsonNode<'a> {
    pub(crate) fn read_string(self, into: &mut String, field: FieldPath) -> Result<(), DecodeError> {
        match self {
            Self::Null => Ok(()),
            Self::String(text) => {
                *into = text.into_owned();
                Ok(())
            }
            other => Err(other.mismatch(field, "string")),
        }
    }

    pub(crate) fn read_bool(self, into: &mut bool, field: FieldPath) -> Result<(), DecodeError> {
        match self {
            Self::Null => Ok(()),
            Self::Bool(value) => {
                *into = value;
                Ok(())
            }
            other => Err(other.mismatch(field, "bool")),
        }
    }

    pub(crate) fn read_optional_bool(self, into: &mut Option<bool>, field: FieldPath) -> Result<(), DecodeError> {
        // A pointer in Go, unlike the scalars above: `null` resets what an earlier duplicate has set.
        *into = match self {
            Self::Null => None,
            Self::Bool(value) => Some(value),
            other => return Err(other.mismatch(field, "bool")),
        };
        Ok(())
    }

    pub(crate) fn read_int(self, into: &mut Option<i64>, field: FieldPath) -> Result<(), DecodeError> {
        *into = match self {
            Self::Null => None,
            Self::Number(digits) => {
                // Go refuses `1.0` and `1e3` for an integer, too.
                let value = digits
                    .parse()
                    .map_err(|_| mismatch(&format!("number {digits}"), field, "int"))?;
                Some(value)
            }
            other => return Err(other.mismatch(field, "int")),
        };
        Ok(())
    }

    pub(crate) fn read_float(self, into: &mut Option<f64>, field: FieldPath) -> Result<(), DecodeError> {
        *into = match self {
            Self::Null => None,
            Self::Number(digits) => {
                let value = digits.parse().ok().filter(|value: &f64| value.is_finite());
                Some(value.ok_or_else(|| mismatch(&format!("number {digits}"), field, "float64"))?)
            }
            other => return Err(other.mismatch(field, "float64")),
        };
        Ok(())
    }

    /// Returns the items of a list; none for `null`.
    pub(crate) fn read_array(self, field: FieldPath, go_type: &str) -> Result<Vec<JsonNode<'a>>, DecodeError> {
        match self {
            Self::Null => Ok(Vec::new()),
            Self::Array(items) => Ok(items),
            other => Err(other.mismatch(field, go_type)),
        }
    }

    /// Returns the members of an object; none for `null`.
    pub(crate) fn read_object(self, field: FieldPath, go_type: &str) -> Result<JsonMembers<'a>, DecodeError> {
        match self {
            Self::Null => Ok(JsonMembers::new()),
            Self::Object(entries) => Ok(entries),
            other => Err(other.mismatch(field, go_type)),
        }
    }

    /// Returns Go's sentence for a value of the wrong type.
    pub(crate) fn mismatch(&self, field: FieldPath, go_type: &str) -> DecodeError {
        mismatch(self.kind(), field, go_type)
    }
}

fn mismatch(value: &str, FieldPath(root, path): FieldPath, go_type: &str) -> DecodeError {
    DecodeError::new(format!(
        "json: cannot unmarshal {value} into Go struct field {root}.{path} of type {go_type}"
    ))
}
