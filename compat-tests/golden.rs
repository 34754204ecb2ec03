//! Replies whose bytes are known but for times, numbers, hashes and the model's words.

use regex::Regex;

use crate::harness::hubllama::{Hubllama, MODEL, Setup};

/// What stands for what varies; each form is checked by its pattern.
const MASKS: [(&str, &str); 10] = [
    (
        r#""created_at":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z""#,
        r#""created_at":"⟨t⟩Z""#,
    ),
    (
        r#""(modified_at|expires_at)":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?(Z|[+-]\d\d:\d\d)""#,
        r#""$1":"⟨t⟩""#,
    ),
    (
        r#""(\w+_duration|\w*eval_count|\w+_tokens|size|context_length)":[1-9]\d*"#,
        r#""$1":⟨n⟩"#,
    ),
    (r#""size_vram":\d+"#, r#""size_vram":⟨n⟩"#),
    (r#""context":\[\d+(,\d+)+\]"#, r#""context":[⟨ids⟩]"#),
    (r#""created":\d{10}\b"#, r#""created":⟨s⟩"#),
    (r#""id":"chatcmpl-\d{1,3}""#, r#""id":"chatcmpl-⟨i⟩""#),
    (r#""digest":"[0-9a-f]{64}""#, r#""digest":"⟨64hex⟩""#),
    (r#""(content|response)":"(?:[^"\\]|\\.)+""#, r#""$1":"⟨text⟩""#),
    (r"hf:HuggingFaceTB/SmolLM2-135M-Instruct-GGUF:Q4_1", "⟨m⟩"),
];

/// The model's name in a request below.
const NAME: &str = "⟨m⟩";

struct Vector {
    method: &'static str,
    path: &'static str,
    body: &'static str,
    status: u16,
    content_type: &'static str,
    /// Frames that are the same when masked stand here once.
    reply: &'static [&'static str],
}

const UTF8: &str = "application/json; charset=utf-8";

const fn get(path: &'static str, status: u16, content_type: &'static str, reply: &'static [&'static str]) -> Vector {
    Vector {
        method: "GET",
        path,
        body: "",
        status,
        content_type,
        reply,
    }
}

const fn post(
    path: &'static str,
    body: &'static str,
    status: u16,
    content_type: &'static str,
    reply: &'static [&'static str],
) -> Vector {
    Vector {
        method: "POST",
        path,
        body,
        status,
        content_type,
        reply,
    }
}

/// In this order: the last ones need the model to be loaded.
const VECTORS: &[Vector] = &[
    get("/", 200, "text/plain; charset=utf-8", &["Ollama is running"]),
    get("/api/ps", 200, UTF8, &[r#"{"models":[]}"#]),
    get("/api/chat", 405, "text/plain", &["405 method not allowed"]),
    post("/api/chat", "", 400, UTF8, &[r#"{"error":"missing request body"}"#]),
    post("/api/chat", "{}", 400, UTF8, &[r#"{"error":"model is required"}"#]),
    post("/api/generate", "{}", 404, UTF8, &[r#"{"error":"model '' not found"}"#]),
    post("/api/embed", "{}", 404, UTF8, &[r#"{"error":"model '' not found"}"#]),
    post("/api/show", "{}", 400, UTF8, &[r#"{"error":"model is required"}"#]),
    post(
        "/api/chat",
        r#"{"model":"hf:o/r:Q9"}"#,
        404,
        UTF8,
        &[r#"{"error":"model 'hf:o/r:Q9' not found"}"#],
    ),
    post(
        "/v1/chat/completions",
        r#"{"model":"hf:o/r:Q9","messages":[{"role":"user","content":"Hi"}]}"#,
        404,
        "application/json",
        &[
            "{\"error\":{\"message\":\"model 'hf:o/r:Q9' not found\",\"type\":\"not_found_error\",\"param\":null,\"code\":null}}\n",
        ],
    ),
    get(
        "/api/tags",
        200,
        UTF8,
        &[
            r#"{"models":[{"name":"⟨m⟩","model":"⟨m⟩","modified_at":"⟨t⟩","size":⟨n⟩,"digest":"⟨64hex⟩","details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"134.52M","quantization_level":"Q4_1","context_length":⟨n⟩,"embedding_length":576},"capabilities":["completion"]}]}"#,
        ],
    ),
    post(
        "/api/generate",
        r#"{"model":"⟨m⟩"}"#,
        200,
        UTF8,
        &[r#"{"model":"⟨m⟩","created_at":"⟨t⟩Z","response":"","done":true,"done_reason":"load"}"#],
    ),
    post(
        "/api/chat",
        r#"{"model":"⟨m⟩","messages":[{"role":"user","content":"Hi"}],"options":{"temperature":0,"num_predict":4}}"#,
        200,
        "application/x-ndjson",
        &[
            "{\"model\":\"⟨m⟩\",\"created_at\":\"⟨t⟩Z\",\"message\":{\"role\":\"assistant\",\"content\":\"⟨text⟩\"},\"done\":false}\n",
            "{\"model\":\"⟨m⟩\",\"created_at\":\"⟨t⟩Z\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"length\",\"total_duration\":⟨n⟩,\"load_duration\":⟨n⟩,\"prompt_eval_count\":⟨n⟩,\"prompt_eval_duration\":⟨n⟩,\"eval_count\":⟨n⟩,\"eval_duration\":⟨n⟩}\n",
        ],
    ),
    post(
        "/api/generate",
        r#"{"model":"⟨m⟩","prompt":"Hi","options":{"temperature":0,"num_predict":4}}"#,
        200,
        "application/x-ndjson",
        &[
            "{\"model\":\"⟨m⟩\",\"created_at\":\"⟨t⟩Z\",\"response\":\"⟨text⟩\",\"done\":false}\n",
            "{\"model\":\"⟨m⟩\",\"created_at\":\"⟨t⟩Z\",\"response\":\"\",\"done\":true,\"done_reason\":\"length\",\"context\":[⟨ids⟩],\"total_duration\":⟨n⟩,\"load_duration\":⟨n⟩,\"prompt_eval_count\":⟨n⟩,\"prompt_eval_duration\":⟨n⟩,\"eval_count\":⟨n⟩,\"eval_duration\":⟨n⟩}\n",
        ],
    ),
    post(
        "/v1/chat/completions",
        r#"{"model":"⟨m⟩","messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true},"temperature":0,"max_tokens":4}"#,
        200,
        "text/event-stream",
        &[
            "data: {\"id\":\"chatcmpl-⟨i⟩\",\"object\":\"chat.completion.chunk\",\"created\":⟨s⟩,\"model\":\"⟨m⟩\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"⟨text⟩\"},\"finish_reason\":null}]}\n\n",
            "data: {\"id\":\"chatcmpl-⟨i⟩\",\"object\":\"chat.completion.chunk\",\"created\":⟨s⟩,\"model\":\"⟨m⟩\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"⟨text⟩\"},\"finish_reason\":null}]}\n\n",
            "data: {\"id\":\"chatcmpl-⟨i⟩\",\"object\":\"chat.completion.chunk\",\"created\":⟨s⟩,\"model\":\"⟨m⟩\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
            "data: {\"id\":\"chatcmpl-⟨i⟩\",\"object\":\"chat.completion.chunk\",\"created\":⟨s⟩,\"model\":\"⟨m⟩\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[],\"usage\":{\"prompt_tokens\":⟨n⟩,\"completion_tokens\":⟨n⟩,\"total_tokens\":⟨n⟩}}\n\n",
            "data: [DONE]\n\n",
        ],
    ),
    get(
        "/api/ps",
        200,
        UTF8,
        &[
            r#"{"models":[{"name":"⟨m⟩","model":"⟨m⟩","size":⟨n⟩,"digest":"⟨64hex⟩","details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"134.52M","quantization_level":"Q4_1"},"expires_at":"⟨t⟩","size_vram":⟨n⟩,"context_length":⟨n⟩}]}"#,
        ],
    ),
];

/// The frames of a body, masked, each once.
fn masked(body: &str, masks: &[(Regex, &str)]) -> Vec<String> {
    let masked = masks.iter().fold(body.to_owned(), |text, (pattern, mask)| {
        pattern.replace_all(&text, *mask).into_owned()
    });
    let end = if masked.starts_with("data: ") { "\n\n" } else { "\n" };
    let mut frames: Vec<String> = masked.split_inclusive(end).map(str::to_owned).collect();
    frames.dedup();
    frames
}

fn check(daemon: &Hubllama, vectors: &[Vector]) {
    let masks = MASKS.map(|(pattern, mask)| (Regex::new(pattern).expect("a pattern"), mask));
    for vector in vectors {
        let Vector { method, path, body, .. } = vector;
        let (head, reply) = daemon.request(method, path, &body.replace(NAME, MODEL));
        let what = format!("{method} {path} {body}: {reply}");
        assert_eq!(head.status(), vector.status, "{what}");
        assert_eq!(head.header("content-type"), Some(vector.content_type), "{what}");
        if vector.status == 405 {
            assert_eq!(head.header("allow"), Some("POST"), "{what}");
        }
        assert_eq!(masked(&reply, &masks), vector.reply, "{what}");
    }
}

#[test]
fn replies_are_the_bytes_that_clients_know() {
    check(&Setup::with_model().config("[engine]\nthreads = 1\n").start(), VECTORS);
}

#[test]
fn an_unknown_path_without_an_ollama_is_the_404_of_its_router() {
    let daemon = Setup::default().config("[ollama]\nenabled = false\n").start();
    check(&daemon, &[get("/nope", 404, "text/plain", &["404 page not found"])]);
}
