//! `tool_choice` of chat completions and responses.
//!
//! Chat completions nest a tool's name in `function`, responses do not; both forms are read on both routes.

use std::collections::HashSet;

use crate::{
    api::{error::ApiError, tools::OfferedTools},
    go::decode::{DecodeError, JsonNode},
    inference::{ToolChoice, ToolDefinition},
};

/// `tool_choice` as the client sent it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OpenAiToolChoice {
    choice: ToolChoice,
    /// The only tools that may be called; `None` for all.
    allowed: Option<HashSet<String>>,
}

impl OpenAiToolChoice {
    pub(super) fn read(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        match node {
            JsonNode::Null => Ok(Self::default()),
            JsonNode::String(word) => Ok(Self {
                choice: mode(word)?,
                allowed: None,
            }),
            JsonNode::Object(_) => Self::read_object(node),
            _ => Err(wrong()),
        }
    }

    fn read_object(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        match node.text_member("type") {
            Some("function") => match name_of(node) {
                Some(name) => Ok(Self {
                    choice: ToolChoice::Function(name.to_owned()),
                    allowed: None,
                }),
                None => Err(wrong()),
            },
            Some("allowed_tools") => {
                let inner = node.member("allowed_tools").unwrap_or(node);
                let Some(JsonNode::Array(tools)) = inner.member("tools") else {
                    return Err(wrong());
                };
                let names = tools.iter().map(|tool| name_of(tool).map(str::to_owned));
                Ok(Self {
                    choice: mode(inner.text_member("mode").unwrap_or("auto"))?,
                    allowed: Some(names.collect::<Option<_>>().ok_or_else(wrong)?),
                })
            }
            _ => Err(wrong()),
        }
    }

    /// Applies the choice to the tools of the request.
    pub(super) fn apply(self, tools: Vec<ToolDefinition>) -> Result<OfferedTools, ApiError> {
        OfferedTools::choose(tools, self.choice, self.allowed.as_ref())
    }
}

fn mode(word: &str) -> Result<ToolChoice, DecodeError> {
    match word {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        _ => Err(wrong()),
    }
}

fn wrong() -> DecodeError {
    DecodeError::new("tool_choice must be \"none\", \"auto\", \"required\", or an object that names a function")
}

fn name_of<'n>(node: &'n JsonNode<'_>) -> Option<&'n str> {
    node.member("function").unwrap_or(node).text_member("name")
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::go::decode::entries_of;

    fn read(json: &str) -> Result<OpenAiToolChoice, DecodeError> {
        let body = format!("{{\"c\":{json}}}");
        OpenAiToolChoice::read(&entries_of(body.as_bytes(), "test").unwrap().remove(0).1)
    }

    fn tools(names: &[&str]) -> Vec<ToolDefinition> {
        names
            .iter()
            .map(|name| format!(r#"{{"type":"function","function":{{"name":"{name}"}}}}"#))
            .map(|tool| ToolDefinition::new(RawValue::from_string(tool).unwrap()))
            .collect()
    }

    fn apply(json: &str, names: &[&str]) -> Result<(ToolChoice, Vec<String>), String> {
        let offered = read(json)
            .map_err(|error| error.to_string())?
            .apply(tools(names))
            .map_err(|error| error.message)?;
        let names = offered.definitions.into_iter().map(|tool| tool.name).collect();
        Ok((offered.choice, names))
    }

    #[test]
    fn every_form_is_read() {
        let f = || ToolChoice::Function("f".into());
        for (json, expected, left) in [
            ("null", ToolChoice::Auto, "f g"),
            (r#""auto""#, ToolChoice::Auto, "f g"),
            (r#""none""#, ToolChoice::None, ""),
            (r#""required""#, ToolChoice::Required, "f g"),
            (r#"{"type":"function","function":{"name":"f"}}"#, f(), "f g"),
            (r#"{"type":"function","name":"f"}"#, f(), "f g"),
            (
                r#"{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"g"}}]}}"#,
                ToolChoice::Required,
                "g",
            ),
            (
                r#"{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"g"}]}"#,
                ToolChoice::Auto,
                "g",
            ),
        ] {
            let (choice, tools) = apply(json, &["f", "g"]).unwrap();
            assert_eq!((choice, tools.join(" ").as_str()), (expected, left), "{json}");
        }
        assert_eq!(apply(r#""none""#, &[]).unwrap(), (ToolChoice::None, Vec::new()));
    }

    #[test]
    fn what_cannot_be_chosen_is_refused() {
        const FORMS: &str = r#"tool_choice must be "none", "auto", "required", or an object that names a function"#;
        for (json, expected) in [
            (r#""any""#, FORMS),
            ("5", FORMS),
            (r#"{"type":"function"}"#, FORMS),
            (r#"{"type":"web_search"}"#, FORMS),
            (r#"{"type":"allowed_tools","tools":[{"type":"function"}]}"#, FORMS),
            (
                r#"{"type":"function","function":{"name":"h"}}"#,
                r#"tool_choice names the tool "h", which is not among the tools of the request"#,
            ),
            (
                r#"{"type":"allowed_tools","tools":[{"name":"h"}]}"#,
                r#"tool_choice names the tool "h", which is not among the tools of the request"#,
            ),
        ] {
            assert_eq!(apply(json, &["f"]).unwrap_err(), expected, "{json}");
        }
        assert_eq!(
            apply(r#""required""#, &[]).unwrap_err(),
            "tool_choice requires a call, and the request has no tools"
        );
    }
}
