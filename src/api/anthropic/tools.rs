//! Tools of a request and what it says about their use.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::{
    api::error::ApiError,
    go::{
        decode::{DecodeError, Field, Node},
        quote,
    },
    inference::ToolChoice,
};

/// Tools that one request may define.
const MAX_TOOLS: usize = 1024;

/// Beginnings of the types of tools that Anthropic's servers run themselves. Nobody runs them here.
const RUN_BY_ANTHROPIC: [&str; 5] = [
    "web_search",
    "web_fetch",
    "code_execution",
    "tool_search",
    "mcp_toolset",
];

/// The tools of a request.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// In OpenAI's shape, which the neutral request has; order of keys kept.
    pub(super) definitions: Vec<Box<RawValue>>,
    /// Their names.
    pub(super) names: Vec<String>,
    /// Types that were left out, without their dates.
    pub(super) left_out: Vec<&'static str>,
}

impl Tools {
    /// Reads the list.
    pub(super) fn read(items: Vec<Node<'_>>) -> Result<Self, DecodeError> {
        if items.len() > MAX_TOOLS {
            return Err(DecodeError::new(format!(
                "the request defines more than {MAX_TOOLS} tools"
            )));
        }
        let mut tools = Self::default();
        for item in items {
            tools.add(item)?;
        }
        Ok(tools)
    }

    fn add(&mut self, node: Node<'_>) -> Result<(), DecodeError> {
        const ROOT: &str = "MessagesRequest";
        let (mut kind, mut name, mut description) = (String::new(), String::new(), String::new());
        let mut schema = Node::Null;
        for (key, node) in node.read_object(Field(ROOT, "tools"), "anthropic.Tool")? {
            match key.to_ascii_lowercase().as_str() {
                "type" => node.read_string(&mut kind, Field(ROOT, "tools.type"))?,
                "name" => node.read_string(&mut name, Field(ROOT, "tools.name"))?,
                "description" => node.read_string(&mut description, Field(ROOT, "tools.description"))?,
                "input_schema" => schema = node,
                _ => {}
            }
        }
        if let Some(word) = RUN_BY_ANTHROPIC.iter().find(|word| kind.starts_with(**word)) {
            if !self.left_out.contains(word) {
                self.left_out.push(word);
            }
            return Ok(());
        }
        if name.is_empty() {
            return Err(DecodeError::new("a tool has no name"));
        }
        let parameters = match schema {
            // A tool whose schema Anthropic's models know by heart (`bash_20250124`) is only a name to others.
            Node::Null => object(vec![
                ("type", Node::String("object".into())),
                ("properties", object(Vec::new())),
            ]),
            schema @ Node::Object(_) => schema,
            other => {
                return Err(DecodeError::new(format!(
                    "invalid input_schema for tool {}: json: cannot unmarshal {} into Go value of type api.ToolFunctionParameters",
                    quote(&name),
                    other.kind()
                )));
            }
        };
        let mut function = vec![("name", Node::String(name.as_str().into()))];
        if !description.is_empty() {
            function.push(("description", Node::String(description.into())));
        }
        function.push(("parameters", parameters));
        let definition = object(vec![
            ("type", Node::String("function".into())),
            ("function", object(function)),
        ]);
        self.definitions.push(definition.to_raw()?);
        self.names.push(name);
        Ok(())
    }
}

fn object<'a>(members: Vec<(&'static str, Node<'a>)>) -> Node<'a> {
    Node::Object(
        members
            .into_iter()
            .map(|(key, node)| (Cow::Borrowed(key), node))
            .collect(),
    )
}

/// `tool_choice` as it came.
#[derive(Debug, Default)]
pub(super) struct ToolChoiceField {
    kind: String,
    name: String,
    disable_parallel: bool,
}

impl ToolChoiceField {
    pub(super) fn read(node: Node<'_>) -> Result<Self, DecodeError> {
        const ROOT: &str = "MessagesRequest";
        let mut choice = Self::default();
        for (key, node) in node.read_object(Field(ROOT, "tool_choice"), "anthropic.ToolChoice")? {
            match key.to_ascii_lowercase().as_str() {
                "type" => node.read_string(&mut choice.kind, Field(ROOT, "tool_choice.type"))?,
                "name" => node.read_string(&mut choice.name, Field(ROOT, "tool_choice.name"))?,
                "disable_parallel_tool_use" => node.read_bool(
                    &mut choice.disable_parallel,
                    Field(ROOT, "tool_choice.disable_parallel_tool_use"),
                )?,
                _ => {}
            }
        }
        Ok(choice)
    }

    /// Whether one answer may hold more than one call.
    pub(super) fn allows_parallel(&self) -> bool {
        !self.disable_parallel
    }

    /// What it asks for, given the names of the tools that are there. Ollama ignores it; what cannot be kept is refused here.
    pub(super) fn choose(&self, names: &[String]) -> Result<ToolChoice, ApiError> {
        match self.kind.as_str() {
            "" | "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "any" if names.is_empty() => Err(ApiError::bad_request(
                "tool_choice asks for a tool, and the request defines none",
            )),
            "any" => Ok(ToolChoice::Required),
            "tool" if names.contains(&self.name) => Ok(ToolChoice::Function(self.name.clone())),
            "tool" => Err(ApiError::bad_request(format!(
                "tool_choice names the tool {}, which the request does not define",
                quote(&self.name)
            ))),
            other => Err(ApiError::bad_request(format!(
                "invalid tool_choice type {} (must be \"auto\", \"any\", \"tool\", or \"none\")",
                quote(other)
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::decode::entries_of;

    fn nodes(json: &str, read: impl FnOnce(Node<'_>)) {
        let body = format!("{{\"x\":{json}}}");
        let (_, node) = entries_of(body.as_bytes(), "test").unwrap().remove(0);
        read(node);
    }

    fn tools(json: &str) -> Result<Tools, DecodeError> {
        let mut result = None;
        nodes(json, |node| {
            let Node::Array(items) = node else { panic!() };
            result = Some(Tools::read(items));
        });
        result.unwrap()
    }

    fn choice(json: &str) -> ToolChoiceField {
        let mut result = None;
        nodes(json, |node| result = Some(ToolChoiceField::read(node).unwrap()));
        result.unwrap()
    }

    #[test]
    fn definitions_take_openai_s_shape_and_keep_their_order() {
        let tools = tools(
            r#"[{"name":"f","description":"d","input_schema":{"type":"object","properties":{"b":{"type":"string"},"a":{}},"required":["b"]},"cache_control":{"type":"ephemeral"}},{"type":"bash_20250124","name":"bash"}]"#,
        )
        .unwrap();
        let definitions: Vec<&str> = tools.definitions.iter().map(|tool| tool.get()).collect();
        assert_eq!(
            definitions,
            [
                r#"{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"b":{"type":"string"},"a":{}},"required":["b"]}}}"#,
                r#"{"type":"function","function":{"name":"bash","parameters":{"type":"object","properties":{}}}}"#,
            ]
        );
    }

    #[test]
    fn tools_of_anthropic_s_servers_are_left_out_and_named() {
        let tools = tools(
            r#"[{"type":"web_search_20250305","name":"web_search"},{"type":"web_search_20260209","name":"again"},{"type":"custom","name":"f","input_schema":{}}]"#,
        )
        .unwrap();
        assert_eq!(
            (tools.left_out.as_slice(), tools.definitions.len()),
            (&["web_search"][..], 1)
        );
    }

    #[test]
    fn a_bad_tool_is_refused() {
        for (json, expected) in [
            (
                r#"[{"name":"f","input_schema":"x"}]"#,
                "invalid input_schema for tool \"f\": json: cannot unmarshal string into Go value of type api.ToolFunctionParameters",
            ),
            (r#"[{"input_schema":{}}]"#, "a tool has no name"),
            (
                r#"["f"]"#,
                "json: cannot unmarshal string into Go struct field MessagesRequest.tools of type anthropic.Tool",
            ),
        ] {
            assert_eq!(tools(json).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_choice_is_kept_or_refused() {
        let defined = tools(r#"[{"name":"f"}]"#).unwrap();
        for (json, expected) in [
            ("null", ToolChoice::Auto),
            (r#"{"type":"auto"}"#, ToolChoice::Auto),
            (r#"{"type":"none"}"#, ToolChoice::None),
            (r#"{"type":"any"}"#, ToolChoice::Required),
            (r#"{"type":"tool","name":"f"}"#, ToolChoice::Function("f".into())),
        ] {
            assert_eq!(choice(json).choose(&defined.names).unwrap(), expected, "{json}");
        }
        for (json, expected) in [
            (
                r#"{"type":"tool","name":"g"}"#,
                "tool_choice names the tool \"g\", which the request does not define",
            ),
            (
                r#"{"type":"some"}"#,
                "invalid tool_choice type \"some\" (must be \"auto\", \"any\", \"tool\", or \"none\")",
            ),
        ] {
            let error = choice(json).choose(&defined.names).unwrap_err();
            assert_eq!((error.status.as_u16(), error.message.as_str()), (400, expected));
        }
        let error = choice(r#"{"type":"any"}"#).choose(&[]).unwrap_err();
        assert_eq!(
            error.message,
            "tool_choice asks for a tool, and the request defines none"
        );
        assert!(!choice(r#"{"type":"auto","disable_parallel_tool_use":true}"#).allows_parallel());
        assert!(choice("null").allows_parallel());
    }
}
