//! The converter role: turns a checkpoint of safetensors into a GGUF file, in a process that can be killed at any
//! moment.
//!
//! `lifecycle::convert` starts the process, sends one [`ConversionRequest`] and kills it to cancel. The new file has no
//! name until it is complete ([`NewFile`]), so a killed conversion leaves nothing behind.

use std::{
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    EngineInput, EngineInputs, ReportSender,
    protocol::{
        ConversionOutput, ConversionRequest, ConvertedFile, DaemonCommand, WorkerQuestion, WorkerReply, WorkerReport,
    },
    quantize_rows,
};
use crate::{
    convert::{ConversionPlan, ConversionProgress, ConversionStage, ConvertError},
    inference::Failure,
    llama::{LlamaError, Model},
    stdx::{new_file::NewFile, sync::lock},
};

/// Time between two progress reports of one stage.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);

/// Serves conversion requests until the socket closes.
pub(super) fn run(inputs: &EngineInputs, reports: &mut ReportSender) {
    while let Ok(input) = inputs.recv() {
        let EngineInput::Command(DaemonCommand::Ask { id, question }) = input else {
            tracing::warn!(?input, "a converter only converts");
            continue;
        };
        let result = match *question {
            WorkerQuestion::Convert(request) => {
                let converted = convert(request, &ProgressReporter::new(id, reports));
                Ok(WorkerReply::Converted(converted))
            }
            _ => Err(Failure::Worker("a converter only converts".into())),
        };
        reports.send(&WorkerReport::Answered { id, result });
    }
}

/// Progress reporter: passes the progress of one conversion to the daemon, at most once per [`REPORT_INTERVAL`] and
/// stage.
struct ProgressReporter<'a> {
    id: u64,
    /// The socket, the last reported progress and its time. The threads that write the file share it.
    state: Mutex<(&'a mut ReportSender, ConversionProgress, Instant)>,
}

impl<'a> ProgressReporter<'a> {
    fn new(id: u64, reports: &'a mut ReportSender) -> Self {
        Self {
            id,
            state: Mutex::new((reports, ConversionProgress::default(), Instant::now())),
        }
    }

    fn report(&self, advance: ConversionProgress) {
        let mut state = lock(&self.state);
        let (reports, last, at) = &mut *state;
        let is_new = advance.stage != last.stage || advance.done == advance.total;
        // The writing threads race to this lock, so a smaller count may arrive after a larger one.
        let is_due = at.elapsed() >= REPORT_INTERVAL && advance.done > last.done;
        if is_new || is_due {
            (*last, *at) = (advance, Instant::now());
            reports.send(&WorkerReport::Advanced { id: self.id, advance });
        }
    }
}

/// Plans the file, compares the tokenizers and writes the file.
fn convert(request: ConversionRequest, progress: &ProgressReporter<'_>) -> Result<ConvertedFile, ConvertError> {
    let scratch = request.output.clone().unwrap_or_else(|| PathBuf::from(&request.name));
    let mut tokenize = |header: &[u8], texts: &[String]| tokenize_with_engine(&scratch, header, texts);
    let ConversionPlan {
        model,
        file_type,
        check,
        mut notes,
    } = request
        .part
        .plan(&request.checkpoint, &request.name, request.weight_type, &mut tokenize)?;
    if let Some(check) = check.filter(|check| check.wrong > 0) {
        if check.is_mismatch() && !request.allow_tokenizer_mismatch {
            return Err(ConvertError::Tokenizer(check.sentence()));
        }
        notes.push(check.sentence());
    }
    let model = model.with_quantizer(quantize_rows);
    let path = request
        .output
        .unwrap_or_else(|| PathBuf::from(request.part.file_name(&request.name, file_type)));
    let total = model.file_len();
    let new = match request.form {
        ConversionOutput::HeaderOnly => model.create_header(&path)?,
        ConversionOutput::Full => {
            let new = model.create(&path)?;
            let report = |stage, done| progress.report(ConversionProgress { stage, done, total });
            report(ConversionStage::Writing, 0);
            // Cancellation is a kill of this process, so the token is never used.
            model.fill(
                &new,
                &|done, _| report(ConversionStage::Writing, done),
                &CancellationToken::new(),
            )?;
            report(ConversionStage::Syncing, total);
            new
        }
    };
    new.finish().map_err(ConvertError::io(&path, "written"))?;
    Ok(ConvertedFile {
        path,
        bytes: total,
        file_type: file_type.to_owned(),
        notes,
    })
}

/// Tokenizes texts with llama.cpp and the vocabulary of a GGUF header.
///
/// llama.cpp loads a vocabulary only from a path, so the header goes to an unfinished file next to `output` first.
fn tokenize_with_engine(output: &Path, header: &[u8], texts: &[String]) -> Result<Vec<Vec<i32>>, ConvertError> {
    let new = NewFile::create(output).map_err(ConvertError::io(output, "written"))?;
    new.file()
        .write_all_at(header, 0)
        .map_err(ConvertError::io(output, "written"))?;
    let tokenize = || -> Result<Vec<Vec<i32>>, LlamaError> {
        let model = Model::load_vocabulary(&new.current_path())?;
        texts.iter().map(|text| model.tokenize(text, false, true)).collect()
    };
    tokenize().map_err(|reason| ConvertError::Engine(format!("the vocabulary cannot be loaded: {reason}")))
}
