//! What systemd is told: ready, reloading, stopping, alive. Without systemd every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// The daemon serves, or serves again after a reload.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload has begun; [`ready`] has to follow. systemd wants the time, to tell this reload from an earlier one.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(error = %error, "no monotonic clock; systemd is not told of the reload"),
    }
}

/// The stop has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// A line for `systemctl status`.
pub fn status(line: &str) {
    // A line break would begin another message.
    let line = line.replace(['\n', '\r'], " ");
    tell(&[NotifyState::Status(&line)]);
}

/// Says "alive" twice as often as the unit's `WatchdogSec` asks for, until `stop`; returns at once where it does not ask.
///
/// It runs on the runtime that serves, so that a runtime that is stuck stays silent and is restarted.
pub async fn watchdog(stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(period(limit));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => tell(&[NotifyState::Watchdog]),
        }
    }
}

/// Half the limit; never zero, which no interval can be.
fn period(limit: Duration) -> Duration {
    (limit / 2).max(Duration::from_millis(1))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(error = %error, "systemd could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchdog_ticks_twice_in_its_limit() {
        assert_eq!(period(Duration::from_secs(30)), Duration::from_secs(15));
        assert_eq!(period(Duration::ZERO), Duration::from_millis(1));
    }
}
