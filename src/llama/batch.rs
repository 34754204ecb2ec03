//! Tokens of several sequences, submitted in one decode.

use llama_cpp_sys_2 as sys;

use super::TokenId;

/// Batch that owns its arrays; reused from step to step.
// llama-cpp-2's `LlamaBatch` hides its C view, so only its own `LlamaContext` can decode it (see `Context`). It is not
// sound either: `add` with more sequences than were given to `new` writes behind an array.
#[derive(Debug)]
pub struct Batch {
    tokens: Vec<TokenId>,
    positions: Vec<i32>,
    sequence_counts: Vec<i32>,
    sequences: Vec<i32>,
    wants_logits: Vec<i8>,
    /// Pointers into `sequences`, rebuilt before each decode; kept to reuse the memory.
    sequence_pointers: Vec<*mut i32>,
    capacity: usize,
}

impl Batch {
    /// Makes an empty batch for up to `capacity` tokens.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(capacity),
            positions: Vec::with_capacity(capacity),
            sequence_counts: Vec::with_capacity(capacity),
            sequences: Vec::with_capacity(capacity),
            wants_logits: Vec::with_capacity(capacity),
            sequence_pointers: Vec::with_capacity(capacity),
            capacity,
        }
    }

    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequence_counts.clear();
        self.sequences.clear();
        self.wants_logits.clear();
    }

    /// Adds a token and returns its index in the batch, or `None` if the batch is full.
    pub fn add(&mut self, token: TokenId, position: i32, sequence: i32, logits: bool) -> Option<i32> {
        if self.tokens.len() == self.capacity {
            return None;
        }
        let index = self.tokens.len();
        self.tokens.push(token);
        self.positions.push(position);
        self.sequence_counts.push(1);
        self.sequences.push(sequence);
        self.wants_logits.push(i8::from(logits));
        i32::try_from(index).ok()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Returns the C view, which is valid until the batch is changed.
    pub(super) fn raw(&mut self) -> sys::llama_batch {
        self.sequence_pointers.clear();
        self.sequence_pointers
            .extend(self.sequences.iter_mut().map(std::ptr::from_mut));
        sys::llama_batch {
            n_tokens: self.tokens.len() as i32,
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.sequence_counts.as_mut_ptr(),
            seq_id: self.sequence_pointers.as_mut_ptr(),
            logits: self.wants_logits.as_mut_ptr(),
        }
    }
}
