//! Lets the hub have checkpoints converted.

use futures_util::{FutureExt as _, future::BoxFuture};

use crate::{
    convert::ConvertError,
    hub::{Converter, Kept, Order},
    lifecycle::{Conversion, WorkerCommand},
};

/// Converts in this process, and in workers of this command what is llama.cpp's work.
#[derive(Clone, Debug)]
pub struct Converting(pub WorkerCommand);

impl Converter for Converting {
    fn convert(&self, order: Order) -> BoxFuture<'static, Result<&'static str, ConvertError>> {
        let command = self.0.clone();
        async move {
            let conversion = Conversion {
                folder: order.folder,
                name: order.name,
                target: order.kind,
                output: Some(order.output),
                any_tokenizer: false,
                header_only: order.kept == Kept::Header,
            };
            let converted = conversion.run(&command, |_, _, _| {}).await?;
            for note in &converted.notes {
                tracing::info!(path = %converted.output.display(), note, "a checkpoint was converted with a note");
            }
            Ok(converted.file_type)
        }
        .boxed()
    }
}
