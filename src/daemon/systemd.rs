//! Notifications to systemd: ready, reloading, stopping, watchdog. Without systemd every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Reports that the daemon serves, or that a reload is done.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Reports that a reload has begun; [`ready`] has to follow. systemd requires the monotonic time, to tell this reload
/// from an earlier one (sd_notify(3)).
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(error = %error, "no monotonic clock; systemd is not told of the reload"),
    }
}

/// Reports that the daemon is stopping.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Sends watchdog pings at twice the rate of the unit's `WatchdogSec`, until `stop`. Returns at once if the unit has
/// none.
///
/// The task runs on the runtime that serves requests: if that hangs, the pings stop and systemd restarts the daemon.
pub(super) async fn watchdog(stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(period(limit));
    // After a stall one ping says all; a burst of the missed ones would say nothing more.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => tell(&[NotifyState::Watchdog]),
        }
    }
}

/// Returns half the limit, but never zero, with which an interval would panic.
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
