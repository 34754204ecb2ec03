//! `tools` of `/v1/responses`: flat definitions and namespaces of them, converted to the nested form that templates
//! expect.

use serde_json::{Map, Value, json};

use crate::{
    api::{tools, values},
    go::{
        decode::{DecodeError, FieldPath, JsonNode},
        encode,
    },
    inference::ToolDefinition,
};

const ROOT: &str = "ResponsesRequest";

/// Tools that a request declares.
#[derive(Debug, Default)]
pub(super) struct DeclaredTools {
    pub(super) functions: Vec<ToolDefinition>,
    /// Declarations as the reply repeats them.
    pub(super) echo: Vec<Value>,
    /// True when there are tools of types that are not supported: OpenAI's built-in ones, and custom ones, whose calls
    /// have another form.
    pub(super) has_others: bool,
}

impl DeclaredTools {
    pub(super) fn read(node: JsonNode<'_>) -> Result<Self, DecodeError> {
        let mut declared = Self::default();
        for item in node.read_array(FieldPath(ROOT, "tools"), "[]openai.ResponsesTool")? {
            let Value::Object(tool) = values::plain_value(&item)? else {
                return Err(item.mismatch(FieldPath(ROOT, "tools"), "openai.ResponsesTool"));
            };
            declared.add(&tool, "")?;
            declared.echo.push(echo(&tool));
        }
        Ok(declared)
    }

    /// Adds a tool. `prefix` is that of its namespace, or empty.
    fn add(&mut self, tool: &Map<String, Value>, prefix: &str) -> Result<(), DecodeError> {
        let name = text(tool, "name");
        match text(tool, "type") {
            "function" => self.add_function(tool, &qualified(prefix, name))?,
            "namespace" => {
                let prefix = match name {
                    "" => prefix.to_owned(),
                    name => format!("{}.", qualified(prefix, name)),
                };
                let members = tool.get("tools").and_then(Value::as_array);
                for member in members.into_iter().flatten().filter_map(Value::as_object) {
                    self.add(member, &prefix)?;
                }
            }
            _ => self.has_others = true,
        }
        Ok(())
    }

    fn add_function(&mut self, tool: &Map<String, Value>, name: &str) -> Result<(), DecodeError> {
        tools::check_count(self.functions.len() + 1)?;
        let mut function = Map::new();
        function.insert("name".into(), name.into());
        for key in ["description", "parameters", "strict"] {
            if let Some(value) = tool.get(key).filter(|value| !value.is_null()) {
                function.insert(key.into(), value.clone());
            }
        }
        // Some templates read the parameters without a check, but OpenAI's API lets a function have none.
        if !function.contains_key("parameters") {
            function.insert("parameters".into(), json!({"type": "object", "properties": {}}));
        }
        let raw = serde_json::value::to_raw_value(&json!({"type": "function", "function": function}))
            .map_err(|error| DecodeError::new(error.to_string()))?;
        self.functions.push(ToolDefinition {
            name: name.to_owned(),
            raw,
        });
        Ok(())
    }
}

/// Returns a name with the prefix of its namespace, unless it has that already.
fn qualified(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) {
        name.to_owned()
    } else {
        format!("{prefix}{name}")
    }
}

fn text<'a>(tool: &'a Map<String, Value>, key: &str) -> &'a str {
    tool.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Returns a declaration as the reply repeats it: missing members are `null`.
fn echo(tool: &Map<String, Value>) -> Value {
    let or_null = |key: &str| tool.get(key).cloned().unwrap_or_default();
    let mut echo = Map::new();
    echo.insert("type".into(), text(tool, "type").into());
    echo.insert("name".into(), text(tool, "name").into());
    echo.insert("description".into(), or_null("description"));
    echo.insert("strict".into(), or_null("strict"));
    echo.insert("parameters".into(), encode::sorted(or_null("parameters")));
    let members = tool.get("tools").and_then(Value::as_array);
    if let Some(members) = members.filter(|members| !members.is_empty()) {
        let members = members.iter().filter_map(Value::as_object).map(self::echo);
        echo.insert("tools".into(), members.collect());
    }
    Value::Object(echo)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::decode::entries_of;

    fn read(json: &str) -> Result<DeclaredTools, DecodeError> {
        let body = format!("{{\"tools\":{json}}}");
        let (_, node) = entries_of(body.as_bytes(), "test").unwrap().remove(0);
        DeclaredTools::read(node)
    }

    #[test]
    fn functions_get_the_nested_form_and_are_repeated() {
        let declared = read(
            r#"[{"type":"function","name":"f","description":"w","parameters":{"type":"object","properties":{"b":{},"a":{}}},"strict":true},{"type":"function","name":"g"}]"#,
        )
        .unwrap();
        let shown: Vec<&str> = declared.functions.iter().map(|tool| tool.raw.get()).collect();
        assert_eq!(
            shown,
            [
                r#"{"type":"function","function":{"name":"f","description":"w","parameters":{"type":"object","properties":{"b":{},"a":{}}},"strict":true}}"#,
                r#"{"type":"function","function":{"name":"g","parameters":{"type":"object","properties":{}}}}"#,
            ]
        );
        assert_eq!(
            encode::to_string(&declared.echo).unwrap(),
            r#"[{"type":"function","name":"f","description":"w","strict":true,"parameters":{"properties":{"a":{},"b":{}},"type":"object"}},{"type":"function","name":"g","description":null,"strict":null,"parameters":null}]"#
        );
        assert!(!declared.has_others);
    }

    #[test]
    fn namespaces_are_flattened() {
        let declared = read(
            r#"[{"type":"namespace","name":"ns","tools":[{"type":"function","name":"f"},{"type":"function","name":"ns.g"},{"type":"namespace","name":"sub","tools":[{"type":"function","name":"h"}]}]},{"type":"web_search"}]"#,
        )
        .unwrap();
        let names: Vec<Value> = declared
            .functions
            .iter()
            .map(|tool| serde_json::from_str::<Value>(tool.raw.get()).unwrap()["function"]["name"].clone())
            .collect();
        assert_eq!(names, ["ns.f", "ns.g", "ns.sub.h"]);
        assert!(declared.has_others);
        assert_eq!(declared.echo[0]["tools"][0]["name"], "f");
    }

    #[test]
    fn too_many_and_wrong_ones_are_refused() {
        assert!(read("{}").is_err() && read("[1]").is_err());
        let many = vec![r#"{"type":"function","name":"f"}"#; 1025].join(",");
        assert_eq!(
            read(&format!("[{many}]")).unwrap_err().to_string(),
            "the request defines more than 1024 tools"
        );
    }
}
