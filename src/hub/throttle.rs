//! Bandwidth limit over all downloads of a process.

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::stdx::sync::lock;

/// Time that may be caught up after a pause. It evens out coarse timers, and is too short to appear as a burst.
const CATCH_UP: Duration = Duration::from_millis(50);

/// Time at which the next byte may arrive; `None` before the first one.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<Option<Instant>>);

impl Throttle {
    /// Waits until bytes fit into the limit; 0 means no limit. Callers that arrive later queue behind them.
    pub(crate) async fn take(&self, bytes: u64, bytes_per_second: u64) {
        if bytes_per_second == 0 {
            return;
        }
        let until = {
            let mut next = lock(&self.0);
            let earliest = Instant::now().checked_sub(CATCH_UP);
            let start = next.max(earliest).unwrap_or_else(Instant::now);
            #[expect(clippy::cast_precision_loss, reason = "a part in 2^52 is nothing here")]
            let takes = Duration::try_from_secs_f64(bytes as f64 / bytes_per_second as f64).unwrap_or(Duration::MAX);
            *next = start.checked_add(takes);
            start
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn downloads_together_keep_the_limit() {
        let throttle = Throttle::default();
        let started = Instant::now();
        let take = || async {
            for _ in 0..10 {
                throttle.take(1000, 100_000).await;
            }
        };
        tokio::join!(take(), take());
        // 20 kB at 100 kB/s take 200 ms, less the last kilobyte and the time that may be caught up.
        assert!(
            started.elapsed() >= Duration::from_millis(130),
            "{:?}",
            started.elapsed()
        );
        let started = Instant::now();
        throttle.take(u64::MAX, 0).await;
        assert!(started.elapsed() < Duration::from_millis(50));
    }
}
