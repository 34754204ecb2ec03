//! Retries of requests to the Hub: their number, and the pauses between them.

use std::time::Duration;

use super::error::HubError;
use crate::config::HubConfig;

/// Upper limit of the pause between two tries, also of one that the server asks for.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(60);

/// Budget of retries with exponentially growing pauses.
#[derive(Debug)]
pub(crate) struct Backoff {
    left: u32,
    attempts: u32,
    delay: Duration,
    first_delay: Duration,
}

impl Backoff {
    pub(crate) fn new(config: &HubConfig) -> Self {
        let HubConfig {
            retry_attempts: attempts,
            retry_delay,
            ..
        } = *config;
        Self {
            left: attempts,
            attempts,
            delay: retry_delay,
            first_delay: retry_delay,
        }
    }

    /// Restores the whole budget, after a try that made progress.
    pub(crate) fn reset(&mut self) {
        self.left = self.attempts;
        self.delay = self.first_delay;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The error of the last try, if it is not transient or no try is left.
    pub(crate) async fn wait(&mut self, error: HubError) -> Result<(), HubError> {
        if !error.is_transient() {
            return Err(error);
        }
        self.wait_anyway(error).await
    }

    /// Waits before the next try, also after an error that is not transient: the caller has removed its cause.
    ///
    /// # Errors
    /// The error of the last try, if no try is left.
    pub(crate) async fn wait_anyway(&mut self, error: HubError) -> Result<(), HubError> {
        if self.left == 0 {
            return Err(error);
        }
        self.left -= 1;
        // Jitter spreads the retries of ranges that failed together.
        let jittered = self.delay.mul_f64(rand::random_range(0.75..1.25));
        let asked = match &error {
            HubError::RateLimited { retry_after } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        self.delay = (self.delay * 2).min(MAX_WAIT);
        tracing::debug!(%error, tries_left = self.left, "request to the Hub is tried again");
        tokio::time::sleep(jittered.max(asked).min(MAX_WAIT)).await;
        Ok(())
    }
}
