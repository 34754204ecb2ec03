//! The converter role: a checkpoint into a GGUF file, in a process that can be killed in the middle. Until the file is whole it
//! has no name, so that nothing of it is left then.

use std::{
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    EngineInput, EngineInputs, ReportSender,
    protocol::{ConvertJob, Converted, DaemonCommand, WorkerQuestion, WorkerReply, WorkerReport},
    quantize_rows,
};
use crate::{
    convert::{Advance, ConvertError, Planned, Stage},
    inference::Failure,
    llama::{LlamaError, Model},
    stdx::{new_file::NewFile, sync::lock},
};

/// Time between two reports of one stage.
const INTERVAL: Duration = Duration::from_millis(50);

/// Serves jobs until the socket closes.
pub(super) fn run(inputs: &EngineInputs, reports: &mut ReportSender) {
    while let Ok(input) = inputs.recv() {
        let EngineInput::Command(DaemonCommand::Ask { id, question }) = input else {
            tracing::warn!(?input, "a converter only converts");
            continue;
        };
        let result = match *question {
            WorkerQuestion::Convert(job) => {
                let converted = convert(job, &Teller::new(id, reports));
                Ok(WorkerReply::Converted(converted.map_err(Into::into)))
            }
            _ => Err(Failure::Worker("a converter only converts".into())),
        };
        reports.send(&WorkerReport::Answered { id, result });
    }
}

/// Reports how far a job is, not too often.
struct Teller<'a> {
    id: u64,
    state: Mutex<(&'a mut ReportSender, Advance, Instant)>,
}

impl<'a> Teller<'a> {
    fn new(id: u64, reports: &'a mut ReportSender) -> Self {
        Self {
            id,
            state: Mutex::new((reports, Advance::default(), Instant::now())),
        }
    }

    fn tell(&self, advance: Advance) {
        let mut state = lock(&self.state);
        let (reports, last, at) = &mut *state;
        let is_new = advance.stage != last.stage || advance.done == advance.total;
        // Threads report in any order.
        let is_due = at.elapsed() >= INTERVAL && advance.done > last.done;
        if is_new || is_due {
            (*last, *at) = (advance, Instant::now());
            reports.send(&WorkerReport::Advanced { id: self.id, advance });
        }
    }
}

/// Plans, tries the tokenizer, writes. Nothing but the whole file is ever there.
fn convert(job: ConvertJob, teller: &Teller<'_>) -> Result<Converted, ConvertError> {
    let place = job.output.clone().unwrap_or_else(|| PathBuf::from(&job.name));
    let mut cut = |header: &[u8], texts: &[String]| cut(&place, header, texts);
    let Planned {
        model,
        file_type,
        check,
        mut notes,
    } = job.part.plan(&job.folder, &job.name, job.target, &mut cut)?;
    if let Some(check) = check.filter(|check| check.wrong > 0) {
        if check.is_doubtful() && !job.any_tokenizer {
            return Err(ConvertError::Tokenizer(check.sentence()));
        }
        notes.push(check.sentence());
    }
    let model = model.with_quantizer(quantize_rows);
    let output = job
        .output
        .unwrap_or_else(|| PathBuf::from(job.part.file_name(&job.name, file_type)));
    let new = match job.header_only {
        true => model.create_header(&output)?,
        false => model.create(&output)?,
    };
    let total = model.file_len();
    if !job.header_only {
        let advance = |stage, done| teller.tell(Advance { stage, done, total });
        advance(Stage::Writing, 0);
        let progress = |done, _| advance(Stage::Writing, done);
        model.fill(&new, &progress, &CancellationToken::new())?;
        advance(Stage::Syncing, total);
    }
    new.finish().map_err(|error| ConvertError::Io {
        path: output.clone(),
        what: "written",
        error,
    })?;
    Ok(Converted {
        output,
        bytes: total,
        file_type: file_type.to_owned(),
        notes,
    })
}

/// What the engine makes of texts with the vocabulary of a header. That is in a file for as long, beside `output`.
fn cut(output: &Path, header: &[u8], texts: &[String]) -> Result<Vec<Vec<i32>>, ConvertError> {
    let failed = |error: io::Error| ConvertError::Io {
        path: output.to_owned(),
        what: "written",
        error,
    };
    let new = NewFile::create(output).map_err(failed)?;
    new.file().write_all_at(header, 0).map_err(failed)?;
    let cut = || -> Result<Vec<Vec<i32>>, LlamaError> {
        let model = Model::load_vocabulary(&new.current_path())?;
        texts.iter().map(|text| model.tokenize(text, false, true)).collect()
    };
    cut().map_err(|reason| ConvertError::Engine(format!("the vocabulary cannot be loaded: {reason}")))
}
