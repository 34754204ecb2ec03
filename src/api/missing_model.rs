//! Errors for requests that name no model, for the time when no Ollama is there to word them.

use hyper::HeaderMap;

use super::{ApiEndpoint, anthropic, envelope::LayeredError, error::ApiError, ollama, openai};
use crate::go::decode::entries_of;

/// Returns Ollama's error for a body without a usable name; `None` if the endpoint reads no body.
///
/// Errors in the body come before the missing name, as in Ollama, and each route has its own sentence for that.
pub(crate) fn error(endpoint: &ApiEndpoint, headers: &HeaderMap, body: &[u8]) -> Option<LayeredError> {
    let well_formed = || entries_of(body, "request").map(drop).map_err(ApiError::from);
    let native =
        |checked: Result<(), ApiError>, missing: ApiError| LayeredError::Handler(checked.err().unwrap_or(missing));
    let required = ApiError::model_required;
    Some(match endpoint {
        ApiEndpoint::Chat => native(ollama::check_chat(body), required()),
        // These routes look the empty name up before they ask whether there is one.
        ApiEndpoint::Generate => native(ollama::check_generate(body), ApiError::model_not_found("")),
        ApiEndpoint::Embed => native(ollama::check_embed(body), ApiError::model_not_found("")),
        ApiEndpoint::Embeddings => native(ollama::check_embeddings(body), required()),
        ApiEndpoint::Show
        | ApiEndpoint::Delete
        | ApiEndpoint::Push
        | ApiEndpoint::Tokenize
        | ApiEndpoint::Detokenize
        | ApiEndpoint::ApplyTemplate => native(well_formed(), required()),
        // Ollama parses the name on these routes before it asks whether there is one, and an empty name does not parse.
        ApiEndpoint::Pull | ApiEndpoint::Create => native(well_formed(), ApiError::bad_request("invalid model name")),
        ApiEndpoint::Copy => native(well_formed(), ApiError::bad_request("source \"\" is invalid")),
        // On `/v1` the checks of the shim, which differ from route to route, come before the missing name.
        ApiEndpoint::OpenAiChat => openai::chat_without_model(body),
        ApiEndpoint::OpenAiCompletions => openai::completions_without_model(body),
        ApiEndpoint::OpenAiEmbeddings => openai::embeddings_without_model(body),
        ApiEndpoint::OpenAiResponses => openai::responses_without_model(body),
        ApiEndpoint::OpenAiTranscriptions => openai::transcriptions_without_model(headers, body),
        ApiEndpoint::AnthropicMessages => anthropic::messages_without_model(body),
        ApiEndpoint::AnthropicCountTokens => anthropic::count_without_model(body),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::{super::dialect::Dialect, *};

    #[tokio::test]
    async fn requests_without_a_name_get_the_words_of_ollama() {
        for (endpoint, body, status, expected) in [
            (ApiEndpoint::Chat, "", 400, r#"{"error":"missing request body"}"#),
            (ApiEndpoint::Chat, "{}", 400, r#"{"error":"model is required"}"#),
            (ApiEndpoint::Generate, "{}", 404, r#"{"error":"model '' not found"}"#),
            (ApiEndpoint::Generate, "{\"mod", 400, r#"{"error":"unexpected EOF"}"#),
            (ApiEndpoint::Embed, "{}", 404, r#"{"error":"model '' not found"}"#),
            (ApiEndpoint::Show, "{}", 400, r#"{"error":"model is required"}"#),
            (ApiEndpoint::Pull, "{}", 400, r#"{"error":"invalid model name"}"#),
            (ApiEndpoint::Copy, "{}", 400, r#"{"error":"source \"\" is invalid"}"#),
            (
                ApiEndpoint::OpenAiChat,
                "",
                400,
                r#"{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                ApiEndpoint::OpenAiCompletions,
                "",
                400,
                r#"{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                ApiEndpoint::OpenAiCompletions,
                r#"{"stop":[1]}"#,
                400,
                r#"{"error":{"message":"invalid type for 'stop' field: float64","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                ApiEndpoint::OpenAiCompletions,
                "{}",
                404,
                "{\"error\":{\"message\":\"model '' not found\",\"type\":\"not_found_error\",\"param\":null,\"code\":null}}\n",
            ),
            (
                ApiEndpoint::OpenAiEmbeddings,
                "",
                400,
                r#"{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                ApiEndpoint::OpenAiEmbeddings,
                "{}",
                400,
                r#"{"error":{"message":"invalid input","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                ApiEndpoint::OpenAiEmbeddings,
                r#"{"input":[1]}"#,
                400,
                "{\"error\":{\"message\":\"invalid input type\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n",
            ),
            (
                ApiEndpoint::OpenAiEmbeddings,
                r#"{"input":"x"}"#,
                404,
                "{\"error\":{\"message\":\"model '' not found\",\"type\":\"not_found_error\",\"param\":null,\"code\":null}}\n",
            ),
            (
                ApiEndpoint::OpenAiResponses,
                " ",
                400,
                r#"{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                ApiEndpoint::OpenAiResponses,
                r#"{"input":"x"}"#,
                400,
                "{\"error\":{\"message\":\"model is required\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n",
            ),
            (
                ApiEndpoint::OpenAiTranscriptions,
                "{}",
                400,
                r#"{"error":{"message":"failed to parse multipart form: request Content-Type isn't multipart/form-data","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                ApiEndpoint::OpenAiChat,
                r#"{"messages":[{"role":"user","content":"x"}]}"#,
                400,
                "{\"error\":{\"message\":\"model is required\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n",
            ),
        ] {
            let error = error(&endpoint, &HeaderMap::new(), body.as_bytes()).unwrap();
            let response = Dialect::of(&endpoint, "/").error_reply(&error);
            assert_eq!(response.status().as_u16(), status, "{endpoint:?}");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(bytes, expected.as_bytes(), "{endpoint:?} {body}");
        }
        assert!(error(&ApiEndpoint::Forward, &HeaderMap::new(), b"").is_none());
    }
}
