//! Shape of a reply: keys in their order, types of values, and the strings that clients compare. Generated text,
//! numbers, times and hashes are left out.

use regex::Regex;
use serde_json::Value;

/// Keys whose strings are generated text, a time, a hash, or a property of the recorded model.
const FREE_KEYS: [&str; 16] = [
    "content",
    "encrypted_content",
    "partial_json",
    "thinking",
    "reasoning",
    "token",
    "arguments",
    "created_at",
    "modified_at",
    "expires_at",
    "digest",
    "modelfile",
    "template",
    "version",
    "owned_by",
    "embedding",
];

/// Keys whose value is generated text if it is a string, and part of the wire format if it is an object.
const WORDS: [&str; 3] = ["delta", "response", "text"];

/// Objects whose strings are properties of the model, or generated text.
const FREE_OBJECTS: [&str; 4] = ["model_info", "tensors", "arguments", "input"];

/// Prefixes of generated ids.
const IDS: [&str; 9] = [
    "chatcmpl-",
    "cmpl-",
    "call_",
    "resp_",
    "msg_",
    "rs_",
    "fc_",
    "req_",
    "toolu_",
];

/// Reasons for the end of an answer. They are not compared, because another text may end for another reason.
const ENDS: [&str; 4] = ["stop", "length", "end_turn", "max_tokens"];

/// Prefix of a digest in a sentence.
const DIGEST: &str = "sha256:";

/// Text that the recorder puts in place of the rest of a long list.
const CUT: &str = "*cut";

/// Returns the shapes of the frames in a body, in order. Repeated shapes are merged, because their number depends on
/// the engine. Members with a name in `without` are left out at any depth.
pub(super) fn kinds(content_type: Option<&str>, body: &str, without: &[&str]) -> Vec<String> {
    let content_type = content_type.unwrap_or_default();
    // Name of an event, its data, and the bytes after it.
    let frames: Vec<(&str, &str, &str)> = if content_type == "text/event-stream" {
        body.split_inclusive("\n\n").map(event).collect()
    } else if content_type == "application/x-ndjson" {
        body.split_inclusive('\n').map(unnamed).collect()
    } else if content_type.starts_with("application/json") {
        vec![unnamed(body)]
    } else {
        return vec![body.to_owned()];
    };
    let mut kinds: Vec<String> = frames
        .into_iter()
        .map(|(name, frame, end)| match serde_json::from_str(frame) {
            Ok(value) => format!("{name}{}{}", shape(&value, "", false, without), end.escape_debug()),
            Err(_) => format!("{name}{frame}{}", end.escape_debug()),
        })
        .collect();
    kinds.dedup();
    kinds
}

/// Splits a server-sent event into its name with the line feed, its data and its end.
fn event(text: &str) -> (&str, &str, &str) {
    let (name, rest) = match text.find("data: ") {
        Some(at) if text.starts_with("event: ") => text.split_at(at),
        _ => ("", text),
    };
    let (_, data, end) = unnamed(rest.strip_prefix("data: ").unwrap_or(rest));
    (name, data, end)
}

fn unnamed(text: &str) -> (&str, &str, &str) {
    let (data, end) = text.split_at(text.trim_end().len());
    ("", data, end)
}

/// Prefix of the keys that hubllama adds to `model_info`.
const OWN_KEYS: &str = "hubllama.";

fn shape(value: &Value, key: &str, is_free: bool, without: &[&str]) -> String {
    let is_free = is_free || FREE_OBJECTS.contains(&key);
    match value {
        Value::Object(map) => {
            let members: Vec<String> = map
                .iter()
                .filter(|(key, _)| !without.contains(&key.as_str()) && !key.starts_with(OWN_KEYS))
                .map(|(key, value)| format!("{key}:{}", shape(value, key, is_free, without)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
        Value::Array(items) => {
            let mut shapes: Vec<String> = Vec::new();
            for item in items.iter().filter(|item| !is_cut(item)) {
                let shape = shape(item, key, is_free, without);
                if !shapes.contains(&shape) {
                    shapes.push(shape);
                }
            }
            format!("[{}]", shapes.join(", "))
        }
        Value::String(_) if WORDS.contains(&key) => "text".to_owned(),
        Value::String(text)
            if is_free || FREE_KEYS.contains(&key) || IDS.iter().any(|start| text.starts_with(start)) =>
        {
            "text".to_owned()
        }
        Value::String(text)
            if matches!(key, "done_reason" | "finish_reason" | "stop_reason") && ENDS.contains(&text.as_str()) =>
        {
            "ended".to_owned()
        }
        Value::String(text) if matches!(key, "error" | "message") => format!("{:?}", sentence(text)),
        Value::String(text) if text.contains(DIGEST) => {
            let digest = Regex::new("sha256:[0-9a-f]{64}").expect("a pattern");
            format!("{:?}", digest.replace_all(text, "a digest"))
        }
        Value::Number(_) => "number".to_owned(),
        other => other.to_string(),
    }
}

/// Returns the text of an error without the wrapping that Ollama adds to llama-server's errors, and without counts,
/// which depend on the template.
fn sentence(error: &str) -> String {
    let inner = serde_json::from_str::<Value>(error)
        .ok()
        .and_then(|wrapped| wrapped["error"]["message"].as_str().map(str::to_owned));
    let counts = Regex::new(r"[0-9]+ tokens").expect("a pattern");
    counts
        .replace_all(inner.as_deref().unwrap_or(error), "N tokens")
        .into_owned()
}

fn is_cut(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.starts_with(CUT))
}
