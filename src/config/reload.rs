//! Requests for a reload, after a file event or a signal.
//!
//! They go over one bounded channel to the daemon's reload task, which handles one at a time.

use std::fmt;

use tokio::sync::{mpsc, oneshot};

use super::ReloadOutcome;

/// Cause of a reload, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadReason {
    /// The content of a watched file changed.
    File,
    /// SIGHUP was received.
    Signal,
}

impl fmt::Display for ReloadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Signal => "signal",
        })
    }
}

/// Request for a reload.
#[derive(Debug)]
pub struct ReloadRequest {
    pub reason: ReloadReason,
    /// Receives the outcome, if the sender of the request waits for it.
    pub reply: Option<oneshot::Sender<ReloadOutcome>>,
}

/// Requests that may wait. A waiting request reads the files when its turn comes, so further ones would find nothing
/// new.
const MAX_WAITING: usize = 8;

/// Sending end of the channel to the reload task.
#[derive(Clone, Debug)]
pub struct ReloadHandle(mpsc::Sender<ReloadRequest>);

impl ReloadHandle {
    /// Returns a handle and the end at which its requests arrive.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<ReloadRequest>) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Self(sender), receiver)
    }

    /// Asks for a reload without waiting for it. Returns false if the daemon is stopping.
    pub fn hint(&self, reason: ReloadReason) -> bool {
        match self.0.try_send(ReloadRequest { reason, reply: None }) {
            // When the channel is full, a waiting request will see the change too.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Asks for a reload and waits for its outcome. Returns `None` if the daemon is stopping.
    pub async fn request(&self, reason: ReloadReason) -> Option<ReloadOutcome> {
        let (reply, outcome) = oneshot::channel();
        let request = ReloadRequest {
            reason,
            reply: Some(reply),
        };
        self.0.send(request).await.ok()?;
        outcome.await.ok()
    }
}
