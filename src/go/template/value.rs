//! Data that a template is filled with, and values of its expressions.

use std::rc::Rc;

use serde_json::{Map, Number, Value as Json};

use crate::go::encode;

/// Data that a template is filled with.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TemplateData {
    Nothing,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<TemplateData>),
    /// Go map, sorted by key. A missing key is [`Self::Nothing`]. Printed as JSON, as Ollama's type for arguments is.
    Map(Vec<(String, TemplateData)>),
    /// Go struct. A missing field is an error.
    Struct(Vec<(&'static str, TemplateData)>),
}

/// Value of an expression, borrowed from the data if it stands there.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Nothing,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    /// Text that the template has built.
    // Shared, because values are cloned into variables and out of them.
    Made(Rc<str>),
    List(&'a [TemplateData]),
    /// Map or struct.
    Object(&'a TemplateData),
}

impl<'a> From<&'a TemplateData> for Value<'a> {
    fn from(data: &'a TemplateData) -> Self {
        match data {
            TemplateData::Nothing => Self::Nothing,
            TemplateData::Bool(value) => Self::Bool(*value),
            TemplateData::Int(value) => Self::Int(*value),
            TemplateData::Float(value) => Self::Float(*value),
            TemplateData::Text(text) => Self::Text(text),
            TemplateData::List(items) => Self::List(items),
            TemplateData::Map(_) | TemplateData::Struct(_) => Self::Object(data),
        }
    }
}

impl From<Json> for TemplateData {
    /// Converts as Go decodes JSON into an `any`: numbers are floats.
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Nothing,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => Self::Float(number.as_f64().unwrap_or(0.0)),
            Json::String(text) => Self::Text(text),
            Json::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Json::Object(members) => Self::map(members),
        }
    }
}

impl TemplateData {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn map(members: Map<String, Json>) -> Self {
        Self::sorted(members.into_iter().map(|(key, value)| (key, value.into())).collect())
    }

    /// Returns a map, sorted by key as Go walks and prints its maps.
    pub(super) fn sorted(mut members: Vec<(String, Self)>) -> Self {
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self::Map(members)
    }

    fn to_json(&self) -> Json {
        match self {
            Self::Nothing => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::from(*value),
            Self::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
            Self::Text(text) => Json::from(text.as_str()),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(members) => members
                .iter()
                .map(|(key, value)| (key.clone(), value.to_json()))
                .collect(),
            Self::Struct(fields) => fields
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.to_json()))
                .collect(),
        }
    }
}

impl<'a> Value<'a> {
    pub(super) fn made(text: String) -> Self {
        Self::Made(text.into())
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Made(text) => Some(text),
            _ => None,
        }
    }

    /// Returns true unless the value is Go's zero value, or an empty list, map or text.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::Made(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Object(TemplateData::Map(members)) => !members.is_empty(),
            Self::Object(_) => true,
        }
    }

    /// Returns a member of a map or a struct; `None` if Go ends with an error.
    pub(super) fn member(&self, name: &str) -> Option<Self> {
        match self {
            Self::Object(TemplateData::Map(members)) => Some(
                members
                    .binary_search_by(|(key, _)| key.as_str().cmp(name))
                    .map_or(Self::Nothing, |at| Self::from(&members[at].1)),
            ),
            Self::Object(TemplateData::Struct(fields)) => fields
                .iter()
                .find(|(field, _)| *field == name)
                .map(|(_, value)| value.into()),
            _ => None,
        }
    }

    /// Returns the value as Go prints it; `None` for a struct, whose form in Go (`{user hi …}`) is useless in a prompt.
    pub(super) fn print(&self) -> Option<String> {
        Some(match self {
            // Go prints this for a missing key of a map.
            Self::Nothing => "<no value>".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => print_float(*value),
            Self::Text(text) => (*text).to_owned(),
            Self::Made(text) => text.as_ref().to_owned(),
            Self::List(items) => {
                let items: Option<Vec<String>> = items.iter().map(|item| Self::from(item).print()).collect();
                format!("[{}]", items?.join(" "))
            }
            Self::Object(TemplateData::Map(_)) => self.to_json_text(),
            Self::Object(_) => return None,
        })
    }

    pub(super) fn to_json_text(&self) -> String {
        let json = match self {
            Self::Nothing => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::from(*value),
            Self::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
            Self::Text(text) => Json::from(*text),
            Self::Made(text) => Json::from(text.as_ref()),
            Self::List(items) => items.iter().map(TemplateData::to_json).collect(),
            Self::Object(data) => data.to_json(),
        };
        // Keys are strings, so encoding does not fail.
        encode::to_string(&json).unwrap_or_default()
    }
}

/// Returns a number as a template of Go prints it: the shortest digits, with an exponent below 1e-4 and from 1e6 on.
fn print_float(number: f64) -> String {
    let magnitude = number.abs();
    if magnitude == 0.0 || (1e-4..1e6).contains(&magnitude) || !number.is_finite() {
        return match number {
            _ if number.is_nan() => "NaN".to_owned(),
            f64::INFINITY => "+Inf".to_owned(),
            f64::NEG_INFINITY => "-Inf".to_owned(),
            number => number.to_string(),
        };
    }
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}
