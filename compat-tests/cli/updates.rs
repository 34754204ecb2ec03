//! Reports of newer files on the Hub in `list` and `show`.

use super::*;

#[test]
fn a_list_says_what_is_newer_and_asks_once_a_day() {
    let hub = hub();
    let caller = Caller::alone(&hub);
    assert_eq!(caller.run(&["pull", NAME]).code, Some(0));
    hub.add(
        REPO,
        "small-Q4_1.gguf",
        Source::Bytes(bytes::Bytes::from_static(b"other weights")),
    );
    let fetched = hub.hits("/cdn").bytes;
    let expected = format!("update: {NAME} has 13 B of new files on the Hub; hubllama pull {NAME}");
    let asked = || hub.hits("/api").requests;
    let list = || {
        let said = caller.run(&["list"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert_eq!(said.stdout.lines().count(), 2, "{}", said.stdout);
        said.stderr.lines().last().unwrap_or_default().to_owned()
    };
    assert_eq!(list(), expected);
    let before = asked();
    assert_eq!(list(), expected);
    let shown = caller.run(&["show", NAME]).stdout;
    let row = shown.lines().last().unwrap_or_default();
    assert!(
        row.contains("13 B to fetch") && row.contains(&hub.commit(REPO)[..12]),
        "{shown}"
    );
    assert_eq!(asked(), before, "it is known");
    assert_eq!(hub.hits("/cdn").bytes, fetched, "nothing is downloaded");

    // The file has its first content again, in a new commit: after a pull nothing is newer.
    hub.add(REPO, "small-Q4_1.gguf", Source::Path(gguf()));
    hub.add_small(REPO, "README.md", "new");
    assert_eq!(caller.run(&["pull", NAME]).code, Some(0));
    assert!(!list().contains("update:"));
}

#[test]
fn a_list_waits_for_no_hub() {
    let hub = hub();
    let mut caller = Caller::alone(&hub);
    assert_eq!(caller.run(&["pull", NAME]).code, Some(0));
    hub.add(
        REPO,
        "small-Q4_1.gguf",
        Source::Bytes(bytes::Bytes::from_static(b"other weights")),
    );
    hub.faults(|faults| faults.api_hangs = true);
    let started = std::time::Instant::now();
    assert!(!caller.run(&["list"]).stderr.contains("update:"));
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    let asked = hub.hits("/api").requests;
    caller.run(&["list"]);
    assert_eq!(
        hub.hits("/api").requests,
        asked,
        "who did not answer is left alone for a while"
    );
    // In offline mode the Hub is not asked.
    hub.faults(|faults| faults.api_hangs = false);
    fs::remove_file(caller.home.path().join(".local/state/hubllama/hub-updates.json")).expect("it was kept");
    caller.variables.push(("HF_HUB_OFFLINE", "1".into()));
    assert!(!caller.run(&["list"]).stderr.contains("update:"));
    assert_eq!(hub.hits("/api").requests, asked);
}
