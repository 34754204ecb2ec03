//! Generates `docs/compatibility.md` from the facts that the other tests of a run have recorded, and compares it with
//! the committed document. It runs after all other tests.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use crate::{
    clients::{self, CLIENTS},
    harness::facts,
    replay,
    scenarios::{self, File},
    traps,
};

/// Environment variable: if set, the document is written instead of compared.
const UPDATE: &str = "HUBLLAMA_UPDATE_COMPATIBILITY";

const HEAD: &str = "# Compatibility

This page lists what the tests have checked with real models and real clients. The tests generate it:
`make compatibility` runs them and writes this page, and `make test` fails if the page is out of date. The expected
replies were recorded from a real Ollama, or follow from its source.
";

fn path() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/compatibility.md"))
}

/// Returns the lines that this run has recorded for a fact.
fn fact(kind: &str, name: &str) -> Vec<String> {
    facts::get(kind, name)
        .unwrap_or_else(|| panic!("{name} has not been checked yet: `make compat` runs all tests first"))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn routes(out: &mut String) {
    let mut routes: BTreeMap<String, (u32, Vec<String>)> = BTreeMap::new();
    for line in fact(replay::FACT, replay::BY_ROUTE) {
        let (route, count) = line.split_once('\t').expect("a route and a count");
        routes.entry(route.to_owned()).or_default().0 = count.parse().expect("a count");
    }
    for (name, _) in File::all() {
        for line in fact(scenarios::FACT, &name) {
            let (route, check) = line.split_once('\t').expect("a route and a check");
            routes.entry(route.to_owned()).or_default().1.push(check.to_owned());
        }
    }
    out.push_str("\n## Routes\n\n| route | recordings | checked behavior |\n|---|---|---|\n");
    for (route, (recordings, checks)) in routes {
        let recordings = if recordings == 0 {
            String::new()
        } else {
            recordings.to_string()
        };
        let _ = writeln!(out, "| `{route}` | {recordings} | {} |", cell(&checks.join("; ")));
    }
}

fn clients(out: &mut String, committed: &str) {
    out.push_str("\n## Clients\n\nEach client is used unmodified, with only its base URL changed.\n\n| client | checked features |\n|---|---|\n");
    for client in CLIENTS {
        let checks = fact(clients::FACT, client);
        let row = format!("| {client} |");
        // A machine without this client keeps the committed row, which another machine has written.
        if checks == [facts::SKIPPED] {
            let line = committed.lines().find(|line| line.starts_with(&row)).unwrap_or(&row);
            let _ = writeln!(out, "{line}");
        } else {
            let _ = writeln!(out, "{row} {} |", cell(&checks.join("; ")));
        }
    }
}

fn recordings(out: &mut String) {
    let differences = fact(replay::FACT, replay::DIFFERENT);
    let _ = write!(
        out,
        "\n## Recordings\n\nExchanges with a real Ollama were recorded on all routes that hubllama serves. {} replies are the same as the \
         recording in status, headers, and the order and types of all members. {} differ on purpose:\n\n| recording | difference \
         | reason |\n|---|---|---|\n",
        fact(replay::FACT, replay::SAME).concat(),
        differences.len(),
    );
    for line in differences {
        let _ = writeln!(out, "| {} |", cell(&line).replace('\t', " | "));
    }
}

fn traps(out: &mut String) {
    out.push_str("\n## Traps\n\nMistakes that proxies and re-implementations of Ollama make, and the tests that check for them.\n\n");
    out.push_str("| # | trap | tests |\n|---|---|---|\n");
    let tests = traps::tests();
    for (number, trap) in traps::TRAPS {
        let names: Vec<String> = tests[number].iter().cloned().collect();
        let _ = writeln!(out, "| {number} | {} | {} |", cell(trap), cell(&names.join("; ")));
    }
}

#[test]
#[ignore = "runs after all other tests: `make compat`"]
fn the_document_is_what_this_run_found() {
    let committed = fs::read_to_string(path()).unwrap_or_default();
    let mut text = HEAD.to_owned();
    clients(&mut text, &committed);
    routes(&mut text);
    recordings(&mut text);
    traps(&mut text);
    if std::env::var_os(UPDATE).is_some() {
        fs::write(path(), text).expect("written");
        return;
    }
    let changed = text.lines().find(|line| !committed.lines().any(|other| other == *line));
    assert!(
        text == committed,
        "docs/compatibility.md is out of date: `make compatibility` regenerates it. First line that is not in it: {changed:?}"
    );
}
