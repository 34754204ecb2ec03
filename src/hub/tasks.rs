//! File work of the Hub's asynchronous code.

use super::error::HubError;

/// Runs file work on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    crate::stdx::task::blocking(work).await
}
