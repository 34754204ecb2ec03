//! Runs the scenarios in the JSON files of this folder: requests with the replies that clients expect. If
//! `OLLAMA_TEST_URL` is set to a real Ollama with the three models, they are also sent to it, and differences in its
//! replies are printed.
//!
//! Variable parts are masked: `⟨t⟩` is a time, `⟨n⟩` a number above zero, `⟨text⟩` generated text, and so on; [`MASKS`]
//! has the patterns that each must match. `⟨m⟩`, `⟨tools⟩` and `⟨minilm⟩` are names of models, and `⟨none⟩` is a model
//! that does not exist. [`parts`] has the marks for longer parts of requests.

use std::{collections::BTreeMap, fmt::Write as _, fs, net::SocketAddr, path::Path};

use regex::Regex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::{
    facts,
    hubllama::{self, Setup},
    minilm,
    raw_http::{Connection, Head},
    tools_model,
};

/// Kind of the facts about scenario files: lines with a route and a checked behavior.
pub(crate) const FACT: &str = "scenarios";

/// Environment variable with the base URL of a real Ollama.
const OLLAMA: &str = "OLLAMA_TEST_URL";

/// Marks of model names, with the names in hubllama and in Ollama.
const NAMES: [(&str, &str, &str); 4] = [
    ("⟨m⟩", hubllama::MODEL, "smollm2"),
    ("⟨tools⟩", tools_model::MODEL, "toolsmol"),
    ("⟨minilm⟩", minilm::MODEL, "minilm"),
    ("⟨none⟩", "hf:nobody/none-GGUF:Q4_0", "nope"),
];

/// Patterns of the variable parts and their masks, applied in this order.
const MASKS: [(&str, &str); 17] = [
    (
        r#""created_at":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z""#,
        r#""created_at":"⟨t⟩Z""#,
    ),
    (
        r#""(modified_at|expires_at)":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?(Z|[+-]\d\d:\d\d)""#,
        r#""$1":"⟨t⟩""#,
    ),
    (
        r#""(\w+_duration|\w*eval_count|\w+_tokens|size|context_length|total|completed)":[1-9]\d*"#,
        r#""$1":⟨n⟩"#,
    ),
    (r#""size_vram":\d+"#, r#""size_vram":⟨n⟩"#),
    (r#""context":\[\d+(,\d+)+\]"#, r#""context":[⟨ids⟩]"#),
    (r#""tokens":\[\d+(,\d+)+\]"#, r#""tokens":[⟨ids⟩]"#),
    (r#""(created|created_at|completed_at)":\d{10}\b"#, r#""$1":⟨s⟩"#),
    (r#""id":"(chatcmpl|cmpl)-\d{1,3}""#, r#""id":"$1-⟨i⟩""#),
    (r#""(id|item_id)":"(resp|msg|fc|rs)_\w+""#, r#""$1":"${2}_⟨i⟩""#),
    (r#""id":"call_\w+""#, r#""id":"call_⟨i⟩""#),
    (r#""request_id":"req_[0-9a-f]{24}""#, r#""request_id":"req_⟨i⟩""#),
    (r#""digest":"(sha256:)?[0-9a-f]{64}""#, r#""digest":"$1⟨64hex⟩""#),
    (r#"pulling [0-9a-f]{12}""#, r#"pulling ⟨12hex⟩""#),
    (
        r#""(content|response|text|delta|thinking)":"(?:[^"\\]|\\.)+""#,
        r#""$1":"⟨text⟩""#,
    ),
    (r"\[-?\d+(\.\d+)?(e-?\d+)?(,-?\d+(\.\d+)?(e-?\d+)?){7,}\]", "[⟨vector⟩]"),
    (r#""embedding":"[A-Za-z0-9+/]{20,}=*""#, r#""embedding":"⟨base64⟩""#),
    (r#""version":"\d+\.\d+\.\d+(-[^"]*)?""#, r#""version":"⟨v⟩""#),
];

const ONE_JSON: &str = "application/json; charset=utf-8";

/// Scenario file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// Description for readers.
    #[serde(rename = "about")]
    _about: String,
    /// Additional lines of the daemon's configuration.
    #[serde(default)]
    config: String,
    /// If set, the daemon has no models.
    #[serde(default)]
    empty: bool,
    pub(crate) scenarios: Vec<Scenario>,
}

/// Sequence of requests that checks one behavior.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    pub(crate) what: String,
    /// Numbers of the traps that the scenario checks.
    #[serde(default)]
    pub(crate) traps: Vec<u8>,
    /// Reason why a real Ollama replies differently.
    pub(crate) ollama: Option<String>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// Method and path.
    send: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Text, which is sent unchanged, or JSON.
    #[serde(default)]
    body: Value,
    status: u16,
    /// Expected content type; by default that of a native JSON reply.
    r#type: Option<String>,
    /// Headers that the reply must have, or with null must not have.
    #[serde(default)]
    has: BTreeMap<String, Option<String>>,
    /// Expected body, masked; a list contains the frames, with equal neighbors merged.
    #[serde(default)]
    reply: Value,
    /// Expected error text, as an alternative to `reply`. The error is wrapped as the route's API requires.
    error: Option<String>,
    /// True for errors of the model's provider, which end with a line feed in OpenAI's and Anthropic's APIs.
    #[serde(default)]
    late: bool,
    /// Pattern that the body must match, as an alternative to `reply`.
    matches: Option<String>,
}

impl File {
    /// Reads all scenario files, sorted by name.
    pub(crate) fn all() -> Vec<(String, Self)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/scenarios");
        let mut paths: Vec<_> = fs::read_dir(folder)
            .expect("the scenarios")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        // This module is in the same folder.
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        let read = |path: &Path| {
            let text = fs::read_to_string(path).expect("UTF-8");
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        paths
            .iter()
            .map(|path| {
                (
                    path.file_stem().expect("a name").to_string_lossy().into_owned(),
                    read(path),
                )
            })
            .collect()
    }
}

/// Server that scenarios are sent to.
struct Server {
    address: SocketAddr,
    /// Marks of model names, with the names.
    names: Vec<(&'static str, &'static str)>,
    masks: Vec<(Regex, &'static str)>,
}

impl Server {
    fn new(address: SocketAddr, names: Vec<(&'static str, &'static str)>) -> Self {
        let masks = MASKS.map(|(pattern, mask)| (Regex::new(pattern).expect("a pattern"), mask));
        Self {
            address,
            names,
            masks: masks.into(),
        }
    }

    /// Returns the body of a request.
    fn body(&self, step: &Step) -> String {
        let text = match &step.body {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            json => json.to_string(),
        };
        let whole = parts().into_iter().fold(text, |text, (mark, part)| {
            text.replace(&format!("\"{mark}\""), &part.to_string())
        });
        self.named(&whole)
    }

    fn named(&self, text: &str) -> String {
        self.names
            .iter()
            .fold(text.to_owned(), |text, (mark, name)| text.replace(mark, name))
    }

    fn masked(&self, body: &str) -> String {
        let body = self
            .names
            .iter()
            .fold(body.to_owned(), |text, (mark, name)| text.replace(name, mark));
        self.masks.iter().fold(body, |text, (pattern, mask)| {
            pattern.replace_all(&text, *mask).into_owned()
        })
    }

    fn send(&self, step: &Step) -> (Head, String) {
        let body = self.body(step);
        let mut request = format!("{} HTTP/1.1\r\n", self.named(&step.send));
        let headers: BTreeMap<&str, &str> = step.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        if !headers.contains_key("Host") {
            let _ = write!(request, "Host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            let value = value.replace("⟨host⟩", &self.address.to_string());
            let _ = write!(request, "{name}: {value}\r\n");
        }
        let _ = write!(request, "Content-Length: {}\r\n\r\n{body}", body.len());
        let mut connection = Connection::open(self.address);
        connection.send(request);
        let head = connection.head();
        let body = if step.send.starts_with("HEAD ") {
            Vec::new()
        } else {
            connection.body(&head)
        };
        (head, String::from_utf8(body).expect("UTF-8"))
    }

    /// Runs a step and describes the differences from the expected reply.
    fn differences(&self, step: &Step) -> Vec<String> {
        let (head, body) = self.send(step);
        let mut found = Vec::new();
        let mut compare = |what: &str, expected: &dyn std::fmt::Debug, here: &dyn std::fmt::Debug| {
            let (expected, here) = (format!("{expected:?}"), format!("{here:?}"));
            if expected != here {
                found.push(format!("{what}\n      expected {expected}\n      here     {here}"));
            }
        };
        compare("status", &step.status, &head.status());
        let content_type = head.header("content-type");
        let body_is_expected = step.error.is_some() || step.matches.is_some() || !step.reply.is_null();
        let expected_type = step.r#type.clone().or_else(|| {
            let of_error = step.error.as_ref().map(|_| error_type(step).to_owned());
            of_error.or_else(|| body_is_expected.then(|| ONE_JSON.to_owned()))
        });
        if let Some(expected) = &expected_type {
            compare(
                "content type",
                &Some(&**expected).filter(|kind| !kind.is_empty()),
                &content_type,
            );
        }
        for (name, value) in &step.has {
            compare(name, &value.as_deref(), &head.header(name));
        }
        let masked = self.masked(&body);
        match (&step.error, &step.reply, &step.matches) {
            (Some(words), ..) => compare("error", &error_body(step, words), &masked),
            (None, Value::String(reply), _) => compare("body", reply, &masked),
            (None, Value::Array(frames), _) => {
                let frames: Vec<&str> = frames.iter().filter_map(Value::as_str).collect();
                compare("frames", &frames, &frames_of(&masked));
            }
            (None, _, Some(pattern)) => {
                let pattern = Regex::new(pattern).expect("a pattern");
                if !pattern.is_match(&body) {
                    compare("body", &pattern.as_str(), &body);
                }
            }
            (None, _, None) => {}
        }
        found
    }
}

/// Returns the marks for longer parts of a request, with their values.
fn parts() -> [(&'static str, Value); 5] {
    [
        ("⟨a call each⟩", tools_model::history(tools_model::CALL)),
        ("⟨two calls each⟩", tools_model::history(&tools_model::two_calls())),
        ("⟨a thought each⟩", tools_model::history(tools_model::THOUGHT)),
        ("⟨tool⟩", tools_model::tool()),
        // This is more tokens than the context length of these tests.
        ("⟨long⟩", "word ".repeat(3000).into()),
    ]
}

/// Returns the frames of a masked body, with equal neighbors merged.
fn frames_of(body: &str) -> Vec<&str> {
    let end = if body.starts_with("data: ") || body.starts_with("event: ") {
        "\n\n"
    } else {
        "\n"
    };
    let mut frames: Vec<&str> = body.split_inclusive(end).collect();
    frames.dedup();
    frames
}

/// Returns the content type of an error.
fn error_type(step: &Step) -> &'static str {
    if step.late { "application/json" } else { ONE_JSON }
}

/// Returns the body of an error in the API of its route.
fn error_body(step: &Step, words: &str) -> String {
    let path = step.send.split(' ').nth(1).unwrap_or_default();
    let kind = |other: &'static str| match step.status {
        400 => "invalid_request_error",
        404 => "not_found_error",
        _ => other,
    };
    let escaped = |value: Value| {
        let text = value.to_string();
        text.replace('<', "\\u003c")
            .replace('>', "\\u003e")
            .replace('&', "\\u0026")
    };
    if path.starts_with("/v1/messages") {
        let error = json!({"type": kind("api_error"), "message": words});
        return escaped(json!({"type": "error", "error": error, "request_id": "req_⟨i⟩"}))
            + if step.late { "\n" } else { "" };
    }
    if path.starts_with("/v1/") {
        let error = json!({"message": words, "type": kind("api_error"), "param": null, "code": null});
        return escaped(json!({"error": error})) + if step.late { "\n" } else { "" };
    }
    escaped(json!({"error": words}))
}

/// Returns the route of a request as `docs/compatibility.md` lists it.
pub(crate) fn route(request: &str) -> String {
    let request = request.split('?').next().unwrap_or_default();
    for (start, variable) in [("/v1/models/", "model"), ("/api/blobs/", "digest")] {
        if let Some((method, _)) = request.split_once(start) {
            return format!("{method}{start}{{{variable}}}");
        }
    }
    request.to_owned()
}

fn run(name: &str) {
    let (_, file) = File::all()
        .into_iter()
        .find(|(file, _)| file == name)
        .expect("a file of this name");
    let setup = match file.empty {
        true => Setup::default(),
        false => Setup::with_model().with_tools().with_minilm(),
    };
    let config = format!("[engine]\nthreads = 1\ncontext_length = 2048\n{}", file.config);
    let daemon = setup.config(&config).start();
    let ours = Server::new(daemon.address(), NAMES.map(|(mark, ours, _)| (mark, ours)).into());
    let mut checked = Vec::new();
    let mut problems = String::new();
    for scenario in &file.scenarios {
        for step in &scenario.steps {
            for difference in ours.differences(step) {
                let _ = writeln!(problems, "{}: {}\n    {difference}", scenario.what, step.send);
            }
        }
        let first = scenario.steps.first().expect("a step");
        checked.push(format!("{}\t{}", route(&first.send), scenario.what));
    }
    // Scenarios with a special setup cannot be sent to Ollama.
    if let (Ok(url), true, false) = (std::env::var(OLLAMA), file.config.is_empty(), file.empty) {
        compare_with_ollama(&url, &file);
    }
    assert!(problems.is_empty(), "{problems}\nthe daemon's log:\n{}", daemon.log());
    facts::put(FACT, name, &checked);
}

/// Prints the differences in the replies of a real Ollama, with the known reasons.
fn compare_with_ollama(url: &str, file: &File) {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let address = address.parse().expect("OLLAMA_TEST_URL is http://IP:PORT");
    let ollama = Server::new(address, NAMES.map(|(mark, _, theirs)| (mark, theirs)).into());
    for scenario in &file.scenarios {
        for step in &scenario.steps {
            for difference in ollama.differences(step) {
                println!("Ollama: {}: {}\n    {difference}", scenario.what, step.send);
                if let Some(reason) = &scenario.ollama {
                    println!("      known: {reason}");
                }
            }
        }
    }
}

/// Defines one test for each file, so that a failure names the file.
macro_rules! files {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn every_file_is_run() {
            let names: Vec<String> = File::all().into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

files![
    anthropic,
    chat,
    cors,
    decoding,
    embed,
    empty,
    generate,
    golden,
    models,
    openai,
    refused_tools,
    routing,
    values,
];
