//! Conversation put into a template, the way Ollama does it (`template/template.go` of its source).

use super::{
    GoTemplate,
    error::TemplateError,
    execute::{RenderBudget, execute},
    parse,
    syntax::{Expression, FieldBase, Pipeline, TemplateNode},
    value::TemplateData,
};
use crate::inference::{Message, ThinkLevel, ThinkMode};

/// Field that stands at the place of the answer.
const RESPONSE: &str = "Response";

/// Returns `{{ .Response }}`.
pub(super) fn response() -> TemplateNode {
    TemplateNode::Output(Pipeline {
        sets: None,
        first: Box::new(Expression::Field {
            base: FieldBase::Dot,
            path: vec![RESPONSE.to_owned()],
        }),
        rest: Vec::new(),
    })
}

impl GoTemplate {
    /// Renders the prompt for a conversation. A template that uses `.Messages` gets all of it at once; an older one is
    /// rendered for each exchange, and the last rendering ends at the place of the answer.
    ///
    /// # Errors
    /// Returns an error if the template uses a field that does not exist, or exceeds a limit.
    pub fn render(&self, messages: &[Message], think: ThinkMode) -> Result<String, TemplateError> {
        let (system, messages) = collate(messages);
        // One budget for all exchanges, so that a long conversation does not multiply the work.
        let mut budget = RenderBudget::default();
        let mut out = String::new();
        if self.uses("messages") {
            let mut values = thinking(think);
            values.push(("System".into(), TemplateData::Text(system)));
            values.push((
                "Messages".into(),
                TemplateData::List(messages.iter().map(message).collect()),
            ));
            values.push((RESPONSE.into(), TemplateData::text("")));
            execute(&self.nodes, &TemplateData::sorted(values), &mut budget, &mut out)?;
            return Ok(out);
        }
        let mut exchange = Exchange::default();
        for message in messages {
            // As in Ollama, an exchange ends where a message would overwrite or precede what it has.
            let is_full = match message.role.0.as_str() {
                "system" => !exchange.prompt.is_empty() || !exchange.response.is_empty(),
                "user" => !exchange.response.is_empty(),
                _ => false,
            };
            if is_full {
                let values = std::mem::take(&mut exchange).into_values(think);
                execute(&self.nodes, &values, &mut budget, &mut out)?;
            }
            match message.role.0.as_str() {
                "system" => exchange.system = message.content,
                "user" => exchange.prompt = message.content,
                "assistant" => exchange.response = message.content,
                _ => {}
            }
        }
        let (open, _) = up_to_response(&self.nodes);
        execute(&open, &exchange.into_values(think), &mut budget, &mut out)?;
        Ok(out)
    }

    /// Renders the prompt for text between a prefix and a suffix (fill in the middle).
    ///
    /// # Errors
    /// Returns the errors of [`Self::render`].
    pub fn render_infill(&self, prefix: &str, suffix: &str, think: ThinkMode) -> Result<String, TemplateError> {
        let mut values = thinking(think);
        values.push(("Prompt".into(), TemplateData::text(prefix)));
        values.push(("Suffix".into(), TemplateData::text(suffix)));
        values.push((RESPONSE.into(), TemplateData::text("")));
        let mut out = String::new();
        execute(
            &self.nodes,
            &TemplateData::sorted(values),
            &mut RenderBudget::default(),
            &mut out,
        )?;
        Ok(out)
    }
}

/// Values for one rendering of an older template.
#[derive(Default)]
struct Exchange {
    system: String,
    prompt: String,
    response: String,
}

impl Exchange {
    fn into_values(self, think: ThinkMode) -> TemplateData {
        let mut values = thinking(think);
        values.push(("System".into(), TemplateData::Text(self.system)));
        values.push(("Prompt".into(), TemplateData::Text(self.prompt)));
        values.push((RESPONSE.into(), TemplateData::Text(self.response)));
        TemplateData::sorted(values)
    }
}

fn thinking(think: ThinkMode) -> Vec<(String, TemplateData)> {
    let level = match think {
        ThinkMode::Level(ThinkLevel::Low) => "low",
        ThinkMode::Level(ThinkLevel::Medium) => "medium",
        ThinkMode::Level(ThinkLevel::High) => "high",
        ThinkMode::Level(ThinkLevel::Max) => "max",
        ThinkMode::Unset | ThinkMode::On | ThinkMode::Off => "",
    };
    let is_on = matches!(think, ThinkMode::On | ThinkMode::Level(_));
    vec![
        ("Think".into(), TemplateData::Bool(is_on)),
        ("ThinkLevel".into(), TemplateData::text(level)),
        ("IsThinkSet".into(), TemplateData::Bool(think != ThinkMode::Unset)),
    ]
}

/// Returns all system prompts in one text, and the messages with neighbors of the same role joined.
///
/// Results of tools stay separate: each answers another call. This is Ollama's `collate`.
fn collate(messages: &[Message]) -> (String, Vec<Message>) {
    let mut system: Vec<&str> = Vec::new();
    let mut collated: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        if message.role.0 == "system" {
            // The message stays in the list, too: a template with `.Messages` prints it at its place.
            system.push(&message.content);
        }
        match collated.last_mut() {
            Some(last) if last.role == message.role && message.role.0 != "tool" => {
                last.content.push_str("\n\n");
                last.content.push_str(&message.content);
            }
            _ => collated.push(message.clone()),
        }
    }
    (system.join("\n\n"), collated)
}

fn message(message: &Message) -> TemplateData {
    let calls = message.tool_calls.iter().enumerate().map(|(index, call)| {
        let function = TemplateData::Struct(vec![
            ("Index", TemplateData::Int(i64::try_from(index).unwrap_or(i64::MAX))),
            ("Name", TemplateData::text(call.name.as_str())),
            ("Arguments", TemplateData::map(call.arguments.clone())),
        ]);
        TemplateData::Struct(vec![
            ("ID", TemplateData::text(call.id.as_str())),
            ("Function", function),
        ])
    });
    TemplateData::Struct(vec![
        ("Role", TemplateData::text(message.role.0.as_str())),
        ("Content", TemplateData::text(message.content.as_str())),
        ("Thinking", TemplateData::text(message.thinking.as_str())),
        ("Images", TemplateData::List(Vec::new())),
        ("ToolCalls", TemplateData::List(calls.collect())),
        ("ToolName", TemplateData::text(message.tool_name.as_str())),
        ("ToolCallID", TemplateData::text(message.tool_call_id.as_str())),
    ])
}

/// Returns the nodes up to the first that prints the answer, and true if there is one.
///
/// The cut is made in the syntax tree and not while rendering, as in Ollama: all nodes behind the answer are left out,
/// whichever branch is taken.
fn up_to_response(nodes: &[TemplateNode]) -> (Vec<TemplateNode>, bool) {
    let mut kept = Vec::new();
    for node in nodes {
        let (node, ends) = match node {
            TemplateNode::Text(_) | TemplateNode::Break | TemplateNode::Continue => (node.clone(), false),
            TemplateNode::Output(pipeline) => (node.clone(), prints_response(pipeline)),
            TemplateNode::If { branches, otherwise } => {
                let (branches, otherwise, ends) = cut_branches(branches, otherwise);
                (TemplateNode::If { branches, otherwise }, ends)
            }
            TemplateNode::With { branches, otherwise } => {
                let (branches, otherwise, ends) = cut_branches(branches, otherwise);
                (TemplateNode::With { branches, otherwise }, ends)
            }
            TemplateNode::Range {
                index,
                item,
                over,
                body,
                otherwise,
            } => {
                let (body, ends) = up_to_response(body);
                let (otherwise, ends_there) = match ends {
                    true => (Vec::new(), true),
                    false => up_to_response(otherwise),
                };
                let node = TemplateNode::Range {
                    index: index.clone(),
                    item: item.clone(),
                    over: over.clone(),
                    body,
                    otherwise,
                };
                (node, ends_there)
            }
        };
        kept.push(node);
        if ends {
            return (kept, true);
        }
    }
    (kept, false)
}

type Branches = Vec<(Pipeline, Vec<TemplateNode>)>;

fn cut_branches(branches: &Branches, otherwise: &[TemplateNode]) -> (Branches, Vec<TemplateNode>, bool) {
    let mut cut = Vec::with_capacity(branches.len());
    let mut ended = false;
    for (condition, body) in branches {
        let (body, ends) = match ended {
            true => (Vec::new(), true),
            false => up_to_response(body),
        };
        ended |= ends;
        cut.push((condition.clone(), body));
    }
    if ended {
        return (cut, Vec::new(), true);
    }
    let (otherwise, ends) = up_to_response(otherwise);
    (cut, otherwise, ends)
}

fn prints_response(pipeline: &Pipeline) -> bool {
    let mut names = Vec::new();
    parse::names_of_pipeline(pipeline, &mut names);
    names.iter().any(|name| name.eq_ignore_ascii_case(RESPONSE))
}
