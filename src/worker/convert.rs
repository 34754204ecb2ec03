//! The converter role: a checkpoint into a GGUF file, in a process that can be killed in the middle. Until the file is whole it
//! has no name, so that nothing of it is left then.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    Input, Inputs, Reports,
    protocol::{Command, ConvertJob, Converted, Question, Reply, Report},
};
use crate::{
    convert::{Advance, ConvertError, Planned, Stage, plan, reference_tokens},
    inference::Failure,
    llama::{Model, quantize_rows},
    stdx::new_file::NewFile,
};

/// Time between two reports of one stage.
const INTERVAL: Duration = Duration::from_millis(50);
/// One text in so many may be cut otherwise by the engine than by the reference: it does not know every normalisation.
const TOLERATED: usize = 10;

/// Serves jobs until the socket closes.
pub(super) fn run(inputs: &Inputs, reports: &mut Reports) {
    while let Ok(input) = inputs.recv() {
        let Input::Command(Command::Ask { id, question }) = input else {
            tracing::warn!(?input, "a converter only converts");
            continue;
        };
        let result = match *question {
            Question::Convert(job) => {
                let converted = convert(job, &Teller::new(id, reports));
                Ok(Reply::Converted(converted.map_err(Into::into)))
            }
            _ => Err(Failure::Worker("a converter only converts".into())),
        };
        reports.send(&Report::Answered { id, result });
    }
}

/// Reports how far a job is, not too often.
struct Teller<'a> {
    id: u64,
    state: Mutex<(&'a mut Reports, Advance, Instant)>,
}

impl<'a> Teller<'a> {
    fn new(id: u64, reports: &'a mut Reports) -> Self {
        Self {
            id,
            state: Mutex::new((reports, Advance::default(), Instant::now())),
        }
    }

    fn tell(&self, advance: Advance) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (reports, last, at) = &mut *state;
        let is_new = advance.stage != last.stage || advance.done == advance.total;
        // Threads report in any order.
        let is_due = at.elapsed() >= INTERVAL && advance.done > last.done;
        if is_new || is_due {
            (*last, *at) = (advance, Instant::now());
            reports.send(&Report::Advanced { id: self.id, advance });
        }
    }
}

/// Plans, tries the tokenizer, writes. Nothing but the whole file is ever there.
fn convert(job: ConvertJob, teller: &Teller<'_>) -> Result<Converted, ConvertError> {
    let Planned {
        model,
        file_type,
        mut notes,
    } = plan(&job.folder, &job.name, job.target)?;
    let model = model.with_quantizer(quantize_rows);
    let output = job
        .output
        .unwrap_or_else(|| PathBuf::from(format!("{}-{file_type}.gguf", job.name)));
    let new = model.create(&output)?;
    if let Some(difference) = check_tokens(&job.folder, &new)? {
        if difference.is_bad() && !job.any_tokenizer {
            return Err(ConvertError::Tokenizer(difference.text));
        }
        notes.push(difference.text);
    }
    let total = model.file_len();
    let advance = |stage, done| teller.tell(Advance { stage, done, total });
    advance(Stage::Writing, 0);
    let progress = |done, _| advance(Stage::Writing, done);
    model.fill(&new, &progress, &CancellationToken::new())?;
    advance(Stage::Syncing, total);
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

/// Lets the engine cut texts with the new vocabulary, before a weight is read; says how it differs from the checkpoint's own
/// tokenizer.
fn check_tokens(folder: &Path, header: &NewFile) -> Result<Option<Difference>, ConvertError> {
    let texts = reference_tokens(folder)?;
    if texts.is_empty() {
        return Ok(None);
    }
    let cut = |texts: &[(String, Vec<u32>)]| -> Result<Vec<Vec<i32>>, String> {
        let model = Model::load_vocabulary(&header.current_path())?;
        texts
            .iter()
            .map(|(text, _)| model.tokenize(text, false, true))
            .collect()
    };
    let found =
        cut(&texts).map_err(|reason| ConvertError::Engine(format!("the vocabulary cannot be loaded: {reason}")))?;
    let differs = |found: &[i32], expected: &[u32]| {
        let expected = expected.iter().map(|token| i64::from(*token));
        !found.iter().map(|token| i64::from(*token)).eq(expected)
    };
    let pairs = found.iter().zip(&texts);
    let mut wrong = pairs
        .filter(|(found, (_, expected))| differs(found, expected))
        .peekable();
    let Some((_, (first, _))) = wrong.peek().copied() else {
        return Ok(None);
    };
    let (wrong, all) = (wrong.count(), texts.len());
    Ok(Some(Difference {
        wrong,
        all,
        text: format!(
            "the engine cuts {wrong} of {all} texts into other tokens than the checkpoint's own tokenizer, the first being \
             {first:?}"
        ),
    }))
}
