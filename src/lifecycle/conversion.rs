//! A GGUF file from a checkpoint: written here, quantised in a worker process, since that is llama.cpp's work.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use tokio_util::sync::CancellationToken;

use super::process::{Worker, WorkerCommand};
use crate::{
    convert::{ConvertError, Quantization, TargetType, VirtualGguf, plan},
    stdx::new_file::NewFile,
    worker::protocol::{QuantizeJob, Question},
};

/// How often the growth of a quantised file is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// What is done at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The checkpoint's weights are written as GGUF.
    Converting,
    /// They are quantised.
    Quantizing,
}

type Progress = Arc<dyn Fn(Stage, u64, u64) + Send + Sync>;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// The folder of the checkpoint.
    pub folder: PathBuf,
    /// What the model is called.
    pub name: String,
    /// The type of the weights.
    pub target: TargetType,
    /// The file; `None` is one in the working folder that is called after model and type.
    pub output: Option<PathBuf>,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The file.
    pub output: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// As `Q4_K_M`.
    pub file_type: &'static str,
    /// What the caller should know: defaults that were used, doubts.
    pub notes: Vec<String>,
}

impl Conversion {
    /// Makes the file. It is all there afterwards, or there is nothing of it; dropping the future gives up. `progress` is
    /// called from several threads with a stage, the bytes done and, about, all bytes.
    ///
    /// # Errors
    /// If the checkpoint cannot be converted, or the disk is too small.
    pub async fn run(
        self,
        command: &WorkerCommand,
        progress: impl Fn(Stage, u64, u64) + Send + Sync + 'static,
    ) -> Result<Converted, ConvertError> {
        let progress: Progress = Arc::new(progress);
        let Self {
            folder,
            name,
            target,
            output,
        } = self;
        let planned = blocking({
            let name = name.clone();
            move |_| plan(&folder, &name, target)
        })
        .await?;
        let file_type = match target {
            TargetType::Quantized(mix) => mix.name,
            _ => planned.file_type,
        };
        let output = output.unwrap_or_else(|| PathBuf::from(format!("{name}-{file_type}.gguf")));
        let bytes = match target {
            TargetType::Quantized(mix) => quantized(planned.model, mix, output.clone(), command, progress).await?,
            _ => {
                let output = output.clone();
                blocking(move |cancel| {
                    let report = |done, all| progress(Stage::Converting, done, all);
                    planned.model.write(&output, &report, cancel)?;
                    Ok(planned.model.file_len())
                })
                .await?
            }
        };
        Ok(Converted {
            output,
            bytes,
            file_type,
            notes: planned.notes,
        })
    }
}

/// Runs on a thread that may wait, and is told to stop when nobody waits for it any more.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&CancellationToken) -> Result<T, ConvertError> + Send + 'static,
) -> Result<T, ConvertError> {
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    let done = tokio::task::spawn_blocking(move || work(&cancel)).await;
    done.unwrap_or_else(|_| Err(ConvertError::Engine("the conversion panicked; see the log".to_owned())))
}

/// Writes the file that is quantised, and quantises it. Neither has a name before all is done.
async fn quantized(
    model: VirtualGguf,
    mix: Quantization,
    output: PathBuf,
    command: &WorkerCommand,
    progress: Progress,
) -> Result<u64, ConvertError> {
    let estimate = mix.estimate(&model);
    let report = Arc::clone(&progress);
    let destination = output.clone();
    let source = blocking(move |cancel| {
        model.check_space(&destination, estimate)?;
        let new = NewFile::create(&destination).map_err(|error| io(&destination, error))?;
        let report = |done, all| report(Stage::Converting, done, all);
        model.write_into(&new, &report, cancel)?;
        Ok(new)
    })
    .await?;
    let target = NewFile::create(&output).map_err(|error| io(&output, error))?;
    let failed = |error: std::io::Error| ConvertError::Engine(format!("the quantizer cannot be started: {error}"));
    let (worker, _) = Worker::spawn(command, "quantizer").map_err(failed)?;
    let question = Question::Quantize(QuantizeJob {
        input: source.current_path(),
        output: target.current_path(),
        file_type: mix.file_type,
        threads: thread::available_parallelism().map_or(1, |threads| threads.get() as u32),
    });
    let mut asked = std::pin::pin!(worker.ask(question));
    let reply = loop {
        tokio::select! {
            reply = &mut asked => break reply,
            () = tokio::time::sleep(LOOK) => {
                let grown = target.file().metadata().map_or(0, |meta| meta.len());
                progress(Stage::Quantizing, grown.min(estimate), estimate);
            }
        }
    };
    match reply {
        Some(Ok(_)) => {}
        Some(Err(failure)) => return Err(ConvertError::Engine(failure.to_string())),
        None => {
            return Err(ConvertError::Engine(
                "the quantizer died, perhaps for want of memory; see the log".to_owned(),
            ));
        }
    }
    drop(source);
    blocking(move |_| {
        let bytes = target.file().metadata().map_err(|error| io(&output, error))?.len();
        target.finish().map_err(|error| io(&output, error))?;
        Ok(bytes)
    })
    .await
}

fn io(path: &std::path::Path, error: std::io::Error) -> ConvertError {
    ConvertError::Io {
        path: path.to_owned(),
        what: "written",
        error,
    }
}
