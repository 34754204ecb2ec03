//! Several answers to one request (`n`, or several prompts), generated at the same time.
//!
//! Ollama ignores `n`. Here each answer is an inference of its own; the prompt is evaluated once, since the answers
//! after the first find it in the prefix cache.

use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, future::BoxFuture, stream};

use crate::{
    api::{
        error::ApiError,
        model::ServedModel,
        stream::{AnswerBuilder, CompleteAnswer, StepStream, StreamStep, unfinished},
    },
    inference::{AnswerSummary, AnswerUsage, Event, InferenceRequest},
};

/// Most answers to one prompt.
pub(super) const MAX_CHOICES: usize = 8;

/// Most answers of one request that are generated at the same time; more wait.
const MAX_AT_ONCE: usize = 8;

/// Event of one of the answers.
#[derive(Debug)]
pub(super) struct ChoiceEvent {
    /// Index of the answer.
    pub(super) index: usize,
    pub(super) event: Event,
    /// True when every answer is complete with this event.
    is_last: bool,
}

impl ChoiceEvent {
    pub(super) fn new(index: usize, event: Event, is_last: bool) -> Self {
        Self { index, event, is_last }
    }

    /// True when every answer is complete with this event.
    pub(super) fn ends_all(&self) -> bool {
        self.is_last
    }
}

impl StreamStep for ChoiceEvent {
    fn is_last(&self) -> bool {
        self.is_last
    }
}

/// Repeats a request `count` times. A seed is incremented for each, so that the answers differ; a negative one stays
/// random.
pub(super) fn repeat(request: InferenceRequest, count: usize) -> Vec<InferenceRequest> {
    let mut requests = vec![request; count];
    for (index, request) in requests.iter_mut().enumerate() {
        let counted = |seed: i64| match seed {
            ..0 => seed,
            _ => seed.saturating_add(i64::try_from(index).unwrap_or(i64::MAX)),
        };
        request.sampling.seed = request.sampling.seed.map(counted);
    }
    requests
}

/// Starts answers. The first runs alone until its first event, so that a request that fails does so once and with its
/// status, and the others find their prompt in the prefix cache.
pub(super) fn start(
    model: &ServedModel,
    requests: Vec<InferenceRequest>,
) -> BoxFuture<'static, Result<StepStream<ChoiceEvent>, ApiError>> {
    // These futures are lazy: no request runs before it is polled below.
    let starts: Vec<_> = requests
        .into_iter()
        .map(|request| model.start(request))
        .enumerate()
        .collect();
    async move {
        let mut open = starts.len();
        let mut starts = starts.into_iter();
        let Some((index, first)) = starts.next() else {
            return Err(unfinished());
        };
        // Only the first answer is awaited here: an error after the response has begun could not be a status.
        let first = first.await?.map_ok(move |event| (index, event));
        let others = stream::iter(starts)
            .map(|(index, start)| start.try_flatten_stream().map_ok(move |event| (index, event)).boxed())
            .flatten_unordered(MAX_AT_ONCE);
        let steps = stream::select(first, others).map_ok(move |(index, event)| {
            if event.is_last() {
                open -= 1;
            }
            ChoiceEvent::new(index, event, open == 0)
        });
        Ok(steps.boxed())
    }
    .boxed()
}

/// Waits for all answers to be complete.
pub(super) async fn collect(mut steps: StepStream<ChoiceEvent>, count: usize) -> Result<Vec<CompleteAnswer>, ApiError> {
    let mut answers: Vec<AnswerBuilder> = std::iter::repeat_with(AnswerBuilder::default).take(count).collect();
    while let Some(step) = steps.next().await {
        let step = step?;
        let ended = step.is_last;
        if let Some(answer) = answers.get_mut(step.index) {
            answer.add(step.event);
        }
        if ended {
            break;
        }
    }
    answers.into_iter().map(AnswerBuilder::join).collect()
}

/// Usage of several answers together. A prompt is counted once, however many answers it got.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsageTotals {
    answers_per_prompt: usize,
    total: AnswerUsage,
}

impl UsageTotals {
    pub(super) fn new(answers_per_prompt: usize) -> Self {
        Self {
            answers_per_prompt,
            total: AnswerUsage::default(),
        }
    }

    pub(super) fn add(&mut self, index: usize, finish: &AnswerSummary) {
        let output = finish.usage.output_tokens;
        self.total.output_tokens = self.total.output_tokens.saturating_add(output);
        if index.is_multiple_of(self.answers_per_prompt) {
            self.total.prompt_tokens = self.total.prompt_tokens.saturating_add(finish.usage.prompt_tokens);
        }
    }

    pub(super) fn usage(&self) -> &AnswerUsage {
        &self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::tests::fake::{finish, text},
        inference::{FinishReason, InferencePrompt, SamplingOptions, ThinkMode},
    };

    fn seeds(seed: Option<i64>) -> Vec<Option<i64>> {
        let request = InferenceRequest {
            prompt: InferencePrompt::Raw { text: String::new() },
            sampling: SamplingOptions {
                seed,
                ..SamplingOptions::default()
            },
            load: Default::default(),
            format: None,
            think: ThinkMode::Unset,
            thinking_budget: None,
            keep_alive: None,
            truncate: true,
            shift: true,
            logprobs: None,
            return_context: false,
        };
        repeat(request, 3).iter().map(|request| request.sampling.seed).collect()
    }

    #[test]
    fn a_seed_is_counted_up_and_none_stays_random() {
        assert_eq!(seeds(Some(7)), [Some(7), Some(8), Some(9)]);
        assert_eq!(seeds(Some(-1)), [Some(-1); 3]);
        assert_eq!(seeds(None), [None; 3]);
        assert_eq!(seeds(Some(i64::MAX)), [Some(i64::MAX); 3]);
    }

    #[test]
    fn a_prompt_is_counted_once() {
        let Event::Finished(finish) = finish(FinishReason::Stop, &[]) else {
            panic!()
        };
        let mut totals = UsageTotals::new(2);
        for index in 0..4 {
            totals.add(index, &finish);
        }
        assert_eq!((totals.usage().prompt_tokens, totals.usage().output_tokens), (20, 8));
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_an_error() {
        let steps = stream::iter([Ok(ChoiceEvent::new(0, text("a"), false))]).boxed();
        assert_eq!(collect(steps, 1).await.unwrap_err(), unfinished());
    }
}
