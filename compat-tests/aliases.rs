//! Aliases that clients create for hf: models, with the real binary and a real model.

use std::{collections::BTreeSet, fs, thread, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    fake_hub::{FakeHub, Source},
    fixture_file::gguf,
    hubllama::{Hubllama, MODEL, MODEL_SHA256, REPO, Setup},
    stream::Stream,
};

/// Configuration with one compute thread, since the tests share the machine.
const ENGINE: &str = "[engine]\nthreads = 1\ncontext_length = 512\n";

/// Returns a recorded request with its model replaced by an hf: model.
fn mario(from: &str) -> Value {
    json!({
        "model": "mario", "from": from, "system": "You are Mario.", "license": ["MIT"],
        "parameters": {"temperature": 0, "num_predict": 12, "stop": ["X"]},
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "it's me"}],
    })
}

fn create(daemon: &Hubllama, request: &Value) -> Vec<Value> {
    let (head, body) = daemon.post("/api/create", request);
    assert_eq!(head.status(), 200, "{request}: {body}");
    let frames: Vec<Value> = body
        .lines()
        .map(|line| serde_json::from_str(line).expect("one JSON object a line"))
        .collect();
    assert_eq!(frames.last(), Some(&json!({"status": "success"})), "{body}");
    frames
}

fn answer(daemon: &Hubllama, path: &str, mut request: Value) -> Value {
    request["stream"] = json!(false);
    let (head, body) = daemon.post(path, &request);
    assert_eq!(head.status(), 200, "{request}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

/// Returns the names in `/api/tags`.
fn listed(daemon: &Hubllama) -> BTreeSet<String> {
    let tags = daemon.get_json("/api/tags");
    let models = tags["models"].as_array().expect("a list");
    models
        .iter()
        .map(|model| model["name"].as_str().expect("a name").to_owned())
        .collect()
}

fn question(model: &str, before: &[(&str, &str)], options: Value) -> Value {
    let messages: Vec<Value> = before
        .iter()
        .chain(&[("user", "Who are you?")])
        .map(|(role, content)| json!({"role": role, "content": content}))
        .collect();
    json!({"model": model, "messages": messages, "options": options})
}

#[test]
fn it_answers_as_the_model_does_when_all_is_spelled_out() {
    let daemon = Setup::with_model().config(ENGINE).start();
    create(&daemon, &mario(MODEL));
    let made = answer(&daemon, "/api/chat", question("mario", &[], json!({})));
    let front = [("system", "You are Mario."), ("user", "hi"), ("assistant", "it's me")];
    let options = json!({"temperature": 0, "num_predict": 12, "stop": ["X"]});
    let spelled_out = answer(&daemon, "/api/chat", question(MODEL, &front, options));
    for key in ["message", "prompt_eval_count", "eval_count", "done_reason"] {
        assert_eq!(made[key], spelled_out[key], "{key}");
    }
    assert_eq!(made["model"], "mario");
    let without = answer(
        &daemon,
        "/api/chat",
        question(MODEL, &[], json!({"temperature": 0, "num_predict": 12})),
    );
    assert_ne!(made["prompt_eval_count"], without["prompt_eval_count"]);
    // A system prompt in the request replaces that of the alias.
    let short = answer(&daemon, "/api/chat", question("mario", &[], json!({"num_predict": 1})));
    assert_eq!(short["eval_count"], 1);
    // The weights are loaded once, under the name of the hf: model.
    let resident = daemon.get_json("/api/ps");
    assert_eq!(resident["models"].as_array().map(Vec::len), Some(1), "{resident}");
    assert_eq!(resident["models"][0]["name"], MODEL);
    let unloaded = answer(&daemon, "/api/generate", json!({"model": "mario", "keep_alive": 0}));
    assert_eq!(unloaded["done_reason"], "unload");
}

#[test]
fn a_template_of_its_own_is_the_prompt() {
    let daemon = Setup::with_model().config(ENGINE).start();
    let template =
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n";
    let request = json!({
        "model": "t", "from": MODEL, "template": template, "system": "S",
        "parameters": {"temperature": 0, "num_predict": 8},
    });
    create(&daemon, &request);
    let made = answer(&daemon, "/api/chat", question("t", &[], json!({})));
    let raw = json!({
        "model": MODEL, "raw": true, "options": {"temperature": 0, "num_predict": 8},
        "prompt": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    });
    let raw = answer(&daemon, "/api/generate", raw);
    assert_eq!(made["message"]["content"], raw["response"]);
    assert_eq!(made["prompt_eval_count"], raw["prompt_eval_count"]);

    // A conversation that does not fit loses its oldest turns, as without an alias.
    let long: Vec<(&str, &str)> = ["one two three four five six seven eight nine ten"; 60]
        .iter()
        .enumerate()
        .map(|(at, text)| (if at % 2 == 0 { "user" } else { "assistant" }, *text))
        .collect();
    let made = answer(&daemon, "/api/chat", question("t", &long, json!({"num_predict": 1})));
    let tokens = made["prompt_eval_count"].as_u64().expect("a number");
    assert!((256..=512).contains(&tokens), "{tokens}");
}

#[test]
fn it_survives_a_restart_and_its_deletion_leaves_the_model() {
    let daemon = Setup::with_model().config(ENGINE).start();
    create(&daemon, &mario(MODEL));
    create(
        &daemon,
        &json!({"model": "me/child:v1", "from": "mario", "system": "You are Luigi."}),
    );
    for (from, to) in [(MODEL, "copy"), ("mario", "twin")] {
        let (head, body) = daemon.post("/api/copy", &json!({"source": from, "destination": to}));
        assert_eq!((head.status(), body.as_str()), (200, ""));
    }
    let before = (daemon.get_json("/api/tags"), daemon.get_json("/v1/models"));
    let daemon = daemon.again(Signal::TERM);
    assert_eq!((daemon.get_json("/api/tags"), daemon.get_json("/v1/models")), before);
    let shown = answer(&daemon, "/api/show", json!({"model": "me/child:v1"}));
    assert_eq!(shown["system"], "You are Luigi.");
    assert_eq!(shown["details"]["parent_model"], "mario:latest");
    assert_eq!(shown["messages"][1]["content"], "it's me");
    answer(&daemon, "/api/chat", question("twin", &[], json!({"num_predict": 2})));

    let (head, body) = daemon.post("/api/push", &json!({"model": "mario"}));
    assert!(head.status() == 400 && body.contains("cannot be pushed"), "{body}");
    for name in ["mario", "me/child:v1", "copy", "TWIN:latest"] {
        let (head, body) = daemon.request("DELETE", "/api/delete", &json!({"model": name}).to_string());
        assert_eq!((head.status(), body.as_str()), (200, ""), "{name}");
    }
    assert_eq!(listed(&daemon), BTreeSet::from([MODEL.to_owned()]));
    let daemon = daemon.again(Signal::TERM);
    assert_eq!(listed(&daemon), BTreeSet::from([MODEL.to_owned()]));
}

#[test]
fn many_that_are_made_at_once_are_all_there() {
    let daemon = Setup::with_model().start();
    thread::scope(|scope| {
        for at in 0..20 {
            let daemon = &daemon;
            scope.spawn(move || {
                create(
                    daemon,
                    &json!({"model": format!("m{at}"), "from": MODEL, "system": format!("You are {at}.")}),
                );
            });
        }
    });
    let expected: BTreeSet<String> = (0..20)
        .map(|at| format!("m{at}:latest"))
        .chain([MODEL.to_owned()])
        .collect();
    assert_eq!(listed(&daemon), expected);
    let daemon = daemon.again(Signal::KILL);
    assert_eq!(listed(&daemon), expected);
    let shown = answer(&daemon, "/api/show", json!({"model": "m7"}));
    assert_eq!(shown["system"], "You are 7.");
}

#[test]
fn a_daemon_that_is_killed_while_it_makes_one_leaves_the_old_or_the_new() {
    // The records are large, so that writing takes time. Each system prompt repeats one letter.
    let request = |letter: char| json!({"model": "m", "from": MODEL, "system": letter.to_string().repeat(2 << 20), "stream": false});
    let mut daemon = Setup::with_model().start();
    create(&daemon, &request('a'));
    for round in 0..5u64 {
        thread::scope(|scope| {
            let mut stream = Stream::open(&daemon, "/api/create", &request('b'));
            let writer = scope.spawn(move || stream.rest().len());
            thread::sleep(Duration::from_millis(3 * round));
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(daemon.pid()).expect("a process"),
                Signal::KILL,
            )
            .expect("killed");
            // The connection may break at any point of the reply.
            let _ = writer.join();
        });
        daemon = daemon.again(Signal::KILL);
        assert_eq!(
            listed(&daemon),
            BTreeSet::from(["m:latest".to_owned(), MODEL.to_owned()])
        );
        let shown = answer(&daemon, "/api/show", json!({"model": "m"}));
        let system = shown["system"].as_str().expect("a text");
        let letter = system.chars().next().expect("a letter");
        assert!(matches!(letter, 'a' | 'b') && system.len() == 2 << 20);
        assert!(
            system.chars().all(|other| other == letter),
            "half of one, half of the other"
        );
        let files = fs::read_dir(daemon.folder.path().join("state/aliases")).expect("a folder");
        assert_eq!(files.count(), 1, "nothing is left behind");
    }
}

#[test]
fn a_model_that_is_not_there_is_pulled_first() {
    let hub = FakeHub::start();
    hub.add(REPO, "SmolLM2-135M-Instruct.Q4_1.gguf", Source::Path(gguf()));
    let daemon = Setup::default().hub(hub.url()).config(ENGINE).start();
    let frames = create(&daemon, &mario(&format!("hf:{REPO}")));
    assert_eq!(frames[0], json!({"status": "pulling manifest"}));
    let digest = format!("sha256:{MODEL_SHA256}");
    let pulled = frames.iter().rfind(|frame| frame["digest"] == digest.as_str());
    let pulled = pulled.expect("progress of the file");
    assert_eq!(pulled["completed"], pulled["total"]);
    let successes = frames.iter().filter(|frame| frame["status"] == "success");
    assert_eq!(successes.count(), 1, "clients stop reading at that word");
    let statuses: Vec<&str> = frames.iter().filter_map(|frame| frame["status"].as_str()).collect();
    assert!(
        statuses.contains(&format!("using existing layer {digest}").as_str()),
        "{statuses:?}"
    );
    let shown = answer(&daemon, "/api/show", json!({"model": "mario"}));
    assert_eq!(
        shown["details"]["parent_model"], MODEL,
        "with the selector that was chosen"
    );

    // Without its files, the alias returns Ollama's error, and a pull downloads them again.
    let (head, _) = daemon.request("DELETE", "/api/delete", &json!({"model": MODEL}).to_string());
    assert_eq!(head.status(), 200);
    let (head, body) = daemon.post("/api/show", &json!({"model": "mario"}));
    assert_eq!(
        (head.status(), body.as_str()),
        (404, r#"{"error":"model 'mario' not found"}"#)
    );
    assert_eq!(listed(&daemon), BTreeSet::from(["mario:latest".to_owned()]));
    answer(&daemon, "/api/pull", json!({"model": "mario"}));
    assert_eq!(
        answer(&daemon, "/api/show", json!({"model": "mario"}))["system"],
        "You are Mario."
    );
}
