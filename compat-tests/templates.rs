//! Renders the chat templates in llama.cpp's repository, and parses the output that a model would write for them.
//!
//! `compat-tests/tools/templates.sh` downloads the templates for the test.

use std::{collections::BTreeMap, fs, path::PathBuf};

use hubllama::{
    inference::Delta,
    llama::{ChatTemplate, RenderedChat},
    worker::{answer::AnswerReader, protocol::ChatSyntax},
};
use serde_json::{Value, json};

/// Pairs of template and conversation for which the template itself raises an error.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "google-gemma-2-2b-it",
        "tool result",
        "it knows no tool turns: roles must alternate",
    ),
    (
        "google-gemma-2-2b-it",
        "after a tool",
        "it knows no tool turns: roles must alternate",
    ),
];
/// Templates whose tool calls cannot be parsed from the output, with the reason.
const NOT_READ_BACK: &[(&str, &str)] = &[
    (
        "Mistral-Small-3.2-24B-Instruct-2506",
        "common/chat takes [ARGS] for a part of the name's mark; its grammar makes the model write what it reads",
    ),
    (
        "upstage-Solar-Open-100B",
        "common/chat takes the id of its own probe for a part of the mark; its grammar makes the model write it",
    ),
    (
        "HuggingFaceTB-SmolLM3-3B",
        "the template leaves calls out of the history, so that common/chat reads none, though it presents tools",
    ),
    (
        "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
        "the template writes no calls",
    ),
    ("google-gemma-2-2b-it", "the template writes no calls"),
    ("ibm-granite-granite-3.3-2B-Instruct", "the template writes no calls"),
    ("llama-cpp-rwkv-world", "the template writes no calls"),
    ("microsoft-Phi-3.5-mini-instruct", "the template writes no calls"),
];

/// Model output for templates that do not show it: they omit calls from the history, or add text after the last turn.
const BY_HAND: &[(&str, &str)] = &[
    (
        "CohereForAI-c4ai-command-r-plus-tool_use",
        "Action:\n```json\n[\n    {\n        \"tool_name\": \"weather\",\n        \"parameters\": {\n            \"city\": \"Rome\",\n            \
         \"days\": 2\n        }\n    }\n]```",
    ),
    (
        "LFM2-8B-A1B",
        "<|tool_call_start|>[weather(city=\"Rome\", days=2)]<|tool_call_end|>",
    ),
    (
        "LFM2.5-Instruct",
        "<|tool_call_start|>[weather(city=\"Rome\", days=2)]<|tool_call_end|>",
    ),
];

const CITY: &str = "Rome";

struct Template {
    name: String,
    template: ChatTemplate,
}

/// Returns every template, or `None` if they were not downloaded.
fn templates() -> Option<Vec<Template>> {
    let Some(folder) = std::env::var_os("HUBLLAMA_TEST_TEMPLATES").map(PathBuf::from) else {
        println!("skipped: HUBLLAMA_TEST_TEMPLATES names no folder; `make test-deps` fetches the templates");
        return None;
    };
    let mut sources = BTreeMap::new();
    for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("a folder's entry").path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            sources.insert(name, fs::read_to_string(&path).expect("UTF-8"));
        }
    }
    assert!(
        sources.len() >= 70,
        "only {} templates in {}",
        sources.len(),
        folder.display()
    );
    let compile = |(name, source): (String, String)| {
        let template = ChatTemplate::new(&source, "<s>", "</s>").unwrap_or_else(|error| panic!("{name}: {error}"));
        Template { name, template }
    };
    Some(sources.into_iter().map(compile).collect())
}

/// Stack size of the worker's engine thread. Template engines and parsers recurse.
fn with_a_large_stack(test: fn(&[Template])) {
    let Some(templates) = templates() else { return };
    std::thread::Builder::new()
        .stack_size(64 << 20)
        .spawn(move || test(&templates))
        .expect("a thread")
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn weather() -> Value {
    json!([{"type": "function", "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "days": {"type": "integer", "description": "How many days"},
            },
            "required": ["city", "days"],
        },
    }}])
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn system() -> Value {
    json!({"role": "system", "content": "Be brief."})
}

fn call() -> Value {
    json!({"role": "assistant", "content": "", "tool_calls": [{
        "type": "function",
        // Mistral's templates require ids of nine letters or digits.
        "id": "abcdefghi",
        "function": {"name": "weather", "arguments": json!({"city": CITY, "days": 2}).to_string()},
    }]})
}

fn result() -> Value {
    json!({"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "{\"sky\": \"clear\"}"})
}

fn input(messages: &[Value], tools: bool, answer: bool) -> Value {
    json!({
        "messages": messages,
        "tools": if tools { weather() } else { json!([]) },
        "add_generation_prompt": answer,
        "now": 1_700_000_000,
    })
}

fn render(template: &Template, input: &Value) -> Result<RenderedChat, String> {
    template
        .template
        .apply(&input.to_string())
        .map_err(|error| error.to_string())
}

#[test]
fn every_template_renders_every_conversation() {
    with_a_large_stack(|templates| {
        let thought = json!({"role": "assistant", "content": "Hello.", "reasoning_content": "Say hello."});
        let mut off = input(&[user("Hi")], false, true);
        off["enable_thinking"] = false.into();
        off["kwargs"] = json!({"enable_thinking": "false", "thinking": "false"});
        let mut effort = input(&[user("Hi")], false, true);
        effort["kwargs"] = json!({"enable_thinking": "true", "thinking": "true", "reasoning_effort": "\"high\""});
        let conversations = [
            ("plain", input(&[user("Hi")], false, true)),
            ("system", input(&[system(), user("Hi")], false, true)),
            (
                "turns",
                input(&[user("Hi"), assistant("Hello."), user("Why?")], false, true),
            ),
            ("thoughts", input(&[user("Hi"), thought, user("Why?")], false, true)),
            ("thinking off", off),
            ("thinking hard", effort),
            ("tools", input(&[user("Hi")], true, true)),
            ("tool result", input(&[user("Hi"), call(), result()], true, true)),
            (
                "after a tool",
                input(
                    &[user("Hi"), call(), result(), assistant("Clear."), user("Why?")],
                    true,
                    true,
                ),
            ),
        ];
        let (mut rendered, mut wrong) = (0, Vec::new());
        for template in templates {
            for (conversation, input) in &conversations {
                let refused = REFUSED
                    .iter()
                    .any(|&(name, what, _)| name == template.name && what == *conversation);
                match render(template, input) {
                    Ok(chat) if chat.prompt.contains("Hi") && !refused => rendered += 1,
                    Err(_) if refused => {}
                    other => wrong.push(format!("{}, {conversation}: {other:?}", template.name)),
                }
            }
        }
        let all = templates.len() * conversations.len();
        println!(
            "rendered {rendered} of {all}: {} templates, {} conversations",
            templates.len(),
            conversations.len()
        );
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

fn read<'a>(rendered: &RenderedChat, pieces: impl IntoIterator<Item = &'a [u8]>) -> Delta {
    let syntax = ChatSyntax {
        rendered: rendered.clone(),
        ..ChatSyntax::default()
    };
    let mut answer = AnswerReader::new(&[], Some(&syntax)).expect("a parser");
    let mut all = Delta::default();
    let mut add = |delta: Delta| {
        all.content.push_str(&delta.content);
        all.thinking.push_str(&delta.thinking);
        all.tool_calls.extend(delta.tool_calls);
    };
    for piece in pieces {
        add(answer.push(piece));
    }
    add(answer.finish(false));
    all
}

/// Tokens that end a turn. A model stops there; templates continue with the next turn.
const ENDS: &[&str] = &[
    "<|eom_id|>",
    "<|call|>",
    "<|calls|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "<｜hy_eos:opensource｜>",
];

/// Returns the output of a model that makes a call: the rendered history with the call, without the prompt and the end
/// of turn.
fn written(template: &Template, prompt: &RenderedChat) -> Result<String, String> {
    if let Some((_, text)) = BY_HAND.iter().find(|&&(name, _)| name == template.name) {
        return Ok((*text).to_owned());
    }
    let question = render(template, &input(&[user("Hi")], true, false))?.prompt;
    let with_call = render(template, &input(&[user("Hi"), call()], true, false))?.prompt;
    let with_text = render(template, &input(&[user("Hi"), assistant("PLAIN")], true, false))?.prompt;
    let turn = match with_call.strip_prefix(&prompt.prompt) {
        Some(turn) => turn.to_owned(),
        None => {
            let turn = with_call
                .strip_prefix(&question)
                .ok_or_else(|| format!("{with_call:?} does not go on from {question:?}"))?;
            let opening = prompt
                .prompt
                .strip_prefix(&question)
                .unwrap_or(&prompt.generation_prompt);
            let turn = behind_the_same(opening, turn);
            // The prompt opens a reasoning block that is not in the history; the model has to close it.
            let is_open = |end: &&String| opening.contains(&prompt.thinking_start_tag) && !opening.contains(*end);
            match prompt.thinking_end_tags.first().filter(is_open) {
                Some(end) if !turn.trim_start().starts_with(end.trim()) => format!("Because.{end}{turn}"),
                _ => turn.to_owned(),
            }
        }
    };
    let turn = ENDS
        .iter()
        .fold(turn.as_str(), |turn, end| turn.split(end).next().unwrap_or(turn));
    let end = with_text.rsplit_once("PLAIN").map_or("", |(_, end)| end).trim();
    let turn = turn.trim_end();
    match turn.strip_suffix(end).unwrap_or(turn) {
        "" => Err("the template writes nothing for a call".into()),
        turn => Ok(turn.to_owned()),
    }
}

/// Returns `b` without the prefix that it shares with `a`. The prefix does not end inside a tag.
fn behind_the_same<'a>(a: &str, b: &'a str) -> &'a str {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let same = b.floor_char_boundary(same);
    let same = match b[..same].rfind(['<', '[']) {
        Some(open) if !b[open..same].contains(['>', ']']) => open,
        _ => same,
    };
    &b[same..]
}

#[test]
fn what_a_template_writes_as_a_call_is_read_as_that_call() {
    with_a_large_stack(|templates| {
        let (mut read_back, mut wrong) = (0, Vec::new());
        for template in templates {
            let known = NOT_READ_BACK.iter().find(|&&(name, _)| name == template.name);
            let outcome = render(template, &input(&[user("Hi")], true, true)).and_then(|prompt| {
                let text = written(template, &prompt)?;
                let whole = read(&prompt, [text.as_bytes()]);
                let bytes = read(&prompt, text.as_bytes().chunks(1));
                let calls: Vec<Value> = whole
                    .tool_calls
                    .iter()
                    .map(|call| json!([call.name, call.arguments]))
                    .collect();
                let right = json!(calls) == json!([["weather", {"city": CITY, "days": 2}]])
                    && whole.content.trim().is_empty()
                    && bytes.tool_calls.len() == 1
                    && (bytes.content, bytes.thinking) == (whole.content.clone(), whole.thinking.clone());
                if right {
                    Ok(())
                } else {
                    Err(format!("{text:?} is read as {whole:?}"))
                }
            });
            match (outcome, known) {
                (Ok(()), None) => read_back += 1,
                (Err(_), Some((name, why))) => println!("not read back: {name}: {why}"),
                (Ok(()), Some((name, _))) => wrong.push(format!("{name} is read back; take it off the list")),
                (Err(error), None) => wrong.push(format!("{}: {error}", template.name)),
            }
        }
        println!("read back {read_back} of {}", templates.len());
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

/// Plain text without any model family's markers, which every parser must return unchanged.
fn prose() -> String {
    "Braces {like these}, [brackets], <b>tags</b> & \"quotes\" are no calls; 1 < 2. ".repeat(130)
}

#[test]
fn answers_outside_a_format_get_through_in_every_template() {
    with_a_large_stack(|templates| {
        let prose = prose();
        assert!(prose.len() > 10_000);
        let outside = [
            "The weather is nice.",
            "Use {\"a\": 1} or {x}.",
            prose.as_str(),
            "{\"name\": \"weather\", \"argum",
            "{\"name\": \"weather\", \"arguments\": {\"city\": Rome}} said nobody.",
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"",
            "<tool_call>\n<function=weather>\n<parameter=city>\nRome",
            "<tool_call>\n{\"name\": \"nothing\", \"arguments\": {}}\n</tool_call> Done.",
            "[TOOL_CALLS][{\"name\": \"nothing\", \"arguments\": {}}] Done.",
            "<function=nothing>{\"city\": \"Rome\"}</function> Done.",
            "Done: <|python_tag|>weather.call(city=\"Rome\")",
            "<tool_call>",
            "",
            " \n\n ",
        ];
        let squeeze = |text: &str| text.split_whitespace().collect::<String>();
        let (mut count, mut wrong) = (0, Vec::new());
        for template in templates {
            for tools in [true, false] {
                let prompt = render(template, &input(&[user("Hi")], tools, true)).expect("renders");
                for text in outside {
                    count += 1;
                    let whole = read(&prompt, [text.as_bytes()]);
                    let pieces = read(&prompt, text.as_bytes().chunks(3));
                    if (&pieces.content, &pieces.thinking) != (&whole.content, &whole.thinking) {
                        wrong.push(format!(
                            "{}: {text:?} depends on the pieces: {whole:?} {pieces:?}",
                            template.name
                        ));
                    }
                    // If the prompt opens a reasoning block, all of the text is reasoning.
                    let shown = squeeze(&format!("{}{}", whole.thinking, whole.content));
                    if shown != squeeze(text) || !whole.tool_calls.is_empty() {
                        wrong.push(format!(
                            "{}, tools {tools}: {text:?} comes out as {whole:?}",
                            template.name
                        ));
                    }
                }
            }
        }
        println!(
            "{} of {count} answers outside their format got through",
            count - wrong.len()
        );
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}
