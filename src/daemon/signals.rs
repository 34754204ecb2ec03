//! Signals of the operating system: stop softly, stop now, reload.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::{Reason, ReloadHandle},
    server::Stop,
};

/// The signals that the daemon handles. From [`Signals::install`] on they no longer end the process by themselves.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Takes the signals over; in a tokio runtime.
    ///
    /// # Errors
    ///
    /// Where the system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Turns signals into steps of `stop` and hints to `reload`, until the hard stop.
    pub async fn run(mut self, stop: Stop, reload: ReloadHandle) {
        loop {
            let name = tokio::select! {
                () = stop.hard.cancelled() => return,
                Some(()) = self.terminate.recv() => "SIGTERM",
                Some(()) = self.interrupt.recv() => "SIGINT",
                Some(()) = self.hang_up.recv() => {
                    if !stop.soft.is_cancelled() {
                        reload.hint(Reason::Signal);
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
        let stop = Stop::default();
        let (reload, mut requests) = ReloadHandle::channel();
        let task = tokio::spawn(Signals::install().expect("handlers").run(stop.clone(), reload));

        kill_process(getpid(), Signal::HUP).expect("ourselves");
        let request = tokio::time::timeout(LONG, requests.recv())
            .await
            .expect("a hint in time");
        assert_eq!(request.expect("the task runs").reason, Reason::Signal);
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
