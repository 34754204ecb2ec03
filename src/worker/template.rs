//! Rendering of probe conversations with a chat template, for `hubllama template`. Runs in the process of the command
//! line, never in the daemon.

use std::{path::Path, thread};

use serde_json::{Map, Value, json};

use super::{ENGINE_STACK_BYTES, WorkerError};
use crate::llama::{ChatTemplate, LlamaError, Model, RenderedChat, TokenId};

/// Number of tokens that are shown before and after a difference.
const AROUND: usize = 6;
/// Date that templates see (1 January 2026, in seconds since 1970). It is fixed so that two renderings can be compared.
const NOW: u64 = 1_767_225_600;

/// Properties of a template, and the probe conversations that it rendered.
#[derive(Clone, Debug)]
pub struct TemplateReport {
    /// Capabilities, as llama.cpp's map of flags.
    pub flags: Map<String, Value>,
    /// Tag that opens the reasoning; empty if the template has none.
    pub thinking_start_tag: String,
    /// Tags that end the reasoning.
    pub thinking_end_tags: Vec<String>,
    /// End of a prompt that belongs to the answer already.
    pub generation_prompt: String,
    /// Stop strings of the format.
    pub stops: Vec<String>,
    pub conversations: Vec<ProbeReport>,
}

/// Probe conversation under the template.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// Description of the conversation.
    pub name: &'static str,
    /// Prompt, or the template's reason for refusing the conversation.
    pub prompt: Result<String, LlamaError>,
    /// Number of tokens of the prompt.
    pub tokens: usize,
    /// Comparison with the other template, if there is one.
    pub comparison: Option<PromptComparison>,
}

/// Comparison of the prompts that two templates render.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptComparison {
    /// Equal token by token.
    Identical,
    /// Neither template renders the conversation.
    BothRefuse,
    /// Only one of the templates renders the conversation; the other gives a reason.
    OneRefuses { reason: String },
    /// First difference, with the tokens around it.
    Differs {
        /// Number of equal tokens at the front.
        same: usize,
        /// Last tokens before the difference.
        before: Vec<String>,
        /// Tokens of this prompt from the difference on.
        ours: Vec<String>,
        /// Tokens of the other prompt from the difference on.
        theirs: Vec<String>,
    },
}

/// Renders probe conversations with a template and, if one is given, with another. The vocabulary of the GGUF file
/// `model` counts the tokens.
///
/// # Errors
/// If the vocabulary cannot be loaded or the template does not compile.
pub fn template_report(
    model: &Path,
    template: &str,
    other: Option<&str>,
    bos: &str,
    eos: &str,
) -> Result<TemplateReport, WorkerError> {
    // Template engines recurse over untrusted text.
    thread::scope(|scope| {
        thread::Builder::new()
            .stack_size(ENGINE_STACK_BYTES)
            .spawn_scoped(scope, || report(model, template, other, bos, eos))
            .map_err(WorkerError::Thread)?
            .join()
            .map_err(|_| WorkerError::TemplatePanic)?
    })
}

fn report(
    model: &Path,
    template: &str,
    other: Option<&str>,
    bos: &str,
    eos: &str,
) -> Result<TemplateReport, WorkerError> {
    let vocabulary = Model::load_vocabulary(model)?;
    let template = ChatTemplate::new(template, bos, eos)?;
    // The other template counts as refusing every conversation if it does not compile.
    let other = other.map(|source| ChatTemplate::new(source, bos, eos));
    let mut known = None;
    let mut conversations = Vec::new();
    for (name, input) in probes() {
        let rendered = template.apply(&input);
        if let Ok(chat) = &rendered {
            known.get_or_insert_with(|| chat.clone());
        }
        let prompt = rendered.map(|chat| chat.prompt);
        let tokens = match &prompt {
            Ok(prompt) => vocabulary.tokenize(prompt, false, true)?,
            Err(_) => Vec::new(),
        };
        let comparison = match &other {
            None => None,
            Some(other) => {
                let theirs = other.as_ref().map_err(Clone::clone);
                let theirs = theirs.and_then(|other| Ok(other.apply(&input)?.prompt));
                Some(compare(
                    &vocabulary,
                    prompt.as_ref().map(|_| tokens.as_slice()),
                    theirs,
                )?)
            }
        };
        conversations.push(ProbeReport {
            name,
            tokens: tokens.len(),
            prompt,
            comparison,
        });
    }
    let RenderedChat {
        thinking_start_tag,
        thinking_end_tags,
        generation_prompt,
        additional_stops: stops,
        ..
    } = known.unwrap_or_default();
    Ok(TemplateReport {
        flags: template.describe()?,
        thinking_start_tag,
        thinking_end_tags,
        generation_prompt,
        stops,
        conversations,
    })
}

fn probes() -> [(&'static str, String); 2] {
    let call = json!([{"type": "function", "id": "abcdefghi", "function": {
        "name": "weather", "arguments": r#"{"city":"Paris","days":2}"#,
    }}]);
    let tools = json!([{"type": "function", "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "days": {"type": "integer", "description": "Days from now"},
            },
            "required": ["city"],
        },
    }}]);
    let plain = json!({
        "messages": [{"role": "user", "content": "Hello, who are you?"}],
        "now": NOW,
    });
    let called = json!({
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "What is the weather in Paris?"},
            {"role": "assistant", "content": "", "tool_calls": call},
            {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "{\"sky\":\"clear\"}"},
            {"role": "user", "content": "And in Rome?"},
        ],
        "tools": tools,
        "now": NOW,
    });
    [
        ("a question", plain.to_string()),
        ("a system prompt, tools, a call and its result", called.to_string()),
    ]
}

fn compare(
    vocabulary: &Model,
    ours: Result<&[TokenId], &LlamaError>,
    theirs: Result<String, LlamaError>,
) -> Result<PromptComparison, WorkerError> {
    let (ours, theirs) = match (ours, theirs) {
        (Err(_), Err(_)) => return Ok(PromptComparison::BothRefuse),
        (Err(reason), Ok(_)) => {
            return Ok(PromptComparison::OneRefuses {
                reason: reason.to_string(),
            });
        }
        (Ok(_), Err(reason)) => {
            return Ok(PromptComparison::OneRefuses {
                reason: reason.to_string(),
            });
        }
        (Ok(ours), Ok(theirs)) => (ours, vocabulary.tokenize(&theirs, false, true)?),
    };
    Ok(match first_difference(ours, &theirs) {
        None => PromptComparison::Identical,
        Some(same) => {
            let text = |tokens: &[TokenId]| {
                let piece =
                    |&token: &TokenId| String::from_utf8_lossy(&vocabulary.detokenize(&[token], true)).into_owned();
                tokens.iter().map(piece).collect()
            };
            let after = |tokens: &[TokenId]| text(&tokens[same..tokens.len().min(same + AROUND)]);
            PromptComparison::Differs {
                same,
                before: text(&ours[same.saturating_sub(AROUND)..same]),
                ours: after(ours),
                theirs: after(&theirs),
            }
        }
    })
}

/// Returns the number of equal tokens at the beginning of two prompts; `None` if the prompts are equal.
fn first_difference(ours: &[TokenId], theirs: &[TokenId]) -> Option<usize> {
    let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    (same < ours.len() || same < theirs.len()).then_some(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_goes_on_differs_where_the_other_ends() {
        assert_eq!(first_difference(&[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(first_difference(&[1, 2, 3], &[1, 5, 3]), Some(1));
        assert_eq!(first_difference(&[1, 2], &[1, 2, 3]), Some(2));
        assert_eq!(first_difference(&[], &[1]), Some(0));
    }

    #[test]
    fn the_probes_render() {
        let template = include_str!("../../fixtures/templates/tools-and-thinking.jinja");
        let template = ChatTemplate::new(template, "", "").expect("compiles");
        for (name, input) in probes() {
            let prompt = template.apply(&input).expect(name).prompt;
            assert!(prompt.ends_with("<|im_start|>assistant\n"), "{prompt}");
        }
    }
}
