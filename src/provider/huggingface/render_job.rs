//! Jobs for the template helper: a conversation in OpenAI's shape, and the variables of the chat template.

use serde_json::{Map, Value, json, value::to_raw_value};

use super::headers::ModelHeader;
use crate::{
    inference::{Failure, Message, ThinkLevel, ThinkMode, ToolDefinition},
    worker::protocol::RenderJob,
};

/// Chat template for a file without one: the texts alone, like Ollama's default `{{ .Prompt }}`.
const DEFAULT_TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}\n{% endif %}\
                           {% endfor %}";

/// Template variables that control reasoning.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThinkingVariables {
    enabled: bool,
    /// True when the request mentions reasoning. Only then the less common variables are set, since some templates
    /// behave differently as soon as these exist.
    explicit: bool,
    effort: Option<&'static str>,
}

impl ThinkingVariables {
    pub(super) fn is_enabled(self) -> bool {
        self.enabled
    }
}

impl From<ThinkMode> for ThinkingVariables {
    fn from(think: ThinkMode) -> Self {
        let (enabled, explicit, effort) = match think {
            // The default of `common/chat`.
            ThinkMode::Unset => (true, false, None),
            ThinkMode::On => (true, true, None),
            ThinkMode::Off => (false, true, None),
            ThinkMode::Level(ThinkLevel::Low) => (true, true, Some("low")),
            ThinkMode::Level(ThinkLevel::Medium) => (true, true, Some("medium")),
            // Templates know no level above "high".
            ThinkMode::Level(ThinkLevel::High | ThinkLevel::Max) => (true, true, Some("high")),
        };
        Self {
            enabled,
            explicit,
            effort,
        }
    }
}

/// Input of a rendering besides the messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct RenderInput<'a> {
    pub(super) tools: &'a [ToolDefinition],
    /// If set, the answer has to contain a call.
    pub(super) call_required: bool,
    pub(super) parallel_calls: bool,
    pub(super) thinking: ThinkingVariables,
    /// JSON text of the schema that the answer must satisfy.
    pub(super) schema: Option<&'a str>,
}

/// Returns a job for a model's own chat template.
pub(super) fn render_job(
    header: &ModelHeader,
    messages: &[Message],
    input: RenderInput<'_>,
) -> Result<RenderJob, Failure> {
    let template = if header.template.is_empty() {
        DEFAULT_TEMPLATE
    } else {
        &header.template
    };
    job_for_template(template, &header.bos, &header.eos, messages, input)
}

/// Returns a job for any chat template.
pub(super) fn job_for_template(
    template: &str,
    bos: &str,
    eos: &str,
    messages: &[Message],
    input: RenderInput<'_>,
) -> Result<RenderJob, Failure> {
    let thinking = input.thinking;
    let mut kwargs = Map::new();
    if thinking.explicit {
        // `common/chat` takes the values as JSON text. DeepSeek's and Granite's templates spell the variable
        // `thinking`.
        kwargs.insert("enable_thinking".into(), thinking.enabled.to_string().into());
        kwargs.insert("thinking".into(), thinking.enabled.to_string().into());
    }
    if let Some(effort) = thinking.effort {
        kwargs.insert("reasoning_effort".into(), format!("\"{effort}\"").into());
    }
    // An answer that the client has begun is continued.
    let continues = messages.last().is_some_and(|message| message.role.0 == "assistant");
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let conversation = json!({
        "messages": messages.iter().map(message).collect::<Vec<_>>(),
        "tools": input.tools,
        "tool_choice": if input.call_required { "required" } else { "auto" },
        "parallel_tool_calls": input.parallel_calls,
        "json_schema": input.schema.unwrap_or_default(),
        "enable_thinking": thinking.enabled,
        "continue_final_message": continues,
        "kwargs": kwargs,
        "now": now,
    });
    Ok(RenderJob {
        template: template.to_owned(),
        bos: bos.to_owned(),
        eos: eos.to_owned(),
        input: to_raw_value(&conversation).map_err(|error| Failure::Invalid(error.to_string()))?,
    })
}

/// Returns one turn in OpenAI's shape. NUL characters are removed: they would end the text in C.
fn message(message: &Message) -> Value {
    let text = |text: &str| Value::from(text.replace('\0', ""));
    let mut out = Map::new();
    out.insert("role".into(), text(&message.role.0));
    out.insert("content".into(), text(&message.content));
    if !message.thinking.is_empty() {
        out.insert("reasoning_content".into(), text(&message.thinking));
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let arguments = serde_json::to_string(&call.arguments).unwrap_or_else(|_| "{}".into());
            json!({"type": "function", "id": call.id, "function": {"name": call.name, "arguments": arguments}})
        });
        out.insert("tool_calls".into(), calls.collect());
    }
    if !message.tool_name.is_empty() {
        out.insert("name".into(), text(&message.tool_name));
    }
    if !message.tool_call_id.is_empty() {
        out.insert("tool_call_id".into(), text(&message.tool_call_id));
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_become_an_effort_and_max_is_high() {
        assert_eq!(
            ThinkingVariables::from(ThinkMode::Level(ThinkLevel::Max)).effort,
            Some("high")
        );
        assert!(!ThinkingVariables::from(ThinkMode::Unset).explicit);
    }
}
