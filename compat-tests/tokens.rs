//! Tokens and prompts of a real model through the debugging routes.

use hubllama::gguf;
use serde_json::{Value, json};

use crate::harness::{
    hubllama::{Hubllama, MODEL, Setup},
    tools_model,
};

fn post(daemon: &Hubllama, path: &str, body: &Value) -> Value {
    let (head, reply) = daemon.post(path, body);
    assert_eq!(head.status(), 200, "{path}: {reply}");
    serde_json::from_str(&reply).expect("JSON")
}

fn start() -> Hubllama {
    Setup::with_model().config("[engine]\nthreads = 1\n").start()
}

#[test]
fn a_text_is_the_same_after_a_way_through_its_tokens() {
    let daemon = start();
    let text = "Ünïcode 🦙 and <|im_end|> & more\n";
    let request = json!({"model": MODEL, "text": text, "add_special": false});
    let tokens = post(&daemon, "/api/tokenize", &request)["tokens"].clone();
    let ids: Vec<i64> = serde_json::from_value(tokens.clone()).expect("a list of ids");
    assert!((5..40).contains(&ids.len()), "{ids:?}");
    let back = post(&daemon, "/api/detokenize", &json!({"model": MODEL, "tokens": tokens}));
    assert_eq!(back["text"], text);

    // The pieces are text, or bytes if a token is only a part of a character.
    let request = json!({"model": MODEL, "content": text, "add_special": false, "with_pieces": true});
    let shown = post(&daemon, "/api/tokenize", &request);
    let (mut bytes, mut has_bytes) = (Vec::new(), false);
    for (token, id) in shown["tokens"].as_array().expect("a list").iter().zip(&ids) {
        assert_eq!(token["id"], *id);
        match &token["piece"] {
            Value::String(piece) => bytes.extend_from_slice(piece.as_bytes()),
            piece => {
                has_bytes = true;
                bytes.extend(serde_json::from_value::<Vec<u8>>(piece.clone()).expect("bytes"));
            }
        }
    }
    assert_eq!(String::from_utf8(bytes).expect("UTF-8"), text);
    assert!(has_bytes, "the llama is one character of several tokens: {shown}");

    // In plain text, the name of a control token is ordinary text.
    let request = json!({"model": MODEL, "text": "<|im_end|>", "parse_special": false});
    assert!(
        post(&daemon, "/api/tokenize", &request)["tokens"]
            .as_array()
            .expect("a list")
            .len()
            > 1
    );
    let request = json!({"model": MODEL, "text": "<|im_end|>"});
    assert_eq!(
        post(&daemon, "/api/tokenize", &request)["tokens"]
            .as_array()
            .expect("a list")
            .len(),
        1
    );

    let (head, reply) = daemon.post("/api/detokenize", &json!({"model": MODEL, "tokens": [1 << 30]}));
    assert_eq!(head.status(), 400, "{reply}");
}

#[test]
fn the_prompt_that_is_shown_is_the_one_that_is_answered() {
    let daemon = start();
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hi."}]);
    let chat = json!({"model": MODEL, "messages": messages, "stream": false, "options": {"num_predict": 1}});
    let prompt = post(&daemon, "/api/apply_template", &chat)["prompt"].clone();
    assert_eq!(
        prompt,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
    );
    let mut shown = chat.clone();
    shown["_debug_render_only"] = json!(true);
    let shown = post(&daemon, "/api/chat", &shown);
    assert_eq!(shown["_debug_info"], json!({"rendered_template": prompt}));
    assert_eq!(shown["done"], false);
    let generate = json!({"model": MODEL, "prompt": "Say hi.", "system": "Be brief.", "_debug_render_only": true});
    assert_eq!(
        post(&daemon, "/api/generate", &generate)["_debug_info"]["rendered_template"],
        prompt
    );

    let tokens = post(&daemon, "/api/tokenize", &json!({"model": MODEL, "text": prompt}))["tokens"].clone();
    let count = tokens.as_array().expect("a list").len();
    assert_eq!(post(&daemon, "/api/chat", &chat)["prompt_eval_count"], count);

    let request = json!({"model": MODEL, "system": "Be brief.", "messages": [messages[1]], "max_tokens": 1});
    assert_eq!(
        post(&daemon, "/v1/messages/count_tokens", &request)["input_tokens"],
        count
    );
    assert_eq!(post(&daemon, "/v1/messages", &request)["usage"]["input_tokens"], count);
}

#[test]
fn both_routes_give_the_same_vector_and_a_shorter_one_has_length_one() {
    let daemon = start();
    let numbers = |value: &Value| serde_json::from_value::<Vec<f64>>(value.clone()).expect("numbers");
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let request = json!({"model": MODEL, "input": ["hello", "good day"], "prompt": "hello"});
    let many = post(&daemon, "/api/embed", &request);
    let (first, second) = (numbers(&many["embeddings"][0]), numbers(&many["embeddings"][1]));
    let old = numbers(&post(&daemon, "/api/embeddings", &request)["embedding"]);
    assert!(
        product(&first, &old) > 0.999,
        "the same text: {}",
        product(&first, &old)
    );
    assert!(product(&first, &second) < 0.999, "another text");
    let request = json!({"model": MODEL, "input": "hello", "dimensions": 8});
    let short = numbers(&post(&daemon, "/api/embed", &request)["embeddings"][0]);
    assert_eq!(short.len(), 8);
    assert!((product(&short, &short) - 1.0).abs() < 1e-3);
}

#[test]
fn a_gap_is_filled_between_the_tokens_that_the_file_names() {
    const PREFIX: u32 = 3;
    const SUFFIX: u32 = 4;
    const MIDDLE: u32 = 5;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("fill-Q4_1.gguf");
    let keys = [("pre", PREFIX), ("suf", SUFFIX), ("mid", MIDDLE)]
        .map(|(name, id)| (format!("tokenizer.ggml.fim_{name}_token_id"), id));
    let keys: Vec<_> = keys
        .iter()
        .map(|(key, id)| (key.as_str(), gguf::GgufValue::U32(*id)))
        .collect();
    tools_model::write_with(&keys, &file);
    let daemon = Setup::default()
        .file("Example-Org/Fill-GGUF", "fill-Q4_1.gguf", file)
        .config("[engine]\nthreads = 1\n")
        .start();
    let model = "hf:Example-Org/Fill-GGUF:Q4_1";
    let shown = post(&daemon, "/api/show", &json!({"model": model}));
    assert_eq!(shown["capabilities"], json!(["insert", "completion"]));
    let request = json!({
        "model": model, "prompt": "def add(a, b):", "suffix": "return c", "stream": false, "options": {"num_predict": 4},
    });
    let answer = post(&daemon, "/api/generate", &request);
    let context: Vec<u32> = serde_json::from_value(answer["context"].clone()).expect("token ids");
    let at = |token: u32| context.iter().position(|&id| id == token);
    assert_eq!(at(PREFIX), Some(0), "{context:?}");
    assert!(at(SUFFIX) < at(MIDDLE), "{context:?}");
    let prompt = answer["prompt_eval_count"].as_u64().expect("a count");
    assert_eq!(
        at(MIDDLE),
        usize::try_from(prompt).ok().map(|count| count - 1),
        "{context:?}"
    );
}
