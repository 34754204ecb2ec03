//! Tests of the embedding and token routes as a whole, over a scripted provider.

use std::sync::Arc;

use crate::{
    api::{
        ApiEndpoint, ApiHandler,
        tests::{
            CHAT, NO_CAPABILITY, THINKER, UTF8, alone, body, check,
            fake::{FakeProvider, finish},
            read, send,
        },
    },
    inference::{Event, Failure, FinishReason, InferencePrompt, KeepAlive, VectorNormalization},
};

const TRY_PULLING: &str = r#"{"error":"model \"hf:o/r\" not found, try pulling it first"}"#;

fn missing() -> FakeProvider {
    let mut provider = FakeProvider::new(Vec::new());
    provider.card = Err(Failure::NotFound("x".into()));
    provider
}

fn refusing(failure: Failure) -> FakeProvider {
    let mut provider = FakeProvider::new(Vec::new());
    provider.refusal = Some(failure);
    provider
}

fn done() -> Event {
    finish(FinishReason::Stop, &[])
}

fn able() -> (Arc<FakeProvider>, ApiHandler) {
    alone(FakeProvider::new(Vec::new()).with_capabilities(THINKER))
}

async fn ok(api: &ApiHandler, endpoint: ApiEndpoint, fields: &str) -> String {
    let (status, kind, text) = read(send(api, endpoint, &body(fields)).await).await;
    assert_eq!((status, kind.as_str()), (200, UTF8), "{text}");
    text
}

#[tokio::test]
async fn texts_become_vectors() {
    let (provider, api) = able();
    assert_eq!(
        ok(
            &api,
            ApiEndpoint::Embed,
            r#","input":["ab",""],"dimensions":4,"truncate":false,"keep_alive":-1,"options":{"num_ctx":64}"#
        )
        .await,
        r#"{"model":"hf:o/r","embeddings":[[2,0.5],[0,0.5]],"total_duration":2,"load_duration":1,"prompt_eval_count":2}"#
    );
    {
        let asked = provider.embedded.lock().unwrap();
        let request = &asked[0];
        assert_eq!(request.inputs, ["ab", ""]);
        assert_eq!((request.truncate, request.dimensions), (false, Some(4)));
        assert_eq!(
            (request.load.context_length, request.keep_alive),
            (Some(64), Some(KeepAlive::Forever))
        );
        assert_eq!(request.normalization, VectorNormalization::Unit);
    }
    ok(&api, ApiEndpoint::Embed, r#","input":"a","dimensions":-1"#).await;
    assert_eq!(
        ok(&api, ApiEndpoint::Embed, r#","input":[""]"#).await,
        r#"{"model":"hf:o/r","embeddings":[[0,0.5]],"total_duration":2,"load_duration":1}"#,
        "one empty text is an input; a count of nothing is left out"
    );
    assert_eq!(
        ok(&api, ApiEndpoint::Embeddings, r#","prompt":"abc""#).await,
        r#"{"embedding":[3,0.5]}"#
    );
    let asked = provider.embedded.lock().unwrap();
    assert_eq!((asked[1].dimensions, asked[1].truncate), (None, true));
    assert_eq!(asked[3].normalization, VectorNormalization::AsModel);
    assert!(provider.loads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn no_input_only_loads_the_model() {
    let (provider, api) = able();
    for fields in [
        "",
        r#","input":null"#,
        r#","input":"""#,
        r#","input":[],"keep_alive":"1m""#,
    ] {
        assert_eq!(
            ok(&api, ApiEndpoint::Embed, fields).await,
            r#"{"model":"hf:o/r","embeddings":[]}"#
        );
    }
    for fields in ["", r#","prompt":"""#] {
        assert_eq!(ok(&api, ApiEndpoint::Embeddings, fields).await, r#"{"embedding":[]}"#);
    }
    assert_eq!(provider.loads.lock().unwrap().len(), 6);
    assert!(provider.embedded.lock().unwrap().is_empty());
}

#[tokio::test]
async fn digits_are_those_of_32_or_64_bits() {
    for (endpoint, expected) in [
        (
            ApiEndpoint::Embed,
            r#"{"model":"hf:o/r","embeddings":[[-0.06288019,1e-7]]}"#,
        ),
        (
            ApiEndpoint::Embeddings,
            r#"{"embedding":[-0.06288018822669983,1.0000000116860974e-7]}"#,
        ),
    ] {
        let mut provider = FakeProvider::new(Vec::new());
        provider.vector = Some(vec![-0.062_880_19, 1e-7]);
        let (_, api) = alone(provider);
        let text = ok(&api, endpoint, r#","input":"x","prompt":"x""#).await;
        let metrics = r#","total_duration":2,"load_duration":1,"prompt_eval_count":1"#;
        assert_eq!(text.replace(metrics, ""), expected);
    }
}

#[tokio::test]
async fn errors_of_embeddings_have_the_words_of_ollama() {
    let context = || Failure::ContextExceeded {
        prompt_tokens: 9,
        context_length: 4,
    };
    let infinite = || {
        let mut provider = FakeProvider::new(Vec::new());
        provider.vector = Some(vec![1.0, f32::NAN]);
        provider
    };
    let both = r#","input":"x","prompt":"x""#;
    let cases = [
        (
            missing(),
            ApiEndpoint::Embed,
            r#","input":5"#,
            400,
            r#"{"error":"invalid input type"}"#,
        ),
        (missing(), ApiEndpoint::Embed, "", 404, TRY_PULLING),
        (missing(), ApiEndpoint::Embeddings, "", 404, TRY_PULLING),
        (
            refusing(Failure::NotFound("x".into())),
            ApiEndpoint::Embed,
            both,
            404,
            TRY_PULLING,
        ),
        (
            refusing(Failure::NotFound("x".into())),
            ApiEndpoint::Embeddings,
            "",
            404,
            TRY_PULLING,
        ),
        (
            FakeProvider::new(Vec::new()),
            ApiEndpoint::Embed,
            r#","input":"x","options":{"num_ctx":"x"}"#,
            500,
            r#"{"error":"option \"num_ctx\" must be of type integer"}"#,
        ),
        (
            refusing(context()),
            ApiEndpoint::Embed,
            both,
            400,
            r#"{"error":"the input length exceeds the context length"}"#,
        ),
        (
            refusing(context()),
            ApiEndpoint::Embeddings,
            both,
            500,
            r#"{"error":"the input length exceeds the context length"}"#,
        ),
        (
            refusing(Failure::Invalid(
                "input after truncation exceeds maximum context length".into(),
            )),
            ApiEndpoint::Embed,
            both,
            400,
            r#"{"error":"input after truncation exceeds maximum context length"}"#,
        ),
        (
            infinite(),
            ApiEndpoint::Embed,
            both,
            400,
            r#"{"error":"embedding contains NaN or Inf values"}"#,
        ),
        (
            infinite(),
            ApiEndpoint::Embeddings,
            both,
            500,
            r#"{"error":"embedding contains NaN or Inf values"}"#,
        ),
        (
            refusing(Failure::Busy),
            ApiEndpoint::Embeddings,
            both,
            503,
            r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#,
        ),
    ];
    for (provider, endpoint, fields, status, expected) in cases {
        check(provider, endpoint, &body(fields), (status, UTF8, expected)).await;
    }
}

#[tokio::test]
async fn texts_become_tokens_and_tokens_a_text() {
    let (_, api) = able();
    for (endpoint, fields, expected) in [
        (
            ApiEndpoint::Tokenize,
            r#","text":"hi""#,
            r#"{"model":"hf:o/r","tokens":[104,105]}"#,
        ),
        (
            ApiEndpoint::Tokenize,
            r#","content":"h""#,
            r#"{"model":"hf:o/r","tokens":[104]}"#,
        ),
        (ApiEndpoint::Tokenize, "", r#"{"model":"hf:o/r","tokens":[]}"#),
        (
            ApiEndpoint::Tokenize,
            r#","text":"hé","with_pieces":true"#,
            r#"{"model":"hf:o/r","tokens":[{"id":104,"piece":"h"},{"id":195,"piece":[195]},{"id":169,"piece":[169]}]}"#,
        ),
        (
            ApiEndpoint::Detokenize,
            r#","tokens":[104,105]"#,
            r#"{"model":"hf:o/r","text":"hi"}"#,
        ),
        (ApiEndpoint::Detokenize, "", r#"{"model":"hf:o/r","text":""}"#),
    ] {
        assert_eq!(ok(&api, endpoint, fields).await, expected);
    }
    for (provider, endpoint, fields, status, expected) in [
        (
            missing(),
            ApiEndpoint::Tokenize,
            r#","text":"x""#,
            404,
            r#"{"error":"model 'hf:o/r' not found"}"#,
        ),
        (
            missing(),
            ApiEndpoint::Tokenize,
            r#","text":["x"]"#,
            400,
            r#"{"error":"json: cannot unmarshal array into Go struct field TokenizeRequest.text of type string"}"#,
        ),
        (
            FakeProvider::new(Vec::new()),
            ApiEndpoint::Detokenize,
            r#","tokens":[-1]"#,
            400,
            r#"{"error":"no such token"}"#,
        ),
        (
            FakeProvider::new(Vec::new()),
            ApiEndpoint::Detokenize,
            r#","tokens":[4294967296]"#,
            400,
            r#"{"error":"tokens holds a number that is no token"}"#,
        ),
    ] {
        check(provider, endpoint, &body(fields), (status, UTF8, expected)).await;
    }
}

#[tokio::test]
async fn the_options_of_a_tokenizer_reach_the_provider() {
    let (provider, api) = able();
    ok(&api, ApiEndpoint::Tokenize, r#","text":"x""#).await;
    ok(
        &api,
        ApiEndpoint::Tokenize,
        r#","text":"x","add_special":false,"parse_special":false"#,
    )
    .await;
    let asked = provider.tokenized.lock().unwrap();
    let flags: Vec<_> = asked
        .iter()
        .map(|request| (request.add_special, request.parse_special))
        .collect();
    assert_eq!(flags, [(true, true), (false, false)]);
}

#[tokio::test]
async fn a_prompt_is_shown_instead_of_answered() {
    let (provider, api) = able();
    for (endpoint, fields, expected) in [
        (
            ApiEndpoint::ApplyTemplate,
            CHAT.to_owned(),
            r#"{"model":"hf:o/r","prompt":"x\n"}"#,
        ),
        (
            ApiEndpoint::Chat,
            format!("{CHAT},\"_debug_render_only\":true"),
            r#"{"model":"hf:o/r","created_at":"T","message":{"role":"","content":""},"done":false,"_debug_info":{"rendered_template":"x\n"}}"#,
        ),
        (
            ApiEndpoint::Chat,
            r#","messages":[{"role":"user","content":"x","images":["aGk=","aGk="]}],"_debug_render_only":true"#
                .to_owned(),
            r#"{"model":"hf:o/r","created_at":"T","message":{"role":"","content":""},"done":false,"_debug_info":{"rendered_template":"x\n","image_count":2}}"#,
        ),
        (
            ApiEndpoint::Generate,
            r#","prompt":"p","system":"s","_debug_render_only":true"#.to_owned(),
            r#"{"model":"hf:o/r","created_at":"T","response":"","done":false,"_debug_info":{"rendered_template":"s\np\n"}}"#,
        ),
        (
            ApiEndpoint::Generate,
            r#","prompt":"p","raw":true,"_debug_render_only":true"#.to_owned(),
            r#"{"model":"hf:o/r","created_at":"T","response":"","done":false,"_debug_info":{"rendered_template":"p"}}"#,
        ),
        (
            ApiEndpoint::Generate,
            r#","_debug_render_only":true"#.to_owned(),
            r#"{"model":"hf:o/r","created_at":"T","response":"","done":true,"done_reason":"load"}"#,
        ),
    ] {
        assert_eq!(ok(&api, endpoint, &fields).await, expected, "{fields}");
    }
    assert!(provider.asked.lock().unwrap().is_empty());
    check(
        missing(),
        ApiEndpoint::ApplyTemplate,
        &body(""),
        (400, UTF8, r#"{"error":"messages is required"}"#),
    )
    .await;
}

#[tokio::test]
async fn a_template_is_shown_without_the_tools_that_its_model_does_not_know() {
    let (_, api) = alone(FakeProvider::new(Vec::new()).with_capabilities(NO_CAPABILITY));
    let fields = format!("{CHAT},\"tools\":[{{\"type\":\"function\"}}]");
    for endpoint in [ApiEndpoint::ApplyTemplate, ApiEndpoint::Chat] {
        let request = body(&format!("{fields},\"_debug_render_only\":true"));
        let response = send(&api, endpoint, &request).await;
        assert_eq!(response.headers()["x-hubllama-ignored"], "tools");
    }
}

#[tokio::test]
async fn an_earlier_answer_goes_in_front_of_a_template() {
    let (provider, api) = alone(FakeProvider::new(vec![done()]));
    let fields = r#","prompt":"p","template":"Q: {{ .Prompt }}","context":[104,105],"stream":false"#;
    ok(&api, ApiEndpoint::Generate, fields).await;
    assert!(matches!(provider.last_request().prompt, InferencePrompt::Raw { text } if text == "hiQ: p"));
}

#[tokio::test]
async fn a_thinking_budget_is_an_option() {
    let (provider, api) = alone(FakeProvider::new(vec![done()]).with_capabilities(THINKER));
    let fields = format!("{CHAT},\"stream\":false,\"options\":{{\"thinking_budget\":32}}");
    ok(&api, ApiEndpoint::Chat, &fields).await;
    assert_eq!(provider.last_request().thinking_budget, Some(32));
}

#[tokio::test]
async fn a_system_prompt_beside_a_suffix_is_said_to_be_ignored() {
    let (_, api) = alone(FakeProvider::new(vec![done()]).with_capabilities(THINKER));
    let request = body(r#","prompt":"p","suffix":"s","system":"y""#);
    let response = send(&api, ApiEndpoint::Generate, &request).await;
    assert_eq!(response.headers()["x-hubllama-ignored"], "system");
}
