//! Converting the checkpoint of a pull, with a report of the progress.

use std::pin::pin;

use sha2::{Digest as _, Sha256};
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::{PullJob, events::EVENT_INTERVAL};
use crate::{
    config::TokenizerMismatch,
    convert::ConversionProgress,
    library::{
        conversions::{ConversionKey, configured_output, progress_of},
        error::LibraryError,
    },
    stdx::hex,
    worker::protocol::ConversionOutput,
};

/// Longest silence during a conversion: clients and proxies take a stream without data for a dead one.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

impl PullJob {
    /// Converts a checkpoint unless that was done before, and reports the progress at least every
    /// [`KEEPALIVE_INTERVAL`]; returns the name of the weight type.
    pub(super) async fn convert(&self, key: ConversionKey) -> Result<String, LibraryError> {
        let shared = &self.library.0;
        let output = configured_output(&self.config, key.weight_type);
        if let Some(label) = shared.conversions.find(&key, output).await? {
            return Ok(label);
        }
        let status = match output {
            ConversionOutput::Full => "converting model",
            ConversionOutput::HeaderOnly => "planning model",
        };
        let digest = hex::encode(Sha256::digest(key.to_string()));
        let allow_tokenizer_mismatch = self.config.tokenizer_mismatch == TokenizerMismatch::Warn;
        let (mut watch, mut shown) = (shared.converter.watch(), None);
        let mut converting = pin!(shared.converter.convert(key.clone(), output, allow_tokenizer_mismatch));
        loop {
            match shown {
                Some(advance) => self.events.converting(&digest, advance).await?,
                None => self.events.status(status).await?,
            }
            let pause = Instant::now() + EVENT_INTERVAL;
            let next = async {
                sleep_until(pause).await;
                let is_new = |running: &Option<_>| progress_of(running, &key).is_some_and(|it| Some(it) != shown);
                // The timeout repeats the last event.
                match timeout(KEEPALIVE_INTERVAL, watch.wait_for(is_new)).await {
                    Ok(Ok(running)) => progress_of(&running, &key),
                    _ => shown,
                }
            };
            tokio::select! {
                converted = &mut converting => {
                    if let (Ok(_), Some(ConversionProgress { total, stage, .. })) = (&converted, shown) {
                        self.events.converting(&digest, ConversionProgress { done: total, total, stage }).await?;
                    }
                    return converted;
                }
                advance = next => shown = advance,
            }
        }
    }
}
