//! Lets the hub have checkpoints converted.

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::{
    convert::{Advance, ConvertError},
    hub::{Converter, Order},
    lifecycle::{WorkerCommand, convert},
    worker::protocol::ConvertJob,
};

/// Converts in workers of this command.
#[derive(Clone, Debug)]
pub struct Converting(pub WorkerCommand);

impl Converter for Converting {
    fn convert(
        &self,
        order: Order,
        progress: Box<dyn FnMut(Advance) + Send>,
    ) -> BoxFuture<'static, Result<String, ConvertError>> {
        let command = self.0.clone();
        async move {
            let job = ConvertJob {
                folder: order.folder,
                name: order.name,
                target: order.kind,
                output: Some(order.output),
                any_tokenizer: false,
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
