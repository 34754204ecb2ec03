//! The helper role: renders what strangers wrote. When a template takes the process down, one request gets an error.

use std::collections::VecDeque;

use super::{
    Commands, Reports,
    protocol::{Command, RenderJob, Report},
};
use crate::llama::{ChatTemplate, RenderedChat};

/// Compiled templates that are kept; compiling one takes a millisecond or two.
const KEPT_TEMPLATES: usize = 8;

type Key = (String, String, String);

/// Serves render jobs until the socket closes.
pub(super) fn run(commands: &Commands, reports: &mut Reports) {
    let mut kept: VecDeque<(Key, ChatTemplate)> = VecDeque::new();
    while let Ok(command) = commands.recv() {
        match command {
            Command::Render(job) => {
                let id = job.id;
                let result = render(&mut kept, *job).map(Box::new);
                reports.send(&Report::Rendered { id, result });
            }
            other => tracing::warn!(?other, "the helper only renders"),
        }
    }
}

fn render(kept: &mut VecDeque<(Key, ChatTemplate)>, job: RenderJob) -> Result<RenderedChat, String> {
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
    let rendered = found.1.apply(&job.input);
    kept.push_front(found);
    kept.truncate(KEPT_TEMPLATES);
    rendered
}
