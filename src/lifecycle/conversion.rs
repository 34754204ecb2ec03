//! A GGUF file from a checkpoint, made in a process of its own: what a stranger wrote is read there, and giving up is a kill.

use std::pin::pin;

use tokio::sync::watch;

use super::process::{WorkerCommand, WorkerProcess};
use crate::{
    convert::{Advance, ConvertError},
    worker::protocol::{ConvertJob, Converted, WorkerQuestion, WorkerReply},
};

/// Makes the file. It is all there afterwards, or there is nothing of it; dropping the future gives up. `progress` hears how far
/// it is.
///
/// # Errors
/// If the checkpoint cannot be converted, the disk is too small, or the process dies.
pub async fn convert(
    job: ConvertJob,
    command: &WorkerCommand,
    mut progress: impl FnMut(Advance),
) -> Result<Converted, ConvertError> {
    let (worker, _) = WorkerProcess::spawn(command, "converter")
        .map_err(|error| ConvertError::Engine(format!("the converter cannot be started: {error}")))?;
    let (sender, mut advance) = watch::channel(Advance::default());
    let mut asked = pin!(worker.ask_with_progress(WorkerQuestion::Convert(job), sender));
    let reply = loop {
        tokio::select! {
            reply = &mut asked => break reply,
            Ok(()) = advance.changed() => progress(*advance.borrow_and_update()),
        }
    };
    match reply {
        Some(Ok(WorkerReply::Converted(converted))) => Ok(converted?),
        Some(Ok(_)) => Err(ConvertError::Engine("the converter answered something else".to_owned())),
        Some(Err(failure)) => Err(ConvertError::Engine(failure.to_string())),
        None => Err(ConvertError::Engine(
            "the converter died, perhaps for want of memory; see the log".to_owned(),
        )),
    }
}
