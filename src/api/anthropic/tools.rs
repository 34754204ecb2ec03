//! Tools of a request, converted to OpenAI's shape, and `tool_choice`.

use std::borrow::Cow;

use crate::{
    api::{error::ApiError, tools::check_count},
    go::{
        decode::{DecodeError, FieldPath, JsonNode},
        quote,
    },
    inference::{ToolChoice, ToolDefinition},
};

/// Prefixes of the types of tools that Anthropic's servers run, and that cannot run here.
const RUN_BY_ANTHROPIC: [&str; 5] = [
    "web_search",
    "web_fetch",
    "code_execution",
    "tool_search",
    "mcp_toolset",
];

/// Tools of a request.
#[derive(Debug, Default)]
pub(super) struct DefinedTools {
    pub(super) definitions: Vec<ToolDefinition>,
    /// Types of tools that were left out, without their dates.
    pub(super) left_out: Vec<&'static str>,
}

impl DefinedTools {
    pub(super) fn read(items: Vec<JsonNode<'_>>) -> Result<Self, DecodeError> {
        check_count(items.len())?;
        let mut tools = Self::default();
        for item in items {
            tools.add(item)?;
        }
        Ok(tools)
    }

    fn add(&mut self, node: JsonNode<'_>) -> Result<(), DecodeError> {
        const ROOT: &str = "MessagesRequest";
        let (mut kind, mut name, mut description) = (String::new(), String::new(), String::new());
        let mut schema = JsonNode::Null;
        for (key, node) in node.read_object(FieldPath(ROOT, "tools"), "anthropic.Tool")? {
            match key.to_ascii_lowercase().as_str() {
                "type" => node.read_string(&mut kind, FieldPath(ROOT, "tools.type"))?,
                "name" => node.read_string(&mut name, FieldPath(ROOT, "tools.name"))?,
                "description" => node.read_string(&mut description, FieldPath(ROOT, "tools.description"))?,
                "input_schema" => schema = node,
                _ => {}
            }
        }
        // These types end with a date, such as `web_search_20250305`.
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
            // Anthropic's models have learned the schema of a tool such as `bash_20250124`; requests give only its
            // name.
            JsonNode::Null => object(vec![
                ("type", JsonNode::String("object".into())),
                ("properties", object(Vec::new())),
            ]),
            schema @ JsonNode::Object(_) => schema,
            other => {
                return Err(DecodeError::new(format!(
                    "invalid input_schema for tool {}: json: cannot unmarshal {} into Go value of type api.ToolFunctionParameters",
                    quote(&name),
                    other.kind()
                )));
            }
        };
        let mut function = vec![("name", JsonNode::String(name.as_str().into()))];
        if !description.is_empty() {
            function.push(("description", JsonNode::String(description.into())));
        }
        function.push(("parameters", parameters));
        let definition = object(vec![
            ("type", JsonNode::String("function".into())),
            ("function", object(function)),
        ]);
        let raw = definition.to_raw()?;
        self.definitions.push(ToolDefinition { name, raw });
        Ok(())
    }
}

fn object<'a>(members: Vec<(&'static str, JsonNode<'a>)>) -> JsonNode<'a> {
    JsonNode::Object(
        members
            .into_iter()
            .map(|(key, node)| (Cow::Borrowed(key), node))
            .collect(),
    )
}

/// `tool_choice` as the client sent it.
#[derive(Debug, Default)]
pub(super) struct AnthropicToolChoice {
    kind: String,
    name: String,
    disable_parallel: bool,
}

impl AnthropicToolChoice {
    pub(super) fn read(node: JsonNode<'_>) -> Result<Self, DecodeError> {
        const ROOT: &str = "MessagesRequest";
        let mut choice = Self::default();
        for (key, node) in node.read_object(FieldPath(ROOT, "tool_choice"), "anthropic.ToolChoice")? {
            match key.to_ascii_lowercase().as_str() {
                "type" => node.read_string(&mut choice.kind, FieldPath(ROOT, "tool_choice.type"))?,
                "name" => node.read_string(&mut choice.name, FieldPath(ROOT, "tool_choice.name"))?,
                "disable_parallel_tool_use" => node.read_bool(
                    &mut choice.disable_parallel,
                    FieldPath(ROOT, "tool_choice.disable_parallel_tool_use"),
                )?,
                _ => {}
            }
        }
        Ok(choice)
    }

    /// Returns true if one answer may have several calls.
    pub(super) fn allows_parallel(&self) -> bool {
        !self.disable_parallel
    }

    /// Returns the choice in the neutral vocabulary; fails for an unknown type.
    pub(super) fn choice(&self) -> Result<ToolChoice, ApiError> {
        match self.kind.as_str() {
            "" | "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "any" => Ok(ToolChoice::Required),
            "tool" => Ok(ToolChoice::Function(self.name.clone())),
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

    fn nodes(json: &str, read: impl FnOnce(JsonNode<'_>)) {
        let body = format!("{{\"x\":{json}}}");
        let (_, node) = entries_of(body.as_bytes(), "test").unwrap().remove(0);
        read(node);
    }

    fn tools(json: &str) -> Result<DefinedTools, DecodeError> {
        let mut result = None;
        nodes(json, |node| {
            let JsonNode::Array(items) = node else { panic!() };
            result = Some(DefinedTools::read(items));
        });
        result.unwrap()
    }

    fn choice(json: &str) -> AnthropicToolChoice {
        let mut result = None;
        nodes(json, |node| result = Some(AnthropicToolChoice::read(node).unwrap()));
        result.unwrap()
    }

    #[test]
    fn definitions_take_openai_s_shape_and_keep_their_order() {
        let tools = tools(
            r#"[{"name":"f","description":"d","input_schema":{"type":"object","properties":{"b":{"type":"string"},"a":{}},"required":["b"]},"cache_control":{"type":"ephemeral"}},{"type":"bash_20250124","name":"bash"}]"#,
        )
        .unwrap();
        let definitions: Vec<&str> = tools.definitions.iter().map(|tool| tool.raw.get()).collect();
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
    fn a_choice_has_its_neutral_form() {
        for (json, expected) in [
            ("null", ToolChoice::Auto),
            (r#"{"type":"auto"}"#, ToolChoice::Auto),
            (r#"{"type":"none"}"#, ToolChoice::None),
            (r#"{"type":"any"}"#, ToolChoice::Required),
            (r#"{"type":"tool","name":"f"}"#, ToolChoice::Function("f".into())),
        ] {
            assert_eq!(choice(json).choice().unwrap(), expected, "{json}");
        }
        let error = choice(r#"{"type":"some"}"#).choice().unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.message.as_str()),
            (
                400,
                "invalid tool_choice type \"some\" (must be \"auto\", \"any\", \"tool\", or \"none\")"
            )
        );
        assert!(!choice(r#"{"type":"auto","disable_parallel_tool_use":true}"#).allows_parallel());
        assert!(choice("null").allows_parallel());
    }
}
