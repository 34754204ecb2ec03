//! `[ollama] v1_via_native`: requests for plain names with members that Ollama ignores on `/v1` are sent to its native
//! routes, and all others are forwarded.

mod answers;
mod routes;

use std::sync::{
    Mutex,
    mpsc::{Receiver, SyncSender, sync_channel},
};

use serde_json::{Value, json};

use crate::harness::{
    fake_ollama::{FakeOllama, Received},
    hubllama::{Hubllama, Setup},
    raw_http::{Connection, PATIENCE, chunk_of},
};

/// Reply to all forwarded requests.
const PASSED: &str = "{\"passed\":true}";

const LAST: &str = r#"{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":40,"load_duration":1,"prompt_eval_count":10,"prompt_eval_duration":20,"eval_count":2,"eval_duration":10}"#;

fn show(capabilities: &[&str]) -> String {
    json!({
        "details": {"family": "llama", "families": ["llama"], "quantization_level": "Q4_1"},
        "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
        "capabilities": capabilities,
    })
    .to_string()
}

fn sized(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn path_of(request: &Received) -> &str {
    request.head.line.split(' ').nth(1).expect("a path")
}

/// Starts an Ollama whose model has all capabilities. `answer` answers the native routes that generate or embed.
fn ollama(answer: impl Fn(&Received, &mut Connection) -> bool + Send + Sync + 'static) -> FakeOllama {
    let show = show(&["completion", "tools", "thinking", "insert"]);
    FakeOllama::start(move |request, connection| match path_of(request) {
        "/api/show" => connection.try_send(sized("200 OK", &show)).is_ok(),
        "/api/chat" | "/api/generate" | "/api/embed" => answer(request, connection),
        _ => connection.try_send(sized("200 OK", PASSED)).is_ok(),
    })
}

/// Sends the frames of a reply, each in its own chunk.
fn frames(connection: &mut Connection, frames: &[&str]) -> bool {
    connection.send("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n");
    for frame in frames {
        if connection.try_send(chunk_of(format!("{frame}\n"))).is_err() {
            return false;
        }
    }
    connection.try_send("0\r\n\r\n").is_ok()
}

/// Starts an Ollama that answers every chat with these frames.
fn playing(text: &'static [&'static str]) -> FakeOllama {
    ollama(move |_, connection| frames(connection, text))
}

fn config(ollama: &FakeOllama, via_native: bool) -> String {
    format!("[ollama]\nurl = \"{}\"\nv1_via_native = {via_native}\n", ollama.url())
}

fn daemon(ollama: &FakeOllama) -> Hubllama {
    Setup::default().config(&config(ollama, true)).start()
}

/// Returns the body of a chat with additional members.
fn chat(more: &Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    let members = body.as_object_mut().expect("an object");
    members.extend(more.as_object().expect("an object").clone());
    body
}

/// Returns the native request that follows the query for the model's capabilities.
fn native(ollama: &FakeOllama) -> (String, Value) {
    let asked = ollama.received();
    assert_eq!(path_of(&asked), "/api/show", "{:?}", asked.head);
    assert_eq!(
        serde_json::from_slice::<Value>(&asked.body).unwrap(),
        json!({"model": "m"})
    );
    let request = ollama.received();
    let body = serde_json::from_slice(&request.body).expect("JSON");
    (path_of(&request).to_owned(), body)
}

/// Returns a sender for the test, and the receiver on which a script waits for it.
fn gate() -> (SyncSender<()>, Mutex<Receiver<()>>) {
    let (open, opened) = sync_channel(64);
    (open, Mutex::new(opened))
}

fn wait(gate: &Mutex<Receiver<()>>) {
    let opened = gate.lock().expect("no panic").recv_timeout(PATIENCE);
    opened.expect("the test opens the gate");
}
