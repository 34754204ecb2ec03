//! The quantizer role: one file into another, in a process that can be killed in the middle; and what the engine makes of
//! texts with a file's vocabulary.

use std::path::Path;

use super::{
    Input, Inputs, Reports,
    protocol::{Command, Question, Reply, Report},
};
use crate::{
    inference::Failure,
    llama::{self, Model},
};

/// Serves jobs until the socket closes.
pub(super) fn run(inputs: &Inputs, reports: &mut Reports) {
    while let Ok(input) = inputs.recv() {
        let Input::Command(Command::Ask { id, question }) = input else {
            tracing::warn!(?input, "a quantizer only quantises");
            continue;
        };
        let result = match *question {
            Question::Quantize(job) => llama::quantize(&job.input, &job.output, job.file_type, job.threads)
                .map(|()| Reply::Quantized)
                .map_err(|reason| Failure::Invalid(format!("the model cannot be quantised: {reason}"))),
            Question::CutTexts { path, texts } => cut(&path, &texts)
                .map(Reply::Cut)
                .map_err(|reason| Failure::Invalid(format!("the vocabulary cannot be loaded: {reason}"))),
            _ => Err(Failure::Worker("a quantizer only quantises".into())),
        };
        reports.send(&Report::Answered { id, result });
    }
}

fn cut(path: &Path, texts: &[String]) -> Result<Vec<Vec<i32>>, String> {
    let model = Model::load_vocabulary(path)?;
    texts.iter().map(|text| model.tokenize(text, false, true)).collect()
}
