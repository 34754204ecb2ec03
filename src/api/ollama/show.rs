//! `POST /api/show`

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{Response, header::USER_AGENT};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::details::{WireDetails, capabilities};
use crate::{
    api::{
        error::ApiError,
        model::failure_of,
        reply,
        routed::{RoutedModel, RoutedRequest},
    },
    go::{
        decode::{DecodeError, FieldPath, JsonNode, entries_of},
        encode,
    },
    http::body::Body,
    inference::{Message, ModelDetails, TensorFacts},
    provider::CallContext,
    stdx::timestamp,
};

/// Column of a parameter's value in `parameters`, as Ollama pads it.
const PARAMETER_WIDTH: usize = 30;

/// Template that Ollama shows for a model without one.
const NO_TEMPLATE: &str = "{{ .Prompt }}";

/// User agent of GitHub Copilot, which tells models apart by `general.basename` and expects the name there that it
/// asked for. Ollama does this, too.
const COPILOT: &str = "GitHubCopilotChat/";

#[derive(Serialize)]
struct ShowReply<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    license: &'a str,
    modelfile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    parameters: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    template: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    system: &'a str,
    details: WireDetails<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<Map<String, Value>>,
    // Never left out and never `null`: GitHub Copilot and Ollama's Python client fail without it.
    model_info: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    projector_info: Option<&'a Map<String, Value>>,
    // Ollama lists the tensors without `verbose`, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<Tensor<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    capabilities: Vec<&'static str>,
    modified_at: String,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    r#type: &'a str,
    shape: &'a [u64],
}

/// Fields of a request besides the name. The last three replace those of the model in the reply.
#[derive(Debug, Default)]
struct ShowRequest {
    verbose: bool,
    system: String,
    template: String,
    parameters: Vec<(String, String)>,
}

impl ShowRequest {
    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        const ROOT: &str = "ShowRequest";
        let mut request = Self::default();
        for (key, node) in entries_of(body, "api.ShowRequest")? {
            match key.to_ascii_lowercase().as_str() {
                "verbose" => node.read_bool(&mut request.verbose, FieldPath(ROOT, "verbose"))?,
                "system" => node.read_string(&mut request.system, FieldPath(ROOT, "system"))?,
                "template" => node.read_string(&mut request.template, FieldPath(ROOT, "template"))?,
                "options" => {
                    let entries = node.read_object(FieldPath(ROOT, "options"), "map[string]interface {}")?;
                    request.parameters = entries
                        .into_iter()
                        .flat_map(|(key, value)| spell(&key, value))
                        .collect();
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

/// Returns a parameter as pairs of key and value, one for each value, with strings in quotes.
fn spell(key: &str, value: JsonNode<'_>) -> Vec<(String, String)> {
    match value {
        JsonNode::Array(items) => items.iter().map(|item| (key.to_owned(), item.to_json())).collect(),
        JsonNode::Null => Vec::new(),
        other => vec![(key.to_owned(), other.to_json())],
    }
}

/// Answers `POST /api/show` for a model of a provider.
pub(crate) async fn show(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let headers = request.headers.clone();
    let (routed, request) = request.decode(ShowRequest::decode)?;
    let RoutedModel {
        provider,
        name,
        requested,
        ..
    } = routed;
    let mut details = provider
        .show(call, &name, request.verbose)
        .await
        .map_err(|failure| failure_of(failure, &requested))?;
    override_with(&mut details, request);
    if headers
        .get(USER_AGENT)
        // Compared as bytes, because a header need not be UTF-8.
        .is_some_and(|agent| agent.as_bytes().starts_with(COPILOT.as_bytes()))
    {
        details
            .model_info
            .insert("general.basename".to_owned(), Value::String(requested));
    }
    Ok(reply::native(&wire(&details)))
}

/// Replaces details of the model by those of the request.
fn override_with(details: &mut ModelDetails, request: ShowRequest) {
    let ShowRequest {
        verbose: _,
        system,
        template,
        parameters,
    } = request;
    if !system.is_empty() {
        details.system = system;
    }
    if !template.is_empty() {
        details.template = template;
    }
    if details.template.is_empty() {
        NO_TEMPLATE.clone_into(&mut details.template);
    }
    if !parameters.is_empty() {
        details
            .parameters
            // A parameter such as `stop` has a line for each value. An override replaces all of them.
            .retain(|(key, _)| !parameters.iter().any(|(replaced, _)| replaced == key));
        details.parameters.extend(parameters);
    }
}

fn wire(details: &ModelDetails) -> ShowReply<'_> {
    let ModelDetails {
        card,
        from: _,
        messages,
        template,
        license,
        system,
        parameters,
        model_info,
        projector_info,
        tensors,
    } = details;
    ShowReply {
        license,
        modelfile: modelfile(details),
        parameters: parameter_lines(parameters),
        template,
        system,
        details: WireDetails::of(card),
        messages: messages.iter().map(turn).collect(),
        model_info,
        projector_info: projector_info.as_ref(),
        tensors: tensors
            .iter()
            .map(
                |TensorFacts {
                     name,
                     element_type,
                     shape,
                 }| Tensor {
                    name,
                    r#type: element_type,
                    shape,
                },
            )
            .collect(),
        capabilities: capabilities(&card.facts),
        modified_at: timestamp::rfc3339_local(card.modified_at),
    }
}

/// Returns a message in the shape that requests have.
fn turn(message: &Message) -> Map<String, Value> {
    let Message {
        role,
        content,
        thinking,
        media,
        tool_calls,
        tool_name,
        tool_call_id,
    } = message;
    let calls = tool_calls.iter().enumerate().map(|(index, call)| {
        let arguments = encode::tool_arguments(call.arguments.clone());
        json!({"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}})
    });
    let mut turn = Map::new();
    turn.insert("role".into(), role.0.as_str().into());
    turn.insert("content".into(), content.as_str().into());
    let mut add = |key: &str, value: Value, is_there: bool| {
        if is_there {
            turn.insert(key.into(), value);
        }
    };
    add("thinking", thinking.as_str().into(), !thinking.is_empty());
    add(
        "images",
        media.iter().map(|bytes| STANDARD.encode(bytes)).collect(),
        !media.is_empty(),
    );
    add("tool_calls", calls.collect(), !tool_calls.is_empty());
    add("tool_name", tool_name.as_str().into(), !tool_name.is_empty());
    add("tool_call_id", tool_call_id.as_str().into(), !tool_call_id.is_empty());
    turn
}

fn parameter_lines(parameters: &[(String, String)]) -> String {
    let lines: Vec<String> = parameters
        .iter()
        .map(|(key, value)| format!("{key:<PARAMETER_WIDTH$} {value}"))
        .collect();
    lines.join("\n")
}

fn modelfile(details: &ModelDetails) -> String {
    let (name, from) = (&details.card.name, &details.from);
    let mut text = format!(
        "# Modelfile generated by \"ollama show\"\n# To build a new Modelfile based on this, replace FROM with:\n# FROM {name}\n\nFROM {from}\n"
    );
    let mut push = |instruction: &str, argument: &str| {
        if !argument.is_empty() {
            text.push_str(&format!("{instruction} {}\n", quote(argument)));
        }
    };
    push("TEMPLATE", &details.template);
    push("SYSTEM", &details.system);
    for (key, value) in &details.parameters {
        // A Modelfile has strings without the quotes of JSON, if they need none.
        let bare: Option<String> = serde_json::from_str(value).ok();
        push(&format!("PARAMETER {key}"), bare.as_deref().unwrap_or(value));
    }
    push("LICENSE", &details.license);
    for message in &details.messages {
        push(&format!("MESSAGE {}", message.role.0), &message.content);
    }
    text
}

/// Quotes an argument as a Modelfile does: only if line breaks or outer blanks make it necessary.
fn quote(argument: &str) -> String {
    let needs_quotes = argument.contains('\n') || argument.starts_with(' ') || argument.ends_with(' ');
    match (needs_quotes, argument.contains('"')) {
        (false, _) => argument.to_owned(),
        (true, false) => format!("\"{argument}\""),
        (true, true) => format!("\"\"\"{argument}\"\"\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::fake::{card, details};

    #[test]
    fn fields_come_in_the_order_of_the_wire() {
        let bytes = reply::encode(&wire(&details("hf:o/r:Q4_K_M")));
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "license",
                "modelfile",
                "parameters",
                "template",
                "system",
                "details",
                "model_info",
                "tensors",
                "capabilities",
                "modified_at"
            ]
        );
        assert_eq!(
            json["modelfile"],
            "# Modelfile generated by \"ollama show\"\n# To build a new Modelfile based on this, replace FROM with:\n# FROM hf:o/r:Q4_K_M\n\nFROM hf:o/r:Q4_K_M\nTEMPLATE \"{{ a }}\n\"\nSYSTEM You are terse.\nPARAMETER stop <|im_end|>\nPARAMETER temperature 0.2\nLICENSE MIT\n"
        );
        assert_eq!(
            json["parameters"],
            "stop                           \"<|im_end|>\"\ntemperature                    0.2"
        );
        assert_eq!(
            json["tensors"][0].to_string(),
            r#"{"name":"t","type":"Q4_K","shape":[4096,4096]}"#
        );
    }

    #[test]
    fn a_model_without_facts_still_has_what_clients_need() {
        let bare = ModelDetails {
            card: card("hf:o/r:Q4_K_M"),
            from: "hf:o/r:Q4_K_M".into(),
            messages: Vec::new(),
            template: String::new(),
            license: String::new(),
            system: String::new(),
            parameters: Vec::new(),
            model_info: Map::new(),
            projector_info: None,
            tensors: Vec::new(),
        };
        let json: Value = serde_json::from_slice(&reply::encode(&wire(&bare))).unwrap();
        assert_eq!(json["model_info"], Value::Object(Map::new()));
        assert!(json.get("parameters").is_none() && json.get("license").is_none());
    }

    #[test]
    fn a_request_replaces_what_it_names() {
        let request =
            ShowRequest::decode(br#"{"model":"m","system":"S","options":{"stop":["a\"b","c"],"top_k":1}}"#).unwrap();
        let mut details = details("m");
        override_with(&mut details, request);
        assert_eq!(details.system, "S");
        details.template.clear();
        override_with(&mut details, ShowRequest::default());
        assert_eq!(details.template, "{{ .Prompt }}");
        assert_eq!(
            parameter_lines(&details.parameters),
            "temperature                    0.2\nstop                           \"a\\\"b\"\nstop                           \"c\"\ntop_k                          1"
        );
    }
}
