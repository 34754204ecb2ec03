//! A changed configuration file takes effect while the daemon runs, and an invalid one does not.

use std::{fs, os::unix::fs::symlink, path::Path};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    fake_ollama::FakeOllama,
    hubllama::{Hubllama, MODEL, Setup, send_signal, wait_until},
    raw_http::PATIENCE,
    stream::Stream,
};

/// Engine settings of the tests with a model.
const ENGINE: &str = "[engine]\nthreads = 1\nparallel = 2\ncontext_length = 512\n";

fn ollama(name: &str) -> FakeOllama {
    FakeOllama::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
        name.len()
    ))
}

fn upstream(ollama: &FakeOllama) -> String {
    format!("[ollama]\nurl = \"{}\"\n", ollama.url())
}

/// Returns the Ollama that a request with a plain name reaches.
fn answers(daemon: &Hubllama) -> String {
    daemon
        .post("/api/generate", &json!({"model": "plain", "prompt": "x"}))
        .1
}

#[track_caller]
fn wait_for_answer(daemon: &Hubllama, name: &str) {
    let seen = wait_until(PATIENCE, || (answers(daemon) == name).then_some(()));
    assert!(seen.is_some(), "not {name}:\n{}", daemon.log());
}

/// Waits until `GET /config` satisfies a condition.
#[track_caller]
fn wait_for_config(daemon: &Hubllama, condition: impl Fn(&Value) -> bool) -> Value {
    let seen = wait_until(PATIENCE, || {
        Some(daemon.get_json("/config")).filter(|config| condition(config))
    });
    seen.unwrap_or_else(|| panic!("{:#}\n{}", daemon.get_json("/config"), daemon.log()))
}

fn replace_link(link: &Path, target: &str) {
    let new = link.with_file_name("new-link");
    symlink(target, &new).expect("a link");
    fs::rename(new, link).expect("swapped");
}

#[test]
fn the_file_may_be_replaced_in_every_way_that_programs_have() {
    let (one, two) = (ollama("one"), ollama("two"));
    let daemon = Setup::default().config(&upstream(&one)).start();
    assert_eq!(answers(&daemon), "one");
    let folder = daemon.folder.path();
    let file = folder.join("config.toml");

    // Editors rename a new file over the old one.
    daemon.write_config(&upstream(&two));
    wait_for_answer(&daemon, "two");

    // A shell writes the file in place.
    fs::write(&file, upstream(&one)).expect("written");
    wait_for_answer(&daemon, "one");

    // Kubernetes mounts a chain of links: config.toml -> ..data/config.toml, ..data -> a folder.
    for (name, text) in [("..first", upstream(&two)), ("..second", upstream(&one))] {
        fs::create_dir(folder.join(name)).expect("a folder");
        fs::write(folder.join(name).join("config.toml"), text).expect("written");
    }
    symlink("..first", folder.join("..data")).expect("a link");
    replace_link(&file, "..data/config.toml");
    wait_for_answer(&daemon, "two");
    // Only a link next to the file changes, and later the file that it points to.
    replace_link(&folder.join("..data"), "..second");
    wait_for_answer(&daemon, "one");
    fs::write(folder.join("..second/config.toml"), upstream(&two)).expect("written");
    wait_for_answer(&daemon, "two");

    // The removal of an explicitly named file is an error; the file is applied again once it is back.
    fs::remove_file(&file).expect("removed");
    wait_for_config(&daemon, |config| config["status"]["synchronized"] == false);
    assert_eq!(answers(&daemon), "two");
    fs::write(&file, upstream(&one)).expect("written");
    wait_for_answer(&daemon, "one");
}

#[test]
fn a_bad_file_changes_nothing_and_is_explained_until_a_good_one_comes() {
    let (one, two) = (ollama("one"), ollama("two"));
    let daemon = Setup::default().config(&upstream(&one)).start();
    assert_eq!(daemon.get_json("/health")["status"], "ok");
    daemon.write_config(&format!(
        "{}[engine]\nmax_queue = \"many\"\nparalel = 2\n",
        upstream(&two)
    ));
    let config = wait_for_config(&daemon, |config| config["status"]["synchronized"] == false);
    let problems = config["status"]["problems"].as_array().expect("a list");
    let seen: Vec<(&str, bool)> = problems
        .iter()
        .map(|problem| {
            let origin = problem["origin"].as_str().expect("an origin");
            let line = if problem["key"] == "engine.max_queue" {
                ":4"
            } else {
                ":5"
            };
            (
                problem["key"].as_str().expect("a key"),
                origin.ends_with(&format!("config.toml{line}")),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [("engine.max_queue", true), ("engine.paralel", true)],
        "{problems:#?}"
    );
    assert_eq!(daemon.get_json("/health")["status"], "degraded");
    assert_eq!(answers(&daemon), "one", "nothing of the bad file is in force");

    daemon.write_config("this is no TOML");
    wait_for_config(&daemon, |config| {
        config["status"]["problems"]
            .as_array()
            .is_some_and(|list| list.len() == 1)
    });
    assert_eq!(answers(&daemon), "one");

    daemon.write_config(&upstream(&two));
    wait_for_answer(&daemon, "two");
    assert_eq!(daemon.get_json("/health")["status"], "ok");
    assert_eq!(daemon.get_json("/config")["status"]["problems"], json!([]));
}

#[test]
fn a_key_that_needs_a_restart_is_named_and_the_others_take_effect() {
    let (one, two) = (ollama("one"), ollama("two"));
    let daemon = Setup::default().config(&upstream(&one)).start();
    daemon.write_config(&format!("{}[server]\nmax_connections = 7\n", upstream(&two)));
    let config = wait_for_config(&daemon, |config| config["status"]["restart_needed"] != json!([]));
    assert_eq!(config["status"]["restart_needed"], json!(["server.max_connections"]));
    assert_eq!(config["config"]["server"]["max_connections"], 4096, "what really runs");
    assert_eq!(answers(&daemon), "two");
    daemon.write_config(&upstream(&two));
    wait_for_config(&daemon, |config| config["status"]["restart_needed"] == json!([]));
}

#[test]
fn the_hang_up_signal_reloads() {
    let daemon = Setup::default().start();
    send_signal(daemon.pid(), Signal::HUP);
    let seen = wait_until(PATIENCE, || {
        daemon
            .log()
            .lines()
            .any(|line| line.contains("configuration reloaded, nothing changed") && line.contains("reason=signal"))
            .then_some(())
    });
    assert!(seen.is_some(), "{}", daemon.log());
}

#[test]
fn the_log_level_follows() {
    let daemon = Setup::default().config("[log]\nlevel = \"info\"\n").start();
    assert!(!daemon.log().contains(" DEBUG "));
    daemon.write_config("[log]\nlevel = \"debug\"\n");
    let seen = wait_until(PATIENCE, || {
        let mut connection = crate::harness::raw_http::Connection::open(daemon.address());
        // A broken connection is logged at that level.
        connection.send("NOT HTTP\r\n\r\n");
        connection.closes();
        daemon.log().contains(" DEBUG ").then_some(())
    });
    assert!(seen.is_some(), "{}", daemon.log());
}

fn count(model: &str, tokens: u32) -> Value {
    json!({"model": model, "prompt": "1, 2, 3, 4, 5, 6,", "raw": true,
           "options": {"temperature": 0, "num_predict": tokens}})
}

fn whole(daemon: &Hubllama, path: &str, request: &Value) -> Value {
    let mut request = request.clone();
    request["stream"] = false.into();
    let (head, body) = daemon.post(path, &request);
    assert_eq!(head.status(), 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn aliases_and_settings_of_models_take_effect_and_running_answers_go_on() {
    let daemon = Setup::with_model().config(ENGINE).start();
    let before = whole(&daemon, "/api/generate", &count(MODEL, 30));
    let worker = daemon.workers();
    let mut running = Stream::open(&daemon, "/api/generate", &count(MODEL, 400));
    running.frames(2);

    daemon.write_config(&format!(
        "{ENGINE}[aliases]\nsmall = \"{MODEL}\"\n[models.\"{MODEL}\"]\nsystem = \"You are a pirate.\"\nstop = [\"11\"]\n"
    ));
    wait_for_config(&daemon, |config| config["config"]["aliases"]["small"] == MODEL);
    running.frames(2);
    let tags = daemon.get_json("/api/tags");
    let names: Vec<&str> = tags["models"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|model| model["name"].as_str())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("small")), "{names:?}");

    let after = whole(&daemon, "/api/generate", &count("small", 30));
    let (text, stopped) = (
        before["response"].as_str().expect("text"),
        after["response"].as_str().expect("text"),
    );
    assert_eq!(Some(stopped), text.split_once("11").map(|(front, _)| front), "{text}");
    assert_eq!(after["done_reason"], "stop");
    assert_eq!(after["model"], "small", "answers name what was asked for");
    let show = daemon.post("/api/show", &json!({"model": "small"})).1;
    assert!(show.contains("You are a pirate."), "{show}");

    let rest = running.rest();
    let last = rest.last().expect("a last frame");
    assert_eq!(last["eval_count"], 400, "one request sees one configuration: {last}");
    assert_eq!(daemon.workers(), worker);
}
