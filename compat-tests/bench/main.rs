//! Compares hubllama with its peers in one run on one machine and reports ratios: nginx for forwarding, llama.cpp's
//! server for decoding, and others. `make bench` prepares the peers. Measurements without a peer are skipped, with the
//! reason.
//!
//! The contenders of a section take turns within each round, and the result is the median over the rounds, so that a
//! machine that slows down during the run affects all of them.

mod client;
mod conversion;
mod decode;
mod download;
#[path = "../harness/fake_hub/mod.rs"]
#[expect(dead_code, reason = "the tests use what the benchmark does not")]
mod fake_hub;
mod loading;
mod processes;
mod relay;
mod report;
#[path = "../convert/smollm2.rs"]
mod smollm2;
mod synthetic;
mod upstream;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;

use crate::{
    processes::{Hubllama, binaries},
    report::{Report, Row},
};

/// Compares hubllama with nginx, llama-server and other programs.
#[derive(Debug, Parser)]
struct Args {
    /// File whose table between the markers is replaced
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    write: Option<PathBuf>,
    /// Exit with an error if a target is missed
    #[arg(long)]
    check: bool,
    /// Rounds of each section
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..))]
    rounds: u32,
    /// Measure only these sections: latency, relay, decode, memory, download, convert, loading
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Run as a Hub that serves this file
    #[arg(long, hide = true, value_name = "FILE")]
    hub: Option<PathBuf>,
    /// Run as the upstream server of the proxies
    #[arg(long, hide = true)]
    upstream: bool,
    /// Run llama.cpp's quantizer from one file into another
    #[arg(long, hide = true, num_args = 2, value_names = ["IN", "OUT"])]
    quantize: Vec<PathBuf>,
    /// Added by cargo and ignored
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(file) = &args.hub {
        download::serve(file)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.upstream {
        upstream::serve()?;
        return Ok(ExitCode::SUCCESS);
    }
    if let [input, output] = args.quantize.as_slice() {
        conversion::quantize(input, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let wants = |section: &str| args.only.is_empty() || args.only.iter().any(|only| only == section);
    let mut report = Report::default();
    if wants("memory") {
        section(&mut report, "memory", |_| memory());
    }
    if wants("latency") {
        section(&mut report, "latency", |report| relay::latency(args.rounds, report));
    }
    if wants("relay") {
        section(&mut report, "relay", |report| relay::throughput(args.rounds, report));
    }
    if wants("decode") {
        section(&mut report, "decode", |report| decode::measure(args.rounds, report));
    }
    if wants("download") {
        section(&mut report, "download", |report| download::measure(args.rounds, report));
    }
    if wants("convert") {
        section(&mut report, "convert", |report| {
            conversion::measure(args.rounds, report)
        });
    }
    if wants("loading") {
        section(&mut report, "loading", |report| loading::measure(args.rounds, report));
    }
    let text = report.markdown();
    println!("{text}");
    if let Some(file) = &args.write {
        report::write_between_markers(file, &text)?;
        eprintln!("wrote {}", file.display());
    }
    let failed = report.has_errors() || (args.check && report.missed());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs one section. An error is reported and does not end the other sections.
fn section(report: &mut Report, name: &str, measure: impl FnOnce(&mut Report) -> Result<Vec<Row>>) {
    eprintln!("measuring {name} …");
    match measure(report) {
        Ok(rows) => report.rows.extend(rows),
        Err(error) => report.error(name, &error),
    }
}

/// Measures the resident memory of a daemon that has no model loaded. Target: at most 30 MB.
fn memory() -> Result<Vec<Row>> {
    let hubllama = Hubllama::start(&binaries().hubllama, "http://127.0.0.1:9", None)?;
    let megabytes = hubllama.resident_bytes()? as f64 / 1e6;
    Ok(vec![Row {
        what: "memory of the idle daemon".into(),
        peer: "–".into(),
        ours: format!("{megabytes:.1} MB"),
        figure: format!("{megabytes:.1} MB"),
        target: "≤ 30 MB".into(),
        met: megabytes <= 30.0,
    }])
}
