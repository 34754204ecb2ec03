use proptest::prelude::*;

use super::*;

fn model(body: &str) -> Option<String> {
    scan_slice(body.as_bytes()).unwrap().model
}

// Traps 27, 62
#[test]
fn the_model_is_found() {
    for (body, expected) in [
        (r#"{"model":"a"}"#, Some("a")),
        (
            r#" {"prompt":"x\"}","Model" : "a" , "options":{"model":"no"}}"#,
            Some("a"),
        ),
        (r#"{"model":"a","MODEL":"b"}"#, Some("b")),
        (r#"{"model":"a","model":null}"#, Some("a")),
        (r#"{"model":"a","model":5}"#, None),
        (r#"{"model":"a"} {"model":"b"}"#, Some("a")),
        (r#"{"model":"a"}]]"#, Some("a")),
        (r#"{"mod\u0065l":"hf:\u006f\/r"}"#, Some("hf:o/r")),
        (r#"{"model":"\ud83d\ude00"}"#, Some("😀")),
        (r#"{"model":"\ud83dx\ud83d"}"#, Some("\u{fffd}x\u{fffd}")),
        (r#"{"model":"\ud83d\ud83d\ude00\u0041"}"#, Some("\u{fffd}😀A")),
        (r#"{"model":"\ude00"}"#, Some("\u{fffd}")),
        (r#"{"models":"a","mode":"b","modelmodelmodelmodel":"c"}"#, None),
        (r#"{"a":[[{"model":"x"}],"]"],"b":-1e5,"c":true,"model":""}"#, Some("")),
        ("{}", None),
        ("null", None),
        (" null ", None),
    ] {
        assert_eq!(model(body).as_deref(), expected, "{body}");
    }
}

#[test]
fn every_member_is_found() {
    let body = r#"{"model":"m","name":"n","from":"f","\u017fource":"s","deſtination":"d","stream":false}"#;
    let text = |text: &str| Some(text.to_owned());
    let expected = Members {
        model: text("m"),
        name: text("n"),
        from: text("f"),
        source: text("s"),
        destination: text("d"),
        stream: Some(false),
        tool_choice: None,
        asks: BTreeSet::new(),
    };
    assert_eq!(scan_slice(body.as_bytes()).unwrap(), expected);
    assert_eq!(scan_slice(br#"{"stream":true,"stream":"yes"}"#).unwrap().stream, None);
    assert_eq!(
        scan_slice(br#"{"stream":true,"stream":null}"#).unwrap().stream,
        Some(true)
    );
}

#[test]
fn members_that_ask_for_something_are_told_from_those_that_do_not() {
    for (body, expected) in [
        (r#"{"num_ctx":2048,"model":"a"}"#, &["num_ctx"][..]),
        (
            r#"{"Num_Ctx":0,"THIN\u212a":false,"\u212aeep_alive":"0"}"#,
            &["keep_alive", "num_ctx", "think"],
        ),
        (r#"{"num_ctx":null,"think":null,"keep_alive":null}"#, &[]),
        (r#"{"num_ctx":1,"num_ctx":null}"#, &[]),
        (r#"{"num_ctx":null,"num_ctx":1}"#, &["num_ctx"]),
        (r#"{"n":1}"#, &[]),
        (r#"{"n":2,"top_k":1}"#, &["n", "top_k"]),
        (r#"{"n":2,"N":1}"#, &[]),
        (r#"{"n":11}"#, &["n"]),
        (r#"{"parallel_tool_calls":true}"#, &[]),
        (r#"{"parallel_tool_calls":false}"#, &["parallel_tool_calls"]),
        (r#"{"options":{},"logit_bias": { } ,"chat_template_kwargs":[ ]}"#, &[]),
        (
            r#"{"options":{"a":{}},"logit_bias":{"1":2}}"#,
            &["logit_bias", "options"],
        ),
        (r#"{"output_config":{"effort":"low","format":null}}"#, &[]),
        (r#"{"output_config":{"effort":"low","x":{"format":1}}}"#, &[]),
        (
            r#"{"output_config":{"Format":{"type":"json_schema"}}}"#,
            &["output_config"],
        ),
        (r#"{"messages":[{"num_ctx":1,"think":true}],"a":{"n":2}}"#, &[]),
    ] {
        let found = scan_slice(body.as_bytes()).unwrap();
        assert_eq!(found.asks.into_iter().collect::<Vec<_>>(), expected, "{body}");
    }
}

#[test]
fn a_choice_of_tools_is_a_word_or_the_type_of_an_object() {
    for (body, expected) in [
        (r#"{"tool_choice":"none"}"#, Some("none")),
        (r#"{"tool_choice":{"x":[{"type":"any"}],"TYPE":"auto"}}"#, Some("auto")),
        (
            r#"{"tool_choice":{"function":{"type":"auto"},"type":"function"}}"#,
            Some("function"),
        ),
        (r#"{"tool_choice":"none","tool_choice":null}"#, Some("none")),
        (r#"{"tool_choice":"none","tool_choice":{}}"#, None),
        (r#"{"tool_choice":[{"type":"none"}]}"#, None),
        ("{}", None),
    ] {
        let found = scan_slice(body.as_bytes()).unwrap();
        assert_eq!(found.tool_choice.as_deref(), expected, "{body}");
    }
}

#[test]
fn what_is_no_object_is_said_so() {
    let deep = format!("{{\"a\":{}", "[".repeat(MAX_DEPTH + 1));
    for body in [
        "",
        "  ",
        "\u{feff}{\"model\":\"a\"}",
        "model=a",
        "[]",
        "\"model\"",
        "nul",
        "nullx",
        "{",
        "{\"model\"",
        "{\"model\":",
        "{\"model\":\"a",
        "{\"model\":\"a\"",
        "{\"model\":\"a\",}",
        "{\"model\" \"a\"}",
        "{model:\"a\"}",
        "{\"model\":}",
        "{\"model\":\"\\x\"}",
        "{\"model\":\"\\u12g4\"}",
        "{\"a\":[1,2}",
        "{\"a\":1 \"model\":\"b\"}",
        &deep,
    ] {
        let brief = &body[..body.len().min(40)];
        assert!(
            matches!(scan_slice(body.as_bytes()), Err(PeekError::NotAnObject)),
            "{brief}"
        );
    }
}

#[test]
fn a_long_value_is_cut_between_characters() {
    let body = format!("{{\"model\":\"hf:{}\"}}", "é".repeat(MAX_VALUE_BYTES));
    let found = model(&body).unwrap();
    assert!(found.starts_with("hf:é") && found.len() >= MAX_VALUE_BYTES - 1 && found.len() <= MAX_VALUE_BYTES);
    assert!(found.chars().skip(3).all(|char| char == 'é'));
}

/// A reader that gives at most so many bytes at a time.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: std::iter::Cycle<std::vec::IntoIter<usize>>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.sizes.next().unwrap_or(1).min(buffer.len());
        self.bytes.read(&mut buffer[..size])
    }
}

fn in_pieces(bytes: &[u8], sizes: Vec<usize>) -> Result<Members, PeekError> {
    scan(Pieces {
        bytes,
        sizes: sizes.into_iter().cycle(),
    })
}

fn any_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f32>().prop_map(|number| serde_json::json!(number)),
        any::<String>().prop_map(Into::into),
        "[\\[\\]{}\"\\\\,: a]{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((prop_oneof![any::<String>(), "type|format"], inner), 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "model",
            "Model",
            "name",
            "FROM",
            "source",
            "destination",
            "stream",
            "prompt",
            "num_ctx",
            "n",
            "options",
            "tool_choice",
            "parallel_tool_calls",
            "output_config",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ]
}

fn expected_value(value: &serde_json::Value, want: Want) -> Value {
    use serde_json::Value as Json;
    match (value, want) {
        (Json::Object(entries), Want::Member(name)) => match entries.iter().rfind(|(key, _)| fold(key) == name) {
            Some((_, value)) => expected_value(value, Want::Value),
            None => Value::Empty,
        },
        (Json::Object(entries), _) if entries.is_empty() => Value::Empty,
        (Json::Array(items), _) if items.is_empty() => Value::Empty,
        (Json::Number(number), _) if number.as_i64() == Some(1) => Value::One,
        (Json::String(text), _) => Value::Text(text.clone()),
        (Json::Bool(value), _) => Value::Bool(*value),
        (Json::Null, _) => Value::Null,
        _ => Value::Other,
    }
}

/// What serde_json and the rules of this module make of the members, one after the other.
fn expected(members: &[(String, serde_json::Value)]) -> Members {
    let mut found = Members::default();
    for (key, value) in members {
        if let Some(member) = Member::of(key) {
            member.set(&mut found, expected_value(value, member.want()));
        }
    }
    found
}

proptest! {
    #[test]
    fn valid_objects_read_as_serde_json_reads_them(
        members in prop::collection::vec((any_key(), any_value()), 0..8),
        blank in "[ \t\r\n]{0,3}",
        sizes in prop::collection::vec(1usize..9, 1..5),
    ) {
        let mut body = format!("{blank}{{");
        for (at, (key, value)) in members.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            body += &format!("{comma}{blank}{}{blank}:{blank}{value}{blank}", serde_json::json!(key));
        }
        body += "}";
        prop_assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok());
        prop_assert_eq!(scan_slice(body.as_bytes()).unwrap(), expected(&members));
        prop_assert_eq!(in_pieces(body.as_bytes(), sizes).unwrap(), expected(&members));
    }

    #[test]
    fn the_way_a_body_is_cut_changes_nothing(
        body in prop_oneof![
            "\\{(\"(model|na\\\\u006de)\":(\"[a\\\\\"u0]{0,6}\"|[0-9tn\\[\\]]{1,3}),?){0,3}\\}?.{0,2}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..64),
        ],
        sizes in prop::collection::vec(1usize..9, 1..5),
    ) {
        let whole = scan_slice(&body).map_err(|error| error.to_string());
        let pieces = in_pieces(&body, sizes).map_err(|error| error.to_string());
        prop_assert_eq!(whole, pieces);
    }
}
