//! Helper role: renders chat templates, which come from model files and are untrusted. A template that crashes or
//! exhausts this process fails one request, and no model's worker.

use std::collections::VecDeque;

use super::{
    EngineInput, EngineInputs, ReportSender,
    protocol::{DaemonCommand, RenderJob, WorkerQuestion, WorkerReply, WorkerReport},
};
use crate::{
    inference::Failure,
    llama::{ChatTemplate, LlamaError, RenderedChat},
};

/// Number of compiled templates that are kept; compiling one takes a millisecond or two.
const KEPT_TEMPLATES: usize = 8;

/// Source of a template with the texts of BOS and EOS, all of which are compiled in.
type Key = (String, String, String);

/// Serves render jobs until the socket closes.
pub(super) fn run(inputs: &EngineInputs, reports: &mut ReportSender) {
    let mut kept: VecDeque<(Key, ChatTemplate)> = VecDeque::new();
    while let Ok(input) = inputs.recv() {
        let EngineInput::Command(DaemonCommand::Ask { id, question }) = input else {
            tracing::warn!(?input, "the helper only renders");
            continue;
        };
        let result = match *question {
            WorkerQuestion::Render(job) => render(&mut kept, job)
                .map(|rendered| WorkerReply::Rendered(Box::new(rendered)))
                .map_err(|reason| Failure::Invalid(format!("the model's chat template failed: {reason}"))),
            _ => Err(Failure::Worker("the helper only renders".into())),
        };
        reports.send(&WorkerReport::Answered { id, result });
    }
}

fn render(kept: &mut VecDeque<(Key, ChatTemplate)>, job: RenderJob) -> Result<RenderedChat, LlamaError> {
    let key = (job.template, job.bos, job.eos);
    let found = match kept
        .iter()
        .position(|(other, _)| *other == key)
        .and_then(|at| kept.remove(at))
    {
        Some(found) => found,
        None => {
            let template = ChatTemplate::new(&key.0, &key.1, &key.2)?;
            (key, template)
        }
    };
    let rendered = found.1.apply(job.input.get());
    // The front is the template that was used last; also one that failed, since it failed for this conversation.
    kept.push_front(found);
    kept.truncate(KEPT_TEMPLATES);
    rendered
}
