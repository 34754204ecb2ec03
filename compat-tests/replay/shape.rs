//! What is left of a reply when the model's words, its numbers, times and hashes are taken out: keys in their order, the
//! types of values, and the strings that clients compare.

use regex::Regex;
use serde_json::Value;

/// Keys whose strings are the model's words, a time, a hash, or facts of the one model that was recorded.
const FREE_KEYS: [&str; 14] = [
    "content",
    "response",
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
];

/// Objects whose members' strings are facts of the model.
const FREE_OBJECTS: [&str; 2] = ["model_info", "tensors"];

/// Beginnings of generated ids.
const IDS: [&str; 2] = ["chatcmpl-", "call_"];

/// Why an answer ended: where the model had other words, it may have come to an end of its own.
const ENDS: [&str; 2] = ["stop", "length"];

/// Beginning of a digest in a sentence.
const DIGEST: &str = "sha256:";

/// Put by the recorder where it cut a list.
const CUT: &str = "*cut";

/// The kinds of frames in a body, in order; how often a kind repeats is the engine's matter. Members that are called like
/// one of `without` are left out, wherever they are.
pub(super) fn kinds(content_type: Option<&str>, body: &str, without: &[&str]) -> Vec<String> {
    let content_type = content_type.unwrap_or_default();
    let frames: Vec<(&str, &str)> = if content_type == "text/event-stream" {
        body.split_inclusive("\n\n")
            .map(|event| event.strip_prefix("data: ").unwrap_or(event))
            .map(|event| event.split_at(event.trim_end().len()))
            .collect()
    } else if content_type == "application/x-ndjson" {
        body.split_inclusive('\n')
            .map(|line| line.split_at(line.trim_end().len()))
            .collect()
    } else if content_type.starts_with("application/json") {
        vec![body.split_at(body.trim_end().len())]
    } else {
        return vec![body.to_owned()];
    };
    let mut kinds: Vec<String> = frames
        .into_iter()
        .map(|(frame, end)| match serde_json::from_str(frame) {
            Ok(value) => format!("{}{}", shape(&value, "", false, without), end.escape_debug()),
            Err(_) => format!("{frame}{}", end.escape_debug()),
        })
        .collect();
    kinds.dedup();
    kinds
}

fn shape(value: &Value, key: &str, is_free: bool, without: &[&str]) -> String {
    let is_free = is_free || FREE_KEYS.contains(&key) || FREE_OBJECTS.contains(&key);
    match value {
        Value::Object(map) => {
            let members: Vec<String> = map
                .iter()
                .filter(|(key, _)| !without.contains(&key.as_str()))
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
        Value::String(text) if is_free || IDS.iter().any(|start| text.starts_with(start)) => "text".to_owned(),
        Value::String(text) if matches!(key, "done_reason" | "finish_reason") && ENDS.contains(&text.as_str()) => {
            "ended".to_owned()
        }
        Value::String(text) if key == "error" => format!("{:?}", sentence(text)),
        Value::String(text) if text.contains(DIGEST) => {
            let digest = Regex::new("sha256:[0-9a-f]{64}").expect("a pattern");
            format!("{:?}", digest.replace_all(text, "a digest"))
        }
        Value::Number(_) => "number".to_owned(),
        other => other.to_string(),
    }
}

/// An error's own words: what llama-server said, Ollama wraps once more, and we do not. Counts depend on the template.
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
