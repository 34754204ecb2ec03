//! Conversion of a checkpoint in a child process, since it parses files that strangers wrote and can be canceled by a
//! kill.

use std::pin::pin;

use tokio::sync::watch;

use super::process::{WorkerCommand, WorkerProcess};
use crate::{
    convert::{ConversionProgress, ConvertError},
    worker::protocol::{ConversionRequest, ConvertedFile, WorkerQuestion, WorkerReply},
};

/// Converts a checkpoint in a new converter process and passes its progress to `progress`. Dropping the future kills
/// the process. The output file is either complete or does not exist.
///
/// # Errors
/// If the checkpoint cannot be converted, the disk is too small, or the process dies.
pub async fn convert(
    request: ConversionRequest,
    command: &WorkerCommand,
    mut progress: impl FnMut(ConversionProgress),
) -> Result<ConvertedFile, ConvertError> {
    let (worker, _) = WorkerProcess::spawn(command, "converter")
        .map_err(|error| ConvertError::Engine(format!("the converter cannot be started: {error}")))?;
    let (sender, mut advance) = watch::channel(ConversionProgress::default());
    let mut asked = pin!(worker.ask_with_progress(WorkerQuestion::Convert(request), sender));
    let reply = loop {
        tokio::select! {
            reply = &mut asked => break reply,
            // The sender is dropped with the reply. The pattern then fails, and `select!` waits for the reply alone.
            Ok(()) = advance.changed() => progress(*advance.borrow_and_update()),
        }
    };
    match reply {
        Some(Ok(WorkerReply::Converted(converted))) => converted,
        Some(Ok(_)) => Err(ConvertError::Engine(
            "the converter gave an unexpected answer".to_owned(),
        )),
        Some(Err(failure)) => Err(ConvertError::Engine(failure.to_string())),
        None => Err(ConvertError::Engine(
            "the converter died, perhaps for lack of memory; see the log".to_owned(),
        )),
    }
}
