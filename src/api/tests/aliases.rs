//! Tests of the models that clients create from others, over a scripted provider.

use std::sync::{Arc, atomic::Ordering};

use serde_json::{Value, json};

use super::{
    UTF8, alone, api,
    fake::{FakeProvider, card},
    read, send, simple, upstream,
};
use crate::{
    api::{ApiEndpoint, ApiHandler},
    config::{Config, ProviderName},
    inference::{Failure, InferencePrompt, ModelCapability},
};

const NDJSON: &str = "application/x-ndjson";
const JSON: &str = "application/json";
const MARIO: &str = r#"{"model":"mario","from":"hf:o/r","system":"You are Mario.","parameters":{"temperature":0.25,"stop":["X"]},"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"it's me"}],"license":["MIT"]}"#;

/// Returns a model without tools or reasoning.
fn plain() -> FakeProvider {
    FakeProvider::new(simple()).with_capabilities(&[ModelCapability::Completion])
}

async fn post(api: &ApiHandler, endpoint: ApiEndpoint, body: &str) -> (u16, String, String) {
    read(send(api, endpoint, body).await).await
}

async fn ok(api: &ApiHandler, endpoint: ApiEndpoint, body: &str) -> String {
    let (status, _, text) = post(api, endpoint.clone(), body).await;
    assert_eq!(status, 200, "{endpoint:?} {body}: {text}");
    text
}

#[track_caller]
fn error((status, kind, text): (u16, String, String), expected: (u16, &str, &str)) {
    let message = serde_json::from_str::<Value>(&text).unwrap()["error"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert_eq!((status, kind.as_str(), message.as_str()), expected);
}

/// Returns the names of a listing, sorted: their order depends on the time of the test.
fn listed(tags: &str) -> Vec<String> {
    let tags: Value = serde_json::from_str(tags).unwrap();
    let models = tags["models"].as_array().unwrap();
    let mut names: Vec<_> = models
        .iter()
        .map(|model| model["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn turns(prompt: InferencePrompt) -> Vec<(String, String)> {
    let InferencePrompt::Chat { messages, .. } = prompt else {
        panic!("{prompt:?}")
    };
    messages
        .into_iter()
        .map(|message| (message.role.0, message.content))
        .collect()
}

fn pairs(turns: &[(&str, &str)]) -> Vec<(String, String)> {
    turns
        .iter()
        .map(|&(role, text)| (role.to_owned(), text.to_owned()))
        .collect()
}

#[tokio::test]
async fn a_creation_says_what_it_did_in_the_words_of_ollama() {
    let (_, api) = alone(plain());
    let (status, kind, text) = post(&api, ApiEndpoint::Create, MARIO).await;
    assert_eq!((status, kind.as_str()), (200, NDJSON));
    let statuses: Vec<String> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["status"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let model = format!("using existing layer sha256:{}", card("").digest);
    assert_eq!(statuses[0], model);
    assert_eq!(statuses.len(), 7, "system, license, parameters, messages: {statuses:?}");
    assert!(
        statuses[1..5]
            .iter()
            .all(|status| status.starts_with("creating new layer sha256:")),
        "{statuses:?}"
    );
    // The digest is the sha256 of the system prompt, as in Ollama.
    assert!(
        statuses[1].ends_with("15d6cc3672414cc43b7557e04cbdcf5de584ee9a0bd1c8a2e77f4169e9fdd216"),
        "{statuses:?}"
    );
    assert_eq!(statuses[5..], ["writing manifest", "success"]);
    let again = ok(&api, ApiEndpoint::Create, MARIO).await;
    assert!(!again.contains("creating new"), "{again}");
    let once = MARIO.replace("{\"model\"", "{\"stream\":false,\"model\"");
    let (status, kind, text) = post(&api, ApiEndpoint::Create, &once).await;
    assert_eq!(
        (status, kind.as_str(), text.as_str()),
        (200, JSON, r#"{"status":"success"}"#)
    );
}

#[tokio::test]
async fn what_a_client_made_goes_into_its_requests_below_what_they_say() {
    let (provider, api) = alone(plain());
    ok(&api, ApiEndpoint::Create, MARIO).await;
    let chat = r#"{"model":"Mario","messages":[{"role":"user","content":"Who?"}]}"#;
    let text = ok(&api, ApiEndpoint::Chat, chat).await;
    assert!(text.starts_with(r#"{"model":"Mario","#), "{text}");
    let request = provider.last_request();
    assert_eq!(request.sampling.temperature, Some(0.25));
    assert_eq!(request.sampling.stop, Some(vec!["X".to_owned()]));
    let front = [("system", "You are Mario."), ("user", "hi"), ("assistant", "it's me")];
    assert_eq!(
        turns(request.prompt),
        pairs(&[&front[..], &[("user", "Who?")]].concat())
    );

    let own = r#"{"model":"mario","messages":[{"role":"system","content":"Be Luigi."},{"role":"user","content":"Who?"}],"options":{"temperature":0,"stop":[]}}"#;
    ok(&api, ApiEndpoint::Chat, own).await;
    let request = provider.last_request();
    assert_eq!(
        (request.sampling.temperature, request.sampling.stop),
        (Some(0.0), Some(Vec::new()))
    );
    let expected = [
        ("system", "Be Luigi."),
        ("user", "hi"),
        ("assistant", "it's me"),
        ("user", "Who?"),
    ];
    assert_eq!(turns(request.prompt), pairs(&expected));

    // A conversation that continues from token ids has the messages already.
    ok(
        &api,
        ApiEndpoint::Generate,
        r#"{"model":"mario","prompt":"p","context":[1]}"#,
    )
    .await;
    let expected = [("system", "You are Mario."), ("user", "p")];
    assert_eq!(turns(provider.last_request().prompt), pairs(&expected));
    ok(
        &api,
        ApiEndpoint::Generate,
        r#"{"model":"mario","prompt":"p","raw":true}"#,
    )
    .await;
    assert!(matches!(provider.last_request().prompt, InferencePrompt::Raw { text } if text == "p"));

    // A template of the request replaces that of the model, and gets the messages of the alias.
    ok(
        &api,
        ApiEndpoint::Generate,
        r#"{"model":"mario","prompt":"p","template":"{{ range .Messages }}{{ .Role }}:{{ .Content }};{{ end }}"}"#,
    )
    .await;
    let expected = "system:You are Mario.;user:hi;assistant:it's me;user:p;";
    assert!(matches!(provider.last_request().prompt, InferencePrompt::Raw { text } if text == expected));

    ok(&api, ApiEndpoint::OpenAiChat, chat).await;
    let request = provider.last_request();
    assert_eq!(turns(request.prompt).len(), 4);
    assert_eq!(
        request.sampling.temperature,
        Some(1.0),
        "that dialect has a default of its own, as in Ollama"
    );

    let load = r#"{"model":"ctx","from":"mario","parameters":{"num_ctx":99}}"#;
    ok(&api, ApiEndpoint::Create, load).await;
    ok(&api, ApiEndpoint::Generate, r#"{"model":"ctx"}"#).await;
    assert_eq!(provider.loads.lock().unwrap()[0].0.context_length, Some(99));
}

#[tokio::test]
async fn a_template_of_its_own_renders_its_chats() {
    let (provider, api) = alone(plain());
    let create = r#"{"model":"t","from":"hf:o/r","system":"S","template":"{{ if .System }}<{{ .System }}>{{ end }}U:{{ .Prompt }} A:{{ .Response }};"}"#;
    ok(&api, ApiEndpoint::Create, create).await;
    let chat = r#"{"model":"t","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]}"#;
    ok(&api, ApiEndpoint::Chat, chat).await;
    assert!(matches!(provider.last_request().prompt, InferencePrompt::Raw { text } if text == "<S>U:a A:b;U:c A:"));

    // Requests with tools use the template of the model, whose answers can be parsed.
    let (provider, api) = alone(FakeProvider::new(simple()));
    ok(&api, ApiEndpoint::Create, create).await;
    let tools = chat.replace("{\"model\"", "{\"tools\":[{\"type\":\"function\"}],\"model\"");
    ok(&api, ApiEndpoint::Chat, &tools).await;
    assert_eq!(
        turns(provider.last_request().prompt)[0],
        ("system".to_owned(), "S".to_owned())
    );
    ok(&api, ApiEndpoint::Chat, chat).await;
    assert!(matches!(provider.last_request().prompt, InferencePrompt::Raw { .. }));

    let gap = r#"{"model":"gap","from":"hf:o/r","template":"<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>"}"#;
    ok(&api, ApiEndpoint::Create, gap).await;
    ok(
        &api,
        ApiEndpoint::Generate,
        r#"{"model":"gap","prompt":"a","suffix":"b"}"#,
    )
    .await;
    assert!(matches!(provider.last_request().prompt, InferencePrompt::Raw { text } if text == "<PRE>a<SUF>b<MID>"));
    let shown: Value = serde_json::from_str(&ok(&api, ApiEndpoint::Show, r#"{"model":"gap"}"#).await).unwrap();
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "insert"]));
}

#[tokio::test]
async fn a_rendered_conversation_that_does_not_fit_loses_its_oldest_turns() {
    let mut provider = plain();
    provider.refusal = Some(Failure::ContextExceeded {
        prompt_tokens: 12,
        context_length: 10,
    });
    let (provider, api) = alone(provider);
    let create = r#"{"model":"t","from":"hf:o/r","template":"{{ range .Messages }}{{ .Content }};{{ end }}"}"#;
    ok(&api, ApiEndpoint::Create, create).await;
    let chat = r#"{"model":"t","messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]}"#;
    let (status, _, text) = post(&api, ApiEndpoint::Chat, chat).await;
    assert!(
        status == 400 && text.contains("exceeds the available context size"),
        "{text}"
    );
    let asked: Vec<String> = provider
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|request| match &request.prompt {
            InferencePrompt::Raw { text } => text.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asked, ["s;a;b;c;", "s;b;c;", "s;c;"]);
    ok_to_cut(&api, chat).await;
    assert_eq!(
        provider.asked.lock().unwrap().len(),
        4,
        "asked once more, not shortened"
    );
}

/// Sends a chat that must not be shortened.
async fn ok_to_cut(api: &ApiHandler, chat: &str) {
    let chat = chat.replace("{\"model\":\"t\"", "{\"truncate\":false,\"model\":\"t\"");
    assert_eq!(post(api, ApiEndpoint::Chat, &chat).await.0, 400);
}

#[tokio::test]
async fn it_is_shown_and_listed_like_a_model_of_ollamas() {
    let (_, api) = alone(plain());
    ok(&api, ApiEndpoint::Create, MARIO).await;
    ok(
        &api,
        ApiEndpoint::Copy,
        r#"{"source":"hf:o/r","destination":"me/copy:v1"}"#,
    )
    .await;
    ok(&api, ApiEndpoint::Create, r#"{"model":"child","from":"mario"}"#).await;

    let tags = ok(&api, ApiEndpoint::Tags, "").await;
    let tags: Value = serde_json::from_str(&tags).unwrap();
    let entry = |name: &str| {
        let models = tags["models"].as_array().unwrap();
        models
            .iter()
            .find(|model| model["name"] == name)
            .unwrap_or_else(|| panic!("{name}: {tags}"))
    };
    let (mario, copy, child, model) = (
        entry("mario:latest"),
        entry("me/copy:v1"),
        entry("child:latest"),
        entry("hf:o/r:Q4_K_M"),
    );
    assert_eq!(mario["details"]["parent_model"], "hf:o/r:Q4_K_M");
    assert_eq!(child["details"]["parent_model"], "mario:latest");
    assert_eq!(copy["details"]["parent_model"], "");
    assert_eq!((&copy["digest"], &copy["size"]), (&model["digest"], &model["size"]));
    assert_ne!(mario["digest"], model["digest"]);
    assert_ne!(mario["digest"], child["digest"]);
    assert!(mario["size"].as_u64() > model["size"].as_u64());
    assert_eq!(mario["capabilities"], json!(["completion"]));

    let shown: Value = serde_json::from_str(&ok(&api, ApiEndpoint::Show, r#"{"name":"MARIO:latest"}"#).await).unwrap();
    assert_eq!(
        shown["modelfile"],
        "# Modelfile generated by \"ollama show\"\n# To build a new Modelfile based on this, replace FROM with:\n# FROM mario:latest\n\nFROM hf:o/r:Q4_K_M\nTEMPLATE \"{{ a }}\n\"\nSYSTEM You are Mario.\nPARAMETER stop X\nPARAMETER temperature 0.25\nLICENSE MIT\nMESSAGE user hi\nMESSAGE assistant it's me\n"
    );
    assert_eq!(
        shown["parameters"],
        "stop                           \"X\"\ntemperature                    0.25"
    );
    assert_eq!(
        shown["messages"],
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "it's me"}])
    );
    assert_eq!(
        (&shown["license"], &shown["system"]),
        (&json!("MIT"), &json!("You are Mario."))
    );
    assert_eq!(shown["details"]["parent_model"], "hf:o/r:Q4_K_M");
    let keys: Vec<&str> = shown.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "license",
            "modelfile",
            "parameters",
            "template",
            "system",
            "details",
            "messages",
            "model_info",
            "tensors",
            "capabilities",
            "modified_at"
        ]
    );

    let models = ok(&api, ApiEndpoint::OpenAiModels, "").await;
    assert!(models.contains(r#"{"id":"mario:latest","object":"model""#), "{models}");
    for (id, owner) in [("mario", "library"), ("me%2Fcopy:v1", "me")] {
        let model = ok(&api, ApiEndpoint::OpenAiModel { id: id.into() }, "").await;
        assert!(model.ends_with(&format!("\"owned_by\":\"{owner}\"}}\n")), "{model}");
    }
}

/// `/save` of the `ollama` command creates a model from the running one with the whole conversation, again and again.
#[tokio::test]
async fn a_session_is_saved_over_and_over() {
    let (provider, api) = alone(plain());
    ok(&api, ApiEndpoint::Create, MARIO).await;
    let save = r#"{"model":"mario","from":"mario","parameters":{"top_k":7},"license":"more","messages":[{"role":"user","content":"bye"}]}"#;
    ok(&api, ApiEndpoint::Create, save).await;
    ok(
        &api,
        ApiEndpoint::Chat,
        r#"{"model":"mario","messages":[{"role":"user","content":"x"}]}"#,
    )
    .await;
    let request = provider.last_request();
    assert_eq!(
        (request.sampling.temperature, request.sampling.top_k),
        (Some(0.25), Some(7))
    );
    let expected = [("system", "You are Mario."), ("user", "bye"), ("user", "x")];
    assert_eq!(
        turns(request.prompt),
        pairs(&expected),
        "messages are replaced, the rest is kept"
    );
    let shown = ok(&api, ApiEndpoint::Show, r#"{"model":"mario"}"#).await;
    assert!(shown.starts_with(r#"{"license":"MIT\nmore","#), "{shown}");
    assert_eq!(
        listed(&ok(&api, ApiEndpoint::Tags, "").await),
        ["hf:o/r:Q4_K_M", "mario:latest"]
    );
}

#[tokio::test]
async fn deleting_it_leaves_the_model() {
    let (provider, api) = alone(plain());
    ok(&api, ApiEndpoint::Create, MARIO).await;
    let (status, kind, text) = post(&api, ApiEndpoint::Delete, r#"{"name":"Mario"}"#).await;
    assert_eq!((status, kind.as_str(), text.as_str()), (200, "", ""));
    assert_eq!(provider.deletes.load(Ordering::Relaxed), 0);
    assert_eq!(listed(&ok(&api, ApiEndpoint::Tags, "").await), ["hf:o/r:Q4_K_M"]);
    // From here on the name is Ollama's again, and no Ollama runs in this test.
    assert_eq!(post(&api, ApiEndpoint::Delete, r#"{"name":"mario"}"#).await.0, 502);
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_with_a_sentence() {
    let (_, api) = alone(plain());
    ok(&api, ApiEndpoint::Create, MARIO).await;
    let mut config = Config::clone(&api.config.load());
    config.aliases.insert("fixed".into(), "hf:o/r".into());
    api.config.store(Arc::new(config));
    for (endpoint, body, expected) in [
        (
            ApiEndpoint::Create,
            r#"{"model":"a b","from":"hf:o/r"}"#,
            (400, UTF8, "invalid model name"),
        ),
        (
            ApiEndpoint::Create,
            r#"{"model":"hf:o/x","from":"hf:o/r"}"#,
            (
                400,
                UTF8,
                "invalid model name: hf:o/x stands for files of the Hub; choose a plain name, as my-model",
            ),
        ),
        (
            ApiEndpoint::Create,
            r#"{"model":"fixed","from":"hf:o/r"}"#,
            (
                400,
                UTF8,
                "fixed is an alias of the configuration; choose another name, or change it there",
            ),
        ),
        (
            ApiEndpoint::Create,
            r#"{"model":"mario","from":"llama3"}"#,
            (
                400,
                JSON,
                "mario stands for hf:o/r:Q4_K_M here; delete it before Ollama makes a model of that name, or choose another name",
            ),
        ),
        (
            ApiEndpoint::Create,
            r#"{"model":"mario"}"#,
            (400, JSON, "neither 'from' or 'files' was specified"),
        ),
        (
            ApiEndpoint::Create,
            r#"{"model":"x","from":"hf:o/r","template":"{{ .Prompt"}"#,
            (400, JSON, "template error: template: :1: unclosed action"),
        ),
        (
            ApiEndpoint::Create,
            r#"{"model":"x","from":"hf:o/r","parameters":{"top_k":"many"}}"#,
            (400, JSON, "option \"top_k\" must be of type integer"),
        ),
        (
            ApiEndpoint::Create,
            r#"{"model":"x","from":"hf:o/r","quantize":"q9"}"#,
            (
                500,
                JSON,
                "unsupported quantization type Q9 - supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0",
            ),
        ),
        (
            ApiEndpoint::Create,
            r#"{"model":"x","from":"hf:o/r","adapters":{"a.gguf":"sha256:0"}}"#,
            (
                400,
                JSON,
                "the adapter a.gguf is a file; an hf: model takes adapters of the Hub: FROM hf:o/r+ORG/ADAPTER",
            ),
        ),
        (
            ApiEndpoint::Create,
            r#"{"model":"x","from":"hf:o/r","renderer":"qwen3"}"#,
            (
                400,
                JSON,
                "renderer and parser are parts of Ollama; leave them out: the chat template of an hf: model says how it is asked and read",
            ),
        ),
        (
            ApiEndpoint::Copy,
            r#"{"source":"mario","destination":"a b"}"#,
            (400, UTF8, "destination \"a b\" is invalid"),
        ),
        (
            ApiEndpoint::Copy,
            r#"{"source":"mario","destination":"hf:o/x"}"#,
            (
                400,
                UTF8,
                "destination \"hf:o/x\" is invalid: hf:o/x stands for files of the Hub; choose a plain name, as my-model",
            ),
        ),
        (
            ApiEndpoint::Copy,
            r#"{"source":"llama3","destination":"mario"}"#,
            (
                400,
                UTF8,
                "mario stands for hf:o/r:Q4_K_M here; delete it before Ollama makes a model of that name, or choose another name",
            ),
        ),
        (
            ApiEndpoint::Push,
            r#"{"model":"mario"}"#,
            (
                400,
                UTF8,
                "mario cannot be pushed: it comes from the Hugging Face Hub; upload it there instead",
            ),
        ),
        (
            ApiEndpoint::Push,
            r#"{"name":"hf:o/r"}"#,
            (
                400,
                UTF8,
                "hf:o/r cannot be pushed: it comes from the Hugging Face Hub; upload it there instead",
            ),
        ),
    ] {
        println!("{endpoint:?} {body}");
        error(post(&api, endpoint, body).await, expected);
    }
    assert_eq!(
        listed(&ok(&api, ApiEndpoint::Tags, "").await),
        ["fixed:latest", "hf:o/r:Q4_K_M", "mario:latest"]
    );

    let ignored = send(
        &api,
        ApiEndpoint::Create,
        r#"{"model":"x","from":"hf:o/r","info":{},"requires":"9"}"#,
    )
    .await;
    assert_eq!(
        (ignored.status().as_u16(), &ignored.headers()["x-hubllama-ignored"]),
        (200, &"info, requires".parse().unwrap())
    );
    // The Modelfile that is shown for an hf: model has the Jinja template of its file.
    ok(
        &api,
        ApiEndpoint::Create,
        r#"{"model":"x","from":"hf:o/r","template":"{{ a }}\n"}"#,
    )
    .await;
}

#[tokio::test]
async fn a_model_that_is_not_there_is_pulled_and_its_progress_shown() {
    let mut provider = plain();
    let mut absent = card("hf:o/r:Q4_K_M");
    absent.size_bytes = 0;
    provider.card = Ok(absent);
    let (_, api) = alone(provider);
    let text = ok(&api, ApiEndpoint::Create, r#"{"model":"m","from":"hf:o/r"}"#).await;
    let statuses: Vec<&str> = text
        .lines()
        .map(|line| line.split("sha256").next().unwrap_or_default())
        .collect();
    assert_eq!(
        statuses,
        [
            "{\"status\":\"pulling manifest\"}",
            "{\"status\":\"using existing layer ",
            "{\"status\":\"writing manifest\"}",
            "{\"status\":\"success\"}"
        ],
        "the pull's own success is not the last word"
    );

    let mut provider = plain();
    provider.card = Err(Failure::NotFound("hf:o/r".into()));
    let (_, api) = alone(provider);
    let (status, kind, text) = post(&api, ApiEndpoint::Create, r#"{"model":"m","from":"hf:o/r"}"#).await;
    assert_eq!((status, kind.as_str()), (200, NDJSON));
    assert!(text.ends_with("{\"error\":\"model 'hf:o/r' not found\"}\n"), "{text}");
    error(
        post(
            &api,
            ApiEndpoint::Create,
            r#"{"model":"m","from":"hf:o/r","stream":false}"#,
        )
        .await,
        (404, JSON, "model 'hf:o/r' not found"),
    );
    error(
        post(&api, ApiEndpoint::Copy, r#"{"source":"hf:o/r","destination":"m"}"#).await,
        (404, UTF8, "model \"hf:o/r\" not found"),
    );
}

#[tokio::test]
async fn where_ollama_has_the_name_too_the_priority_decides() {
    let (url, mut received) =
        upstream(r#"{"models":[{"name":"mario:latest","modified_at":"2020-01-01T00:00:00Z"}]}"#).await;
    tokio::spawn(async move { while received.recv().await.is_some() {} });
    let mut config = Config::default();
    config.ollama.url = url;
    let provider = Arc::new(plain());
    let api = api(&provider, config.clone());
    for (endpoint, body) in [
        (ApiEndpoint::Create, MARIO),
        (
            ApiEndpoint::Copy,
            r#"{"source":"hf:o/r","destination":"library/Mario"}"#,
        ),
    ] {
        let (status, _, text) = post(&api, endpoint, body).await;
        assert!(status == 400 && text.contains("Ollama has a model"), "{text}");
    }
    let chat = r#"{"model":"mario","messages":[{"role":"user","content":"x"}]}"#;
    config.ollama.priority = vec![ProviderName::HuggingFace, ProviderName::Ollama];
    api.config.store(Arc::new(config.clone()));
    ok(&api, ApiEndpoint::Create, MARIO).await;
    assert!(ok(&api, ApiEndpoint::Chat, chat).await.contains("\"done\":true"));
    config.ollama.priority = vec![ProviderName::Ollama, ProviderName::HuggingFace];
    api.config.store(Arc::new(config));
    assert!(
        ok(&api, ApiEndpoint::Chat, chat).await.starts_with("{\"models\":"),
        "it is Ollama that answers"
    );
    assert_eq!(
        listed(&ok(&api, ApiEndpoint::Tags, "").await)
            .iter()
            .filter(|name| *name == "mario:latest")
            .count(),
        1
    );
}
