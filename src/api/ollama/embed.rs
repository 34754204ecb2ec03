//! `POST /api/embed` and the older `POST /api/embeddings`

use hyper::{Response, StatusCode};
use serde::Serialize;

use super::frames::{is_zero, nanoseconds};
use crate::{
    api::{
        error::ApiError,
        model::ServedModel,
        reply,
        routed::{RoutedModel, RoutedRequest},
        values::{self, OptionsField},
    },
    go::{
        decode::{DecodeError, FieldPath, JsonNode, entries_of},
        quote,
    },
    http::body::Body,
    inference::{EmbedRequest, EmbeddingResult, Failure, KeepAlive, LoadOptions, VectorNormalization},
    provider::CallContext,
};

const TOO_LONG: &str = "the input length exceeds the context length";
const NOT_A_NUMBER: &str = "embedding contains NaN or Inf values";

/// Body of either route.
#[derive(Debug, Default)]
struct Fields {
    model: String,
    inputs: Vec<String>,
    truncate: Option<bool>,
    dimensions: Option<i64>,
    keep_alive: Option<KeepAlive>,
    options: OptionsField,
}

#[derive(Serialize)]
struct EmbedReply<'a> {
    model: &'a str,
    /// 32-bit numbers, so their digits are fewer than those of the older route.
    embeddings: Vec<Vec<f32>>,
    #[serde(skip_serializing_if = "is_zero")]
    total_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    load_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_count: u64,
}

#[derive(Serialize)]
struct EmbeddingsReply {
    /// Numbers widened to 64 bits first, as Ollama does, which shows in their digits.
    embedding: Vec<f64>,
}

/// Makes the checks of `/api/embed` that need no model.
pub(crate) fn check_embed(body: &[u8]) -> Result<(), ApiError> {
    Fields::of_embed(body).map(drop)
}

/// Makes the checks of `/api/embeddings` that need no model.
pub(crate) fn check_embeddings(body: &[u8]) -> Result<(), ApiError> {
    Fields::of_embeddings(body).map(drop)
}

/// Answers `POST /api/embed` for a model of a provider.
pub(crate) async fn embed(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, fields) = request.decode(Fields::of_embed)?;
    let model = find(call, routed, fields.model).await?;
    let load = fields.options.into_options()?.load;
    if fields.inputs.is_empty() {
        make_resident(&model, load, fields.keep_alive).await?;
        return Ok(reply::native(&EmbedReply {
            model: &model.requested,
            embeddings: Vec::new(),
            total_duration: 0,
            load_duration: 0,
            prompt_eval_count: 0,
        }));
    }
    let request = EmbedRequest {
        inputs: fields.inputs,
        truncate: fields.truncate.unwrap_or(true),
        // Ollama ignores dimensions that a vector cannot be cut to, so a negative number means none.
        dimensions: fields.dimensions.and_then(|count| u32::try_from(count).ok()),
        normalization: VectorNormalization::Unit,
        load,
        keep_alive: fields.keep_alive,
    };
    let embeddings = run(&model, request).await?;
    Ok(reply::native(&EmbedReply {
        model: &model.requested,
        embeddings: embeddings.vectors,
        total_duration: nanoseconds(embeddings.total_duration),
        load_duration: nanoseconds(embeddings.load_duration),
        prompt_eval_count: u64::from(embeddings.prompt_tokens),
    }))
}

/// Answers `POST /api/embeddings` for a model of a provider.
pub(crate) async fn embeddings(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, fields) = request.decode(Fields::of_embeddings)?;
    let model = find(call, routed, fields.model).await?;
    let load = fields.options.into_options()?.load;
    let vectors = if fields.inputs.is_empty() {
        make_resident(&model, load, fields.keep_alive).await?;
        Vec::new()
    } else {
        let request = EmbedRequest {
            inputs: fields.inputs,
            // The older route has no such field: in Ollama a prompt that is too long is an error of the runner.
            truncate: false,
            dimensions: None,
            // Unlike on `/api/embed`, Ollama leaves the vectors of some architectures unnormalized here.
            normalization: VectorNormalization::AsModel,
            load,
            keep_alive: fields.keep_alive,
        };
        let made = run(&model, request).await;
        // On the older route Ollama answers whatever its runner refuses with 500.
        made.map_err(|error| match error.status {
            StatusCode::BAD_REQUEST => ApiError::internal(error.message),
            _ => error,
        })?
        .vectors
    };
    // An empty prompt has an empty vector, as in Ollama.
    let embedding = vectors.into_iter().next().unwrap_or_default();
    Ok(reply::native(&EmbeddingsReply {
        embedding: embedding.into_iter().map(f64::from).collect(),
    }))
}

impl Fields {
    fn of_embed(body: &[u8]) -> Result<Self, ApiError> {
        const ROOT: &str = "EmbedRequest";
        let mut fields = Self::default();
        let mut is_wrong = false;
        for (key, node) in entries_of(body, "api.EmbedRequest")? {
            let key = key.to_ascii_lowercase();
            let Some(node) = fields.read(ROOT, &key, node)? else {
                continue;
            };
            match key.as_str() {
                "input" => {
                    let inputs = inputs(node);
                    is_wrong = inputs.is_none();
                    fields.inputs = inputs.unwrap_or_default();
                }
                "truncate" => node.read_optional_bool(&mut fields.truncate, FieldPath(ROOT, "truncate"))?,
                "dimensions" => node.read_int(&mut fields.dimensions, FieldPath(ROOT, "dimensions"))?,
                _ => {}
            }
        }
        // Ollama looks at the type of `input` only after Go has decoded all fields.
        match is_wrong {
            true => Err(ApiError::bad_request("invalid input type")),
            false => Ok(fields),
        }
    }

    fn of_embeddings(body: &[u8]) -> Result<Self, ApiError> {
        const ROOT: &str = "EmbeddingRequest";
        let mut fields = Self::default();
        let mut prompt = String::new();
        for (key, node) in entries_of(body, "api.EmbeddingRequest")? {
            let key = key.to_ascii_lowercase();
            if let Some(node) = fields.read(ROOT, &key, node)?
                && key == "prompt"
            {
                node.read_string(&mut prompt, FieldPath(ROOT, "prompt"))?;
            }
        }
        fields.inputs = some_text(prompt);
        Ok(fields)
    }

    /// Reads a field of both routes; returns the node of any other.
    fn read<'a>(
        &mut self,
        root: &'static str,
        key: &str,
        node: JsonNode<'a>,
    ) -> Result<Option<JsonNode<'a>>, DecodeError> {
        match key {
            "model" => node.read_string(&mut self.model, FieldPath(root, "model"))?,
            "keep_alive" => self.keep_alive = values::keep_alive(&node)?,
            "options" => self.options = OptionsField::read(node, root)?,
            _ => return Ok(Some(node)),
        }
        Ok(None)
    }
}

/// Reads a text or a list of texts; `None` for anything else. An empty text alone is no input, one in a list is.
fn inputs(node: JsonNode<'_>) -> Option<Vec<String>> {
    match node {
        JsonNode::Null => Some(Vec::new()),
        JsonNode::String(text) => Some(some_text(text.into_owned())),
        JsonNode::Array(items) => items
            .into_iter()
            .map(|item| match item {
                JsonNode::String(text) => Some(text.into_owned()),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

fn some_text(text: String) -> Vec<String> {
    match text.is_empty() {
        true => Vec::new(),
        false => vec![text],
    }
}

/// Finds the model. These routes word an unknown one differently.
async fn find(call: &CallContext, routed: RoutedModel, requested: String) -> Result<ServedModel, ApiError> {
    let not_found = ApiError::model_not_found(&requested);
    let found = ServedModel::find(call, routed, requested.clone()).await;
    found.map_err(|error| in_their_words(error, &not_found, &requested))
}

/// Replaces the error for an unknown model by the sentence of Ollama's scheduler, with double quotes and advice. The
/// others look the model up before they schedule.
fn in_their_words(error: ApiError, not_found: &ApiError, requested: &str) -> ApiError {
    // `ApiError` has no kinds, so the error is recognized by its status and text.
    if error != *not_found {
        return error;
    }
    ApiError::new(
        error.status,
        format!("model {} not found, try pulling it first", quote(requested)),
    )
}

async fn make_resident(model: &ServedModel, load: LoadOptions, keep_alive: Option<KeepAlive>) -> Result<(), ApiError> {
    let loaded = model.inner.load(load, keep_alive).await;
    loaded.map_err(|failure| failed(model, failure))
}

async fn run(model: &ServedModel, request: EmbedRequest) -> Result<EmbeddingResult, ApiError> {
    let embeddings = model
        .inner
        .embed(request)
        .await
        .map_err(|failure| failed(model, failure))?;
    // JSON has no NaN, and Ollama refuses such vectors with the same sentence.
    if !embeddings.vectors.iter().flatten().all(|number| number.is_finite()) {
        return Err(ApiError::bad_request(NOT_A_NUMBER));
    }
    Ok(embeddings)
}

fn failed(model: &ServedModel, failure: Failure) -> ApiError {
    match failure {
        Failure::ContextExceeded { .. } => ApiError::bad_request(TOO_LONG),
        other => {
            let not_found = ApiError::model_not_found(&model.requested);
            in_their_words(model.failure(other), &not_found, &model.requested)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_a_text_or_a_list_of_texts() {
        for (body, expected) in [
            ("{}", Some(&[][..])),
            (r#"{"input":null}"#, Some(&[])),
            (r#"{"input":""}"#, Some(&[])),
            (r#"{"input":[]}"#, Some(&[])),
            (r#"{"input":[""]}"#, Some(&[""])),
            (r#"{"INPUT":"a"}"#, Some(&["a"])),
            (r#"{"input":["a",""]}"#, Some(&["a", ""])),
            (r#"{"input":5}"#, None),
            (r#"{"input":{}}"#, None),
            (r#"{"input":["a",1]}"#, None),
            (r#"{"input":[["a"]]}"#, None),
        ] {
            match (Fields::of_embed(body.as_bytes()), expected) {
                (Ok(fields), Some(expected)) => assert_eq!(fields.inputs, expected, "{body}"),
                (Err(error), None) => assert_eq!(error.message, "invalid input type", "{body}"),
                (other, _) => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn wrong_types_are_answered_in_the_words_of_go() {
        for (body, expected) in [
            ("", "missing request body"),
            (
                r#"{"dimensions":"4"}"#,
                "json: cannot unmarshal string into Go struct field EmbedRequest.dimensions of type int",
            ),
            (
                "[]",
                "json: cannot unmarshal array into Go value of type api.EmbedRequest",
            ),
            (r#"{"keep_alive":"x"}"#, "time: invalid duration \"x\""),
        ] {
            assert_eq!(check_embed(body.as_bytes()).unwrap_err().message, expected);
        }
        assert_eq!(
            check_embeddings(br#"{"prompt":["a"]}"#).unwrap_err().message,
            "json: cannot unmarshal array into Go struct field EmbeddingRequest.prompt of type string"
        );
    }
}
