//! `tool_choice`, and the tools that are left by it. Chat completions nest a tool's name in `function`, responses do not;
//! both forms are read on both routes.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    api::error::ApiError,
    go::{
        decode::{DecodeError, Node},
        quote,
    },
    inference::ToolChoice,
};

/// `tool_choice` as it came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    choice: ToolChoice,
    /// The only tools that may be called; `None` is all of them.
    allowed: Option<HashSet<String>>,
}

/// A tool's name in its definition.
#[derive(Deserialize)]
struct Definition {
    function: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl Choice {
    /// Reads the field.
    pub(super) fn read(node: &Node<'_>) -> Result<Self, DecodeError> {
        match node {
            Node::Null => Ok(Self::default()),
            Node::String(word) => Ok(Self {
                choice: mode(word)?,
                allowed: None,
            }),
            Node::Object(_) => Self::read_object(node),
            _ => Err(wrong()),
        }
    }

    fn read_object(node: &Node<'_>) -> Result<Self, DecodeError> {
        match text(node, "type") {
            Some("function") => match name_of(node) {
                Some(name) => Ok(Self {
                    choice: ToolChoice::Function(name.to_owned()),
                    allowed: None,
                }),
                None => Err(wrong()),
            },
            Some("allowed_tools") => {
                let inner = member(node, "allowed_tools").unwrap_or(node);
                let Some(Node::Array(tools)) = member(inner, "tools") else {
                    return Err(wrong());
                };
                let names = tools.iter().map(|tool| name_of(tool).map(str::to_owned));
                Ok(Self {
                    choice: mode(text(inner, "mode").unwrap_or("auto"))?,
                    allowed: Some(names.collect::<Option<_>>().ok_or_else(wrong)?),
                })
            }
            _ => Err(wrong()),
        }
    }

    /// The choice, checked against the tools, and the tools that the model is to see.
    pub(super) fn apply(self, mut tools: Vec<Box<RawValue>>) -> Result<(ToolChoice, Vec<Box<RawValue>>), ApiError> {
        if let Some(allowed) = &self.allowed {
            let names: HashSet<String> = tools.iter().filter_map(|tool| defined_name(tool)).collect();
            if let Some(name) = allowed.iter().find(|name| !names.contains(*name)) {
                return Err(not_among(name));
            }
            tools.retain(|tool| defined_name(tool).is_some_and(|name| allowed.contains(&name)));
        }
        match &self.choice {
            ToolChoice::None => tools.clear(),
            ToolChoice::Function(wanted) if !tools.iter().any(|tool| defined_name(tool).as_ref() == Some(wanted)) => {
                return Err(not_among(wanted));
            }
            ToolChoice::Required if tools.is_empty() => {
                return Err(ApiError::bad_request(
                    "tool_choice \"required\" needs tools, and the request has none",
                ));
            }
            _ => {}
        }
        Ok((self.choice, tools))
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

fn not_among(name: &str) -> ApiError {
    ApiError::bad_request(format!(
        "tool_choice names the function {}, which is not among the tools",
        quote(name)
    ))
}

fn member<'n, 'a>(node: &'n Node<'a>, name: &str) -> Option<&'n Node<'a>> {
    match node {
        Node::Object(entries) => entries.iter().rev().find(|(key, _)| key == name).map(|(_, node)| node),
        _ => None,
    }
}

fn text<'n>(node: &'n Node<'_>, name: &str) -> Option<&'n str> {
    match member(node, name) {
        Some(Node::String(text)) => Some(text),
        _ => None,
    }
}

fn name_of<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    text(member(node, "function").unwrap_or(node), "name")
}

fn defined_name(tool: &RawValue) -> Option<String> {
    let definition: Definition = serde_json::from_str(tool.get()).ok()?;
    Some(definition.function.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::decode::entries_of;

    fn read(json: &str) -> Result<Choice, DecodeError> {
        let body = format!("{{\"c\":{json}}}");
        Choice::read(&entries_of(body.as_bytes(), "test").unwrap().remove(0).1)
    }

    fn tools(names: &[&str]) -> Vec<Box<RawValue>> {
        names
            .iter()
            .map(|name| format!(r#"{{"type":"function","function":{{"name":"{name}"}}}}"#))
            .map(|tool| RawValue::from_string(tool).unwrap())
            .collect()
    }

    fn apply(json: &str, names: &[&str]) -> Result<(ToolChoice, Vec<String>), String> {
        let (choice, tools) = read(json)
            .map_err(|error| error.to_string())?
            .apply(tools(names))
            .map_err(|error| error.message)?;
        Ok((choice, tools.iter().filter_map(|tool| defined_name(tool)).collect()))
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
                r#"tool_choice names the function "h", which is not among the tools"#,
            ),
            (
                r#"{"type":"allowed_tools","tools":[{"name":"h"}]}"#,
                r#"tool_choice names the function "h", which is not among the tools"#,
            ),
        ] {
            assert_eq!(apply(json, &["f"]).unwrap_err(), expected, "{json}");
        }
        assert_eq!(
            apply(r#""required""#, &[]).unwrap_err(),
            r#"tool_choice "required" needs tools, and the request has none"#
        );
    }
}
