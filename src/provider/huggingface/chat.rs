//! A conversation as what a worker needs: the prompt, how to read the answer, and what the answer must look like.

use super::{
    headers::ModelHeader,
    prompt::{self, Rendering, Thinking},
    taught_tools,
};
use crate::{
    config::{Config, JsonSchemas, UnsupportedTools},
    inference::{
        AnswerFormat, Failure, InferencePrompt, InferenceRequest, Message, ModelCapability, ThinkMode, ToolChoice,
        ToolDefinition,
    },
    lifecycle::TemplateHelper,
    worker::protocol::{ChatSyntax, GrammarTrigger, JsonSchema, ReasoningSyntax, RenderedChat},
};

/// A rendered conversation.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) text: String,
    /// Stop strings of the template, beside the request's.
    pub(super) stops: Vec<String>,
    /// `None` if the answer is plain text.
    pub(super) syntax: Option<ChatSyntax>,
    pub(super) reasoning: Option<ReasoningSyntax>,
    pub(super) schema: Option<JsonSchema>,
}

/// What a chat request says of tools.
#[derive(Clone, Copy, Debug)]
struct Tools<'a> {
    definitions: &'a [ToolDefinition],
    choice: &'a ToolChoice,
    parallel: bool,
    /// Whether they have to be taught, since the template knows none.
    taught: bool,
}

impl Tools<'_> {
    /// Whether the answer has to hold a call.
    fn must_call(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Function(_)) && !self.definitions.is_empty()
    }
}

/// Renders a conversation.
pub(super) async fn converse(
    helper: &TemplateHelper,
    config: &Config,
    header: &ModelHeader,
    request: &InferenceRequest,
    messages: &[Message],
) -> Result<Conversation, Failure> {
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
    let tools = Tools {
        definitions,
        choice: tool_choice,
        parallel: *parallel_tool_calls,
        taught: !definitions.is_empty() && !knows_tools && config.engine.unsupported_tools == UnsupportedTools::Prompt,
    };
    let schema = schema(config, request.format.as_ref());
    let thinking = prompt::thinking(request.think);
    let (mut rendered, must_call) = render(helper, header, messages, tools, thinking, schema.as_ref()).await?;
    let text = std::mem::take(&mut rendered.prompt);
    let stops = std::mem::take(&mut rendered.additional_stops);
    let reasoning = reasoning(&rendered, thinking, request.thinking_budget);
    if request.thinking_budget.is_some() && reasoning.is_none() {
        tracing::debug!("the chat template marks no reasoning: the thinking budget has no effect");
    }
    let has_tools = !tools.definitions.is_empty();
    let reads_format = has_tools || rendered.supports_thinking || reasoning.is_some() || rendered.wraps_content;
    // Where the format wraps the text, the schema is in the grammar.
    let in_grammar = schema.is_some() && rendered.wraps_content && !rendered.grammar.is_empty();
    Ok(Conversation {
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

/// The rendered conversation, and whether the answer is to be made to begin with a call. Where it is not and has to hold one, its
/// grammar sees to that.
async fn render(
    helper: &TemplateHelper,
    header: &ModelHeader,
    messages: &[Message],
    tools: Tools<'_>,
    thinking: Thinking,
    schema: Option<&JsonSchema>,
) -> Result<(RenderedChat, bool), Failure> {
    let all = Rendering {
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
        Some(taught) => prompt::render_job(header, taught, Rendering { tools: &[], ..all })?,
        None => prompt::render_job(header, messages, all)?,
    };
    let mut rendered = helper.render(render_all).await?;
    // How calls are written, for some of the tools.
    let format = async |rendering: Rendering<'_>| {
        let job = match &taught {
            Some(_) => taught_tools::format_job(rendering)?,
            None => prompt::render_job(header, messages, rendering)?,
        };
        helper.render(job).await
    };
    let chosen: Vec<ToolDefinition> = match tools.choice {
        // `api` has refused a choice that is not among the tools.
        ToolChoice::Function(name) => tools
            .definitions
            .iter()
            .filter(|tool| tool.name == *name)
            .cloned()
            .collect(),
        _ => Vec::new(),
    };
    // The model sees all tools and may write one: the grammar is that of a conversation that has no other.
    let writable = if chosen.is_empty() {
        all
    } else {
        Rendering { tools: &chosen, ..all }
    };
    if tools.taught || !chosen.is_empty() {
        rendered = with_prompt_of(rendered, format(writable).await?);
    }
    if !must_call || begins_with_a_mark(&rendered) {
        return Ok((rendered, must_call));
    }
    let required = Rendering {
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

/// The prompt of one rendering with the format of another.
fn with_prompt_of(prompt: RenderedChat, format: RenderedChat) -> RenderedChat {
    RenderedChat {
        prompt: prompt.prompt,
        ..format
    }
}

/// Whether calls begin with a word that nothing else begins with, so that writing it for the model makes it call. `common/chat`'s
/// own grammar for a required call lets text come before it.
fn begins_with_a_mark(rendered: &RenderedChat) -> bool {
    let is_mark = |trigger: &GrammarTrigger| trigger.is_word() && !trigger.value.starts_with(['{', '[', '"']);
    rendered.grammar_lazy
        && rendered.grammar_triggers.iter().all(GrammarTrigger::is_word)
        && rendered.grammar_triggers.iter().any(is_mark)
}

fn schema(config: &Config, format: Option<&AnswerFormat>) -> Option<JsonSchema> {
    let strict = config.engine.json_schemas == JsonSchemas::Strict;
    let text = match format? {
        // The word asks for an object in every client's documentation.
        AnswerFormat::Json => r#"{"type":"object"}"#.to_owned(),
        AnswerFormat::Schema(schema) => schema.get().to_owned(),
    };
    Some(JsonSchema { text, strict })
}

/// The constraint of an answer that no template shapes.
pub(super) fn plain_schema(config: &Config, request: &InferenceRequest) -> Option<JsonSchema> {
    schema(config, request.format.as_ref())
}

/// How the answer marks its reasoning; `None` if the template has no tags for it.
fn reasoning(rendered: &RenderedChat, thinking: Thinking, budget: Option<u32>) -> Option<ReasoningSyntax> {
    let start = &rendered.thinking_start_tag;
    let ends = &rendered.thinking_end_tags;
    if start.is_empty() || ends.is_empty() {
        return None;
    }
    let prompt = &rendered.generation_prompt;
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
        let syntax = reasoning(&rendered(generation_prompt), prompt::thinking(think), None).unwrap();
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
        assert!(reasoning(&RenderedChat::default(), prompt::thinking(ThinkMode::On), None).is_none());
    }
}
