//! Answers that begin with a download: the reasoning says how far it is. Only if `hub.progress_in_thinking` is on and
//! the request asks for reasoning, since a client hides or folds that.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};

use super::HuggingFace;
use crate::{
    hub::HfName,
    inference::{Delta, Event, Failure, InferencePrompt, InferenceRequest, PullEvent, ThinkMode},
    library::PullProgress,
    provider::{CallContext, EventStream},
    stdx::size::human_bytes,
};

/// Percent of progress between two lines.
const STEP: u64 = 10;

/// An answer that waits for the download of its model.
pub(super) struct AnswerAfterPull {
    stage: PullStage,
    lines: ProgressLines,
    provider: Arc<HuggingFace>,
    call: CallContext,
    name: String,
    /// Taken when the model is loaded.
    request: Option<InferenceRequest>,
}

enum PullStage {
    Pulling(PullProgress),
    Loading,
    Answering(EventStream),
    Ended,
}

impl AnswerAfterPull {
    /// Returns true if a request can show progress: a chat that asks for reasoning.
    pub(super) fn is_wanted(request: &InferenceRequest) -> bool {
        matches!(request.prompt, InferencePrompt::Chat { .. })
            && matches!(request.think, ThinkMode::On | ThinkMode::Level(_))
    }

    /// Starts the download and returns the events of the answer.
    pub(super) fn start(
        provider: Arc<HuggingFace>,
        call: CallContext,
        parsed: &HfName,
        name: String,
        request: InferenceRequest,
    ) -> EventStream {
        let answer = Self {
            stage: PullStage::Pulling(provider.library.pull(&call.config.hub, parsed)),
            lines: ProgressLines::default(),
            provider,
            call,
            name,
            request: Some(request),
        };
        stream::unfold(answer, Self::next).boxed()
    }

    async fn next(mut self) -> Option<(Result<Event, Failure>, Self)> {
        loop {
            match &mut self.stage {
                PullStage::Pulling(pull) => match pull.next().await {
                    Some(Ok(event)) => {
                        if let Some(line) = self.lines.next(&event) {
                            return Some((Ok(thought(line)), self));
                        }
                    }
                    Some(Err(error)) => {
                        self.stage = PullStage::Ended;
                        return Some((Err(error.into()), self));
                    }
                    None => {
                        self.stage = PullStage::Loading;
                        return Some((Ok(thought("Loading the model.\n\n".into())), self));
                    }
                },
                PullStage::Loading => {
                    let request = self.request.take()?;
                    let answer = answer(&self.provider, &self.call, &self.name, request);
                    match answer.await {
                        Ok(events) => self.stage = PullStage::Answering(events),
                        Err(failure) => {
                            self.stage = PullStage::Ended;
                            return Some((Err(failure), self));
                        }
                    }
                }
                PullStage::Answering(events) => {
                    let event = events.next().await?;
                    return Some((event, self));
                }
                PullStage::Ended => return None,
            }
        }
    }
}

// A free function: `&self` over an await would need a `Sync` stream in `stage`.
async fn answer(
    provider: &HuggingFace,
    call: &CallContext,
    name: &str,
    request: InferenceRequest,
) -> Result<EventStream, Failure> {
    let located = provider.locate(call, name).await?;
    provider.answer(call, &located, request).await
}

fn thought(thinking: String) -> Event {
    Event::Delta(Delta {
        thinking,
        ..Delta::default()
    })
}

/// Reduces the many events of a pull to few lines.
#[derive(Debug, Default)]
struct ProgressLines {
    /// Digest of the file that the last line was about.
    digest: String,
    /// Percent in the last line.
    percent: u64,
}

impl ProgressLines {
    /// Returns the line for an event; `None` if the last line still holds.
    fn next(&mut self, event: &PullEvent) -> Option<String> {
        let (digest, total, completed, start) = match event {
            PullEvent::File {
                digest,
                total,
                completed,
            } => {
                let short = digest.get(..12).unwrap_or(digest);
                (digest, total, completed, format!("Downloading {short}"))
            }
            PullEvent::Converting {
                digest,
                total,
                completed,
            } => (digest, total, completed, "Converting the model".to_owned()),
            PullEvent::Status(_) => return None,
        };
        if *digest != self.digest {
            (self.digest, self.percent) = (digest.clone(), 0);
            return Some(format!("{start}, {}.\n", human_bytes(*total)));
        }
        let percent = completed.saturating_mul(100).checked_div(*total).unwrap_or(100);
        let step = percent / STEP * STEP;
        (step > self.percent).then(|| {
            self.percent = step;
            format!("{step} %\n")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_lines_are_told() {
        let mut lines = ProgressLines::default();
        let mut text = String::new();
        let file = |digest: &str, completed| PullEvent::File {
            digest: digest.repeat(32),
            total: 1000,
            completed,
        };
        text.extend(lines.next(&PullEvent::Status("pulling manifest")));
        for completed in 0..=1000 {
            text.extend(lines.next(&file("ab", completed)));
        }
        text.extend(lines.next(&file("cd", 0)));
        text.extend(lines.next(&file("cd", 1000)));
        let converting = |completed| PullEvent::Converting {
            digest: "ef".repeat(32),
            total: 2000,
            completed,
        };
        text.extend(lines.next(&converting(0)));
        text.extend(lines.next(&converting(1000)));
        let tens: String = (1..=10).map(|ten| format!("{ten}0 %\n")).collect();
        assert_eq!(
            text,
            format!(
                "Downloading abababababab, 1 KB.\n{tens}Downloading cdcdcdcdcdcd, 1 KB.\n100 %\nConverting the model, 2 \
                 KB.\n50 %\n"
            )
        );
        assert_eq!(lines.next(&converting(1000)), None);
    }
}
