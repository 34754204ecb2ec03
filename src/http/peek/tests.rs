use proptest::prelude::*;

use super::*;

const MODEL: MemberKey = MemberKey::new("model");
const TOOL_CHOICE: MemberKey = MemberKey::with_member("tool_choice", "type");

/// Members of a body that `keys` has, in their order.
fn scanned(body: &[u8], keys: &[MemberKey]) -> Result<Vec<(&'static str, PeekedValue)>, PeekError> {
    let mut found = Vec::new();
    scan_slice(body, keys, |name, value| found.push((name, value)))?;
    Ok(found)
}

/// The last value of a key.
fn last(body: &str, key: MemberKey) -> Option<PeekedValue> {
    scanned(body.as_bytes(), &[key]).unwrap().pop().map(|(_, value)| value)
}

fn text(text: &str) -> PeekedValue {
    PeekedValue::Text(text.to_owned())
}

// A key matches in any case, and a body is routed without being parsed into a struct (traps 27, 62).
#[test]
fn the_model_is_found() {
    for (body, expected) in [
        (r#"{"model":"a"}"#, Some("a")),
        (
            r#" {"prompt":"x\"}","Model" : "a" , "options":{"model":"no"}}"#,
            Some("a"),
        ),
        (r#"{"model":"a","MODEL":"b"}"#, Some("b")),
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
        assert_eq!(last(body, MODEL), expected.map(text), "{body}");
    }
}

#[test]
fn every_member_comes_in_its_order_and_keys_are_folded_as_in_go() {
    let keys = ["source", "model", "stream", "n", "think", "keep_alive", "options"].map(MemberKey::new);
    let body = r#"{"model":"a","\u017fource":"s","ſource":1,"stream":false,"N":1,"n":11,"THIN\u212a":null,"\u212aeep_alive":"0",
        "options":{},"options":[ ],"options":{"a":{}},"prompt":"x","messages":[{"model":"b","n":1}],"model":null}"#;
    assert_eq!(
        scanned(body.as_bytes(), &keys).unwrap(),
        [
            ("model", text("a")),
            ("source", text("s")),
            ("source", PeekedValue::One),
            ("stream", PeekedValue::Bool(false)),
            ("n", PeekedValue::One),
            ("n", PeekedValue::Other),
            ("think", PeekedValue::Null),
            ("keep_alive", text("0")),
            ("options", PeekedValue::Empty),
            ("options", PeekedValue::Empty),
            ("options", PeekedValue::Other),
            ("model", PeekedValue::Null),
        ]
    );
}

#[test]
fn a_member_stands_for_its_object() {
    for (body, expected) in [
        (r#"{"tool_choice":"none"}"#, Some(text("none"))),
        (
            r#"{"tool_choice":{"x":[{"type":"any"}],"TYPE":"auto"}}"#,
            Some(text("auto")),
        ),
        (
            r#"{"tool_choice":{"function":{"type":"auto"},"type":"function"}}"#,
            Some(text("function")),
        ),
        (r#"{"tool_choice":"none","tool_choice":null}"#, Some(PeekedValue::Null)),
        (r#"{"tool_choice":"none","tool_choice":{}}"#, Some(PeekedValue::Empty)),
        (
            r#"{"tool_choice":{"function":{"type":"auto"}}}"#,
            Some(PeekedValue::Empty),
        ),
        (r#"{"tool_choice":[{"type":"none"}]}"#, Some(PeekedValue::Other)),
        ("{}", None),
    ] {
        assert_eq!(last(body, TOOL_CHOICE), expected, "{body}");
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
            matches!(scanned(body.as_bytes(), &[MODEL]), Err(PeekError::NotAnObject)),
            "{brief}"
        );
    }
}

#[test]
fn a_long_value_is_cut_between_characters() {
    let body = format!("{{\"model\":\"hf:{}\"}}", "é".repeat(MAX_VALUE_BYTES));
    let Some(PeekedValue::Text(found)) = last(&body, MODEL) else {
        panic!()
    };
    assert!(found.starts_with("hf:é") && found.len() >= MAX_VALUE_BYTES - 1 && found.len() <= MAX_VALUE_BYTES);
    assert!(found.chars().skip(3).all(|char| char == 'é'));
}

/// Reader that gives at most so many bytes at a time.
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

fn in_pieces(bytes: &[u8], sizes: Vec<usize>) -> Result<Vec<(&'static str, PeekedValue)>, PeekError> {
    let reader = Pieces {
        bytes,
        sizes: sizes.into_iter().cycle(),
    };
    let mut found = Vec::new();
    scan(reader, &KEYS, |name, value| found.push((name, value)))?;
    Ok(found)
}

const KEYS: [MemberKey; 9] = [
    MODEL,
    MemberKey::new("name"),
    MemberKey::new("from"),
    MemberKey::new("stream"),
    MemberKey::new("num_ctx"),
    MemberKey::new("n"),
    MemberKey::new("options"),
    TOOL_CHOICE,
    MemberKey::with_member("output_config", "format"),
];

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

fn expected_value(value: &serde_json::Value, detail: Detail) -> PeekedValue {
    use serde_json::Value as Json;
    match (value, detail) {
        (Json::Object(entries), Detail::Member(name)) => match entries.iter().rfind(|(key, _)| fold(key) == name) {
            Some((_, value)) => expected_value(value, Detail::Value),
            None => PeekedValue::Empty,
        },
        (Json::Object(entries), _) if entries.is_empty() => PeekedValue::Empty,
        (Json::Array(items), _) if items.is_empty() => PeekedValue::Empty,
        (Json::Number(number), _) if number.as_i64() == Some(1) => PeekedValue::One,
        (Json::String(text), _) => PeekedValue::Text(text.clone()),
        (Json::Bool(value), _) => PeekedValue::Bool(*value),
        (Json::Null, _) => PeekedValue::Null,
        _ => PeekedValue::Other,
    }
}

/// Members that a scan should find, according to serde_json.
fn expected(members: &[(String, serde_json::Value)]) -> Vec<(&'static str, PeekedValue)> {
    let find = |key: &str| KEYS.iter().find(|known| known.name == fold(key));
    members
        .iter()
        .filter_map(|(key, value)| find(key).map(|key| (key.name, expected_value(value, Detail::of(Some(key))))))
        .collect()
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
        prop_assert_eq!(scanned(body.as_bytes(), &KEYS).unwrap(), expected(&members));
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
        let whole = scanned(&body, &KEYS).map_err(|error| error.to_string());
        let pieces = in_pieces(&body, sizes).map_err(|error| error.to_string());
        prop_assert_eq!(whole, pieces);
    }
}
