//! Running conversions: one at a time, each in a child process.

use std::{fs, path::Path};

use tokio::sync::watch;

use super::{
    key::ConversionKey,
    store::{ConversionStore, file_name, projector_name, remove_lone_projector, stored_link},
};
use crate::{
    convert::{ConversionProgress, ConvertError, GgufRole, has_projector},
    hub::HubError,
    inference::WeightType,
    library::{blocking, error::LibraryError},
    lifecycle::{self, WorkerCommand},
    stdx::fs::symlink_atomic,
    worker::protocol::{ConversionOutput, ConversionRequest, ConvertedFile},
};

/// Receiver of the progress of one conversion run.
pub(super) type OnProgress = Box<dyn FnMut(ConversionProgress) + Send>;

/// Progress of the running conversion; `None` while none runs.
type RunningConversion = Option<(ConversionKey, ConversionProgress)>;

/// Checkpoint converter: makes the missing files of a [`ConversionStore`].
#[derive(Debug)]
pub(crate) struct CheckpointConverter {
    store: ConversionStore,
    worker: WorkerCommand,
    /// Held during a conversion. It uses all cores, so that two at once would only slow each other down; a second
    /// request for the same file waits here and then finds it.
    running: tokio::sync::Mutex<()>,
    progress: watch::Sender<RunningConversion>,
}

/// Conversion guard: cleans up when a conversion ends in any way, including the drop of its future. It withdraws the
/// progress and removes a folder in which no model came to be.
struct ConversionGuard<'a> {
    converter: &'a CheckpointConverter,
    key: &'a ConversionKey,
}

impl Drop for ConversionGuard<'_> {
    fn drop(&mut self) {
        let store = &self.converter.store;
        self.converter.progress.send_replace(None);
        remove_lone_projector(&store.folder(&self.key.folder, &self.key.commit));
        store.remove_empty(&self.key.folder, &self.key.commit);
    }
}

/// Returns the progress of a conversion if it is the running one and its size is known.
pub(crate) fn progress_of(running: &RunningConversion, key: &ConversionKey) -> Option<ConversionProgress> {
    let (running, advance) = running.as_ref()?;
    (running == key && advance.total > 0).then_some(*advance)
}

impl CheckpointConverter {
    /// Makes a converter that runs `worker` for each conversion.
    pub(crate) fn new(store: ConversionStore, worker: WorkerCommand) -> Self {
        Self {
            store,
            worker,
            running: tokio::sync::Mutex::default(),
            progress: watch::Sender::default(),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<RunningConversion> {
        self.progress.subscribe()
    }

    /// Converts a checkpoint unless that was done before. Returns the name of the weight type, which the request leaves
    /// open if it is [`WeightType::Stored`].
    ///
    /// # Errors
    /// If the checkpoint cannot be converted, the converter process dies, or the file system refuses.
    pub(crate) async fn convert(
        &self,
        key: ConversionKey,
        output: ConversionOutput,
        allow_tokenizer_mismatch: bool,
    ) -> Result<String, LibraryError> {
        self.convert_with(key, output, allow_tokenizer_mismatch, |request, on_progress| {
            lifecycle::convert(request, &self.worker, on_progress)
        })
        .await
    }

    /// Converts a checkpoint with a function that serves the requests; tests pass one that starts no process.
    pub(super) async fn convert_with<F>(
        &self,
        key: ConversionKey,
        output: ConversionOutput,
        allow_tokenizer_mismatch: bool,
        run: impl Fn(ConversionRequest, OnProgress) -> F,
    ) -> Result<String, LibraryError>
    where
        F: Future<Output = Result<ConvertedFile, ConvertError>>,
    {
        let _running = self.running.lock().await;
        if let Some(label) = self.store.find(&key, output).await? {
            return Ok(label);
        }
        let folder = self.store.folder(&key.folder, &key.commit);
        let path = match key.weight_type {
            // The type, and with it the name, is known only when the file is complete.
            WeightType::Stored => stored_link(&folder).with_extension("new"),
            weight_type => folder.join(file_name(&weight_type.to_string(), output)),
        };
        let created = tokio::fs::create_dir_all(&folder).await;
        created.map_err(|error| HubError::io("create", &folder, &error))?;
        let _guard = ConversionGuard {
            converter: self,
            key: &key,
        };
        let repository = key.repository();
        tracing::info!(model.repository = repository, weight_type = %key.weight_type, ?output, "converting a checkpoint");
        let request = ConversionRequest {
            checkpoint: key.snapshot(),
            name: key.folder.repo.clone(),
            weight_type: key.weight_type,
            part: GgufRole::Model,
            form: output,
            output: Some(path.clone()),
            allow_tokenizer_mismatch,
        };
        convert_projector(&request, &folder, &run).await?;
        let (progress, running) = (self.progress.clone(), key.clone());
        let on_progress = move |advance| _ = progress.send_replace(Some((running.clone(), advance)));
        let converted = run(request, Box::new(on_progress)).await;
        let converted = converted.map_err(|error| LibraryError::conversion(&repository, error))?;
        log_notes(&converted);
        let label = converted.file_type.clone();
        blocking(move || publish(&folder, &path, &label, output)).await?;
        Ok(converted.file_type)
    }
}

/// Converts the projector of a checkpoint that has one, unless that was done before: always to a whole file in the
/// stored type, because it is small and llama.cpp maps it by path.
async fn convert_projector<F>(
    model: &ConversionRequest,
    folder: &Path,
    run: &impl Fn(ConversionRequest, OnProgress) -> F,
) -> Result<(), LibraryError>
where
    F: Future<Output = Result<ConvertedFile, ConvertError>>,
{
    let (checkpoint, path) = (model.checkpoint.clone(), folder.join(projector_name()));
    let output = path.clone();
    if !blocking(move || Ok(!path.is_file() && has_projector(&checkpoint))).await? {
        return Ok(());
    }
    let request = ConversionRequest {
        weight_type: WeightType::Stored,
        part: GgufRole::Projector,
        form: ConversionOutput::Full,
        output: Some(output),
        ..model.clone()
    };
    match run(request, Box::new(|_| {})).await {
        Ok(converted) => log_notes(&converted),
        // The language model works without it.
        Err(error) => {
            tracing::warn!(model = model.name, %error, "the projector of a checkpoint cannot be converted; its model reads text only");
        }
    }
    Ok(())
}

fn log_notes(converted: &ConvertedFile) {
    for note in &converted.notes {
        tracing::info!(path = %converted.path.display(), note, "a checkpoint was converted with a note");
    }
}

/// Gives a new file its final name, points the link of the stored type to it and removes the header that it replaces.
fn publish(folder: &Path, new: &Path, label: &str, output: ConversionOutput) -> Result<(), LibraryError> {
    let (name, header) = (file_name(label, output), file_name(label, ConversionOutput::HeaderOnly));
    let (path, stored) = (folder.join(&name), stored_link(folder));
    let is_stored_type = new != path;
    if is_stored_type {
        fs::rename(new, &path).map_err(|error| HubError::io("rename", new, &error))?;
    }
    // A whole file of the stored type may be requested by the name of that type; the link must not lead to the header
    // that is about to be removed.
    let leads_to_header = || fs::read_link(&stored).is_ok_and(|target| target.as_os_str() == header.as_str());
    if is_stored_type || leads_to_header() {
        symlink_atomic(&stored, &name).map_err(|error| HubError::io("link", &stored, &error))?;
    }
    if output == ConversionOutput::Full {
        // Usually there is none, and one that stays does no harm: the whole file is preferred.
        let _ = fs::remove_file(folder.join(header));
    }
    Ok(())
}
