//! Tokens per second of hubllama and of llama.cpp's server, with the same file, prompts and number of compute threads.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    client::{Connection, run},
    processes::{Hubllama, LlamaServer, MODEL, binaries},
    report::{Report, Row, median},
};

/// Number of tokens in one reply.
const TOKENS: u64 = 128;

/// Prompts that a small model continues at length.
const BEGINNINGS: [&str; 8] = [
    "Once upon a time, in a village by the sea, there lived",
    "The history of the Roman Empire begins with",
    "To bake a good loaf of bread, first",
    "Photosynthesis is the process by which",
    "The train left the station early in the morning, and",
    "In computer science, a hash table is",
    "My grandfather used to tell a story about",
    "The planets of the solar system are",
];

/// Programs and load of a measurement.
#[derive(Clone, Copy)]
struct Load {
    streams: usize,
    tokens: u64,
    /// True when another program occupies a core at the same time.
    busy: bool,
}

const LOADS: [Load; 3] = [
    Load {
        streams: 1,
        tokens: TOKENS,
        busy: false,
    },
    Load {
        streams: 8,
        tokens: TOKENS,
        busy: false,
    },
    // The replies are shorter, because threads that spin while one of them cannot run are very slow.
    Load {
        streams: 1,
        tokens: TOKENS / 4,
        busy: true,
    },
];

/// Thread that occupies a core until the value is dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// API of a contender.
#[derive(Clone, Copy)]
enum Wire {
    Ollama,
    LlamaServer,
}

/// Measures the total rates of one stream, of eight streams, and of one stream on a busy machine. Target: at least 0.95
/// of llama-server.
pub(crate) fn measure(rounds: u32, report: &mut Report) -> Result<Vec<Row>> {
    let what = "decoding";
    let binaries = binaries();
    let Some(program) = &binaries.llama_server else {
        report.skip(what, "llama-server is missing (LLAMA_SERVER)");
        return Ok(Vec::new());
    };
    let Some(gguf) = &binaries.gguf else {
        report.skip(what, "the test model is missing (HUBLLAMA_TEST_GGUF)");
        return Ok(Vec::new());
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let peer = LlamaServer::start(program, gguf, threads)?;
    let hubllama = Hubllama::start(&binaries.hubllama, "http://127.0.0.1:9", Some(gguf))?;
    let contenders = [(Wire::LlamaServer, peer.address), (Wire::Ollama, hubllama.address)];
    let mut rows = Vec::new();
    for load in LOADS {
        let _busy = load.busy.then(Busy::start);
        // The first reply of each contender loads and warms up the model.
        for (wire, address) in contenders {
            run(decode(wire, address, load, 0))?;
        }
        let mut rates = [const { Vec::new() }; 2];
        for round in 1..=rounds {
            for turn in 0..2 {
                let which = (round as usize + turn) % 2;
                let (wire, address) = contenders[which];
                rates[which].push(run(decode(wire, address, load, round))?);
            }
        }
        let [peer, ours] = rates;
        let figure = median(ours.iter().zip(&peer).map(|(ours, peer)| ours / peer));
        let rate = |values: &[f64]| format!("{:.1} tokens/s", median(values.iter().copied()));
        rows.push(Row {
            what: format!(
                "decoding, {}{} (SmolLM2-135M Q4_1, {threads} threads)",
                match load.streams {
                    1 => "1 stream".to_owned(),
                    streams => format!("{streams} streams"),
                },
                if load.busy {
                    ", one core busy with another program"
                } else {
                    ""
                }
            ),
            peer: format!("llama-server {}", rate(&peer)),
            ours: rate(&ours),
            figure: format!("{figure:.2}"),
            target: "≥ 0.95".into(),
            met: figure >= 0.95,
        });
    }
    Ok(rows)
}

/// Returns the tokens per second of all streams, including the time for prompts.
async fn decode(wire: Wire, address: SocketAddr, load: Load, round: u32) -> Result<f64> {
    let Load {
        streams,
        tokens: wanted,
        busy,
    } = load;
    let mut connections = Vec::with_capacity(streams);
    for _ in 0..streams {
        connections.push(Connection::open(address).await?);
    }
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (mut connection, beginning) in connections.into_iter().zip(BEGINNINGS) {
        // The prompt starts with a number, so that no round finds its prompt in the prefix cache.
        let prompt = format!("{streams}{}.{round}. {beginning}", if busy { "b" } else { "" });
        tasks.spawn(async move { reply(wire, &mut connection, &prompt, wanted).await });
    }
    let mut tokens = 0;
    while let Some(done) = tasks.join_next().await {
        tokens += done??;
    }
    let rate = tokens as f64 / begin.elapsed().as_secs_f64();
    // With a model that stops immediately, the figures would be about prompts instead of decoding.
    ensure!(
        tokens >= streams as u64 * wanted / 2,
        "only {tokens} tokens came from {address}"
    );
    Ok(rate)
}

/// Streams one reply and returns the number of tokens that the contender reports.
async fn reply(wire: Wire, connection: &mut Connection, prompt: &str, tokens: u64) -> Result<u64> {
    let (path, request, key) = match wire {
        Wire::Ollama => {
            let options = json!({"temperature": 0, "num_predict": tokens, "num_ctx": 2048, "repeat_penalty": 1.0});
            let request = json!({"model": MODEL, "prompt": prompt, "raw": true, "keep_alive": -1, "options": options});
            ("/api/generate", request, "eval_count")
        }
        Wire::LlamaServer => {
            let request = json!({"prompt": prompt, "temperature": 0, "n_predict": tokens, "stream": true});
            ("/completion", request, "tokens_predicted")
        }
    };
    let text = connection.post_text(path, &Bytes::from(request.to_string())).await?;
    let last = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .context("an empty reply")?;
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap_or(last))
        .with_context(|| format!("the last frame is not JSON: {last}"))?;
    last[key]
        .as_u64()
        .with_context(|| format!("the last frame has no {key}: {last}"))
}
