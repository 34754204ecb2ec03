//! Tools for a model whose chat template does not support them (`engine.unsupported_tools = "prompt"`): they are
//! described in the system prompt with the words and tags of the Hermes format, which many models have seen in
//! training, and calls are read from the answer by the parser that `common/chat` derives from a template of that
//! format.

use super::render_job::{self, RenderInput};
use crate::{
    inference::{Failure, Message, ToolDefinition},
    worker::protocol::RenderJob,
};

/// Chat template in the Hermes format. Only the parser and the grammar that `common/chat` derives from it are used.
const HERMES_TEMPLATE: &str = "{%- for message in messages -%}\
    <|im_start|>{{ message.role }}\n\
    {%- if message.tool_calls -%}\
        {%- for call in message.tool_calls -%}\
            \n<tool_call>\n{\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>\
        {%- endfor -%}\
    {%- else -%}\
        \n{{ message.content }}\
    {%- endif -%}\
    <|im_end|>\n\
    {%- endfor -%}\
    {%- if tools -%}<tools>{{ tools | tojson }}</tools>{%- endif -%}\
    {%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}";

/// Returns the job whose rendering has the parser and the grammar.
pub(super) fn format_job(input: RenderInput<'_>) -> Result<RenderJob, Failure> {
    render_job::job_for_template(HERMES_TEMPLATE, "", "", &[Message::text("user", "")], input)
}

/// Returns the conversation with the tools described in its system prompt, and with earlier calls and results as plain
/// text.
pub(super) fn teach(messages: &[Message], tools: &[ToolDefinition], call_required: bool) -> Vec<Message> {
    let mut instructions = String::from(
        "You may call functions to help with the user's request. The functions are described here as JSON schemas:\n<tools>\n",
    );
    for tool in tools {
        instructions.push_str(tool.raw.get());
        instructions.push('\n');
    }
    instructions.push_str(
        "</tools>\nTo call a function, write a JSON object with its name and arguments between tags, as this:\n<tool_call>\n\
         {\"name\": \"function name\", \"arguments\": {\"argument\": \"value\"}}\n</tool_call>\n",
    );
    instructions.push_str(if call_required {
        "Answer with such a call."
    } else {
        "Call a function only where it helps; otherwise answer in plain text."
    });
    let mut taught = Vec::with_capacity(messages.len() + 1);
    let mut rest = messages;
    if let Some((first, others)) = messages.split_first()
        && first.role.0 == "system"
    {
        instructions = format!("{}\n\n{instructions}", first.content);
        rest = others;
    }
    taught.push(Message::text("system", instructions));
    taught.extend(rest.iter().map(in_plain_text));
    taught
}

fn in_plain_text(message: &Message) -> Message {
    let mut plain = message.clone();
    for call in plain.tool_calls.drain(..) {
        let call = serde_json::json!({"name": call.name, "arguments": call.arguments});
        if !plain.content.is_empty() {
            plain.content.push('\n');
        }
        plain.content.push_str(&format!("<tool_call>\n{call}\n</tool_call>"));
    }
    if plain.role.0 == "tool" {
        return Message::text("user", format!("<tool_response>\n{}\n</tool_response>", plain.content));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::ToolCall;

    #[test]
    fn calls_and_results_become_text_and_the_system_prompt_stays() {
        let definition = r#"{"type":"function","function":{"name":"f"}}"#.to_owned();
        let tool = ToolDefinition::new(serde_json::value::RawValue::from_string(definition).unwrap());
        let mut call = Message::text("assistant", "");
        call.tool_calls.push(ToolCall {
            id: "c".into(),
            name: "f".into(),
            arguments: serde_json::Map::new(),
        });
        let messages = [Message::text("system", "Be brief."), call, Message::text("tool", "42")];
        let taught = teach(&messages, &[tool], false);
        assert!(taught[0].content.starts_with("Be brief.\n\n"), "{}", taught[0].content);
        assert!(taught[0].content.contains(r#""name":"f""#));
        assert_eq!(
            taught[1].content,
            "<tool_call>\n{\"name\":\"f\",\"arguments\":{}}\n</tool_call>"
        );
        assert_eq!(
            (taught[2].role.0.as_str(), taught[2].content.as_str()),
            ("user", "<tool_response>\n42\n</tool_response>")
        );
        assert!(taught[1].tool_calls.is_empty());
    }
}
