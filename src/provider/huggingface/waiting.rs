//! A chat that waits for a download or a conversion says in its reasoning how far that is; by setting, and only where reasoning was asked for.

use futures_util::{StreamExt as _, stream};

use super::{HuggingFace, settings};
use crate::{
    config::Config,
    hub::HfName,
    inference::{Delta, Event, Failure, InferencePrompt, InferenceRequest, PullEvent, ThinkMode},
    library::PullProgress,
    provider::{CallContext, EventStream, Provider as _},
    stdx::size::human_bytes,
};

/// Percent between two lines.
const STEP: u64 = 10;

/// Starts an answer that begins with the progress of a download, where that is wanted and there is something to download;
/// else gives the request back.
pub(super) async fn begin(
    provider: &HuggingFace,
    call: &CallContext,
    name: &str,
    request: InferenceRequest,
) -> Result<EventStream, InferenceRequest> {
    let asks = matches!(request.prompt, InferencePrompt::Chat { .. })
        && matches!(request.think, ThinkMode::On | ThinkMode::Level(_));
    match HfName::parse(name) {
        Ok(parsed) if asks && is_awaited(provider, call, &parsed).await => {
            let waiting = Waiting {
                stage: Stage::Pulling(provider.hub.pull(&call.config.hub, &parsed)),
                teller: Teller::default(),
                provider: provider.clone(),
                call: call.clone(),
                name: name.to_owned(),
                request: Some(request),
            };
            Ok(stream::unfold(waiting, Waiting::next).boxed())
        }
        _ => Err(request),
    }
}

/// Whether the first use of a name will be a download that is told of.
pub(super) async fn is_awaited(provider: &HuggingFace, call: &CallContext, name: &HfName) -> bool {
    let config: &Config = &call.config;
    config.hub.progress_in_thinking
        && settings::pulls_on_use(config, name)
        && provider
            .locate_local(call, name)
            .await
            .is_err_and(|error| error.is_not_cached())
}

struct Waiting {
    stage: Stage,
    teller: Teller,
    provider: HuggingFace,
    call: CallContext,
    name: String,
    request: Option<InferenceRequest>,
}

enum Stage {
    Pulling(PullProgress),
    Loading,
    Answering(EventStream),
    Over,
}

impl Waiting {
    async fn next(mut self) -> Option<(Result<Event, Failure>, Self)> {
        loop {
            match &mut self.stage {
                Stage::Pulling(pull) => match pull.next().await {
                    Some(Ok(event)) => {
                        if let Some(line) = self.teller.tell(&event) {
                            return Some((Ok(thought(line)), self));
                        }
                    }
                    Some(Err(error)) => {
                        self.stage = Stage::Over;
                        return Some((Err(error.into()), self));
                    }
                    None => {
                        self.stage = Stage::Loading;
                        return Some((Ok(thought("Loading the model.\n\n".into())), self));
                    }
                },
                Stage::Loading => {
                    let request = self.request.take()?;
                    match self.provider.infer(&self.call, &self.name, request).await {
                        Ok(events) => self.stage = Stage::Answering(events),
                        Err(failure) => {
                            self.stage = Stage::Over;
                            return Some((Err(failure), self));
                        }
                    }
                }
                Stage::Answering(events) => {
                    let event = events.next().await?;
                    return Some((event, self));
                }
                Stage::Over => return None,
            }
        }
    }
}

fn thought(thinking: String) -> Event {
    Event::Delta(Delta {
        thinking,
        ..Delta::default()
    })
}

/// Makes few lines of many events.
#[derive(Debug, Default)]
struct Teller {
    digest: String,
    /// Percent that the last line said.
    told: u64,
}

impl Teller {
    fn tell(&mut self, event: &PullEvent) -> Option<String> {
        let (digest, total, completed, begins) = match event {
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
            (self.digest, self.told) = (digest.clone(), 0);
            return Some(format!("{begins}, {}.\n", human_bytes(*total)));
        }
        let percent = completed.saturating_mul(100).checked_div(*total).unwrap_or(100);
        let step = percent / STEP * STEP;
        (step > self.told).then(|| {
            self.told = step;
            format!("{step} %\n")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_lines_are_told() {
        let mut teller = Teller::default();
        let mut text = String::new();
        let file = |digest: &str, completed| PullEvent::File {
            digest: digest.repeat(32),
            total: 1000,
            completed,
        };
        text.extend(teller.tell(&PullEvent::Status("pulling manifest")));
        for completed in 0..=1000 {
            text.extend(teller.tell(&file("ab", completed)));
        }
        text.extend(teller.tell(&file("cd", 0)));
        text.extend(teller.tell(&file("cd", 1000)));
        let converting = |completed| PullEvent::Converting {
            digest: "ef".repeat(32),
            total: 2000,
            completed,
        };
        text.extend(teller.tell(&converting(0)));
        text.extend(teller.tell(&converting(1000)));
        let tens: String = (1..=10).map(|ten| format!("{ten}0 %\n")).collect();
        assert_eq!(
            text,
            format!(
                "Downloading abababababab, 1 KB.\n{tens}Downloading cdcdcdcdcdcd, 1 KB.\n100 %\nConverting the model, 2 \
                 KB.\n50 %\n"
            )
        );
        assert_eq!(teller.tell(&converting(1000)), None);
    }
}
