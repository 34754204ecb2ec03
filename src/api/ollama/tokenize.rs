//! `POST /api/tokenize`, `POST /api/detokenize` and `POST /api/apply_template`: the tokens and the prompt of a model.
//!
//! Ollama has none of these routes. They are for debugging prompts.

use hyper::Response;
use serde::Serialize;

use super::{
    chat::CheckedChat,
    request::{ChatRequest, token_ids},
};
use crate::{
    api::{error::ApiError, model::ServedModel, reply, routed::RoutedRequest},
    go::decode::{DecodeError, FieldPath, entries_of},
    http::body::Body,
    inference::TextToken,
    provider::{CallContext, TokenizeRequest},
};

#[derive(Debug)]
struct TokenizeFields {
    model: String,
    text: String,
    add_special: bool,
    parse_special: bool,
    with_pieces: bool,
}

#[derive(Debug, Default)]
struct DetokenizeFields {
    model: String,
    tokens: Vec<i32>,
}

#[derive(Serialize)]
struct Tokenized<'a, T> {
    model: &'a str,
    tokens: Vec<T>,
}

/// Token with its text, in the shape of llama-server.
#[derive(Serialize)]
struct Token {
    id: i32,
    piece: Piece,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Piece {
    Text(String),
    /// Bytes that are only a part of a character.
    Bytes(Vec<u8>),
}

#[derive(Serialize)]
struct Detokenized<'a> {
    model: &'a str,
    text: String,
}

#[derive(Serialize)]
struct Rendered<'a> {
    model: &'a str,
    prompt: String,
}

/// Answers `POST /api/tokenize`.
pub(crate) async fn tokenize(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, fields) = request.decode(TokenizeFields::decode)?;
    let TokenizeFields {
        model,
        text,
        add_special,
        parse_special,
        with_pieces,
    } = fields;
    let model = ServedModel::find(call, routed, model).await?;
    let request = TokenizeRequest {
        text,
        add_special,
        parse_special,
    };
    let tokens = model
        .inner
        .tokenize(request)
        .await
        .map_err(|failure| model.failure(failure))?;
    let model = &model.requested;
    Ok(if with_pieces {
        let tokens = tokens.into_iter().map(Token::from).collect();
        reply::native(&Tokenized { model, tokens })
    } else {
        let tokens = tokens.into_iter().map(|token| token.id).collect();
        reply::native(&Tokenized { model, tokens })
    })
}

/// Answers `POST /api/detokenize`.
pub(crate) async fn detokenize(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, fields) = request.decode(DetokenizeFields::decode)?;
    let model = ServedModel::find(call, routed, fields.model).await?;
    let text = model
        .inner
        .detokenize(fields.tokens)
        .await
        .map_err(|failure| model.failure(failure))?;
    Ok(reply::native(&Detokenized {
        model: &model.requested,
        text,
    }))
}

/// Answers `POST /api/apply_template`: renders the prompt of a chat.
pub(crate) async fn apply_template(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, mut request) = request.decode(ChatRequest::decode)?;
    request.common.check_range()?;
    if request.messages.is_empty() {
        return Err(ApiError::bad_request("messages is required"));
    }
    let model = ServedModel::find(call, routed, request.common.model.clone()).await?;
    let mut checked = CheckedChat::new(call, &model, &mut request)?;
    let ignored = checked.take_ignored();
    let inference = checked.into_inference(request)?;
    let prompt = model
        .inner
        .render(inference)
        .await
        .map_err(|failure| model.failure(failure))?;
    let mut response = reply::native(&Rendered {
        model: &model.requested,
        prompt,
    });
    reply::mark_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

impl TokenizeFields {
    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        const ROOT: &str = "TokenizeRequest";
        let mut fields = Self {
            model: String::new(),
            text: String::new(),
            // The default is that of a whole prompt; in llama-server it is false.
            add_special: true,
            parse_special: true,
            with_pieces: false,
        };
        for (key, node) in entries_of(body, "api.TokenizeRequest")? {
            match key.to_ascii_lowercase().as_str() {
                "model" => node.read_string(&mut fields.model, FieldPath(ROOT, "model"))?,
                "text" => node.read_string(&mut fields.text, FieldPath(ROOT, "text"))?,
                // Name of the field in llama-server's API.
                "content" => node.read_string(&mut fields.text, FieldPath(ROOT, "content"))?,
                "add_special" => node.read_bool(&mut fields.add_special, FieldPath(ROOT, "add_special"))?,
                "parse_special" => node.read_bool(&mut fields.parse_special, FieldPath(ROOT, "parse_special"))?,
                "with_pieces" => node.read_bool(&mut fields.with_pieces, FieldPath(ROOT, "with_pieces"))?,
                _ => {}
            }
        }
        Ok(fields)
    }
}

impl DetokenizeFields {
    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        const ROOT: &str = "DetokenizeRequest";
        let mut fields = Self::default();
        for (key, node) in entries_of(body, "api.DetokenizeRequest")? {
            match key.to_ascii_lowercase().as_str() {
                "model" => node.read_string(&mut fields.model, FieldPath(ROOT, "model"))?,
                "tokens" => fields.tokens = token_ids(node, FieldPath(ROOT, "tokens"))?,
                _ => {}
            }
        }
        Ok(fields)
    }
}

impl From<TextToken> for Token {
    fn from(TextToken { id, bytes }: TextToken) -> Self {
        let piece = match String::from_utf8(bytes) {
            Ok(text) => Piece::Text(text),
            Err(error) => Piece::Bytes(error.into_bytes()),
        };
        Self { id, piece }
    }
}
