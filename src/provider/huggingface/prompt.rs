//! A conversation in the shape that the template helper wants.

use serde_json::{Map, Value, json};

use super::headers::ModelHeader;
use crate::{
    inference::{Failure, InferencePrompt, Message, ThinkLevel, ThinkMode, ToolDefinition},
    worker::protocol::RenderJob,
};

/// What a file without a template gets: the text alone, as Ollama does with `{{ .Prompt }}`.
const NO_TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}\n{% endif %}\
                           {% endfor %}";

/// Refuses pictures and sounds, before a model is loaded for them. `has_projector` is whether the model has a file with
/// which they could be read.
pub(super) fn check_media(prompt: &InferencePrompt, has_projector: bool) -> Result<(), Failure> {
    let InferencePrompt::Chat { messages, .. } = prompt else {
        return Ok(());
    };
    if messages.iter().all(|message| message.media.is_empty()) {
        return Ok(());
    }
    Err(Failure::Invalid(if has_projector {
        "the model has a projector for images, but images of requests are not read yet; send text only".into()
    } else {
        // In llama-server's words, which clients of Ollama see.
        "Multimodal data provided, but model does not support multimodal requests.".into()
    }))
}

/// Variables of a template that switch reasoning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thinking {
    enabled: bool,
    /// Whether the request said anything: only then are the less common spellings set.
    explicit: bool,
    effort: Option<&'static str>,
}

impl Thinking {
    /// Whether the model may reason.
    pub(super) fn is_enabled(self) -> bool {
        self.enabled
    }
}

pub(super) fn thinking(think: ThinkMode) -> Thinking {
    let (enabled, explicit, effort) = match think {
        ThinkMode::Unset => (true, false, None),
        ThinkMode::On => (true, true, None),
        ThinkMode::Off => (false, true, None),
        ThinkMode::Level(level) => (
            true,
            true,
            Some(match level {
                ThinkLevel::Low => "low",
                ThinkLevel::Medium => "medium",
                ThinkLevel::High | ThinkLevel::Max => "high",
            }),
        ),
    };
    Thinking {
        enabled,
        explicit,
        effort,
    }
}

/// What a conversation is rendered with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rendering<'a> {
    pub(super) tools: &'a [ToolDefinition],
    /// Whether the answer must hold a call.
    pub(super) call_required: bool,
    pub(super) parallel_calls: bool,
    pub(super) thinking: Thinking,
    /// JSON text of the schema that the answer must satisfy.
    pub(super) schema: Option<&'a str>,
}

pub(super) fn render_job(
    header: &ModelHeader,
    messages: &[Message],
    rendering: Rendering<'_>,
) -> Result<RenderJob, Failure> {
    let template = if header.template.is_empty() {
        NO_TEMPLATE
    } else {
        &header.template
    };
    job(template, &header.bos, &header.eos, messages, rendering)
}

/// A job for any template.
pub(super) fn job(
    template: &str,
    bos: &str,
    eos: &str,
    messages: &[Message],
    rendering: Rendering<'_>,
) -> Result<RenderJob, Failure> {
    let thinking = rendering.thinking;
    let mut kwargs = Map::new();
    if thinking.explicit {
        // Values are JSON text: this is how `common/chat` takes them. `thinking` is DeepSeek's and Granite's spelling.
        kwargs.insert("enable_thinking".into(), thinking.enabled.to_string().into());
        kwargs.insert("thinking".into(), thinking.enabled.to_string().into());
    }
    if let Some(effort) = thinking.effort {
        kwargs.insert("reasoning_effort".into(), format!("\"{effort}\"").into());
    }
    let continues = messages.last().is_some_and(|message| message.role.0 == "assistant");
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let input = json!({
        "messages": messages.iter().map(message).collect::<Vec<_>>(),
        "tools": rendering.tools,
        "tool_choice": if rendering.call_required { "required" } else { "auto" },
        "parallel_tool_calls": rendering.parallel_calls,
        "json_schema": rendering.schema.unwrap_or_default(),
        "enable_thinking": thinking.enabled,
        "continue_final_message": continues,
        "kwargs": kwargs,
        "now": now,
    });
    Ok(RenderJob {
        template: template.to_owned(),
        bos: bos.to_owned(),
        eos: eos.to_owned(),
        input: serde_json::to_string(&input).map_err(|error| Failure::Invalid(error.to_string()))?,
    })
}

/// One turn in OpenAI's shape. NUL cannot cross into C and means nothing to a model.
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

/// Drops the oldest turns of a conversation that does not fit; `false` if only the last turn is left. System turns are
/// kept and stay in front, as Ollama does. At least one goes; more only as long as the bytes that are left are clearly
/// too many still, so that a long conversation takes a few rounds and none loses more than it must.
pub(in crate::provider) fn shorten(messages: &mut Vec<Message>, prompt_tokens: u32, context_length: u32) -> bool {
    let bytes = |messages: &[Message]| messages.iter().map(|message| message.content.len() as u64).sum::<u64>();
    // Tokens are no bytes: a tenth is left to the next round.
    let excess = u64::from(prompt_tokens.saturating_sub(context_length)) * 9 / 10;
    let mut surplus = (bytes(messages) * excess / u64::from(prompt_tokens.max(1))) as i64;
    let mut dropped = false;
    while !dropped || surplus > 0 {
        let last = messages.len().saturating_sub(1);
        let Some(oldest) = messages[..last].iter().position(|message| message.role.0 != "system") else {
            break;
        };
        let length = messages[oldest].content.len() as i64;
        // The first goes whatever its length; a later one only if it goes with room to spare.
        if dropped && length > surplus {
            break;
        }
        surplus -= length;
        messages.remove(oldest);
        dropped = true;
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::ToolChoice;

    fn conversation(turns: &[(&str, &str)]) -> Vec<Message> {
        turns
            .iter()
            .map(|&(role, content)| Message::text(role, content))
            .collect()
    }

    fn contents(messages: &[Message]) -> Vec<&str> {
        messages.iter().map(|message| message.content.as_str()).collect()
    }

    #[test]
    fn pictures_are_refused_and_never_dropped() {
        let chat = |media: &[&[u8]]| {
            let mut messages = conversation(&[("user", "1"), ("assistant", "2"), ("user", "3")]);
            messages[0].media = media.iter().map(|bytes| bytes.to_vec()).collect();
            InferencePrompt::Chat {
                messages,
                tools: Vec::new(),
                tool_choice: ToolChoice::default(),
                parallel_tool_calls: true,
                context: Vec::new(),
            }
        };
        assert_eq!(check_media(&chat(&[]), true), Ok(()));
        let refusal = |has_projector| check_media(&chat(&[b"x"]), has_projector).unwrap_err().to_string();
        assert!(refusal(true).contains("not read yet; send text only"));
        assert!(refusal(false).contains("does not support multimodal requests"));
        assert_eq!(check_media(&InferencePrompt::Raw { text: "x".into() }, true), Ok(()));
    }

    #[test]
    fn the_oldest_turn_goes_first_system_and_last_stay() {
        let mut messages = conversation(&[("user", "1"), ("system", "s"), ("assistant", "2"), ("user", "3")]);
        assert!(shorten(&mut messages, 11, 10));
        assert_eq!(contents(&messages), ["s", "2", "3"]);
        assert!(shorten(&mut messages, 11, 10));
        assert!(!shorten(&mut messages, 11, 10));
        assert_eq!(contents(&messages), ["s", "3"]);
    }

    #[test]
    fn a_long_conversation_loses_many_turns_at_once_but_never_too_many() {
        let turn = "x".repeat(100);
        let mut messages: Vec<Message> = (0..100).map(|_| Message::text("user", turn.clone())).collect();
        assert!(shorten(&mut messages, 10_000, 1_000));
        assert!((10..=30).contains(&messages.len()), "{}", messages.len());
    }

    #[test]
    fn levels_become_an_effort_and_max_is_high() {
        assert_eq!(thinking(ThinkMode::Level(ThinkLevel::Max)).effort, Some("high"));
        assert!(!thinking(ThinkMode::Unset).explicit);
    }
}
