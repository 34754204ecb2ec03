//! Table of results: rows with a target, skipped measurements, the machine. It replaces the table in a document.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, ensure};

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// Result of one measurement.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) peer: String,
    pub(crate) ours: String,
    pub(crate) figure: String,
    pub(crate) target: String,
    pub(crate) met: bool,
}

/// Results of one run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    notes: Vec<String>,
    failed: bool,
}

impl Report {
    /// Records a measurement that was skipped, and the reason.
    pub(crate) fn skip(&mut self, what: &str, reason: &str) {
        eprintln!("skipped: {what}: {reason}");
        self.notes.push(format!("Not measured: {what}: {reason}."));
    }

    /// Records a section that failed.
    pub(crate) fn error(&mut self, section: &str, error: &anyhow::Error) {
        eprintln!("error: {section}: {error:#}");
        self.notes.push(format!("Failed: {section}: {error:#}."));
        self.failed = true;
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.failed
    }

    /// Returns true if a target was missed.
    pub(crate) fn missed(&self) -> bool {
        self.rows.iter().any(|row| !row.met)
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text =
            String::from("| measurement | peer | hubllama | figure | target | met |\n|---|---|---|---|---|---|\n");
        for Row {
            what,
            peer,
            ours,
            figure,
            target,
            met,
        } in &self.rows
        {
            let met = if *met { "yes" } else { "**no**" };
            let _ = writeln!(text, "| {what} | {peer} | {ours} | {figure} | {target} | {met} |");
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        let _ = write!(
            text,
            "\nMeasured on {} with hubllama {}: {}.\n",
            today(),
            env!("CARGO_PKG_VERSION"),
            machine()
        );
        text
    }
}

fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// Returns the name of the processor and the number of cores.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(':')))
        .map_or("an unnamed processor", |(_, name)| name.trim());
    format!("{cores} cores of {name}")
}

/// Replaces the text between the two markers of a file.
pub(crate) fn write_between_markers(file: &Path, text: &str) -> Result<()> {
    let old = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let begin = old
        .find(BEGIN)
        .with_context(|| format!("{} has no line {BEGIN}", file.display()))?
        + BEGIN.len();
    let end = old
        .find(END)
        .with_context(|| format!("{} has no line {END}", file.display()))?;
    ensure!(begin <= end, "the markers of {} are in the wrong order", file.display());
    let new = format!("{}\n{text}{}", &old[..begin], &old[end..]);
    fs::write(file, new).with_context(|| format!("cannot write {}", file.display()))
}

/// Returns the median of a list; 0 for an empty one.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
