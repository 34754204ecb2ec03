//! The `options` object of the native dialect.
//!
//! The keys are case-sensitive as in Ollama (unlike those of the body: the options are a Go map, not a struct), unknown
//! ones are ignored, and a value of the wrong type is a 500.

use super::error::ApiError;
use crate::{
    go::{decode::JsonNode, quote},
    inference::{LoadOptions, SamplingOptions, sampling_parameters},
};

/// Smallest context length that a request can ask for, in tokens.
const MIN_CONTEXT_LENGTH: i64 = 4;

/// Most strings that can end an answer.
pub(crate) const MAX_STOPS: usize = 256;

/// Options of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RequestOptions {
    /// Options of sampling and length.
    pub(crate) sampling: SamplingOptions,
    /// Options that are fixed when a model is loaded.
    pub(crate) load: LoadOptions,
    /// Most reasoning tokens, an extension of Ollama's options.
    pub(crate) thinking_budget: Option<u32>,
}

impl RequestOptions {
    pub(crate) fn read<'a, K: AsRef<str>>(
        entries: impl IntoIterator<Item = (K, JsonNode<'a>)>,
    ) -> Result<Self, ApiError> {
        let mut options = Self::default();
        for (key, value) in entries {
            // Ollama skips options that are `null`.
            if value != JsonNode::Null {
                options.set(key.as_ref(), &value)?;
            }
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &JsonNode<'_>) -> Result<(), ApiError> {
        let Self {
            sampling,
            load,
            thinking_budget,
        } = self;
        match key {
            // Ollama raises a context that is too small without an error.
            "num_ctx" => load.context_length = Some(to_u32(integer(key, value)?.max(MIN_CONTEXT_LENGTH))),
            "num_batch" => load.num_batch = Some(to_u32(integer(key, value)?)).filter(|tokens| *tokens > 0),
            "num_gpu" => load.num_gpu = Some(to_i32(integer(key, value)?)),
            "main_gpu" => load.main_gpu = Some(to_i32(integer(key, value)?)),
            "use_mmap" => load.use_mmap = Some(boolean(key, value)?),
            "num_thread" => load.num_thread = Some(to_u32(integer(key, value)?)),
            // A negative budget is no limit, as with the other counts.
            "thinking_budget" => *thinking_budget = u32::try_from(integer(key, value)?).ok(),
            _ if set_sampling(sampling, key, value)? => {}
            // Clients still send options that Ollama has dropped (`mirostat`, `low_vram`), so this is not worth a
            // warning.
            unknown => tracing::debug!(option = unknown, "ignoring an option that is not known"),
        }
        Ok(())
    }
}

/// Sets a sampling parameter. Returns false if there is none of this name.
fn set_sampling(sampling: &mut SamplingOptions, key: &str, value: &JsonNode<'_>) -> Result<bool, ApiError> {
    macro_rules! set {
        ($($name:ident: $type:ty,)*) => {
            $(if key == stringify!($name) {
                sampling.$name = Some(<$type>::read(key, value)?);
                return Ok(true);
            })*
        };
    }
    sampling_parameters!(set! {});
    Ok(false)
}

/// Type of an option's value.
trait OptionValue: Sized {
    fn read(key: &str, value: &JsonNode<'_>) -> Result<Self, ApiError>;
}

impl OptionValue for i64 {
    fn read(key: &str, value: &JsonNode<'_>) -> Result<Self, ApiError> {
        integer(key, value)
    }
}

impl OptionValue for i32 {
    fn read(key: &str, value: &JsonNode<'_>) -> Result<Self, ApiError> {
        integer(key, value).map(to_i32)
    }
}

impl OptionValue for f32 {
    fn read(key: &str, value: &JsonNode<'_>) -> Result<Self, ApiError> {
        float(key, value)
    }
}

impl OptionValue for Vec<String> {
    fn read(key: &str, value: &JsonNode<'_>) -> Result<Self, ApiError> {
        strings(key, value)
    }
}

fn wrong(key: &str, wanted: &str) -> ApiError {
    ApiError::internal(format!("option {} must be {wanted}", quote(key)))
}

/// Reads a whole number; fractions are cut off, as Go's conversion from `float64` does.
fn integer(key: &str, value: &JsonNode<'_>) -> Result<i64, ApiError> {
    let JsonNode::Number(digits) = value else {
        return Err(wrong(key, "of type integer"));
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a cast saturates and cuts the fraction off, which is what is wanted"
    )]
    digits
        // Parsed as an integer first: as `f64` a seed beyond 2^53 would lose digits.
        .parse::<i64>()
        .ok()
        .or_else(|| digits.parse::<f64>().ok().map(|number| number as i64))
        .ok_or_else(|| wrong(key, "of type integer"))
}

fn float(key: &str, value: &JsonNode<'_>) -> Result<f32, ApiError> {
    let JsonNode::Number(digits) = value else {
        return Err(wrong(key, "of type float32"));
    };
    digits
        .parse()
        .ok()
        .filter(|number: &f32| number.is_finite())
        .ok_or_else(|| wrong(key, "of type float32"))
}

fn boolean(key: &str, value: &JsonNode<'_>) -> Result<bool, ApiError> {
    match value {
        JsonNode::Bool(value) => Ok(*value),
        _ => Err(wrong(key, "of type boolean")),
    }
}

fn strings(key: &str, value: &JsonNode<'_>) -> Result<Vec<String>, ApiError> {
    // A single string is an error in these options, although `stop` may be one on OpenAI's routes.
    let JsonNode::Array(items) = value else {
        return Err(wrong(key, "of type array"));
    };
    if items.len() > MAX_STOPS {
        return Err(ApiError::bad_request(format!(
            "option {} holds more than {MAX_STOPS} strings",
            quote(key)
        )));
    }
    items
        .iter()
        .map(|item| match item {
            JsonNode::String(text) => Ok(text.clone().into_owned()),
            _ => Err(wrong(key, "of an array of strings")),
        })
        .collect()
}

fn to_i32(number: i64) -> i32 {
    i32::try_from(number).unwrap_or(if number < 0 { i32::MIN } else { i32::MAX })
}

fn to_u32(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(if number < 0 { 0 } else { u32::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::decode::entries_of;

    fn read(json: &str) -> Result<RequestOptions, ApiError> {
        RequestOptions::read(entries_of(json.as_bytes(), "test").unwrap())
    }

    #[test]
    fn known_options_are_read_and_others_ignored() {
        let options = read(
            r#"{"num_ctx":2,"num_predict":-1,"top_k":1.9,"temperature":0,"stop":["a","b"],"mirostat":2,"Seed":7,"num_gpu":null,"use_mmap":false,"thinking_budget":64}"#,
        )
        .unwrap();
        let expected = RequestOptions {
            sampling: SamplingOptions {
                num_predict: Some(-1),
                top_k: Some(1),
                temperature: Some(0.0),
                stop: Some(vec!["a".into(), "b".into()]),
                ..SamplingOptions::default()
            },
            load: LoadOptions {
                context_length: Some(4),
                use_mmap: Some(false),
                ..LoadOptions::default()
            },
            thinking_budget: Some(64),
        };
        assert_eq!(read(r#"{"thinking_budget":-1}"#).unwrap().thinking_budget, None);
        assert_eq!(options, expected);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_a_500_that_names_the_option() {
        for (json, expected) in [
            (r#"{"num_ctx":"x"}"#, r#"option "num_ctx" must be of type integer"#),
            (
                r#"{"temperature":"hot"}"#,
                r#"option "temperature" must be of type float32"#,
            ),
            (r#"{"use_mmap":1}"#, r#"option "use_mmap" must be of type boolean"#),
            (r#"{"stop":"x"}"#, r#"option "stop" must be of type array"#),
            (r#"{"stop":[1]}"#, r#"option "stop" must be of an array of strings"#),
        ] {
            let error = read(json).unwrap_err();
            assert_eq!((error.status.as_u16(), error.message.as_str()), (500, expected));
        }
    }
}
