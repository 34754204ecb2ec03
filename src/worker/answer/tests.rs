//! Answers in the formats of several families, whole, cut into pieces, and out of their formats.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::llama::ChatTemplate;

/// Family of formats: its template, and pieces of text that mean something in it.
#[derive(Clone, Copy, Debug)]
struct Family {
    template: &'static str,
    pieces: &'static [&'static str],
}

const TAGGED_JSON: Family = Family {
    template: include_str!("../../../fixtures/templates/tools-and-thinking.jinja"),
    pieces: &[
        "<think>",
        "</think>",
        "\n",
        "<tool_call>",
        "</tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>",
        "{\"name\": \"weather\", \"arguments\": ",
        "{\"city\": \"Rome\", \"days\": 2}}",
    ],
};
const BARE_JSON: Family = Family {
    template: include_str!("../../../fixtures/templates/bare-json.jinja"),
    pieces: &[
        "{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\"}}",
        "{\"name\": \"weather\", \"parameters\": ",
        "{",
        "}",
        "{\"city\": \"Rome\"",
    ],
};
const MARKED_ARRAY: Family = Family {
    template: include_str!("../../../fixtures/templates/marked-array.jinja"),
    pieces: &[
        "[TOOL_CALLS]",
        "[TOOL_CALLS][",
        "{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}, \"id\": \"abcdefghi\"}",
        "{\"name\": \"weather\", \"arguments\": {\"ci",
        ", ",
        "]",
        "[",
    ],
};
const TAGGED_PARAMETERS: Family = Family {
    template: include_str!("../../../fixtures/templates/tagged-parameters.jinja"),
    pieces: &[
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n",
        "<function=weather>\n",
        "<parameter=city>\nRome\n</parameter>\n",
        "<parameter=days>\n2\n</parameter>\n",
        "<parameter=",
        "</function>\n</tool_call>",
        "\n",
    ],
};
const OPENED_THOUGHT: Family = Family {
    template: include_str!("../../../fixtures/templates/opened-thought.jinja"),
    pieces: &["</think>", "<think>", "\n", "\n\n", "</thi", "<"],
};
const CHANNELS: Family = Family {
    template: include_str!("../../../fixtures/templates/channels.jinja"),
    pieces: &[
        "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>",
        "<|channel|>commentary<|message|>",
        "<|end|>",
        "<|start|>assistant",
        " to=functions.weather<|channel|>commentary json<|message|>{\"city\": \"Rome\"}",
        "<|channel|>commentary to=functions.weather<|message|>",
        "{\"city\": ",
    ],
};
const KEYED_VALUES: Family = Family {
    template: include_str!("../../../fixtures/templates/keyed-values.jinja"),
    pieces: &[
        "<|channel>thought\n",
        "<channel|>",
        "<|channel>",
        "<|tool_call>call:weather{city:<|\"|>Rome<|\"|>}<tool_call|>",
        "<|tool_call>call:weather{city:",
        "<|\"|>Rome<|\"|>",
        "}<tool_call|>",
        "<|tool_call>",
    ],
};
const PLAIN: Family = Family {
    template: include_str!("../../../fixtures/templates/plain.jinja"),
    pieces: &["<tool_call>", "<think>", "{", "[", "\n"],
};
const FAMILIES: [Family; 8] = [
    TAGGED_JSON,
    BARE_JSON,
    MARKED_ARRAY,
    TAGGED_PARAMETERS,
    OPENED_THOUGHT,
    CHANNELS,
    KEYED_VALUES,
    PLAIN,
];

fn input(messages: serde_json::Value, tools: bool) -> String {
    let mut input = json!({
        "messages": messages,
        "now": 1_700_000_000,
        "tools": [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        }}}],
    });
    if !tools {
        input["tools"] = json!([]);
    }
    input.to_string()
}

fn syntax(family: Family) -> ChatSyntax {
    syntax_with(family, true)
}

fn syntax_with(family: Family, tools: bool) -> ChatSyntax {
    let template = ChatTemplate::new(family.template, "", "").expect("compiles");
    let input = input(json!([{"role": "user", "content": "Hi"}]), tools);
    ChatSyntax {
        rendered: template.apply(&input).expect("renders"),
        ..ChatSyntax::default()
    }
}

fn read_as<'a>(syntax: &ChatSyntax, pieces: impl IntoIterator<Item = &'a [u8]>, cut: bool) -> Delta {
    let mut answer = AnswerReader::new(&[], Some(syntax)).expect("a parser");
    let mut all = Delta::default();
    let mut add = |delta: Delta| {
        all.content.push_str(&delta.content);
        all.thinking.push_str(&delta.thinking);
        all.tool_calls.extend(delta.tool_calls);
    };
    for piece in pieces {
        add(answer.push(piece));
    }
    add(answer.finish(cut));
    all
}

fn read(family: Family, text: &str) -> Delta {
    read_as(&syntax(family), [text.as_bytes()], false)
}

/// Returns the name, the arguments and, if the model gave one, the id of each call.
fn calls(delta: &Delta) -> Vec<String> {
    let call = |call: &crate::inference::ToolCall| {
        let id = if call.id.starts_with("call_") {
            ""
        } else {
            call.id.as_str()
        };
        format!(
            "{}{}{id}",
            call.name,
            serde_json::to_string(&call.arguments).expect("JSON")
        )
    };
    delta.tool_calls.iter().map(call).collect()
}

fn parts(delta: &Delta) -> (&str, &str, Vec<String>) {
    (&delta.content, &delta.thinking, calls(delta))
}

/// Known answer: family, text, content, thinking, calls.
type Known = (
    Family,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const ROME: &str = "weather{\"city\":\"Rome\"}";
const BOTH: &str = "weather{\"city\":\"Rome\",\"days\":2}";

const IN_FORMAT: &[Known] = &[
    (TAGGED_JSON, "Hello.", "Hello.", "", &[]),
    (
        TAGGED_JSON,
        "<think>\nWhy?\n</think>\n\n Hello.",
        "Hello.",
        "Why?\n",
        &[],
    ),
    (TAGGED_JSON, "<think>\n\n</think>\n\nHello.", "Hello.", "", &[]),
    (
        TAGGED_JSON,
        "<think>\nWhy?\n</think>\n\nSo:\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>\n\
         <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 2}}\n</tool_call>",
        "So:\n",
        "Why?\n",
        &[ROME, BOTH],
    ),
    (
        BARE_JSON,
        "{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\"}}",
        "",
        "",
        &[ROME],
    ),
    (
        MARKED_ARRAY,
        "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}, \"id\": \"abcdefghi\"}, \
         {\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 2}, \"id\": \"123456789\"}]",
        "",
        "",
        &[
            "weather{\"city\":\"Rome\"}abcdefghi",
            "weather{\"city\":\"Rome\",\"days\":2}123456789",
        ],
    ),
    (
        TAGGED_PARAMETERS,
        "So:\n<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n</parameter>\n\
         </function>\n</tool_call>",
        "So:\n",
        "",
        &[BOTH],
    ),
    (
        OPENED_THOUGHT,
        "Why?\n</think>\n\nHello é😀.",
        "Hello é😀.",
        "Why?\n",
        &[],
    ),
    (OPENED_THOUGHT, "Why", "", "Why", &[]),
    (
        CHANNELS,
        "<|channel|>analysis<|message|>Why?<|end|><|start|>assistant<|channel|>final<|message|>Hello.",
        "Hello.",
        "Why?",
        &[],
    ),
    (
        CHANNELS,
        "<|channel|>analysis<|message|>Why?<|end|><|start|>assistant to=functions.weather<|channel|>commentary json\
         <|message|>{\"city\": \"Rome\"}",
        "",
        "Why?",
        &[ROME],
    ),
    (
        KEYED_VALUES,
        "<|channel>thought\nWhy?<channel|>Hello.",
        "Hello.",
        "Why?",
        &[],
    ),
    (
        KEYED_VALUES,
        "So: <|tool_call>call:weather{city:<|\"|>Rome<|\"|>,days:2}<tool_call|>",
        "So: ",
        "",
        &[BOTH],
    ),
    (PLAIN, "<think>{} [x]", "<think>{} [x]", "", &[]),
];

/// Answers that leave their formats: a call never appears as text, and everything else appears once.
const OUT_OF_FORMAT: &[Known] = &[
    (
        TAGGED_JSON,
        "foo < bar <b> {\"a\":1}",
        "foo < bar <b> {\"a\":1}",
        "",
        &[],
    ),
    (TAGGED_JSON, "<tool_call> is a tag", "<tool_call> is a tag", "", &[]),
    (TAGGED_JSON, "<tool_call>", "<tool_call>", "", &[]),
    (TAGGED_JSON, "a <tool_", "a <tool_", "", &[]),
    (
        TAGGED_JSON,
        "<tool_call>\n{\"name\": \"other\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"other\", \"arguments\": {}}\n</tool_call>",
        "",
        &[],
    ),
    (
        TAGGED_JSON,
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": Rome}}\n</tool_call> Done.",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": Rome}}\n</tool_call> Done.",
        "",
        &[],
    ),
    (
        TAGGED_JSON,
        "<think>Why?</think><tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>\nDone. {x}",
        "Done. {x}",
        "Why?",
        &[ROME],
    ),
    (
        TAGGED_JSON,
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>\n<tool_call>oops",
        "\n<tool_call>oops",
        "",
        &[ROME],
    ),
    (
        BARE_JSON,
        "The weather is nice. {\"a\":1}",
        "The weather is nice. {\"a\":1}",
        "",
        &[],
    ),
    (
        BARE_JSON,
        "fn main() { println!(\"{}\", 1); }",
        "fn main() { println!(\"{}\", 1); }",
        "",
        &[],
    ),
    (BARE_JSON, "{\"name\": \"weather\"", "{\"name\": \"weather\"", "", &[]),
    (
        BARE_JSON,
        "{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\"}} Done.",
        " Done.",
        "",
        &[ROME],
    ),
    (
        TAGGED_PARAMETERS,
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>",
        "",
        &[],
    ),
    (CHANNELS, "Hello {world}.", "Hello {world}.", "", &[]),
    (
        CHANNELS,
        "<|channel|>analysis<|message|>Why?<|end|>Hello.",
        "Hello.",
        "Why?",
        &[],
    ),
    (
        KEYED_VALUES,
        "Hello <channel|> world <channel|>",
        "Hello  world ",
        "",
        &[],
    ),
    (OPENED_THOUGHT, "  \n", "", "", &[]),
    (TAGGED_JSON, " \n", "", "", &[]),
];

#[test]
fn answers_are_read_in_every_format() {
    for &(family, text, content, thinking, expected) in IN_FORMAT {
        let all = read(family, text);
        assert_eq!(parts(&all), (content, thinking, calls_of(expected)), "{text}");
    }
}

// common/chat throws for text that is not in the template's format, in the middle of a good stream (trap 66).
#[test]
fn text_in_no_format_gets_through_once_and_calls_never_leak() {
    for &(family, text, content, thinking, expected) in OUT_OF_FORMAT {
        let all = read(family, text);
        assert_eq!(parts(&all), (content, thinking, calls_of(expected)), "{text}");
    }
}

fn calls_of(expected: &[&str]) -> Vec<String> {
    expected.iter().map(|&call| call.to_owned()).collect()
}

#[test]
fn one_byte_at_a_time_is_the_same() {
    for &(family, text, ..) in IN_FORMAT.iter().chain(OUT_OF_FORMAT) {
        let syntax = syntax(family);
        for cut in [false, true] {
            let whole = read_as(&syntax, [text.as_bytes()], cut);
            let bytes = read_as(&syntax, text.as_bytes().chunks(1), cut);
            assert_eq!(parts(&bytes), parts(&whole), "{text}");
        }
    }
}

// Clients show a call's text to users if it is streamed as content (trap 66).
#[test]
fn nothing_of_a_call_is_shown_while_it_is_written() {
    for &(family, text, content, _, expected) in IN_FORMAT {
        let mut answer = AnswerReader::new(&[], Some(&syntax(family))).expect("a parser");
        let mut shown = String::new();
        for byte in text.as_bytes().chunks(1) {
            shown.push_str(&answer.push(byte).content);
            assert!(content.starts_with(&shown), "{shown:?} of {text}");
        }
        let rest = answer.finish(false);
        assert!(rest.content.is_empty(), "{:?} was held back of {text}", rest.content);
        // A call is sent as soon as something follows it; in these formats its marker does.
        if matches!(family.template, t if t == TAGGED_JSON.template || t == TAGGED_PARAMETERS.template) {
            assert!(rest.tool_calls.is_empty(), "{text}");
        }
        assert!(
            rest.tool_calls.len() <= 1 && expected.len() >= rest.tool_calls.len(),
            "{text}"
        );
    }
}

#[test]
fn a_call_that_a_limit_cut_off_is_neither_call_nor_text() {
    for (family, text) in [
        (
            TAGGED_JSON,
            "So: <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"ci",
        ),
        (TAGGED_JSON, "So: <tool_call>\n{\"na"),
        (BARE_JSON, "So: {\"name\": \"weather\", \"param"),
        (
            TAGGED_PARAMETERS,
            "So: <tool_call>\n<function=weather>\n<parameter=city>\nRo",
        ),
        (KEYED_VALUES, "So: <|tool_call>call:weather{city:"),
    ] {
        let all = read_as(&syntax(family), [text.as_bytes()], true);
        assert_eq!((all.content.trim_end(), all.tool_calls.len()), ("So:", 0), "{text}");
    }
    // A tag that is not complete is text.
    let all = read_as(&syntax(TAGGED_JSON), [b"So: <tool".as_slice()], true);
    assert_eq!(all.content, "So: <tool");
}

// A model that reasons although the request says no must not leak its reasoning (trap 43).
#[test]
fn a_thought_that_nobody_wants_is_thrown_away() {
    let mut syntax = syntax(OPENED_THOUGHT);
    syntax.hides_thinking = true;
    let all = read_as(&syntax, b"Why?\n</think>\n\nHello.".chunks(2), false);
    assert_eq!(parts(&all), ("Hello.", "", Vec::new()));
}

// Clients match results to calls by id (trap 8).
#[test]
fn ids_are_unique_in_the_conversation() {
    let call = |id: &str| format!("{{\"name\": \"weather\", \"arguments\": {{\"city\": \"Rome\"}}, \"id\": \"{id}\"}}");
    let text = format!(
        "[TOOL_CALLS][{}, {}, {}]",
        call("aaaaaaaaa"),
        call("aaaaaaaaa"),
        call("bbbbbbbbb")
    );
    let mut syntax = syntax(MARKED_ARRAY);
    syntax.used_ids = vec!["bbbbbbbbb".into()];
    let all = read_as(&syntax, [text.as_bytes()], false);
    let ids: Vec<&str> = all.tool_calls.iter().map(|call| call.id.as_str()).collect();
    assert_eq!(ids[0], "aaaaaaaaa");
    assert!(
        ids[1..].iter().all(|id| id.starts_with("call_") && id.len() == 13),
        "{ids:?}"
    );
    assert_ne!(ids[1], ids[2]);
}

#[test]
fn a_turn_that_is_continued_shows_only_what_is_new() {
    let template = ChatTemplate::new(PLAIN.template, "", "").expect("compiles");
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "One, two"}]);
    let mut input: serde_json::Value = serde_json::from_str(&input(messages, false)).expect("JSON");
    input["continue_final_message"] = true.into();
    let syntax = ChatSyntax {
        rendered: template.apply(&input.to_string()).expect("renders"),
        ..ChatSyntax::default()
    };
    assert!(
        syntax.rendered.prompt.ends_with("One, two"),
        "{}",
        syntax.rendered.prompt
    );
    assert_eq!(read_as(&syntax, b", three".chunks(1), false).content, ", three");
}

#[test]
fn a_long_answer_is_parsed_a_bounded_number_of_times() {
    let reader = |family, text: &str| {
        let mut reader = FormatReader::new(&syntax(family)).expect("a parser");
        let mut content = String::new();
        for piece in text.as_bytes().chunks(4) {
            content.push_str(&reader.push(std::str::from_utf8(piece).expect("ASCII")).content);
        }
        (content, reader)
    };
    // Running text needs no parser, however many brackets it has.
    let prose = "Some text with <b>tags</b>, {braces} and [brackets]. ".repeat(2000);
    let (content, read) = reader(TAGGED_JSON, &prose);
    assert_eq!(content, prose);
    assert!(read.spent().1 < 4, "{:?}", read.spent());
    // A long call does, but not with each token.
    let call = format!(
        "<tool_call>\n{{\"name\": \"weather\", \"arguments\": {{\"city\": \"{}\"}}}}\n</tool_call>",
        "Rome and ".repeat(10_000)
    );
    let (content, mut read) = reader(TAGGED_JSON, &call);
    let (bytes, parses) = read.spent();
    assert!(bytes < 64 * call.len() && parses < 1000, "{bytes} {parses}");
    assert_eq!((content.as_str(), read.finish("", false).tool_calls.len()), ("", 1));
}

#[test]
fn brackets_without_end_do_not_overflow_the_stack() {
    for bracket in ["[", "{\"a\":", "[{\"a\":"] {
        let text = format!(
            "<tool_call>\n{{\"name\": \"weather\", \"arguments\": {{\"city\": {}",
            bracket.repeat(100_000)
        );
        let all = read_as(&syntax(TAGGED_JSON), text.as_bytes().chunks(1000), false);
        assert!(all.content == text && all.tool_calls.is_empty());
    }
}

fn cuttings() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1usize..12, 1..8)
}

/// Cuts `text` into pieces of these lengths, which are repeated.
fn cut_up<'a>(text: &'a str, lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = text.as_bytes();
    let mut lengths = lengths.iter().cycle();
    std::iter::from_fn(move || {
        let length = (*lengths.next()?).min(rest.len());
        let (piece, left) = rest.split_at(length);
        rest = left;
        (length > 0).then_some(piece)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cutting_gives_the_same_events(
        family in 0..FAMILIES.len(),
        choices in proptest::collection::vec(0usize..16, 0..9),
        lengths in cuttings(),
        cut in any::<bool>(),
        tools in any::<bool>(),
    ) {
        let family = FAMILIES[family];
        let mut words = Vec::new();
        let mut text = String::new();
        for (index, choice) in choices.into_iter().enumerate() {
            match family.pieces.get(choice) {
                Some(piece) => text.push_str(piece),
                None => {
                    let word = format!("é😀word{index}.");
                    text.push_str(&word);
                    words.push(word);
                }
            }
        }
        let syntax = syntax_with(family, tools);
        let whole = read_as(&syntax, [text.as_bytes()], cut);
        let pieces = read_as(&syntax, cut_up(&text, &lengths), cut);
        prop_assert_eq!(parts(&pieces), parts(&whole), "{}", text);
        // Every word is somewhere, and in one place only, unless it stands in a call that a limit cut off.
        let everything = format!("{}{}{}", whole.content, whole.thinking, calls(&whole).concat());
        for word in words {
            let count = everything.matches(&word).count();
            prop_assert!(count == 1 || (cut && count == 0), "{} of {} in {}", word, text, everything);
        }
    }
}
