//! Pulls repositories of safetensors with the command line while no daemon runs.

use super::*;
use crate::{convert::checkpoint, safetensors::publish};

const REPO: &str = "Example-Org/Tiny";

#[test]
fn a_checkpoint_is_pulled_and_converted_without_a_daemon() {
    let hub = FakeHub::start();
    publish(&hub, REPO, checkpoint("qwen3", "qwen").path());
    let caller = Caller::alone(&hub);
    let pulled = caller.run(&["pull", "hf:example-org/tiny:q8_0"]);
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    for step in ["no daemon is running", "pulling manifest", "planning model", "success"] {
        assert!(pulled.stderr.contains(step), "{step}: {}", pulled.stderr);
    }
    let listed = caller.run(&["list"]).stdout;
    let lines: Vec<&str> = listed.lines().skip(1).collect();
    assert!(
        matches!(lines.as_slice(), [line] if line.starts_with("hf:Example-Org/Tiny:Q8_0 ")),
        "{listed}"
    );
    let fetched = hub.hits("/cdn").bytes;
    let again = caller.run(&["pull", "hf:Example-Org/Tiny:Q8_0"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(!again.stderr.contains("planning model"), "{}", again.stderr);
    // Another type of the same checkpoint is converted without downloading anything.
    assert_eq!(caller.run(&["pull", "hf:Example-Org/Tiny:F16"]).code, Some(0));
    assert_eq!(hub.hits("/cdn").bytes, fetched);
    for name in ["hf:Example-Org/Tiny:F16", "hf:Example-Org/Tiny:Q8_0"] {
        let removed = caller.run(&["rm", name]);
        assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    }
    assert_eq!(caller.run(&["list"]).stdout.lines().count(), 1);
    assert!(!caller.cache().join("models--Example-Org--Tiny").exists());
}

/// A checkpoint that cannot be converted is reported, and offered for removal.
#[test]
fn a_checkpoint_that_cannot_be_converted_can_be_pruned() {
    let hub = FakeHub::start();
    let tiny = checkpoint("qwen3", "qwen");
    // The configuration is valid, so that the weights are downloaded.
    fs::write(tiny.path().join("model.safetensors"), "no weights").expect("written");
    publish(&hub, REPO, tiny.path());
    let caller = Caller::alone(&hub);
    let pulled = caller.run(&["pull", "hf:Example-Org/Tiny:F16"]);
    assert_eq!(pulled.code, Some(1), "{}", pulled.stderr);
    assert!(pulled.stderr.contains("model.safetensors"), "{}", pulled.stderr);
    let dry = caller.run(&["prune"]);
    let what = format!("hf:{REPO}@{} safetensors", hub.commit(REPO));
    assert!(
        dry.stdout.contains(&what) && dry.stdout.contains("nothing was removed"),
        "{}",
        dry.stdout
    );
    let blobs = caller.cache().join("models--Example-Org--Tiny/blobs");
    assert!(blobs.exists());
    let pruned = caller.run(&["prune", "--apply"]);
    assert_eq!(pruned.code, Some(0), "{}", pruned.stderr);
    assert_eq!(fs::read_dir(&blobs).map_or(0, Iterator::count), 0);
    assert!(caller.run(&["prune"]).stdout.contains("nothing to remove"));
}

/// A checkpoint that another program has downloaded is used in place.
#[test]
fn a_checkpoint_in_another_users_cache_is_not_downloaded_again() {
    let hub = FakeHub::start();
    publish(&hub, REPO, checkpoint("qwen3", "qwen").path());
    let other = Caller::alone(&hub);
    assert_eq!(other.run(&["pull", "hf:Example-Org/Tiny:F16"]).code, Some(0));
    let fetched = hub.hits("/cdn").bytes;
    let caller = Caller::alone(&hub);
    let file = caller.config(&format!("[hub]\nextra_caches = [{:?}]\n", other.cache()));
    let pulled = caller.run(&["pull", "hf:Example-Org/Tiny:Q8_0", "--config", &file]);
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
    assert!(pulled.stderr.contains("planning model"), "{}", pulled.stderr);
    assert_eq!(hub.hits("/cdn").bytes, fetched);
    let listed = caller.run(&["list", "--config", &file]).stdout;
    assert!(listed.contains("hf:Example-Org/Tiny:Q8_0 "), "{listed}");
    // The Hub is not needed either.
    let offline = Caller::alone(&hub).with("HF_HUB_OFFLINE", "1");
    let file = offline.config(&format!("[hub]\nextra_caches = [{:?}]\n", other.cache()));
    let pulled = offline.run(&["pull", "hf:Example-Org/Tiny:Q8_0", "--config", &file]);
    assert_eq!(pulled.code, Some(0), "{}", pulled.stderr);
}
