//! Signals of the operating system: SIGTERM and SIGINT stop the daemon, SIGHUP reloads the configuration.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::{ReloadHandle, ReloadReason},
    server::ShutdownSignal,
};

/// Handlers of the daemon's signals. From [`SignalHandlers::install`] on the signals no longer end the process by
/// themselves.
#[derive(Debug)]
pub(super) struct SignalHandlers {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl SignalHandlers {
    /// Installs the handlers. Has to be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the system refuses a handler.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Turns signals into steps of `stop` and requests to `reload`, until the hard stop.
    pub(super) async fn run(mut self, stop: ShutdownSignal, reload: ReloadHandle) {
        loop {
            let name = tokio::select! {
                () = stop.hard.cancelled() => return,
                Some(()) = self.terminate.recv() => "SIGTERM",
                Some(()) = self.interrupt.recv() => "SIGINT",
                Some(()) = self.hang_up.recv() => {
                    // A daemon that stops has ended its reload task.
                    if !stop.soft.is_cancelled() {
                        reload.hint(ReloadReason::Signal);
                    }
                    continue;
                }
                else => return,
            };
            let how = if stop.soft.is_cancelled() {
                "at once"
            } else {
                "when running answers are finished"
            };
            tracing::info!(signal = name, how, "stopping");
            stop.advance();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn signals_reload_then_stop_softly_then_hard() {
        let stop = ShutdownSignal::default();
        let (reload, mut requests) = ReloadHandle::channel();
        let task = tokio::spawn(SignalHandlers::install().expect("handlers").run(stop.clone(), reload));

        kill_process(getpid(), Signal::HUP).expect("ourselves");
        let request = tokio::time::timeout(LONG, requests.recv())
            .await
            .expect("a hint in time");
        assert_eq!(request.expect("the task runs").reason, ReloadReason::Signal);
        assert!(!stop.soft.is_cancelled());

        kill_process(getpid(), Signal::TERM).expect("ourselves");
        tokio::time::timeout(LONG, stop.soft.cancelled())
            .await
            .expect("a soft stop in time");
        assert!(!stop.hard.is_cancelled());

        kill_process(getpid(), Signal::INT).expect("ourselves");
        tokio::time::timeout(LONG, stop.hard.cancelled())
            .await
            .expect("a hard stop in time");
        task.await.expect("the task ends well");
    }
}
