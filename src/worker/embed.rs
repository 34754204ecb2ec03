//! Vectors of texts. The inputs of all requests that wait are computed together, as many as fit into one batch.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{
    LIFE_INTERVAL,
    protocol::{WorkerReply, WorkerReport},
};
use crate::{
    inference::Failure,
    llama::{Batch, Context, ContextParams, ContextPurpose, LlamaError, Model, TokenId},
};

/// Largest number of texts in one batch.
pub(super) const SEQUENCES: u32 = 64;

/// Texts of one request, and the vectors that are ready.
#[derive(Debug)]
pub(super) struct EmbedTask {
    id: u64,
    inputs: Vec<Vec<TokenId>>,
    tokens: u32,
    /// Index of the first input that was not put into a batch.
    next: usize,
    vectors: Vec<Vec<f32>>,
    failure: Option<Failure>,
}

impl EmbedTask {
    pub(super) fn new(id: u64, inputs: Vec<Vec<TokenId>>) -> Self {
        let tokens = inputs.iter().map(Vec::len).sum::<usize>();
        Self {
            id,
            tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            vectors: vec![Vec::new(); inputs.len()],
            inputs,
            next: 0,
            failure: None,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    fn is_done(&self) -> bool {
        self.next == self.inputs.len() || self.failure.is_some()
    }
}

/// Owner of the context that makes vectors, and of the requests that wait for it.
#[derive(Debug)]
pub(super) struct Embedder {
    context: Context,
    batch: Batch,
    queue: VecDeque<EmbedTask>,
    /// Time of the last report to the daemon.
    last_sign_of_life: Instant,
}

impl Embedder {
    pub(super) fn new(model: &Arc<Model>, params: &ContextParams) -> Result<Self, LlamaError> {
        let context = Context::new(Arc::clone(model), ContextPurpose::Embed, params)?;
        let batch = Batch::new(context.batch_size());
        Ok(Self {
            context,
            batch,
            queue: VecDeque::new(),
            last_sign_of_life: Instant::now(),
        })
    }

    pub(super) fn set_threads(&mut self, threads: u32) {
        self.context.set_threads(threads);
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn push(&mut self, task: EmbedTask) {
        self.queue.push_back(task);
    }

    pub(super) fn cancel(&mut self, id: u64) {
        self.queue.retain(|task| task.id != id);
    }

    /// Computes one batch and reports the requests that are complete with it.
    pub(super) fn step(&mut self, mut report: impl FnMut(WorkerReport)) {
        let room = self.context.batch_size();
        let sequences = SEQUENCES as usize;
        let next = |task: &EmbedTask| task.inputs[task.next..].iter().take(sequences).map(Vec::len).collect();
        let counts = texts_per_task(self.queue.iter().map(next), room, sequences);
        self.batch.clear();
        // Task, input and sequence of each text in the batch.
        let mut placed = Vec::new();
        for (task, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let sequence = placed.len() as i32;
                let waiting = &mut self.queue[task];
                for (position, &token) in waiting.inputs[waiting.next].iter().enumerate() {
                    // All tokens with output: without it a text's vector is missing from `llama_get_embeddings_seq`.
                    self.batch.add(token, position as i32, sequence, true);
                }
                placed.push((task, waiting.next, sequence));
                waiting.next += 1;
            }
        }
        if !self.batch.is_empty() {
            // The texts of the last batch used the same sequence ids.
            self.context.clear();
            let decoded = self.context.decode(&mut self.batch);
            for (task, input, sequence) in placed {
                let task = &mut self.queue[task];
                // A batch that failed fails all of its requests: which text is to blame is not known.
                match (&decoded, self.context.embedding(sequence)) {
                    (Ok(()), Some(vector)) => task.vectors[input] = vector.to_vec(),
                    (Ok(()), None) => task.failure = Some(Failure::Worker("the model gave no vector".into())),
                    (Err(error), _) => task.failure = Some(Failure::Worker(error.to_string())),
                }
            }
        }
        while let Some(position) = self.queue.iter().position(EmbedTask::is_done) {
            let Some(task) = self.queue.remove(position) else { break };
            let result = match task.failure {
                Some(failure) => Err(failure),
                None => Ok(WorkerReply::Embedded {
                    vectors: task.vectors,
                    tokens: task.tokens,
                }),
            };
            self.last_sign_of_life = Instant::now();
            report(WorkerReport::Answered { id: task.id, result });
        }
        if self.last_sign_of_life.elapsed() > LIFE_INTERVAL {
            self.last_sign_of_life = Instant::now();
            report(WorkerReport::Alive);
        }
    }
}

/// Returns the number of each task's next texts that go into a batch of `room` tokens and `sequences` texts. They are
/// taken in order of arrival, and no text is passed over for a later one of its own task. Texts are never longer than a
/// batch. Pure.
fn texts_per_task(lengths: impl Iterator<Item = Vec<usize>>, mut room: usize, mut sequences: usize) -> Vec<usize> {
    lengths
        .map(|texts| {
            let mut count = 0;
            for length in texts {
                if length > room || sequences == 0 {
                    break;
                }
                room -= length;
                sequences -= 1;
                count += 1;
            }
            count
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::texts_per_task;

    #[test]
    fn texts_of_several_requests_share_a_batch() {
        let lengths = vec![vec![10, 10], vec![100], vec![5]];
        assert_eq!(texts_per_task(lengths.into_iter(), 30, 64), [2, 0, 1]);
    }

    #[test]
    fn a_batch_has_room_for_so_many_texts() {
        assert_eq!(texts_per_task(vec![vec![1; 5], vec![1]].into_iter(), 512, 3), [3, 0]);
    }

    #[test]
    fn a_text_that_fills_the_batch_goes_alone() {
        assert_eq!(texts_per_task(vec![vec![512, 1], vec![1]].into_iter(), 512, 64), [1, 0]);
    }
}
