//! Tests of the order of events and the content of whole responses.

use futures_util::{StreamExt, stream};
use proptest::prelude::*;
use serde_json::Value;

use super::{echo::RequestEcho, events::ResponseEvents, whole};
use crate::{
    api::{
        error::ApiError,
        stream::FrameEncoder,
        tests::fake::{calls, delta, finish, text, thinking},
    },
    inference::{Delta, Event, FinishReason},
};

fn end() -> Event {
    finish(FinishReason::Length, &[])
}

/// Returns name and data of every event.
fn events_of(events: Vec<Event>, failure: Option<ApiError>) -> Vec<(String, String)> {
    let mut encoder = ResponseEvents::new(RequestEcho::default(), "resp_7".into());
    let mut out = Vec::new();
    for event in events {
        encoder.event(event, &mut out);
    }
    if let Some(error) = failure {
        encoder.failure(&error, &mut out);
    }
    String::from_utf8(out)
        .unwrap()
        .split_terminator("\n\n")
        .map(|event| {
            let (name, data) = event.split_once('\n').unwrap();
            let name = name.strip_prefix("event: ").unwrap();
            (name.to_owned(), data.strip_prefix("data: ").unwrap().to_owned())
        })
        .collect()
}

fn json(data: &str) -> Value {
    serde_json::from_str(data).unwrap()
}

/// Returns the names without their common prefix, each with its `output_index`.
fn order(events: &[(String, String)]) -> Vec<String> {
    let name = |(name, data): &(String, String)| {
        let name = name.trim_start_matches("response.").to_owned();
        match &json(data)["output_index"] {
            Value::Null => name,
            index => format!("{name} {index}"),
        }
    };
    events.iter().map(name).collect()
}

/// Returns the items of the last event's response.
fn output(events: &[(String, String)]) -> Vec<Value> {
    let (_, data) = events.last().unwrap();
    json(data)["response"]["output"].as_array().unwrap().clone()
}

const TEXT: [&str; 2] = ["output_item.added", "content_part.added"];
const TEXT_END: [&str; 3] = ["output_text.done", "content_part.done", "output_item.done"];
const CALL: [&str; 4] = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
];

fn at(index: usize, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("{name} {index}")).collect()
}

fn expected(parts: &[Vec<String>]) -> Vec<String> {
    let mut names = vec!["created".to_owned(), "in_progress".to_owned()];
    names.extend(parts.concat());
    names.push("completed".to_owned());
    names
}

#[test]
fn text_alone() {
    let events = events_of(vec![text("Hi"), text(" you"), end()], None);
    let deltas = at(0, &["output_text.delta", "output_text.delta"]);
    assert_eq!(order(&events), expected(&[at(0, &TEXT), deltas, at(0, &TEXT_END)]));
    let id = json(&events[2].1)["item"]["id"].as_str().unwrap().to_owned();
    let masked: Vec<String> = events.iter().map(|(_, data)| data.replace(&id, "msg_1")).collect();
    assert_eq!(
        masked[2..10],
        [
            r#"{"item":{"content":[],"id":"msg_1","role":"assistant","status":"in_progress","type":"message"},"output_index":0,"sequence_number":2,"type":"response.output_item.added"}"#,
            r#"{"content_index":0,"item_id":"msg_1","output_index":0,"part":{"annotations":[],"logprobs":[],"text":"","type":"output_text"},"sequence_number":3,"type":"response.content_part.added"}"#,
            r#"{"content_index":0,"delta":"Hi","item_id":"msg_1","logprobs":[],"output_index":0,"sequence_number":4,"type":"response.output_text.delta"}"#,
            r#"{"content_index":0,"delta":" you","item_id":"msg_1","logprobs":[],"output_index":0,"sequence_number":5,"type":"response.output_text.delta"}"#,
            r#"{"content_index":0,"item_id":"msg_1","logprobs":[],"output_index":0,"sequence_number":6,"text":"Hi you","type":"response.output_text.done"}"#,
            r#"{"content_index":0,"item_id":"msg_1","output_index":0,"part":{"annotations":[],"logprobs":[],"text":"Hi you","type":"output_text"},"sequence_number":7,"type":"response.content_part.done"}"#,
            r#"{"item":{"content":[{"annotations":[],"logprobs":[],"text":"Hi you","type":"output_text"}],"id":"msg_1","role":"assistant","status":"completed","type":"message"},"output_index":0,"sequence_number":8,"type":"response.output_item.done"}"#,
            &masked[9],
        ]
    );
    let completed = json(&masked[9]);
    assert_eq!(completed["sequence_number"], 9);
    let response = &completed["response"];
    assert_eq!(
        (&response["status"], &response["id"]),
        (&"completed".into(), &"resp_7".into())
    );
    assert_eq!(
        response["usage"].to_string(),
        r#"{"input_tokens":10,"input_tokens_details":{"cached_tokens":3},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":12}"#
    );
    assert!(response["completed_at"].is_i64());
    let started = json(&masked[0]);
    assert!(started["response"]["usage"].is_null() && started["response"]["completed_at"].is_null());
}

#[test]
fn thoughts_close_before_the_text_that_follows() {
    let both = delta(Delta {
        thinking: "m".into(),
        content: "\n\nx".into(),
        ..Delta::default()
    });
    let events = events_of(vec![thinking("H"), both, end()], None);
    let thoughts = [
        "output_item.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "output_item.done",
    ];
    assert_eq!(
        order(&events),
        expected(&[
            at(0, &thoughts),
            at(1, &TEXT),
            at(1, &["output_text.delta"]),
            at(1, &TEXT_END)
        ])
    );
    let output = output(&events);
    assert_eq!(output[0]["encrypted_content"], "Hm");
    assert_eq!(output[0]["summary"][0]["text"], "Hm");
    assert_eq!(output[1]["content"][0]["text"], "\n\nx");
}

#[test]
fn text_before_and_after_calls_is_kept_each_with_an_index_of_its_own() {
    let events = events_of(
        vec![
            text("a"),
            calls(&[("c1", "f", r#"{"b":1}"#), ("c2", "g", "{}")]),
            text("\n"),
            text("z"),
            end(),
        ],
        None,
    );
    let delta = ["output_text.delta"];
    assert_eq!(
        order(&events),
        expected(&[
            at(0, &TEXT),
            at(0, &delta),
            at(0, &TEXT_END),
            at(1, &CALL),
            at(2, &CALL),
            at(3, &TEXT),
            at(3, &delta),
            at(3, &TEXT_END),
        ])
    );
    let output = output(&events);
    let kinds: Vec<&str> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["message", "function_call", "function_call", "message"]);
    assert_eq!(
        (&output[1]["call_id"], &output[1]["arguments"]),
        (&"c1".into(), &r#"{"b":1}"#.into())
    );
    assert_eq!(output[3]["content"][0]["text"], "\nz");
    let ids: std::collections::HashSet<&str> = output.iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 4, "{ids:?}");
    assert_eq!(output[3]["id"], "msg_7_3");
}

#[test]
fn blanks_around_a_call_are_no_message() {
    let events = events_of(vec![text("\n"), calls(&[("c1", "f", "{}")]), text("\n\n"), end()], None);
    assert_eq!(order(&events), expected(&[at(0, &CALL)]));
    let call = json(&events[2].1);
    assert_eq!(
        call["item"]
            .to_string()
            .replace(call["item"]["id"].as_str().unwrap(), "fc"),
        r#"{"arguments":"","call_id":"c1","id":"fc","name":"f","status":"in_progress","type":"function_call"}"#
    );
}

#[test]
fn blanks_alone_are_a_message_and_nothing_is_none() {
    let events = events_of(vec![text("\n"), end()], None);
    assert_eq!(output(&events)[0]["content"][0]["text"], "\n");
    let events = events_of(vec![end()], None);
    assert_eq!(order(&events), expected(&[]));
    assert!(output(&events).is_empty());
}

#[test]
fn a_failure_is_the_last_event_whenever_it_comes() {
    for (status, code) in [
        (400, "invalid_prompt"),
        (500, "server_error"),
        (503, "rate_limit_exceeded"),
    ] {
        let error = ApiError::new(hyper::StatusCode::from_u16(status).unwrap(), "why");
        let events = events_of(Vec::new(), Some(error));
        assert_eq!(order(&events), ["created", "in_progress", "failed"]);
        let response = &json(&events[2].1)["response"];
        assert_eq!(response["status"], "failed");
        assert_eq!(
            response["error"].to_string(),
            format!(r#"{{"code":"{code}","message":"why"}}"#)
        );
    }
    let events = events_of(
        vec![calls(&[("c1", "f", "{}")]), text("a")],
        Some(ApiError::internal("the worker died")),
    );
    assert_eq!(events.last().unwrap().0, "response.failed");
    assert_eq!(output(&events).len(), 1, "what was complete is there");
    let numbers: Vec<u64> = events
        .iter()
        .map(|(_, data)| json(data)["sequence_number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
}

#[test]
fn keys_are_sorted_at_every_level() {
    fn check(value: &Value) {
        match value {
            Value::Object(map) => {
                assert!(map.keys().is_sorted(), "{map:?}");
                map.values().for_each(check);
            }
            Value::Array(items) => items.iter().for_each(check),
            _ => {}
        }
    }
    let all = vec![thinking("H"), text("a"), calls(&[("c1", "f", "{}")]), end()];
    for (name, data) in events_of(all, None) {
        let data = json(&data);
        check(&data);
        assert_eq!(data["type"], name);
    }
}

async fn whole_of(events: Vec<Event>) -> Value {
    let steps = stream::iter(events.into_iter().map(Ok)).boxed();
    let bytes = whole(steps, &RequestEcho::default(), "resp_7".into()).await.unwrap();
    assert!(bytes.ends_with(b"}\n"));
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_whole_response_holds_the_items_in_their_order() {
    let response = whole_of(vec![
        thinking("Hm"),
        text("a"),
        calls(&[("c1", "f", "{}")]),
        calls(&[("c2", "g", "{}")]),
        text("z"),
        end(),
    ])
    .await;
    let output = response["output"].as_array().unwrap();
    let ids: Vec<&str> = output.iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(
        (ids[0], ids[2], ids[3], ids[4]),
        ("rs_resp_7", "fc_resp_7_0", "fc_resp_7_1", "msg_7_4")
    );
    assert_eq!(
        output[0].to_string(),
        r#"{"id":"rs_resp_7","type":"reasoning","summary":[{"type":"summary_text","text":"Hm"}],"encrypted_content":"Hm"}"#
    );
    assert_eq!(
        output[2].to_string(),
        r#"{"id":"fc_resp_7_0","type":"function_call","status":"completed","call_id":"c1","name":"f","arguments":"{}"}"#
    );
    assert_eq!(output[1]["content"][0]["text"], "a");
    assert_eq!(output[4]["content"][0]["text"], "z");
}

#[tokio::test]
async fn a_whole_response_without_words_has_an_empty_message() {
    for events in [vec![end()], vec![thinking("Hm"), end()]] {
        let response = whole_of(events).await;
        let last = response["output"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            (&last["type"], &last["content"][0]["text"]),
            (&"message".into(), &"".into())
        );
    }
    let response = whole_of(vec![calls(&[("c1", "f", "{}")]), end()]).await;
    assert_eq!(response["output"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_whole_response_that_breaks_off_is_an_error() {
    let steps = stream::iter([Ok(text("a"))]).boxed();
    assert!(whole(steps, &RequestEcho::default(), "resp_7".into()).await.is_err());
}

/// Returns reasoning, text and calls of the last event's response, without ids.
fn content(events: &[(String, String)]) -> Vec<String> {
    output(events)
        .into_iter()
        .map(|mut item| {
            item.as_object_mut().unwrap().remove("id");
            item.to_string()
        })
        .collect()
}

proptest! {
    #[test]
    fn the_output_does_not_depend_on_how_the_answer_was_cut(
        parts in proptest::collection::vec((0..3u8, "[ \n]{0,2}[a-zé]{0,4}[ \n]{0,2}"), 0..8),
        cuts in proptest::collection::vec(any::<bool>(), 64),
    ) {
        // Neighbors of one kind are one, however the stream was cut.
        let mut joined: Vec<(u8, String)> = Vec::new();
        for (kind, words) in parts {
            match joined.last_mut() {
                Some((last, text)) if *last == kind && kind < 2 => text.push_str(&words),
                _ => joined.push((kind, words)),
            }
        }
        let event = |kind: u8, words: &str| match kind {
            0 => text(words),
            1 => thinking(words),
            _ => calls(&[("c", "f", "{}")]),
        };
        let whole = joined.iter().map(|(kind, words)| event(*kind, words));
        let mut cut = Vec::new();
        let mut cuts = cuts.into_iter().cycle();
        for (kind, words) in &joined {
            if *kind == 2 {
                cut.push(event(2, ""));
                continue;
            }
            let mut piece = String::new();
            for character in words.chars() {
                piece.push(character);
                if cuts.next() == Some(true) {
                    cut.push(event(*kind, &std::mem::take(&mut piece)));
                }
            }
            cut.push(event(*kind, &piece));
        }
        let whole = events_of(whole.chain([end()]).collect(), None);
        let cut = events_of(cut.into_iter().chain([end()]).collect(), None);
        prop_assert_eq!(content(&whole), content(&cut));
        // The deltas add up to the final items.
        let said: String = cut
            .iter()
            .filter(|(name, _)| name == "response.output_text.delta")
            .map(|(_, data)| json(data)["delta"].as_str().unwrap().to_owned())
            .collect();
        let held: String = output(&cut)
            .iter()
            .filter_map(|item| item["content"][0]["text"].as_str())
            .collect();
        prop_assert_eq!(said, held);
    }
}
