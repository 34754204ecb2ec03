//! Models that are loaded directly from the repository's safetensors, without a GGUF file.

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{EIGHT, NAME, REPO, TINY, generate, listed, post, publish, pull};
use crate::{
    convert::{checkpoint, smollm2},
    harness::{
        fake_hub::FakeHub,
        fixture_file::gguf,
        hubllama::{Hubllama, Setup, is_alive, send_signal, wait_until},
        raw_http::PATIENCE,
    },
};

/// Weight types, sorted. By default the second is converted to a file.
const NAMES: [&str; 3] = [NAME, FOUR, EIGHT];
const FOUR: &str = "hf:Example-Org/SmolLM2:Q4_K_M";
const TINY_NAME: &str = "hf:Example-Org/Tiny:BF16";

fn config(safetensors: &str) -> String {
    format!("[engine]\nthreads = 1\ncontext_length = 256\n[hub]\nsafetensors = \"{safetensors}\"\n")
}

/// Returns every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let paths = entries.map(|entry| entry.path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect()
}

/// Returns the disk space of all conversions in bytes.
fn made_bytes(daemon: &Hubllama) -> u64 {
    let made = files(&daemon.folder.path().join("state/converted"));
    let meta = made.iter().map(|path| fs::symlink_metadata(path).expect("a file"));
    meta.map(|meta| meta.blocks() * 512).sum()
}

/// Returns the entry of a model in the listing.
fn entry(daemon: &Hubllama, name: &str) -> Value {
    let tags = daemon.get_json("/api/tags");
    let models = tags["models"].as_array().cloned().unwrap_or_default();
    let mut entry = models
        .into_iter()
        .find(|model| model["name"] == name)
        .expect("it is listed");
    entry.as_object_mut().expect("an object").remove("modified_at");
    entry
}

/// Returns the token ids of prompt and answer.
fn tokens(daemon: &Hubllama, model: &str) -> Value {
    let request = json!({"model": model, "prompt": "The capital of France is", "stream": false, "options": {"num_predict": 24, "temperature": 0}});
    let (status, reply) = post(daemon, "/api/generate", &request);
    assert!(
        status == 200 && reply["context"].as_array().is_some_and(|ids| ids.len() > 24),
        "{reply}"
    );
    reply["context"].clone()
}

fn resident_bytes(daemon: &Hubllama, name: &str) -> f64 {
    let resident = daemon.get_json("/api/ps");
    let models = resident["models"].as_array().cloned().unwrap_or_default();
    let model = models
        .iter()
        .find(|model| model["name"] == name)
        .expect("it is resident");
    model["size"].as_f64().expect("a size")
}

fn unload(daemon: &Hubllama, model: &str) {
    post(daemon, "/api/generate", &json!({"model": model, "keep_alive": 0}));
    let gone = wait_until(PATIENCE, || daemon.workers().is_empty().then_some(()));
    assert!(gone.is_some(), "{model} stays");
}

#[test]
fn a_streamed_model_is_the_same_as_its_file() {
    let home = tempfile::tempdir().expect("a home");
    let folder = home.path().join("SmolLM2");
    smollm2::write(&folder, &gguf());
    let hub = FakeHub::start();
    publish(&hub, REPO, &folder);
    let daemon = Setup::default().hub(hub.url()).config(&config("stream")).start();

    for name in NAMES {
        let steps = pull(&daemon, name);
        assert!(steps.contains(&"planning model".to_owned()), "{steps:?}");
    }
    assert_eq!(listed(&daemon), NAMES);
    assert!(
        made_bytes(&daemon) < 16 << 20,
        "{} bytes were made",
        made_bytes(&daemon)
    );
    let shown = |name: &str| post(&daemon, "/api/show", &json!({"model": name, "verbose": true})).1;
    let mut streamed = Vec::new();
    for name in NAMES {
        let (ids, size) = (tokens(&daemon, name), resident_bytes(&daemon, name));
        unload(&daemon, name);
        streamed.push((ids, size, entry(&daemon, name), shown(name)));
    }

    daemon.write_config(&config("file"));
    let is_taken_over = || daemon.log().contains("hub.safetensors").then_some(());
    assert!(wait_until(PATIENCE, is_taken_over).is_some(), "{}", daemon.log());
    for (name, streamed) in NAMES.iter().zip(streamed) {
        assert_eq!(
            tokens(&daemon, name),
            streamed.0,
            "it is served until it is pulled again"
        );
        unload(&daemon, name);
        let steps = pull(&daemon, name);
        assert!(steps.contains(&"converting model".to_owned()), "{steps:?}");
        let (ids, size) = (tokens(&daemon, name), resident_bytes(&daemon, name));
        unload(&daemon, name);
        assert_eq!(ids, streamed.0, "{name}");
        assert!(
            (size / streamed.1 - 1.0).abs() < 0.05,
            "{name}: {size} and {}",
            streamed.1
        );
        assert_eq!(entry(&daemon, name), streamed.2);
        let without_time = |mut shown: Value| {
            shown.as_object_mut().expect("an object").remove("modified_at");
            shown
        };
        assert_eq!(without_time(shown(name)), without_time(streamed.3), "{name}");
    }
    assert!(
        made_bytes(&daemon) > 300 << 20,
        "{} bytes were made",
        made_bytes(&daemon)
    );
    let made = files(&daemon.folder.path().join("state/converted"));
    assert!(
        made.iter()
            .all(|path| path.extension().is_none_or(|end| end != "header")),
        "{made:?}"
    );
}

/// Returns the blob with the weights of the Tiny model, and the one with its configuration.
fn blobs(daemon: &Hubllama) -> (PathBuf, PathBuf) {
    let snapshots = files(&daemon.folder.path().join("hub/models--Example-Org--Tiny/snapshots"));
    let blob = |name: &str| {
        let link = snapshots.iter().find(|path| path.ends_with(name)).expect("a link");
        fs::canonicalize(link).expect("a blob")
    };
    (blob("model.safetensors"), blob("config.json"))
}

#[test]
fn a_checkpoint_that_was_damaged_after_the_pull_is_one_error() {
    let hub = FakeHub::start();
    publish(&hub, TINY, checkpoint("qwen3", "qwen").path());
    let daemon = Setup::default().hub(hub.url()).config(&config("stream")).start();
    pull(&daemon, TINY_NAME);
    assert_eq!(generate(&daemon, TINY_NAME).0, 200);
    unload(&daemon, TINY_NAME);
    let (weights, settings) = blobs(&daemon);
    let (good, text) = (
        fs::read(&weights).expect("read"),
        fs::read_to_string(&settings).expect("read"),
    );
    let error = || {
        let (status, reply) = generate(&daemon, TINY_NAME);
        assert_eq!(status, 500, "{reply}");
        let error = reply["error"].as_str().expect("a sentence").to_owned();
        assert!(
            error.starts_with("the model could not be loaded: ") && !error.contains('\n'),
            "{error}"
        );
        error
    };

    fs::write(&weights, &good[..good.len() / 2]).expect("written");
    let cut = error();
    assert!(cut.contains("safetensors") || cut.contains("blobs"), "{cut}");
    assert!(
        cut.contains("damaged or incomplete") && cut.contains("download it again"),
        "{cut}"
    );
    fs::write(&weights, &good).expect("written");
    let file = fs::OpenOptions::new().write(true).open(&weights).expect("opened");
    file.write_all_at(&[0xff; 64], good.len() as u64 - 64).expect("written");
    let broken = error();
    assert!(broken.contains("NaN") && broken.contains("damaged"), "{broken}");
    fs::remove_file(&weights).expect("removed");
    assert_eq!(generate(&daemon, TINY_NAME).0, 404, "there is no checkpoint any more");
    fs::write(&weights, &good).expect("written");

    for (wrong, said) in [
        (
            text.replace("\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": 1e-05"),
            "pull it again",
        ),
        (
            text.replace("Qwen3ForCausalLM", "BrandNewForCausalLM"),
            "BrandNewForCausalLM",
        ),
        (text[..text.len() / 2].to_owned(), "config.json"),
    ] {
        fs::write(&settings, wrong).expect("written");
        let error = error();
        assert!(error.contains(said), "{error}");
    }
    fs::write(&settings, &text).expect("written");
    assert_eq!(generate(&daemon, TINY_NAME).0, 200, "it is whole again");
    assert_eq!(daemon.get_json("/health")["quarantined"], json!([]));
}

#[test]
fn a_worker_that_is_killed_is_followed_by_another() {
    let hub = FakeHub::start();
    publish(&hub, TINY, checkpoint("qwen2-yarn", "qwen").path());
    let daemon = Setup::default().hub(hub.url()).config(&config("auto")).start();
    pull(&daemon, TINY_NAME);
    for _ in 0..2 {
        assert_eq!(generate(&daemon, TINY_NAME).0, 200);
        let workers = daemon.workers();
        assert_eq!(workers.len(), 1);
        send_signal(workers[0], Signal::KILL);
        let gone = wait_until(PATIENCE, || (!is_alive(workers[0])).then_some(()));
        assert!(gone.is_some());
    }
}

/// The command line pulls, lists, shows and removes streamed models without a daemon.
#[test]
fn the_command_knows_it_too() {
    let hub = FakeHub::start();
    publish(&hub, TINY, checkpoint("qwen3", "qwen").path());
    let home = tempfile::tempdir().expect("a home");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hubllama"))
            .args(arguments)
            .env_clear()
            .env("HOME", home.path())
            .env("HF_HUB_CACHE", home.path().join("hub"))
            .env("HUBLLAMA_STATE", home.path().join("state"))
            .env("HUBLLAMA_LISTEN", "unix:/nobody/listens")
            .env("HF_ENDPOINT", hub.url())
            .output()
            .expect("the binary starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    };
    let said = run(&["pull", "hf:Example-Org/Tiny"]);
    assert!(said.contains("planning model"), "{said}");
    let headers = || {
        let made = files(&home.path().join("state/converted")).into_iter();
        made.filter(|path| path.extension().is_some_and(|end| end == "header"))
            .count()
    };
    assert_eq!(headers(), 1);
    assert!(run(&["list"]).contains(TINY_NAME));
    let shown = run(&["show", TINY_NAME]);
    assert!(shown.contains("qwen3") && shown.contains("BF16"), "{shown}");
    let said = run(&["rm", TINY_NAME]);
    assert_eq!(headers(), 0, "{said}");
    assert!(!run(&["list"]).contains(TINY_NAME));
}
