//! Body of `/api/create`.

use serde_json::{Map, Value};

use crate::{
    api::{ollama::request::messages, values},
    go::decode::{DecodeError, FieldPath, JsonNode, entries_of},
    inference::Message,
};

const ROOT: &str = "CreateRequest";

/// Most licenses, adapters or files in one request.
const MAX_ITEMS: usize = 256;

/// Body of `POST /api/create`.
#[derive(Debug, Default)]
pub(super) struct CreateRequest {
    model: String,
    name: String,
    pub(super) from: String,
    pub(super) stream: Option<bool>,
    pub(super) system: String,
    pub(super) template: String,
    pub(super) license: Vec<String>,
    pub(super) parameters: Map<String, Value>,
    pub(super) messages: Vec<Message>,
    /// Pairs of file name and digest, or names of the Hub.
    pub(super) adapters: Vec<(String, String)>,
    pub(super) quantize: String,
    /// Name of a renderer that is built into Ollama.
    pub(super) renderer: String,
    pub(super) parser: String,
    has_files: bool,
    /// Members without effect on an hf: model.
    pub(super) ignored: Vec<&'static str>,
}

impl CreateRequest {
    pub(super) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut request = Self::default();
        for (key, node) in entries_of(body, "api.CreateRequest")? {
            let is_there = !matches!(&node, JsonNode::Null);
            match key.to_ascii_lowercase().as_str() {
                "model" => node.read_string(&mut request.model, FieldPath(ROOT, "model"))?,
                "name" => node.read_string(&mut request.name, FieldPath(ROOT, "name"))?,
                "from" => node.read_string(&mut request.from, FieldPath(ROOT, "from"))?,
                "stream" => node.read_optional_bool(&mut request.stream, FieldPath(ROOT, "stream"))?,
                "system" => node.read_string(&mut request.system, FieldPath(ROOT, "system"))?,
                "template" => node.read_string(&mut request.template, FieldPath(ROOT, "template"))?,
                "license" => request.license = license(&node)?,
                "parameters" => request.parameters = parameters(node)?,
                "messages" => request.messages = messages(ROOT, node)?,
                "adapters" => request.adapters = pairs(node, "adapters")?,
                // `quantization` is the older name, which Ollama still reads.
                "quantize" | "quantization" => node.read_string(&mut request.quantize, FieldPath(ROOT, "quantize"))?,
                "renderer" => node.read_string(&mut request.renderer, FieldPath(ROOT, "renderer"))?,
                "parser" => node.read_string(&mut request.parser, FieldPath(ROOT, "parser"))?,
                "files" if is_there => {
                    request.has_files = true;
                    request.ignored.push("files");
                }
                "info" if is_there => request.ignored.push("info"),
                "requires" if is_there => request.ignored.push("requires"),
                _ => {}
            }
        }
        Ok(request)
    }

    /// Returns the name of the new model; `name` is the older spelling of `model`.
    pub(super) fn name(&self) -> &str {
        if self.model.is_empty() { &self.name } else { &self.model }
    }

    /// Returns true if the request names nothing to create a model from.
    pub(super) fn names_no_source(&self) -> bool {
        self.from.is_empty() && !self.has_files
    }
}

/// Reads one text or a list of them.
fn license(node: &JsonNode<'_>) -> Result<Vec<String>, DecodeError> {
    let items = match node {
        JsonNode::Array(items) => items.as_slice(),
        JsonNode::Null => &[],
        one => std::slice::from_ref(one),
    };
    if items.len() > MAX_ITEMS {
        return Err(too_many("license"));
    }
    let text = |item: &JsonNode<'_>| match item {
        JsonNode::String(text) => Ok(text.clone().into_owned()),
        other => Err(other.mismatch(FieldPath(ROOT, "license"), "string")),
    };
    let texts: Vec<String> = items.iter().map(text).collect::<Result<_, _>>()?;
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}

/// Reads parameters, sorted by name so that equal parameters have equal digests. `null` is no parameter.
fn parameters(node: JsonNode<'_>) -> Result<Map<String, Value>, DecodeError> {
    let entries = node.read_object(FieldPath(ROOT, "parameters"), "map[string]interface {}")?;
    let mut parameters = Map::new();
    for (key, value) in entries {
        if value != JsonNode::Null {
            parameters.insert(key.into_owned(), values::plain_value(&value)?);
        }
    }
    parameters.sort_keys();
    Ok(parameters)
}

fn pairs(node: JsonNode<'_>, key: &'static str) -> Result<Vec<(String, String)>, DecodeError> {
    let field = FieldPath(ROOT, key);
    let entries = node.read_object(field, "map[string]string")?;
    if entries.len() > MAX_ITEMS {
        return Err(too_many(key));
    }
    entries
        .into_iter()
        .map(|(key, value)| {
            let mut text = String::new();
            value.read_string(&mut text, field)?;
            Ok((key.into_owned(), text))
        })
        .collect()
}

fn too_many(key: &str) -> DecodeError {
    DecodeError::new(format!("{key} holds more than {MAX_ITEMS} entries"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_whole() {
        let request = CreateRequest::decode(
            br#"{"NAME":"n","from":"hf:o/r","stream":false,"license":["MIT","",null],"parameters":{"top_k":1,"stop":["a"],"seed":null}}"#,
        );
        assert_eq!(
            request.unwrap_err().to_string(),
            "json: cannot unmarshal null into Go struct field CreateRequest.license of type string"
        );
        let request = CreateRequest::decode(
            br#"{"NAME":"n","from":"hf:o/r","stream":false,"license":"MIT","parameters":{"top_k":1,"stop":["a"],"seed":null},
                "messages":[{"role":"USER","content":"hi"}],"adapters":{"a.gguf":"sha256:1"},"quantize":"q8_0","requires":"1","files":null}"#,
        )
        .unwrap();
        assert_eq!(
            (request.name(), request.from.as_str(), request.stream),
            ("n", "hf:o/r", Some(false))
        );
        assert_eq!(request.license, ["MIT"]);
        assert_eq!(
            Value::Object(request.parameters.clone()).to_string(),
            r#"{"stop":["a"],"top_k":1}"#
        );
        assert_eq!(request.messages, [Message::text("user", "hi")]);
        assert_eq!(request.adapters, [("a.gguf".to_owned(), "sha256:1".to_owned())]);
        assert_eq!(
            (request.quantize.as_str(), request.ignored.as_slice()),
            ("q8_0", ["requires"].as_slice())
        );
        assert!(!request.names_no_source());
    }

    #[test]
    fn wrong_types_are_answered_in_the_words_of_go() {
        for (body, expected) in [
            (
                "[]",
                "json: cannot unmarshal array into Go value of type api.CreateRequest",
            ),
            (
                r#"{"messages":[{"content":1}]}"#,
                "json: cannot unmarshal number into Go struct field CreateRequest.messages.content of type string",
            ),
            (
                r#"{"parameters":[]}"#,
                "json: cannot unmarshal array into Go struct field CreateRequest.parameters of type map[string]interface {}",
            ),
            (
                r#"{"adapters":{"a":1}}"#,
                "json: cannot unmarshal number into Go struct field CreateRequest.adapters of type string",
            ),
        ] {
            assert_eq!(
                CreateRequest::decode(body.as_bytes()).unwrap_err().to_string(),
                expected
            );
        }
    }
}
