//! Forwarding to Ollama: through hubllama, through nginx, and directly.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;

use crate::{
    client::{Connection, run},
    processes::{Hubllama, Nginx, Upstream, binaries},
    report::{Report, Row, median},
    upstream::FRAMES,
};

const SMALL: &[u8] = br#"{"model":"tiny","prompt":"Say a few words.","stream":false}"#;
const STREAMED: &[u8] = br#"{"model":"tiny","prompt":"Say many words.","stream":true}"#;

/// Number of calls of one contender in one round.
const CALLS: usize = 1000;
/// Number of parallel connections.
const CONNECTIONS: usize = 32;
/// Number of streamed replies on each connection in one round.
const REPLIES: usize = 10;
/// Target for the microseconds that hubllama adds beyond those of nginx.
const ALLOWANCE: f64 = 40.0;

/// Addresses of Ollama itself, of nginx and of hubllama.
struct Ways {
    upstream: Upstream,
    nginx: Nginx,
    hubllama: Hubllama,
}

impl Ways {
    fn open(what: &str, report: &mut Report) -> Result<Option<Self>> {
        let binaries = binaries();
        let Some(nginx) = &binaries.nginx else {
            report.skip(what, "nginx is missing (HUBLLAMA_TEST_NGINX)");
            return Ok(None);
        };
        let upstream = Upstream::start()?;
        let nginx = Nginx::start(nginx, upstream.address)?;
        let hubllama = Hubllama::start(&binaries.hubllama, &format!("http://{}", upstream.address), None)?;
        Ok(Some(Self {
            upstream,
            nginx,
            hubllama,
        }))
    }

    /// Measures each way once per round, and starts each round with another one. Returns the values of the rounds for
    /// direct, nginx and hubllama.
    fn take_turns(&self, rounds: u32, measure: impl Fn(SocketAddr) -> Result<f64>) -> Result<[Vec<f64>; 3]> {
        let addresses = [self.upstream.address, self.nginx.address, self.hubllama.address];
        let mut values = [const { Vec::new() }; 3];
        for address in addresses {
            measure(address)?;
        }
        for round in 0..rounds as usize {
            for turn in 0..3 {
                let way = (round + turn) % 3;
                values[way].push(measure(addresses[way])?);
            }
        }
        Ok(values)
    }
}

/// Measures a small call on a persistent connection. Target: hubllama adds at most [`ALLOWANCE`] more than nginx.
pub(crate) fn latency(rounds: u32, report: &mut Report) -> Result<Vec<Row>> {
    let what = "small call";
    let Some(ways) = Ways::open(what, report)? else {
        return Ok(Vec::new());
    };
    let [direct, nginx, hubllama] = ways.take_turns(rounds, |address| run(small_calls(address)))?;
    let added = |values: &[f64]| median(values.iter().zip(&direct).map(|(through, direct)| through - direct));
    let (by_nginx, by_us) = (added(&nginx), added(&hubllama));
    Ok(vec![Row {
        what: format!(
            "{what}: time added to the {:.0} µs of a direct call (median)",
            median(direct.iter().copied())
        ),
        peer: format!("nginx {by_nginx:.0} µs"),
        ours: format!("{by_us:.0} µs"),
        figure: format!(
            "{:+.0} µs ({:.2} times nginx's total)",
            by_us - by_nginx,
            ratio(&hubllama, &nginx)
        ),
        target: format!("≤ +{ALLOWANCE:.0} µs"),
        met: by_us <= by_nginx + ALLOWANCE,
    }])
}

/// Returns the median duration of a call in microseconds.
async fn small_calls(address: SocketAddr) -> Result<f64> {
    let request = Bytes::from_static(SMALL);
    let mut connection = Connection::open(address).await?;
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begin = Instant::now();
        let mut bytes = 0;
        connection
            .post("/api/generate", &request, |data| bytes += data.len())
            .await?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        ensure!(bytes > 0, "an empty reply from {address}");
    }
    Ok(median(times))
}

/// Measures frames per second of many parallel streams. Target: at least 0.9 of nginx.
pub(crate) fn throughput(rounds: u32, report: &mut Report) -> Result<Vec<Row>> {
    let what = format!("{CONNECTIONS} streams of {FRAMES} frames");
    let Some(ways) = Ways::open(&what, report)? else {
        return Ok(Vec::new());
    };
    let [direct, nginx, hubllama] = ways.take_turns(rounds, |address| run(streams(address)))?;
    let figure = ratio(&hubllama, &nginx);
    let rate = |values: &[f64]| format!("{:.0} frames/s", median(values.iter().copied()));
    Ok(vec![Row {
        what: format!("{what} (direct: {})", rate(&direct)),
        peer: format!("nginx {}", rate(&nginx)),
        ours: rate(&hubllama),
        figure: format!("{figure:.2}"),
        target: "≥ 0.90".into(),
        met: figure >= 0.9,
    }])
}

/// Returns the frames per second of all connections.
async fn streams(address: SocketAddr) -> Result<f64> {
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        connections.push(Connection::open(address).await?);
    }
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for mut connection in connections {
        tasks.spawn(async move {
            let request = Bytes::from_static(STREAMED);
            for _ in 0..REPLIES {
                let mut frames = 0;
                let count = |data: &[u8]| frames += data.iter().filter(|byte| **byte == b'\n').count();
                connection.post("/api/generate", &request, count).await?;
                ensure!(
                    frames == FRAMES,
                    "{frames} of {FRAMES} frames arrived through {}",
                    connection.address()
                );
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok((CONNECTIONS * REPLIES * FRAMES) as f64 / begin.elapsed().as_secs_f64())
}

/// Returns the median over the rounds of the ratio of two values.
fn ratio(ours: &[f64], peer: &[f64]) -> f64 {
    median(ours.iter().zip(peer).map(|(ours, peer)| ours / peer))
}
