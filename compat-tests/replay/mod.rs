//! Sends the request of every recorded exchange on a route that hubllama serves to the real binary with a real model.
//! Status, content type, headers and shape of the reply must be as recorded, or the difference must be listed in
//! [`differences`].

mod differences;
mod shape;

use std::{collections::BTreeMap, io::Read};

use regex::{Captures, Regex};
use ruzstd::{
    decoding::StreamingDecoder,
    encoding::{CompressionLevel, compress_to_vec},
};

use self::differences::{DIFFERENCES, Differs};
use crate::harness::{
    facts,
    hubllama::{Hubllama, REPO, Setup},
    minilm,
    raw_http::{Connection, Head},
    recording::Recording,
    tools_model,
};
use crate::scenarios::route;

/// Kind of the facts, and their names: the number of recordings of each route, the number of equal replies, and the
/// differences.
pub(crate) const FACT: &str = "recordings";
pub(crate) const BY_ROUTE: &str = "by route";
pub(crate) const SAME: &str = "same";
pub(crate) const DIFFERENT: &str = "different";

/// Recordings of requests that hubllama forwards to Ollama: blobs, its cloud, and names of its registry.
/// `passthrough/recordings.rs` plays their replies behind the daemon instead.
const OLLAMAS: [&str; 4] = ["blob-", "status-get", "push-missing", "create-from-missing"];

const V1_MODELS: &str = "/v1/models/";

/// Headers that depend on the connection, or on the length of the generated text.
const FRAMING: [&str; 4] = ["connection", "date", "transfer-encoding", "content-length"];

/// Headers that a reply may have in addition to the recorded ones.
const OURS: &str = "x-hubllama-";

const GENERATE: &str = "/api/generate";
const CREATE: &str = "/api/create";
const MARIO: (&str, &str) = (
    CREATE,
    r#"{"model":"mario","from":"smollm2","system":"You are Mario.","parameters":{"temperature":0.2,"stop":["X"]},
        "messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"it's me"}],"license":["MIT"]}"#,
);
const MARIO2: (&str, &str) = (CREATE, r#"{"model":"mario2","from":"smollm2"}"#);
const COPY: (&str, &str) = ("/api/copy", r#"{"source":"smollm2","destination":"smollm2-copy"}"#);

/// Request (path and body) that must be sent first, for recordings that depend on one.
const BEFORE: [(&str, &[(&str, &str)]); 12] = [
    (
        "minilm-ps",
        &[
            (GENERATE, r#"{"model":"smollm2","keep_alive":"4m"}"#),
            ("/api/embed", r#"{"model":"minilm","input":"hello","keep_alive":"5m"}"#),
        ],
    ),
    ("ps-empty", &[(GENERATE, r#"{"model":"smollm2","keep_alive":0}"#)]),
    ("ps-one", &[(GENERATE, r#"{"model":"smollm2"}"#)]),
    ("ps-forever", &[(GENERATE, r#"{"model":"smollm2","keep_alive":-1}"#)]),
    (
        "generate-unload-not-loaded",
        &[(GENERATE, r#"{"model":"smollm2","keep_alive":0}"#)],
    ),
    ("generate-unload", &[(GENERATE, r#"{"model":"smollm2"}"#)]),
    ("chat-created", &[MARIO]),
    ("show-created", &[MARIO]),
    ("tags-three", &[MARIO, COPY, MARIO2]),
    ("delete-mario", &[MARIO]),
    ("delete-mario2", &[MARIO2]),
    ("delete-smollm2-copy", &[COPY]),
];

/// Recordings that add or remove models. Each of them gets its own daemon.
const ALONE: [&str; 6] = [
    "delete-",
    "create-",
    "copy-",
    "chat-created",
    "show-created",
    "tags-three",
];

/// First bytes of a zstd-compressed body.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Replaces the recorded model names with those of the test models. A name that Ollama did not have becomes one that
/// hubllama does not have.
struct Names {
    words: Regex,
}

impl Names {
    fn new() -> Self {
        let words = Regex::new(r"[A-Za-z0-9_./:-]+").expect("a pattern");
        Self { words }
    }

    fn replace(&self, text: &str) -> String {
        self.words
            .replace_all(text, |word: &Captures<'_>| {
                ours(&word[0]).unwrap_or_else(|| word[0].to_owned())
            })
            .into_owned()
    }

    fn in_path(&self, path: &str) -> String {
        match path.strip_prefix(V1_MODELS) {
            Some(name) => format!("{V1_MODELS}{}", self.replace(name)),
            None => path.to_owned(),
        }
    }

    fn in_body(&self, body: Vec<u8>) -> Vec<u8> {
        if body.starts_with(&ZSTD_MAGIC) {
            let mut text = Vec::new();
            let mut decoder = StreamingDecoder::new(&body[..]).expect("a frame");
            decoder.read_to_end(&mut text).expect("a whole frame");
            return compress_to_vec(&self.in_body(text)[..], CompressionLevel::Fastest);
        }
        match String::from_utf8(body) {
            Ok(text) => self.replace(&text).into_bytes(),
            Err(not_text) => not_text.into_bytes(),
        }
    }
}

/// Returns the test model's name for a recorded one, with its selector if the recorded name has a tag.
fn ours(word: &str) -> Option<String> {
    let name = word.trim_start_matches("registry.ollama.ai/library/");
    let bare = name.trim_end_matches(":latest");
    let repo = match bare {
        "smollm2" => REPO,
        "toolsmol" => tools_model::REPO,
        "minilm" => minilm::REPO,
        "SMOLLM2" => return Some(format!("hf:{REPO}").to_uppercase()),
        "nope" | "nope2" => return Some(format!("hf:nobody/{bare}-GGUF:Q4_0")),
        _ => return None,
    };
    let selector = match (bare == name, repo) {
        (true, _) => "",
        (false, minilm::REPO) => ":F16",
        (false, _) => ":Q4_1",
    };
    Some(format!("hf:{repo}{selector}"))
}

/// Starts a daemon with the models. It has one compute thread: with more, each token waits for the slowest core, and
/// the tests share the cores.
fn setup() -> Setup {
    Setup::with_model().config("[engine]\nthreads = 1\n")
}

/// Parts of a reply that are compared.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: u16,
    content_type: Option<String>,
    headers: Vec<(String, String)>,
    kinds: Vec<String>,
}

impl Reply {
    fn new(status: u16, headers: &[(String, String)], body: &str, without: &[&str]) -> Self {
        let content_type = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("content-type"))
            .map(|(_, value)| value.clone());
        let mut headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
            .filter(|(name, _)| !FRAMING.contains(&name.as_str()) && !name.starts_with(OURS))
            .collect();
        headers.sort();
        let kinds = shape::kinds(content_type.as_deref(), body, without);
        Self {
            status,
            content_type,
            headers,
            kinds,
        }
    }

    /// Returns true if the replies are equal except for the text of an error.
    fn matches_but_words(&self, other: &Self) -> bool {
        let is_error = |reply: &Self| reply.kinds.iter().any(|kind| kind.starts_with("{error:"));
        self.status == other.status
            && self.content_type == other.content_type
            && self.headers == other.headers
            && self.kinds.len() == other.kinds.len()
            && is_error(self)
            && is_error(other)
    }
}

fn begins_with_one_of(name: &str, starts: &[&str]) -> bool {
    starts.iter().any(|start| name.starts_with(start))
}

/// Sends the request of a recording and returns the reply.
fn play(daemon: &Hubllama, recording: &Recording) -> (Head, String) {
    let mut connection = Connection::open(daemon.address());
    connection.send(recording.request());
    let head = connection.head();
    let body = if recording.method == "HEAD" {
        Vec::new()
    } else {
        connection.body(&head)
    };
    (head, String::from_utf8(body).expect("UTF-8"))
}

/// Describes the first difference between two replies.
fn first_difference(recorded: &Reply, here: &Reply) -> (String, String) {
    if (recorded.status, &recorded.headers) != (here.status, &here.headers) {
        let show = |reply: &Reply| format!("{} {:?} {:.300}", reply.status, reply.headers, reply.kinds.join(" "));
        return (show(recorded), show(here));
    }
    let at = recorded
        .kinds
        .iter()
        .zip(&here.kinds)
        .take_while(|(recorded, here)| recorded == here)
        .count();
    let kind = |reply: &Reply| reply.kinds.get(at).cloned().unwrap_or_default();
    let (recorded, here) = (kind(recorded), kind(here));
    let same = recorded
        .chars()
        .zip(here.chars())
        .take_while(|(recorded, here)| recorded == here)
        .count();
    let show = |kind: &str| {
        let around: String = kind.chars().skip(same.saturating_sub(60)).take(200).collect();
        format!("kind {at}: …{around}…")
    };
    (show(&recorded), show(&here))
}

// The shape of a reply shows most differences that clients notice (traps 1, 4, 6, 7, 9, 43, 64).
#[test]
fn every_reply_has_the_recorded_shape() {
    let names = Names::new();
    let (alone, with_minilm, with_tools) = (
        setup().start(),
        setup().with_minilm().start(),
        setup().with_tools().start(),
    );
    let (mut same, mut different, mut problems) = (0, 0, Vec::new());
    let mut routes: BTreeMap<String, u32> = BTreeMap::new();
    for mut recording in Recording::all() {
        if begins_with_one_of(&recording.name, &OLLAMAS) {
            continue;
        }
        let name = recording.name.clone();
        *routes
            .entry(route(&format!("{} {}", recording.method, recording.path)))
            .or_default() += 1;
        let is_for_tools = recording
            .request_body
            .as_ref()
            .is_some_and(|body| String::from_utf8_lossy(body).contains("toolsmol"));
        recording.path = names.in_path(&recording.path);
        recording.request_body = recording.request_body.map(|body| names.in_body(body));
        let recorded_body = String::from_utf8(names.in_body(recording.chunks.concat())).expect("UTF-8");

        let own = begins_with_one_of(&name, &ALONE).then(|| setup().start());
        let daemon = match &own {
            Some(own) => own,
            None if is_for_tools => &with_tools,
            None if name.starts_with("minilm-") || name == "tags-two" => &with_minilm,
            None => &alone,
        };
        for (path, body) in BEFORE
            .iter()
            .filter(|(recording, _)| *recording == name)
            .flat_map(|(_, steps)| *steps)
        {
            let (head, reply) = daemon.request("POST", path, &names.replace(body));
            assert_eq!(head.status(), 200, "{name}: {path}: {reply}");
        }
        // Printed if a request gets no reply at all.
        println!("{name}");
        let (head, body) = play(daemon, &recording);

        let listed = DIFFERENCES.iter().find(|(recording, ..)| *recording == name);
        let compare = |without: &[&str]| {
            (
                Reply::new(recording.status, &recording.headers, &recorded_body, without),
                Reply::new(head.status(), &head.headers, &body, without),
            )
        };
        let (recorded, here) = compare(&[]);
        let is_same = recorded == here;
        let problem = match listed {
            None if is_same => None,
            None => Some(("is not what was recorded", recorded, here)),
            Some(_) if is_same => Some(("is as recorded: take it off the list of differences", recorded, here)),
            Some((_, Differs::Whole, _)) if recorded.matches_but_words(&here) => {
                Some(("differs only in the words of an error", recorded, here))
            }
            Some((_, Differs::Whole, _)) => None,
            Some((_, Differs::Words, _)) => (!recorded.matches_but_words(&here)).then_some((
                "differs in more than the words of an error",
                recorded,
                here,
            )),
            Some((_, Differs::Keys(keys), _)) => {
                let (recorded, here) = compare(keys);
                (recorded != here).then_some(("differs in other keys than those listed", recorded, here))
            }
        };
        match (problem, listed) {
            (Some((problem, recorded, here)), _) => {
                let (recorded, here) = first_difference(&recorded, &here);
                problems.push(format!("{name} {problem}\n  recorded {recorded}\n  here     {here}"));
            }
            (None, Some(_)) => different += 1,
            (None, None) => same += 1,
        }
    }
    println!("replayed: {same} as recorded, {different} listed as different");
    assert!(
        problems.is_empty(),
        "{} problems\n{}",
        problems.len(),
        problems.join("\n")
    );
    assert_eq!(
        different,
        DIFFERENCES.len(),
        "the list of differences names recordings that are not there"
    );
    let routes: Vec<String> = routes
        .iter()
        .map(|(route, count)| format!("{route}\t{count}"))
        .collect();
    let differences: Vec<String> = DIFFERENCES
        .iter()
        .map(|(name, differs, why)| format!("{name}\t{differs}\t{why}"))
        .collect();
    facts::put(FACT, BY_ROUTE, &routes);
    facts::put(FACT, SAME, &[same.to_string()]);
    facts::put(FACT, DIFFERENT, &differences);
}
