//! Lets the hub have checkpoints converted.

use std::{fmt, sync::Arc};

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::{
    config::TokenizerMismatch,
    convert::{Advance, ConvertError},
    library::{Converter, Kept, Order},
    lifecycle::{WorkerCommand, convert},
    worker::protocol::ConvertJob,
};

/// Converts in workers of a command.
#[derive(Clone)]
pub struct Converting {
    command: WorkerCommand,
    mismatch: Arc<dyn Fn() -> TokenizerMismatch + Send + Sync>,
}

impl Converting {
    /// `mismatch` returns the setting `[hub] tokenizer_mismatch` when a conversion begins.
    #[must_use]
    pub fn new(command: WorkerCommand, mismatch: impl Fn() -> TokenizerMismatch + Send + Sync + 'static) -> Self {
        Self {
            command,
            mismatch: Arc::new(mismatch),
        }
    }
}

impl fmt::Debug for Converting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Converting")
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

impl Converter for Converting {
    fn convert(
        &self,
        order: Order,
        progress: Box<dyn FnMut(Advance) + Send>,
    ) -> BoxFuture<'static, Result<String, ConvertError>> {
        let command = self.command.clone();
        let any_tokenizer = (self.mismatch)() == TokenizerMismatch::Warn;
        async move {
            let job = ConvertJob {
                folder: order.folder,
                name: order.name,
                target: order.kind,
                output: Some(order.output),
                any_tokenizer,
                header_only: order.kept == Kept::Header,
                part: order.part,
            };
            let converted = convert(job, &command, progress).await?;
            for note in &converted.notes {
                tracing::info!(path = %converted.output.display(), note, "a checkpoint was converted with a note");
            }
            Ok(converted.file_type)
        }
        .boxed()
    }
}
