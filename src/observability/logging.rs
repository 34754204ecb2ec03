//! Log on standard error: text for people, JSON for machines, priorities for systemd's journal.

use std::{
    fmt,
    io::{IsTerminal as _, stderr},
};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, Format, Writer},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use crate::config::{LogConfig, LogFormat};

/// Handle that changes the log level while the daemon runs.
#[derive(Clone)]
pub struct LogControl {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogControl {
    /// Replaces the filter, for example by `debug` or `hubllama=debug,hyper=warn`.
    ///
    /// # Errors
    ///
    /// A sentence if `level` is not a filter. The old one stays in force.
    pub fn set_level(&self, level: &str) -> Result<(), String> {
        let filter = parse(level)?;
        self.filter
            .reload(filter)
            .map_err(|error| format!("cannot change the log level: {error}"))
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").finish_non_exhaustive()
    }
}

/// Sets up the log of this process.
///
/// # Errors
///
/// A sentence if the filter is malformed or a log is already set up.
pub fn init(config: &LogConfig) -> Result<LogControl, String> {
    let (filter, handle) = reload::Layer::new(parse(&config.level)?);
    let output = match config.format {
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(stderr)
            .boxed(),
        // The journal adds the time, and its viewers the colors.
        LogFormat::Text if stderr_is_journal() => {
            let format = JournalFormat(format::format().without_time().with_ansi(false));
            tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .event_format(format)
                .with_writer(stderr)
                .boxed()
        }
        LogFormat::Text => {
            let ansi = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            tracing_subscriber::fmt::layer()
                .with_ansi(ansi)
                .with_writer(stderr)
                .boxed()
        }
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(output)
        .try_init()
        .map_err(|error| format!("cannot set up the log: {error}"))?;
    Ok(LogControl { filter: handle })
}

/// Crates of the Hub that log every request and every retry, also those that succeed in the end. `hub` logs what
/// matters of it. A filter that names one of them still shows it.
const QUIET: &str = "hf_hub=off,xet_client=off,xet_core_structures=off,xet_data=off,xet_runtime=off";

fn parse(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(format!("{QUIET},{level}"))
        .map_err(|error| format!("{level:?} is not a log filter: {error}"))
}

/// Returns true when standard error is connected to systemd's journal. systemd names the stream in `JOURNAL_STREAM`,
/// but child processes with another standard error inherit the variable, so device and inode are compared
/// (systemd.exec(5)).
fn stderr_is_journal() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM").and_then(|named| named.into_string().ok()) else {
        return false;
    };
    rustix::fs::fstat(stderr()).is_ok_and(|stat| format!("{}:{}", stat.st_dev, stat.st_ino) == named)
}

/// Format with the priority in front of each line (sd-daemon(3)), so that `journalctl -p warning` works.
struct JournalFormat(Format<format::Full, ()>);

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        writer.write_str(priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no test panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn journal_lines_have_a_priority_and_no_time() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (filter, handle) = reload::Layer::new(parse("info").expect("a level"));
        let format = JournalFormat(format::format().without_time().with_ansi(false));
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .event_format(format)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(filter).with(layer);
        let control = LogControl { filter: handle };
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "t", "first");
            tracing::debug!(target: "t", "hidden");
            control.set_level("t=debug").expect("a filter");
            tracing::debug!(target: "t", answer = 42, "shown");
            assert!(control.set_level("t=nonsense").is_err());
        });
        let text = String::from_utf8(lines.0.lock().expect("no test panics with it").clone()).expect("text");
        assert_eq!(text, "<4> WARN t: first\n<7>DEBUG t: shown answer=42\n");
    }
}
