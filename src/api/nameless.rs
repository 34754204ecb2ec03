//! Answers to requests that name no model, for the time when no upstream is there to word them.

use hyper::Response;

use super::{Endpoint, anthropic, decode::entries_of, error::ApiError, ollama, openai, reply};
use crate::http::body::Body;

/// The reply of Ollama to a body without a usable name; `None` where the endpoint reads no JSON.
pub(crate) fn answer(endpoint: &Endpoint, body: &[u8]) -> Option<Response<Body>> {
    let well_formed = || entries_of(body, "request").map(drop).map_err(ApiError::from);
    let native = |checked: Result<(), ApiError>, otherwise: ApiError| {
        Some(reply::native_error(&checked.err().unwrap_or(otherwise)))
    };
    let required = || ApiError::bad_request("model is required");
    match endpoint {
        Endpoint::Chat => native(ollama::check_chat(body), required()),
        Endpoint::Generate => native(ollama::check_generate(body), ApiError::model_not_found("")),
        Endpoint::Embed => native(ollama::check_embed(body), ApiError::model_not_found("")),
        Endpoint::Embeddings => native(ollama::check_embeddings(body), required()),
        Endpoint::Show
        | Endpoint::Delete
        | Endpoint::Push
        | Endpoint::Tokenize
        | Endpoint::Detokenize
        | Endpoint::ApplyTemplate => native(well_formed(), required()),
        Endpoint::Pull | Endpoint::Create => native(well_formed(), ApiError::bad_request("invalid model name")),
        Endpoint::Copy => native(well_formed(), ApiError::bad_request("source \"\" is invalid")),
        Endpoint::OpenAiChat => Some(openai::nameless_chat(body)),
        Endpoint::OpenAiCompletions | Endpoint::OpenAiEmbeddings | Endpoint::OpenAiResponses => {
            Some(openai::shim_error(&well_formed().err().unwrap_or_else(required)))
        }
        Endpoint::AnthropicMessages => Some(anthropic::nameless(body)),
        Endpoint::AnthropicCountTokens => Some(anthropic::nameless_count(body)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn requests_without_a_name_get_the_words_of_ollama() {
        for (endpoint, body, status, expected) in [
            (Endpoint::Chat, "", 400, r#"{"error":"missing request body"}"#),
            (Endpoint::Chat, "{}", 400, r#"{"error":"model is required"}"#),
            (Endpoint::Generate, "{}", 404, r#"{"error":"model '' not found"}"#),
            (Endpoint::Generate, "{\"mod", 400, r#"{"error":"unexpected EOF"}"#),
            (Endpoint::Embed, "{}", 404, r#"{"error":"model '' not found"}"#),
            (Endpoint::Show, "{}", 400, r#"{"error":"model is required"}"#),
            (Endpoint::Pull, "{}", 400, r#"{"error":"invalid model name"}"#),
            (Endpoint::Copy, "{}", 400, r#"{"error":"source \"\" is invalid"}"#),
            (
                Endpoint::OpenAiChat,
                "",
                400,
                r#"{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                Endpoint::OpenAiChat,
                r#"{"messages":[{"role":"user","content":"x"}]}"#,
                400,
                "{\"error\":{\"message\":\"model is required\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n",
            ),
        ] {
            let response = answer(&endpoint, body.as_bytes()).unwrap();
            assert_eq!(response.status().as_u16(), status, "{endpoint:?}");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(bytes, expected.as_bytes(), "{endpoint:?} {body}");
        }
        assert!(answer(&Endpoint::Forward, b"").is_none());
    }
}
