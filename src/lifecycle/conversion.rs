//! A GGUF file from a checkpoint: written here; quantised, and its tokenizer tried, in a worker process, since that is
//! llama.cpp's work.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::process::{Worker, WorkerCommand};
use crate::{
    convert::{ConvertError, Quantization, TargetType, VirtualGguf, plan, reference_tokens},
    inference::Failure,
    stdx::new_file::NewFile,
    worker::protocol::{QuantizeJob, Question, Reply},
};

/// How often the growth of a quantised file is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// One text in so many may be cut otherwise by the engine than by the reference: it does not know every normalisation.
const TOLERATED: usize = 10;

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
    /// Convert also where the engine cuts texts otherwise than the checkpoint's own tokenizer.
    pub any_tokenizer: bool,
    /// Make a file with a hole for the weights; nothing that llama.cpp quantises.
    pub header_only: bool,
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
            any_tokenizer,
            header_only,
        } = self;
        let (mut planned, texts) = blocking({
            let name = name.clone();
            move |_| Ok((plan(&folder, &name, target)?, reference_tokens(&folder)?))
        })
        .await?;
        let file_type = match target {
            TargetType::Quantized(mix) => mix.name,
            _ => planned.file_type,
        };
        let output = output.unwrap_or_else(|| PathBuf::from(format!("{name}-{file_type}.gguf")));
        if !texts.is_empty() {
            let (model, check) = check_tokens(planned.model, texts, &output, command).await?;
            planned.model = model;
            match check {
                Some(check) if check.is_bad() && !any_tokenizer => return Err(ConvertError::Tokenizer(check.text)),
                check => planned.notes.extend(check.map(|check| check.text)),
            }
        }
        let bytes = match target {
            _ if header_only => {
                let output = output.clone();
                blocking(move |_| {
                    let new = NewFile::create(&output).map_err(|error| io(&output, error))?;
                    planned.model.write_header(&new)?;
                    new.finish().map_err(|error| io(&output, error))?;
                    Ok(planned.model.file_len())
                })
                .await?
            }
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

/// A difference between engine and reference.
struct Difference {
    wrong: usize,
    all: usize,
    text: String,
}

impl Difference {
    fn is_bad(&self) -> bool {
        self.wrong * TOLERATED > self.all
    }
}

/// Lets the engine cut texts with the new vocabulary, before a weight is read; returns what there is to say of that.
async fn check_tokens(
    model: VirtualGguf,
    texts: Vec<(String, Vec<u32>)>,
    output: &Path,
    command: &WorkerCommand,
) -> Result<(VirtualGguf, Option<Difference>), ConvertError> {
    let destination = output.to_owned();
    let (model, header) = blocking(move |_| {
        let new = NewFile::create(&destination).map_err(|error| io(&destination, error))?;
        model.write_header(&new)?;
        Ok((model, new))
    })
    .await?;
    let (texts, expected): (Vec<String>, Vec<Vec<u32>>) = texts.into_iter().unzip();
    let question = Question::CutTexts {
        path: header.current_path(),
        texts: texts.clone(),
    };
    let Reply::Cut(found) = ask(start(command)?.ask(question).await)? else {
        return Err(ConvertError::Engine("the quantizer answered something else".to_owned()));
    };
    let differs = |(found, expected): &(&Vec<i32>, &Vec<u32>)| {
        !found
            .iter()
            .map(|token| i64::from(*token))
            .eq(expected.iter().map(|token| i64::from(*token)))
    };
    let wrong = found.iter().zip(&expected).filter(differs).count();
    let first = found.iter().zip(&expected).position(|pair| differs(&pair));
    let difference = first.map(|first| Difference {
        wrong,
        all: texts.len(),
        text: format!(
            "the engine cuts {wrong} of {} texts into other tokens than the checkpoint's own tokenizer, the first being {:?}",
            texts.len(),
            texts[first]
        ),
    });
    Ok((model, difference))
}

fn start(command: &WorkerCommand) -> Result<Worker, ConvertError> {
    let failed = |error: std::io::Error| ConvertError::Engine(format!("the quantizer cannot be started: {error}"));
    let (worker, _) = Worker::spawn(command, "quantizer").map_err(failed)?;
    Ok(worker)
}

fn ask(reply: Option<Result<Reply, Failure>>) -> Result<Reply, ConvertError> {
    match reply {
        Some(Ok(reply)) => Ok(reply),
        Some(Err(failure)) => Err(ConvertError::Engine(failure.to_string())),
        None => Err(ConvertError::Engine(
            "the quantizer died, perhaps for want of memory; see the log".to_owned(),
        )),
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
    let worker = start(command)?;
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
    ask(reply)?;
    drop(source);
    blocking(move |_| {
        let bytes = target.file().metadata().map_err(|error| io(&output, error))?.len();
        target.finish().map_err(|error| io(&output, error))?;
        Ok(bytes)
    })
    .await
}

fn io(path: &Path, error: std::io::Error) -> ConvertError {
    ConvertError::Io {
        path: path.to_owned(),
        what: "written",
        error,
    }
}
