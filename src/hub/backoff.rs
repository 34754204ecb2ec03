//! Trying again: how often, and how long to wait in between.

use std::time::Duration;

use super::error::HubError;
use crate::config::HubConfig;

/// The longest wait between two tries, whatever the server asks for.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(60);

/// Counts tries and waits between them.
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

    /// Starts to count anew, after a try that got somewhere.
    pub(crate) fn reset(&mut self) {
        self.left = self.attempts;
        self.delay = self.first_delay;
    }

    /// Waits before the next try, or gives the error back where another try is of no use or none is left.
    pub(crate) async fn wait(&mut self, error: HubError) -> Result<(), HubError> {
        if !error.is_transient() {
            return Err(error);
        }
        self.wait_anyway(error).await
    }

    /// Like [`Backoff::wait`], for an error that the caller has done something about.
    pub(crate) async fn wait_anyway(&mut self, error: HubError) -> Result<(), HubError> {
        if self.left == 0 {
            return Err(error);
        }
        self.left -= 1;
        // Jitter keeps ranges that failed together from coming back together.
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
