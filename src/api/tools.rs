//! Tools of a request, in three steps: what the client offers, what `tool_choice` leaves of it, what the model is
//! shown.
//!
//! Dialects differ only in how they spell tools and the choice. It is judged here, once: providers rely on
//! [`ToolChoice::Function`] to name one of the tools.

use std::collections::HashSet;

use super::{error::ApiError, model::ServedModel};
use crate::{
    config::UnsupportedTools,
    go::{decode::DecodeError, quote},
    inference::{ModelCapability, ToolChoice, ToolDefinition},
    provider::CallContext,
};

/// Most tools that one request may define.
pub(crate) const MAX_TOOLS: usize = 1024;

/// Fails for a request that defines more than [`MAX_TOOLS`] tools.
pub(crate) fn check_count(tools: usize) -> Result<(), DecodeError> {
    if tools > MAX_TOOLS {
        return Err(DecodeError::new(format!(
            "the request defines more than {MAX_TOOLS} tools"
        )));
    }
    Ok(())
}

/// Tools that a model may be shown, and the choice that it has among them.
#[derive(Debug, Default)]
pub(crate) struct OfferedTools {
    pub(crate) definitions: Vec<ToolDefinition>,
    pub(crate) choice: ToolChoice,
}

impl OfferedTools {
    /// Returns tools that the model may call or not, on a wire without `tool_choice`.
    pub(crate) fn optional(definitions: Vec<ToolDefinition>) -> Self {
        Self {
            definitions,
            choice: ToolChoice::Auto,
        }
    }

    /// Applies `tool_choice`. If `allowed` is set, only tools of these names are offered.
    ///
    /// Ollama ignores the choice. Here one that cannot be kept is an error: an answer without the call that a client
    /// demands would break it later.
    pub(crate) fn choose(
        mut definitions: Vec<ToolDefinition>,
        choice: ToolChoice,
        allowed: Option<&HashSet<String>>,
    ) -> Result<Self, ApiError> {
        let is_defined = |name: &str| definitions.iter().any(|tool| tool.name == name);
        if let Some(allowed) = allowed {
            if let Some(unknown) = allowed.iter().find(|name| !is_defined(name)) {
                return Err(unknown_tool(unknown));
            }
            definitions.retain(|tool| allowed.contains(&tool.name));
        }
        match &choice {
            // A model that is shown tools may call them whatever it is told, so with `none` it is shown no tools at
            // all.
            ToolChoice::None => definitions.clear(),
            // This check comes after `allowed` was applied, so that a function outside of it is refused, too.
            ToolChoice::Function(name) if !definitions.iter().any(|tool| tool.name == *name) => {
                return Err(unknown_tool(name));
            }
            ToolChoice::Required if definitions.is_empty() => {
                return Err(ApiError::bad_request(
                    "tool_choice requires a call, and the request has no tools",
                ));
            }
            _ => {}
        }
        Ok(Self { definitions, choice })
    }

    /// Returns true if an answer without a call would be wrong.
    fn call_required(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Function(_))
    }

    /// Returns the tools that this model is shown. If its chat template knows none, the setting
    /// `engine.unsupported_tools` decides; tools that are left out are named in `ignored`.
    pub(crate) fn shown_to(
        self,
        model: &ServedModel,
        call: &CallContext,
        ignored: &mut Vec<&'static str>,
    ) -> Result<Self, ApiError> {
        let policy = call.config.engine.unsupported_tools;
        if self.definitions.is_empty() || !model.lacks(ModelCapability::Tools) || policy == UnsupportedTools::Prompt {
            return Ok(self);
        }
        let name = model.canonical();
        // Ollama always refuses here. By default the tools are left out instead, since some clients (Open WebUI) send
        // tools with every chat; but a call that the client demands cannot be left out.
        if self.call_required() || policy == UnsupportedTools::Refuse {
            return Err(ApiError::bad_request(format!("{name} does not support tools")));
        }
        tracing::warn!(
            model.name = %name,
            tools = self.definitions.len(),
            "the model's chat template has no tools: leaving them out"
        );
        if !ignored.contains(&"tools") {
            ignored.push("tools");
        }
        Ok(Self::default())
    }
}

fn unknown_tool(name: &str) -> ApiError {
    ApiError::bad_request(format!(
        "tool_choice names the tool {}, which is not among the tools of the request",
        quote(name)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(names: &[&str]) -> Vec<ToolDefinition> {
        names
            .iter()
            .map(|name| format!(r#"{{"type":"function","function":{{"name":"{name}"}}}}"#))
            .map(|tool| ToolDefinition::new(serde_json::value::RawValue::from_string(tool).unwrap()))
            .collect()
    }

    fn choose(choice: ToolChoice, allowed: Option<&[&str]>) -> Result<String, String> {
        let allowed = allowed.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        OfferedTools::choose(tools(&["f", "g"]), choice, allowed.as_ref())
            .map(|offered| offered.definitions.into_iter().map(|tool| tool.name).collect())
            .map_err(|error| error.message)
    }

    #[test]
    fn a_choice_leaves_the_tools_that_it_allows() {
        for (choice, allowed, expected) in [
            (ToolChoice::Auto, None, "fg"),
            (ToolChoice::None, None, ""),
            (ToolChoice::Required, None, "fg"),
            (ToolChoice::Function("f".into()), None, "fg"),
            (ToolChoice::Required, Some(&["g"][..]), "g"),
            (ToolChoice::Auto, Some(&[]), ""),
        ] {
            assert_eq!(choose(choice.clone(), allowed).as_deref(), Ok(expected), "{choice:?}");
        }
    }

    #[test]
    fn a_choice_that_cannot_be_kept_is_refused() {
        let unknown = "tool_choice names the tool \"h\", which is not among the tools of the request";
        for (choice, allowed, expected) in [
            (ToolChoice::Function("h".into()), None, unknown),
            (ToolChoice::Auto, Some(&["h"][..]), unknown),
            (
                ToolChoice::Function("f".into()),
                Some(&["g"]),
                "tool_choice names the tool \"f\", which is not among the tools of the request",
            ),
            (
                ToolChoice::Required,
                Some(&[]),
                "tool_choice requires a call, and the request has no tools",
            ),
        ] {
            assert_eq!(choose(choice, allowed).unwrap_err(), expected);
        }
        let error = OfferedTools::choose(Vec::new(), ToolChoice::Required, None).unwrap_err();
        assert_eq!(error.status.as_u16(), 400);
    }
}
