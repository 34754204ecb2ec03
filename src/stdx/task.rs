//! File work on threads where it may block.

use std::io;

/// Error of work that did not finish: the runtime was shut down, or the work panicked.
#[derive(Debug, thiserror::Error)]
#[error("the work was not finished: {0}")]
pub struct UnfinishedWork(#[from] tokio::task::JoinError);

impl From<UnfinishedWork> for io::Error {
    fn from(error: UnfinishedWork) -> Self {
        Self::other(error)
    }
}

/// Runs `work` on tokio's pool of blocking threads and returns its result.
///
/// The work runs to its end even if the returned future is dropped.
///
/// # Errors
///
/// The error of `work`, or [`UnfinishedWork`] converted to the same type.
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<UnfinishedWork> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(UnfinishedWork)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error() {
        let done: io::Result<u32> = blocking(|| Ok(7)).await;
        assert_eq!(done.unwrap(), 7);
        let failed: io::Result<u32> = blocking(|| Err(io::ErrorKind::NotFound.into())).await;
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::NotFound);
        let panicked: io::Result<u32> = blocking(|| panic!("midway")).await;
        assert!(
            panicked
                .unwrap_err()
                .to_string()
                .starts_with("the work was not finished")
        );
    }
}
