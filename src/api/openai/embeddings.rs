//! `POST /v1/embeddings`

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::{
    api::{
        envelope::{LayeredError, shim_error},
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
    inference::{EmbedRequest, EmbeddingResult, KeepAlive, VectorNormalization},
    provider::CallContext,
};

const ROOT: &str = "EmbedRequest";

/// Most texts in one request.
const MAX_INPUTS: usize = 1 << 16;

/// Body of `POST /v1/embeddings`. `keep_alive`, `options`, `num_ctx` and `truncate` are fields of Ollama's native
/// route, which its shim does not read.
#[derive(Debug, Default)]
struct Request {
    model: String,
    input: Input,
    encoding: String,
    as_base64: bool,
    dimensions: Option<i64>,
    keep_alive: Option<KeepAlive>,
    options: OptionsField,
    num_ctx: Option<i64>,
    truncate: Option<bool>,
}

#[derive(Debug, Default)]
enum Input {
    /// Absent, `null` or an empty list.
    #[default]
    Nothing,
    Texts(Vec<String>),
    /// Any other type. The native handler refuses it, not the shim.
    Wrong,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    embedding: Vector,
    index: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

/// Returns the error for a body that names no model.
pub(crate) fn embeddings_without_model(body: &[u8]) -> LayeredError {
    match decode(body) {
        Err(error) => LayeredError::Shim(error),
        Ok(request) => {
            // Ollama's native handler looks at the input before the model, so a wrong type goes before the missing
            // name.
            let unfit = request.input.into_texts().err();
            LayeredError::Handler(unfit.unwrap_or_else(|| ApiError::model_not_found("")))
        }
    }
}

/// Answers `POST /v1/embeddings` for a model of a provider.
pub(crate) async fn embeddings(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, LayeredError> {
    let (routed, request) = request.decode(decode).map_err(LayeredError::Shim)?;
    let (requested, as_base64) = (request.model.clone(), request.as_base64);
    match embed(call, routed, request).await {
        Ok(embedded) => Ok(reply::json_line(&list(&requested, embedded, as_base64))),
        // Ollama words it so only on the routes for vectors, whose models its scheduler looks up.
        Err(error) if error == ApiError::model_not_found(&requested) => {
            let message = format!("model {} not found, try pulling it first", quote(&requested));
            Err(ApiError::new(StatusCode::NOT_FOUND, message).into())
        }
        Err(error) => Err(error.into()),
    }
}

async fn embed(call: &CallContext, routed: RoutedModel, request: Request) -> Result<EmbeddingResult, ApiError> {
    let inputs = request.input.into_texts()?;
    let model = ServedModel::find(call, routed, request.model).await?;
    let mut load = request.options.into_options()?.load;
    if let Some(tokens) = request.num_ctx {
        load.context_length = values::context_length(tokens);
    }
    let wanted = EmbedRequest {
        inputs,
        truncate: request.truncate.unwrap_or(true),
        dimensions: request.dimensions.and_then(|count| u32::try_from(count).ok()),
        normalization: VectorNormalization::Unit,
        load,
        keep_alive: request.keep_alive,
    };
    let embedded = model.inner.embed(wanted).await;
    embedded.map_err(|failure| model.failure(failure))
}

/// Decodes a body and makes the checks of the shim.
fn decode(body: &[u8]) -> Result<Request, ApiError> {
    let request = Request::decode(body).map_err(shim_error)?;
    match request.encoding.to_ascii_lowercase().as_str() {
        "" | "float" | "base64" => {}
        _ => {
            return Err(ApiError::bad_request(format!(
                "Invalid value for 'encoding_format' = {}. Supported values: ['float', 'base64'].",
                request.encoding
            )));
        }
    }
    match &request.input {
        Input::Nothing => Err(ApiError::bad_request("invalid input")),
        Input::Texts(texts) if texts.len() > MAX_INPUTS => Err(ApiError::bad_request(format!(
            "the request holds more than {MAX_INPUTS} inputs"
        ))),
        _ => Ok(request),
    }
}

impl Request {
    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut request = Self::default();
        for (key, node) in entries_of(body, "openai.EmbedRequest")? {
            match key.to_ascii_lowercase().as_str() {
                "model" => node.read_string(&mut request.model, FieldPath(ROOT, "model"))?,
                "input" => request.input = Input::read(node),
                "encoding_format" => node.read_string(&mut request.encoding, FieldPath(ROOT, "encoding_format"))?,
                "dimensions" => node.read_int(&mut request.dimensions, FieldPath(ROOT, "dimensions"))?,
                "keep_alive" => request.keep_alive = values::keep_alive(&node)?,
                "options" => request.options = OptionsField::read(node, ROOT)?,
                "num_ctx" => node.read_int(&mut request.num_ctx, FieldPath(ROOT, "num_ctx"))?,
                "truncate" => node.read_optional_bool(&mut request.truncate, FieldPath(ROOT, "truncate"))?,
                _ => {}
            }
        }
        request.as_base64 = request.encoding.eq_ignore_ascii_case("base64");
        Ok(request)
    }
}

impl Input {
    fn read(node: JsonNode<'_>) -> Self {
        match node {
            JsonNode::Null => Self::Nothing,
            // An empty text is an input on this route, unlike on `/api/embed`.
            JsonNode::String(text) => Self::Texts(vec![text.into_owned()]),
            JsonNode::Array(items) if items.is_empty() => Self::Nothing,
            JsonNode::Array(items) => {
                let texts = items.into_iter().map(|item| match item {
                    JsonNode::String(text) => Some(text.into_owned()),
                    // Token ids, for example: only the client's tokenizer knows what they stand for.
                    _ => None,
                });
                texts.collect::<Option<_>>().map_or(Self::Wrong, Self::Texts)
            }
            _ => Self::Wrong,
        }
    }

    fn into_texts(self) -> Result<Vec<String>, ApiError> {
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::Texts(texts) => Ok(texts),
            Self::Wrong => Err(ApiError::bad_request("invalid input type")),
        }
    }
}

fn list(model: &str, embedded: EmbeddingResult, as_base64: bool) -> List<'_> {
    let vector = |numbers: Vec<f32>| {
        if as_base64 {
            // OpenAI's SDKs ask for base64 unless told otherwise, and read the bytes as little-endian 32-bit floats.
            let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
            Vector::Base64(STANDARD.encode(bytes))
        } else {
            Vector::Numbers(numbers)
        }
    };
    let entries = embedded.vectors.into_iter().enumerate().map(|(index, numbers)| Entry {
        object: "embedding",
        embedding: vector(numbers),
        index,
    });
    List {
        object: "list",
        data: entries.collect(),
        model,
        usage: Usage {
            prompt_tokens: embedded.prompt_tokens,
            total_tokens: embedded.prompt_tokens,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded() -> EmbeddingResult {
        EmbeddingResult {
            vectors: vec![vec![0.1, -1e-7, 1.0], vec![-0.063_402_97]],
            prompt_tokens: 6,
            ..EmbeddingResult::default()
        }
    }

    #[test]
    fn numbers_have_the_fewest_digits_of_32_bits() {
        let text = crate::go::encode::to_string(&list("m", embedded(), false)).unwrap();
        assert_eq!(
            text,
            r#"{"object":"list","data":[{"object":"embedding","embedding":[0.1,-1e-7,1],"index":0},{"object":"embedding","embedding":[-0.06340297],"index":1}],"model":"m","usage":{"prompt_tokens":6,"total_tokens":6}}"#
        );
    }

    #[test]
    fn base64_holds_little_endian_floats() {
        let text = crate::go::encode::to_string(&list("m", embedded(), true)).unwrap();
        // 0.1, -1e-7 and 1.0 in IEEE 754, little-endian.
        let bytes = [0xcd, 0xcc, 0xcc, 0x3d, 0x95, 0xbf, 0xd6, 0xb3, 0x00, 0x00, 0x80, 0x3f];
        assert!(
            text.contains(&format!("\"embedding\":\"{}\",\"index\":0", STANDARD.encode(bytes))),
            "{text}"
        );
    }

    #[test]
    fn inputs_are_texts() {
        for (input, expected) in [
            (r#""""#, Ok(vec![""])),
            (r#"["a",""]"#, Ok(vec!["a", ""])),
            ("null", Err("invalid input")),
            ("[]", Err("invalid input")),
            ("[1,2]", Err("invalid input type")),
            ("[[1,2]]", Err("invalid input type")),
            (r#"["a",1]"#, Err("invalid input type")),
            ("5", Err("invalid input type")),
            ("{}", Err("invalid input type")),
        ] {
            let body = format!("{{\"input\":{input}}}");
            let texts = decode(body.as_bytes()).and_then(|request| request.input.into_texts());
            let expected = expected.map(|texts| texts.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(
                texts.map_err(|error| error.message),
                expected.map_err(str::to_owned),
                "{input}"
            );
        }
        assert_eq!(decode(b"{}").unwrap_err().message, "invalid input");
        assert_eq!(decode(b"").unwrap_err().message, "EOF");
    }

    #[test]
    fn other_encodings_are_refused() {
        assert_eq!(
            decode(br#"{"input":"x","encoding_format":"zz"}"#).unwrap_err().message,
            "Invalid value for 'encoding_format' = zz. Supported values: ['float', 'base64']."
        );
        assert!(
            decode(br#"{"input":"x","encoding_format":"BASE64"}"#)
                .unwrap()
                .as_base64
        );
        assert!(!decode(br#"{"input":"x","encoding_format":"Float"}"#).unwrap().as_base64);
    }
}
