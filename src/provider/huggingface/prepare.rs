//! Preparation of a prompt for the worker: the text to continue, the syntax in which the answer is read, and the
//! constraints that it has to satisfy.
//!
//! A conversation is rendered by the model's chat template in a helper process; `common/chat` of llama.cpp derives the
//! syntax of tool calls and reasoning from the template. Tools for a template that knows none are described in the
//! system prompt ([`taught_tools`]).

use super::{
    headers::ModelHeader,
    render_job::{self, RenderInput, ThinkingVariables},
    taught_tools,
};
use crate::{
    config::{Config, JsonSchemas, UnsupportedTools},
    inference::{
        AnswerFormat, Failure, InferencePrompt, InferenceRequest, Message, ModelCapability, ThinkMode, ToolChoice,
        ToolDefinition,
    },
    lifecycle::TemplateHelper,
    worker::protocol::{ChatSyntax, GrammarTrigger, JobPrompt, JsonSchema, ReasoningSyntax, RenderedChat},
};

/// A prompt with everything that a worker has to know about it.
#[derive(Debug)]
pub(super) struct PreparedPrompt {
    pub(super) prompt: JobPrompt,
    /// Stop strings of the chat template.
    pub(super) stops: Vec<String>,
    /// `None` if the answer is plain text.
    pub(super) syntax: Option<ChatSyntax>,
    pub(super) reasoning: Option<ReasoningSyntax>,
    pub(super) schema: Option<JsonSchema>,
}

/// A conversation, rendered by a chat template.
#[derive(Debug)]
pub(super) struct ChatPrompt {
    pub(super) text: String,
    stops: Vec<String>,
    syntax: Option<ChatSyntax>,
    reasoning: Option<ReasoningSyntax>,
    schema: Option<JsonSchema>,
}

/// Tools of a chat request.
#[derive(Clone, Copy, Debug)]
struct RequestTools<'a> {
    definitions: &'a [ToolDefinition],
    choice: &'a ToolChoice,
    parallel: bool,
    /// True when the chat template does not support tools, and they are described in the system prompt instead.
    taught: bool,
}

impl RequestTools<'_> {
    /// Returns true if the answer has to contain a call.
    fn must_call(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Function(_)) && !self.definitions.is_empty()
    }
}

/// Prepares the prompt of a request. `messages` takes the place of the conversation in the request: it has the system
/// prompt of the settings, and may be shortened.
pub(super) async fn prepare(
    helper: &TemplateHelper,
    config: &Config,
    header: &ModelHeader,
    request: &InferenceRequest,
    messages: &[Message],
) -> Result<PreparedPrompt, Failure> {
    let plain = |prompt| PreparedPrompt {
        prompt,
        stops: Vec::new(),
        syntax: None,
        reasoning: None,
        schema: schema(config, request.format.as_ref()),
    };
    Ok(match &request.prompt {
        InferencePrompt::Chat { context, .. } => {
            let chat = render_conversation(helper, config, header, request, messages).await?;
            PreparedPrompt {
                prompt: JobPrompt::Text {
                    text: chat.text,
                    context: context.clone(),
                },
                stops: chat.stops,
                syntax: chat.syntax,
                reasoning: chat.reasoning,
                schema: chat.schema,
            }
        }
        InferencePrompt::Raw { text } => plain(JobPrompt::Text {
            text: text.clone(),
            context: Vec::new(),
        }),
        InferencePrompt::Infill { prefix, suffix } => plain(JobPrompt::Infill {
            prefix: prefix.clone(),
            suffix: suffix.clone(),
        }),
    })
}

/// Renders a conversation.
pub(super) async fn render_conversation(
    helper: &TemplateHelper,
    config: &Config,
    header: &ModelHeader,
    request: &InferenceRequest,
    messages: &[Message],
) -> Result<ChatPrompt, Failure> {
    let InferencePrompt::Chat {
        tools,
        tool_choice,
        parallel_tool_calls,
        ..
    } = &request.prompt
    else {
        return Err(Failure::Invalid("not a conversation".into()));
    };
    let knows_tools = header.facts.capabilities.contains(&ModelCapability::Tools);
    let definitions: &[_] = match tool_choice {
        ToolChoice::None => &[],
        _ => tools,
    };
    let tools = RequestTools {
        definitions,
        choice: tool_choice,
        parallel: *parallel_tool_calls,
        taught: !definitions.is_empty() && !knows_tools && config.engine.unsupported_tools == UnsupportedTools::Prompt,
    };
    let schema = schema(config, request.format.as_ref());
    let thinking = ThinkingVariables::from(request.think);
    let (mut rendered, must_call) = render(helper, header, messages, tools, thinking, schema.as_ref()).await?;
    let text = std::mem::take(&mut rendered.prompt);
    let stops = std::mem::take(&mut rendered.additional_stops);
    let reasoning = reasoning(&rendered, thinking, request.thinking_budget);
    if request.thinking_budget.is_some() && reasoning.is_none() {
        tracing::debug!("the chat template marks no reasoning: the thinking budget has no effect");
    }
    let has_tools = !tools.definitions.is_empty();
    let reads_format = has_tools || rendered.supports_thinking || reasoning.is_some() || rendered.wraps_content;
    // A format that wraps the text in markup of its own (such as gpt-oss) has the schema in its grammar. A second
    // constraint on the markup could not be satisfied.
    let in_grammar = schema.is_some() && rendered.wraps_content && !rendered.grammar.is_empty();
    Ok(ChatPrompt {
        text,
        stops,
        reasoning,
        schema: schema.filter(|_| !in_grammar),
        syntax: reads_format.then_some(ChatSyntax {
            rendered,
            must_call,
            hides_thinking: request.think == ThinkMode::Off,
            used_ids: messages
                .iter()
                .flat_map(|message| &message.tool_calls)
                .map(|call| call.id.clone())
                .collect(),
        }),
    })
}

/// Renders the conversation, with the format in which calls are written. Returns true with it if the worker has to make
/// the answer begin with a call; if a call is required and this is false, the grammar requires it.
async fn render(
    helper: &TemplateHelper,
    header: &ModelHeader,
    messages: &[Message],
    tools: RequestTools<'_>,
    thinking: ThinkingVariables,
    schema: Option<&JsonSchema>,
) -> Result<(RenderedChat, bool), Failure> {
    let all = RenderInput {
        tools: tools.definitions,
        call_required: false,
        parallel_calls: tools.parallel,
        thinking,
        schema: schema.map(|schema| schema.text.as_str()),
    };
    let must_call = tools.must_call();
    let taught = tools
        .taught
        .then(|| taught_tools::teach(messages, tools.definitions, must_call));
    let render_all = match &taught {
        Some(taught) => render_job::render_job(header, taught, RenderInput { tools: &[], ..all })?,
        None => render_job::render_job(header, messages, all)?,
    };
    let mut rendered = helper.render(render_all).await?;
    // Renders again for the format of calls alone; the prompt of this rendering is not used.
    let format = async |rendering: RenderInput<'_>| {
        let job = match &taught {
            Some(_) => taught_tools::format_job(rendering)?,
            None => render_job::render_job(header, messages, rendering)?,
        };
        helper.render(job).await
    };
    let chosen: Vec<ToolDefinition> = match tools.choice {
        // A choice that is not among the tools was refused by the dialect.
        ToolChoice::Function(name) => tools
            .definitions
            .iter()
            .filter(|tool| tool.name == *name)
            .cloned()
            .collect(),
        _ => Vec::new(),
    };
    // The prompt shows all tools, as the conversation before it did, so that the KV cache can be reused. The grammar is
    // that of a conversation with the chosen tool alone.
    let writable = if chosen.is_empty() {
        all
    } else {
        RenderInput { tools: &chosen, ..all }
    };
    if tools.taught || !chosen.is_empty() {
        rendered = with_prompt_of(rendered, format(writable).await?);
    }
    if !must_call || begins_with_marker(&rendered) {
        return Ok((rendered, must_call));
    }
    let required = RenderInput {
        call_required: true,
        ..writable
    };
    rendered = with_prompt_of(rendered, format(required).await?);
    if rendered.grammar.is_empty() {
        return Err(Failure::Invalid(
            "tool_choice cannot be kept: the model's chat template has no format for tool calls".into(),
        ));
    }
    Ok((rendered, false))
}

/// Returns the prompt of one rendering with the format of another.
fn with_prompt_of(prompt: RenderedChat, format: RenderedChat) -> RenderedChat {
    RenderedChat {
        prompt: prompt.prompt,
        ..format
    }
}

/// Returns true if calls begin with a marker of their own: then the worker writes the marker for the model, which makes
/// it call. The grammar of `common/chat` for a required call allows text before it, so that it is only the second
/// choice.
fn begins_with_marker(rendered: &RenderedChat) -> bool {
    let is_marker = |trigger: &GrammarTrigger| trigger.is_word() && !trigger.value.starts_with(['{', '[', '"']);
    rendered.grammar_lazy
        && rendered.grammar_triggers.iter().all(GrammarTrigger::is_word)
        && rendered.grammar_triggers.iter().any(is_marker)
}

fn schema(config: &Config, format: Option<&AnswerFormat>) -> Option<JsonSchema> {
    let strict = config.engine.json_schemas == JsonSchemas::Strict;
    let text = match format? {
        // Ollama documents "json" for any JSON value, but clients rely on getting an object.
        AnswerFormat::Json => r#"{"type":"object"}"#.to_owned(),
        AnswerFormat::Schema(schema) => schema.get().to_owned(),
    };
    Some(JsonSchema { text, strict })
}

/// Returns the tags of reasoning in the answer; `None` if the template has none.
fn reasoning(rendered: &RenderedChat, thinking: ThinkingVariables, budget: Option<u32>) -> Option<ReasoningSyntax> {
    let start = &rendered.thinking_start_tag;
    let ends = &rendered.thinking_end_tags;
    if start.is_empty() || ends.is_empty() {
        return None;
    }
    let prompt = &rendered.generation_prompt;
    // A tag that is opened and not closed at the end of the prompt means that the answer begins inside the reasoning.
    let opened = prompt.rfind(start.as_str());
    let closed = ends.iter().filter_map(|end| prompt.rfind(end.as_str())).max();
    let begins_inside = opened.is_some() && opened > closed;
    Some(ReasoningSyntax {
        start: start.clone(),
        ends: ends.clone(),
        begins_inside,
        expected: thinking.is_enabled() && !begins_inside && closed.is_none(),
        budget,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(generation_prompt: &str) -> RenderedChat {
        RenderedChat {
            generation_prompt: generation_prompt.into(),
            thinking_start_tag: "<think>".into(),
            thinking_end_tags: vec!["</think>".into()],
            ..RenderedChat::default()
        }
    }

    fn read(generation_prompt: &str, think: ThinkMode) -> (bool, bool) {
        let syntax = reasoning(&rendered(generation_prompt), ThinkingVariables::from(think), None).unwrap();
        (syntax.begins_inside, syntax.expected)
    }

    #[test]
    fn the_end_of_the_prompt_says_where_the_answer_begins() {
        assert_eq!(read("<|im_start|>assistant\n", ThinkMode::On), (false, true));
        assert_eq!(read("<|im_start|>assistant\n", ThinkMode::Off), (false, false));
        assert_eq!(read("<|im_start|>assistant\n<think>\n", ThinkMode::On), (true, false));
        assert_eq!(
            read("<|im_start|>assistant\n<think>\n\n</think>\n\n", ThinkMode::Off),
            (false, false)
        );
        assert!(reasoning(&RenderedChat::default(), ThinkingVariables::from(ThinkMode::On), None).is_none());
    }
}
