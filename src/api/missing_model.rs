//! Errors for requests that name no model, for the time when no Ollama is there to word them.

use hyper::HeaderMap;

use super::{Endpoint, anthropic, envelope::LayeredError, error::ApiError, ollama, openai};
use crate::go::decode::entries_of;

/// Returns Ollama's error for a body without a usable name; `None` if the endpoint reads no body.
///
/// What is wrong with the body comes before the missing name, as there; and each route has its own sentence for that.
pub(crate) fn error(endpoint: &Endpoint, headers: &HeaderMap, body: &[u8]) -> Option<LayeredError> {
    let well_formed = || entries_of(body, "request").map(drop).map_err(ApiError::from);
    let native =
        |checked: Result<(), ApiError>, missing: ApiError| LayeredError::Handler(checked.err().unwrap_or(missing));
    let required = ApiError::model_required;
    Some(match endpoint {
        Endpoint::Chat => native(ollama::check_chat(body), required()),
        // These routes look the empty name up before they ask whether there is one.
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
        Endpoint::OpenAiChat => openai::chat_without_model(body),
        Endpoint::OpenAiCompletions => openai::completions_without_model(body),
        Endpoint::OpenAiEmbeddings => openai::embeddings_without_model(body),
        Endpoint::OpenAiResponses => openai::responses_without_model(body),
        Endpoint::OpenAiTranscriptions => openai::transcriptions_without_model(headers, body),
        Endpoint::AnthropicMessages => anthropic::messages_without_model(body),
        Endpoint::AnthropicCountTokens => anthropic::count_without_model(body),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::{super::envelope::Dialect, *};

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
                Endpoint::OpenAiCompletions,
                "",
                400,
                r#"{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                Endpoint::OpenAiCompletions,
                r#"{"stop":[1]}"#,
                400,
                r#"{"error":{"message":"invalid type for 'stop' field: float64","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                Endpoint::OpenAiCompletions,
                "{}",
                404,
                "{\"error\":{\"message\":\"model '' not found\",\"type\":\"not_found_error\",\"param\":null,\"code\":null}}\n",
            ),
            (
                Endpoint::OpenAiEmbeddings,
                "",
                400,
                r#"{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                Endpoint::OpenAiEmbeddings,
                "{}",
                400,
                r#"{"error":{"message":"invalid input","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                Endpoint::OpenAiEmbeddings,
                r#"{"input":[1]}"#,
                400,
                "{\"error\":{\"message\":\"invalid input type\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n",
            ),
            (
                Endpoint::OpenAiEmbeddings,
                r#"{"input":"x"}"#,
                404,
                "{\"error\":{\"message\":\"model '' not found\",\"type\":\"not_found_error\",\"param\":null,\"code\":null}}\n",
            ),
            (
                Endpoint::OpenAiResponses,
                " ",
                400,
                r#"{"error":{"message":"EOF","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                Endpoint::OpenAiResponses,
                r#"{"input":"x"}"#,
                400,
                "{\"error\":{\"message\":\"model is required\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n",
            ),
            (
                Endpoint::OpenAiTranscriptions,
                "{}",
                400,
                r#"{"error":{"message":"failed to parse multipart form: request Content-Type isn't multipart/form-data","type":"invalid_request_error","param":null,"code":null}}"#,
            ),
            (
                Endpoint::OpenAiChat,
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
        assert!(error(&Endpoint::Forward, &HeaderMap::new(), b"").is_none());
    }
}
