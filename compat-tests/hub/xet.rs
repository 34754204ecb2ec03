//! Downloads over the xet protocol from the loopback store. Python's hf_xet, which is built from other versions of the
//! same engine, downloads from it as well, so that the store is known to speak the protocol.

use hubllama::config::XetUse;

use super::{
    python::{python, quiet, run},
    *,
};
use crate::harness::fake_hub::{Faults, XetFaults};

/// Sets up a model in the store, with a part that occurs three times.
fn bench() -> (Bench, Bytes) {
    let mut bench = Bench::new();
    bench.config.xet = XetUse::Always;
    let (noise, zeros) = (noise(5 * MIB + 12_345), vec![0; 256 << 10]);
    let (repeated, rest) = noise.split_at(256 << 10);
    let parts: [&[u8]; 6] = [repeated, &rest[..2 * MIB], repeated, &zeros, repeated, &rest[2 * MIB..]];
    let content = Bytes::from(parts.concat());
    bench.server.add(REPO, "tiny-Q8_0.gguf", Source::Bytes(content.clone()));
    bench.server.store(REPO, "tiny-Q8_0.gguf");
    (bench, content)
}

fn plain_bytes(bench: &Bench) -> u64 {
    bench.server.hits("/cdn").bytes
}

#[test]
fn pythons_client_gets_the_file_from_the_store() {
    let Some(python) = python() else { return };
    let (bench, content) = bench();
    let home = tempfile::tempdir().unwrap();
    let script = format!("import huggingface_hub as h; print(h.hf_hub_download('{REPO}', 'tiny-Q8_0.gguf'))");
    let mut command = quiet(&python, home.path(), bench.cache.path(), &bench.server);
    command.env_remove("HF_HUB_DISABLE_XET").args(["-c", &script]);
    let path = run(&mut command);
    assert!(fs::read(path.trim()).unwrap() == content, "the content differs");
    assert!(bench.server.hits("/xorbs").requests > 0);
    assert!(bench.server.hits("/v2/reconstructions").requests > 0);
    assert_eq!(plain_bytes(&bench), 0);
}

#[tokio::test]
async fn a_store_with_the_first_version_of_descriptions_will_do() {
    let (bench, content) = bench();
    bench.server.faults(|faults| faults.xet.is_old = true);
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
    assert!(bench.server.hits("/v1/reconstructions").requests > 0);
    assert_eq!(plain_bytes(&bench), 0);
}

#[tokio::test]
async fn a_file_comes_from_the_store() {
    let (bench, content) = bench();
    let events = bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
    assert_eq!(plain_bytes(&bench), 0);
    let came = bench.server.hits("/xorbs");
    assert!(
        came.bytes < content.len() as u64 - 3 * (200 << 10),
        "what occurs again is fetched once: {came:?}"
    );
    assert_eq!(came.with_token, 0, "links are signed; they need no token");
    let last = events.iter().rev().find_map(|event| match event {
        PullEvent::File { total, completed, .. } => Some((*total, *completed)),
        PullEvent::Status(_) | PullEvent::Converting { .. } => None,
    });
    assert_eq!(last, Some((content.len() as u64, content.len() as u64)));
    assert_eq!(
        shape(&bench.pull(NAME).await.unwrap()).last().map(String::as_str),
        Some("success")
    );
}

#[tokio::test]
async fn the_setting_says_when() {
    for setting in [XetUse::Off, XetUse::Auto] {
        let (mut bench, content) = bench();
        bench.config.xet = setting;
        bench.pull(NAME).await.unwrap();
        bench.assert_complete(&content).await;
        assert_eq!(bench.server.hits("/v").requests, 0, "it is small enough for plain HTTP");
    }
    // Files that are not in the store come over plain HTTP.
    let (mut bench, content, _) = Bench::with_model(MIB);
    bench.config.xet = XetUse::Always;
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
}

/// Faults that retries overcome.
#[tokio::test]
async fn the_store_may_fail_for_a_while() {
    type Fault = fn(&mut Faults);
    let faults: [(&str, Fault); 10] = [
        ("token", |faults| faults.xet.token_expired = 2),
        ("links", |faults| faults.xet.xorb_status = Some((403, 2))),
        ("outage", |faults| faults.xet.xorb_status = Some((503, 2))),
        ("chunks", |faults| faults.xet.broken_chunks = 2),
        ("bombs", |faults| faults.xet.bombs = 2),
        ("lengths", |faults| faults.xet.wrong_lengths = 2),
        ("terms", |faults| faults.xet.missing_terms = 2),
        ("cuts", |faults| faults.truncate = Some((300_000, 6))),
        ("stalls", |faults| faults.stall = Some((300_000, 1))),
        ("drips", |faults| faults.drip = Some((300_000, 1))),
    ];
    for (what, fault) in faults {
        let (mut bench, content) = bench();
        bench.config.stall_timeout = Duration::from_millis(500);
        bench.server.faults(fault);
        bench.pull(NAME).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        bench.assert_complete(&content).await;
        assert_eq!(plain_bytes(&bench), 0, "{what}: the store was given another chance");
        let fetched = bench.server.hits("/xorbs").bytes;
        assert!(fetched < 3 * content.len() as u64, "{what}: {fetched}");
    }
}

/// Plain HTTP downloads what a store that does not work leaves missing.
#[tokio::test]
async fn plain_http_helps_where_the_store_does_not() {
    let many = 10_000;
    let faults = [
        XetFaults {
            no_token: Some((404, many)),
            ..XetFaults::default()
        },
        XetFaults {
            token_expired: many,
            ..XetFaults::default()
        },
        XetFaults {
            xorb_status: Some((403, many)),
            ..XetFaults::default()
        },
        XetFaults {
            broken_chunks: many,
            ..XetFaults::default()
        },
        XetFaults {
            bombs: many,
            ..XetFaults::default()
        },
        XetFaults {
            wrong_lengths: many,
            ..XetFaults::default()
        },
        XetFaults {
            missing_terms: many,
            ..XetFaults::default()
        },
    ];
    for fault in faults {
        let (mut bench, content) = bench();
        bench.config.retry_attempts = 1;
        bench.server.faults(|faults| faults.xet = fault.clone());
        bench
            .pull(NAME)
            .await
            .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        bench.assert_complete(&content).await;
        assert!(plain_bytes(&bench) > 0, "{fault:?}");
    }
}

#[tokio::test]
async fn wrong_bytes_from_the_store_are_no_model() {
    let (bench, content) = bench();
    bench.server.faults(|faults| faults.xet.wrong_bytes = true);
    let error = bench.pull(NAME).await.unwrap_err();
    assert!(matches!(error, HubError::HashMismatch { .. }), "{error}");
    assert!(bench.library.locate(&bench.config, &name(NAME)).await.is_err());
    assert_eq!(bench.leftovers(), Vec::<PathBuf>::new());
    bench.server.faults(|faults| faults.xet.wrong_bytes = false);
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
}

#[tokio::test]
async fn what_came_from_the_store_stays_for_the_next_pull() {
    let (mut bench, content) = bench();
    bench.server.faults(|faults| faults.delay = Duration::from_millis(15));
    let mut stream = bench.library.pull(&bench.config, &name(NAME));
    loop {
        match stream.next().await.unwrap().unwrap() {
            PullEvent::File { completed, .. } if completed > 2 * MIB as u64 => break,
            _ => {}
        }
    }
    drop(stream);
    bench.server.faults(|faults| faults.delay = Duration::ZERO);
    // Over plain HTTP, whose ranges show how much was missing.
    bench.config.xet = XetUse::Off;
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
    let missing = plain_bytes(&bench);
    assert!(missing < content.len() as u64 - 2 * MIB as u64, "{missing} bytes again");
}

#[tokio::test]
async fn the_store_keeps_to_the_bandwidth() {
    let (mut bench, content) = bench();
    bench.config.max_bytes_per_second = 4 * MIB as u64;
    let started = std::time::Instant::now();
    bench.pull(NAME).await.unwrap();
    assert!(
        started.elapsed() > Duration::from_millis(1000),
        "{:?}",
        started.elapsed()
    );
    bench.assert_complete(&content).await;
    assert_eq!(plain_bytes(&bench), 0);
}

/// A part of a file can take longer than the stall timeout, as long as bytes arrive.
#[tokio::test]
async fn a_slow_store_is_no_stall() {
    let (mut bench, content) = bench();
    bench.config.stall_timeout = Duration::from_millis(150);
    bench.config.retry_attempts = 0;
    // A xorb takes eleven times as long.
    bench.server.faults(|faults| faults.delay = Duration::from_millis(40));
    bench.pull(NAME).await.unwrap();
    bench.assert_complete(&content).await;
    assert_eq!(plain_bytes(&bench), 0);
}

#[tokio::test]
async fn dropping_a_pull_ends_its_requests_to_the_store() {
    let (bench, _) = bench();
    bench.server.faults(|faults| faults.delay = Duration::from_millis(20));
    let mut stream = bench.library.pull(&bench.config, &name(NAME));
    while bench.server.hits("/xorbs").bytes == 0 {
        tokio::select! {
            _ = stream.next() => {}
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
    drop(stream);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = bench.server.hits("/xorbs");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.server.hits("/xorbs"), before);
}
