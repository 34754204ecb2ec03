//! Every recorded exchange of the routes that a model of ours answers, sent to the real binary with a real model: the same
//! status, content type, headers and shape come back, or the difference is written down in [`differences`].

mod differences;
mod shape;

use std::{
    fs::{self, File},
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::symlink,
};

use hubllama::gguf::{GgmlType, Header, Plan, TensorSpec, Value};
use regex::{Captures, Regex};

use self::differences::{DIFFERENCES, Differs};
use crate::harness::{
    hubllama::{Hubllama, REPO, Setup, gguf},
    raw_http::{Connection, Head},
    recording::Recording,
};

/// Routes that are ours. The others go to Ollama as they are, or belong to other parts.
const ROUTES: [&str; 14] = [
    "/",
    "/api/version",
    "/api/tags",
    "/api/ps",
    "/api/show",
    "/api/chat",
    "/api/generate",
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/v1/models",
    "/v1/chat/completions",
];

const V1_MODELS: &str = "/v1/models/";

/// Where the embedding model stands.
const MINILM_REPO: &str = "sentence-transformers/all-MiniLM-L6-v2-GGUF";

/// Where the model stands that has tools and thinks: the same weights under another chat template.
const TOOLS_REPO: &str = "Example-Org/Tools-GGUF";

/// Its template.
const TOOLS_TEMPLATE: &str = include_str!("../fixtures/templates/tools-and-thinking.jinja");

/// Recordings of other paths that are about routing itself.
const ROUTING: [&str; 4] = ["trailing-slash-", "double-slash", "wrong-method", "unknown-path"];

/// Headers that belong to a connection, or to a body that is as long as the model's words.
const FRAMING: [&str; 4] = ["connection", "date", "transfer-encoding", "content-length"];

/// Header names that may be there beside the recorded ones.
const OURS: &str = "x-hubllama-";

/// What has to have happened before, where the recording depends on it: name, body for `/api/generate`.
const STATES: [(&str, &str); 5] = [
    ("ps-empty", r#"{"model":"smollm2","keep_alive":0}"#),
    ("ps-one", r#"{"model":"smollm2"}"#),
    ("ps-forever", r#"{"model":"smollm2","keep_alive":-1}"#),
    ("generate-unload-not-loaded", r#"{"model":"smollm2","keep_alive":0}"#),
    ("generate-unload", r#"{"model":"smollm2"}"#),
];

/// Recordings that change what is there; each gets a daemon of its own.
const CHANGES: [&str; 3] = ["create-", "copy-", "delete-"];

/// Recordings of models that were made of another, beside those that are called so.
const OF_CREATED: [&str; 4] = ["tags-three", "delete-mario", "delete-mario2", "delete-smollm2-copy"];

/// Calls the recorded models what they are called here; a name that Ollama did not have is one that we do not have.
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
        match String::from_utf8(body) {
            Ok(text) => self.replace(&text).into_bytes(),
            Err(not_text) => not_text.into_bytes(),
        }
    }
}

/// Our name for a recorded one. In full where Ollama wrote it with its tag.
fn ours(word: &str) -> Option<String> {
    let name = word.trim_start_matches("registry.ollama.ai/library/");
    let bare = name.trim_end_matches(":latest");
    let repo = match bare {
        "smollm2" => REPO,
        "toolsmol" => TOOLS_REPO,
        "minilm" => MINILM_REPO,
        "SMOLLM2" => return Some(format!("hf:{REPO}").to_uppercase()),
        "nope" | "nope2" | "nope-not-here" => return Some(format!("hf:nobody/{bare}-GGUF:Q4_0")),
        _ => return None,
    };
    let selector = match (bare == name, repo) {
        (true, _) => "",
        (false, MINILM_REPO) => ":F16",
        (false, _) => ":Q4_1",
    };
    Some(format!("hf:{repo}{selector}"))
}

/// A daemon with the model. One thread: with more, each token waits for the slowest core, and tests share theirs.
fn start() -> Hubllama {
    Setup::with_model().config("[engine]\nthreads = 1\n").start()
}

/// A daemon where the models have been made that were made in the recordings, in their order.
fn start_with_created() -> Hubllama {
    let (daemon, names) = (start(), Names::new());
    for name in ["create-from", "copy-ok", "create-from-once"] {
        let mut recordings = Recording::all().into_iter();
        let mut recording = recordings.find(|other| other.name == name).expect("recorded");
        recording.request_body = recording.request_body.map(|body| names.in_body(body));
        let (head, body) = play(&daemon, &recording);
        assert_eq!(head.status(), 200, "{name}: {body}");
    }
    daemon
}

/// A daemon that also has an embedding model, as far as its header goes: nothing that is replayed loads it.
fn start_with_minilm() -> Hubllama {
    let daemon = start();
    let text = |text: &str| Value::String(text.into());
    let metadata = [
        ("general.architecture", text("bert")),
        ("general.file_type", Value::U32(1)),
        ("bert.block_count", Value::U32(6)),
        ("bert.context_length", Value::U32(512)),
        ("bert.embedding_length", Value::U32(384)),
        ("bert.attention.head_count", Value::U32(12)),
        ("bert.pooling_type", Value::U32(1)),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).to_vec();
    let weights = TensorSpec::new("token_embd.weight", GgmlType::F16, [384, 58_780]);
    let plan = Plan::new(metadata, vec![weights]).expect("a plan");
    let mut file = in_cache(&daemon, MINILM_REPO, "all-MiniLM-L6-v2-F16.gguf");
    file.write_all(plan.header()).expect("written");
    file.set_len(plan.file_len()).expect("a file with a hole");
    daemon
}

/// A daemon whose model has tools and thinks: the real one with another template in its header.
fn start_with_tools() -> Hubllama {
    let daemon = start();
    let original = gguf();
    let header = Header::open(&original).expect("a model");
    let metadata = header.metadata.iter().map(|(key, value)| {
        let value = match key {
            "tokenizer.chat_template" => Value::String(TOOLS_TEMPLATE.into()),
            _ => value.clone(),
        };
        (key.to_owned(), value)
    });
    let tensors = header
        .tensors
        .iter()
        .map(|tensor| TensorSpec::new(&tensor.name, tensor.element_type, tensor.dims.clone()));
    let plan = Plan::new(metadata.collect(), tensors.collect()).expect("a plan");
    let mut weights = File::open(original).expect("a model");
    let file = in_cache(&daemon, TOOLS_REPO, "tools-Q4_1.gguf");
    plan.write(BufWriter::new(file), |tensor, out| {
        let at = header
            .tensors
            .iter()
            .find(|other| other.name == tensor.name)
            .expect("the same tensors");
        weights.seek(SeekFrom::Start(header.data_start + at.offset))?;
        std::io::copy(&mut (&weights).take(at.byte_len().expect("a size")), out).map(drop)
    })
    .expect("written");
    daemon
}

/// A new file in a daemon's cache, laid out as huggingface_hub does.
fn in_cache(daemon: &Hubllama, repo: &str, file: &str) -> File {
    let repo = daemon
        .folder
        .path()
        .join("hub")
        .join(format!("models--{}", repo.replace('/', "--")));
    let (commit, blob) = ("c".repeat(40), "b".repeat(64));
    let snapshot = repo.join("snapshots").join(&commit);
    for folder in [repo.join("blobs"), repo.join("refs"), snapshot.clone()] {
        fs::create_dir_all(folder).expect("folders");
    }
    symlink(format!("../../blobs/{blob}"), snapshot.join(file)).expect("a link");
    fs::write(repo.join("refs/main"), commit).expect("a ref");
    File::create(repo.join("blobs").join(blob)).expect("a file")
}

/// What is compared of a reply.
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

    /// Equal but for the words of an error.
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

fn is_wanted(recording: &Recording) -> bool {
    ROUTES.contains(&recording.route())
        || recording.path.starts_with(V1_MODELS)
        || ROUTING.iter().any(|start| recording.name.starts_with(start))
}

/// Sends the request of a recording and reads the reply.
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

/// Where two replies first differ, for a person to read.
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

#[test]
fn every_recorded_exchange_has_its_shape() {
    let names = Names::new();
    let (alone, with_minilm, with_tools) = (start(), start_with_minilm(), start_with_tools());
    let with_created = start_with_created();
    let (mut same, mut different, mut problems) = (0, 0, Vec::new());
    for mut recording in Recording::all().into_iter().filter(is_wanted) {
        let name = recording.name.clone();
        let is_for_tools = recording
            .request_body
            .as_ref()
            .is_some_and(|body| String::from_utf8_lossy(body).contains("toolsmol"));
        recording.path = names.in_path(&recording.path);
        recording.request_body = recording.request_body.map(|body| names.in_body(body));
        let recorded_body = String::from_utf8(names.in_body(recording.chunks.concat())).expect("UTF-8");

        let is_of_created = name.ends_with("-created") || OF_CREATED.contains(&name.as_str());
        let changes = CHANGES.iter().any(|start| name.starts_with(start));
        let own = changes.then(|| match is_of_created {
            true => start_with_created(),
            false => start(),
        });
        let daemon = match &own {
            Some(own) => own,
            None if is_of_created => &with_created,
            None if is_for_tools => &with_tools,
            None if name.starts_with("minilm-") || name == "tags-two" => &with_minilm,
            None => &alone,
        };
        if let Some((_, body)) = STATES.iter().find(|(recording, _)| *recording == name) {
            let (head, reply) = daemon.request("POST", "/api/generate", &names.replace(body));
            assert_eq!(head.status(), 200, "{name}: {reply}");
        }
        // Shown where a request is not answered at all.
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
}
