//! KV cache and compute graph over a model.

use std::{ptr::NonNull, sync::Arc};

use llama_cpp_sys_2 as sys;

use super::{Batch, Model, adapter, backend};
use crate::inference::{KvCacheType, Switch};

/// llama.cpp's granule of a sequence's context window.
const CONTEXT_PADDING: u32 = 256;
/// Tokens in a batch: fewer are slow, more need memory for nothing.
const MIN_BATCH: u32 = 32;
const MAX_BATCH: u32 = 16384;

/// What a context computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextPurpose {
    /// Logits of the next token.
    Generate,
    /// One vector for each sequence, pooled as the file says. Where it says nothing: the vector of the last token, which alone
    /// has seen the whole text, or the mean where every token has.
    Embed,
}

/// Size and placement of a context.
#[derive(Clone, Debug)]
pub struct ContextParams {
    /// What it computes.
    pub purpose: ContextPurpose,
    /// Context window of one sequence in tokens. Sequences of an embedding context share one window.
    pub context_length: u32,
    /// Sequences that are decoded at once.
    pub sequences: u32,
    /// Tokens in one logical batch.
    pub batch: u32,
    /// Compute threads.
    pub threads: u32,
    /// Flash attention.
    pub flash_attention: Switch,
    /// Element type of the K cache.
    pub kv_type_k: KvCacheType,
    /// Element type of the V cache.
    pub kv_type_v: KvCacheType,
}

/// Why a batch was not decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No room in the KV cache for this batch.
    #[error("the KV cache is full")]
    NoRoom,
    /// llama.cpp gave up.
    #[error("llama.cpp could not decode (status {status}): {reason}")]
    Failed {
        /// `llama_decode`'s return value.
        status: i32,
        /// The newest error line of its log.
        reason: String,
    },
}

/// A context. Used by one thread at a time.
#[derive(Debug)]
pub struct Context {
    raw: NonNull<sys::llama_context>,
    model: Arc<Model>,
}

// SAFETY: a context has no thread affinity; `&mut self` on everything that changes it keeps it to one thread at a time.
unsafe impl Send for Context {}

fn kv_type(value: KvCacheType) -> sys::ggml_type {
    match value {
        KvCacheType::F32 => sys::GGML_TYPE_F32,
        KvCacheType::F16 => sys::GGML_TYPE_F16,
        KvCacheType::Bf16 => sys::GGML_TYPE_BF16,
        KvCacheType::Q8_0 => sys::GGML_TYPE_Q8_0,
        KvCacheType::Q4_0 => sys::GGML_TYPE_Q4_0,
    }
}

impl Context {
    /// Allocates KV cache and compute buffers.
    ///
    /// # Errors
    /// llama.cpp's own sentence, mostly about memory.
    pub fn new(model: Arc<Model>, params: &ContextParams) -> Result<Self, String> {
        // SAFETY: no preconditions.
        let mut raw = unsafe { sys::llama_context_default_params() };
        // llama.cpp pads each sequence's part to this, but bounds the batch by the window before it does; a batch larger
        // than its bound aborts the process.
        let per_sequence = params.context_length.max(1).next_multiple_of(CONTEXT_PADDING);
        raw.n_ctx = match params.purpose {
            ContextPurpose::Generate => per_sequence.saturating_mul(params.sequences),
            ContextPurpose::Embed => per_sequence,
        };
        raw.n_batch = params.batch.clamp(MIN_BATCH, MAX_BATCH).min(raw.n_ctx);
        raw.n_ubatch = match params.purpose {
            ContextPurpose::Generate => raw.n_batch.min(512),
            // Attention that looks both ways, and pooling, need all of a sequence in one physical batch.
            ContextPurpose::Embed => raw.n_batch,
        };
        raw.n_seq_max = params.sequences;
        raw.n_threads = params.threads.try_into().unwrap_or(1);
        raw.n_threads_batch = raw.n_threads;
        raw.flash_attn_type = match params.flash_attention {
            Switch::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            Switch::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            Switch::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        raw.type_k = kv_type(params.kv_type_k);
        raw.type_v = kv_type(params.kv_type_v);
        // Each sequence has a part of its own: with long separate contexts that decodes 40 to 60 % faster than one
        // shared pool, and no sequence can starve another. Vectors are made of many short sequences at once instead.
        raw.kv_unified = params.purpose == ContextPurpose::Embed;
        raw.embeddings = params.purpose == ContextPurpose::Embed;
        // A sliding-window layer keeps its window, not the whole context, as llama-server has it.
        raw.swa_full = false;
        raw.no_perf = true;
        let context = Self::allocate(Arc::clone(&model), raw)?;
        if params.purpose == ContextPurpose::Embed && !context.pools() {
            drop(context);
            raw.pooling_type = if model.is_causal() {
                sys::LLAMA_POOLING_TYPE_LAST
            } else {
                sys::LLAMA_POOLING_TYPE_MEAN
            };
            return Self::allocate(model, raw);
        }
        Ok(context)
    }

    fn allocate(model: Arc<Model>, params: sys::llama_context_params) -> Result<Self, String> {
        backend::forget_errors();
        // SAFETY: the model is valid and kept alive by this value.
        let context = unsafe { sys::llama_init_from_model(model.as_ptr(), params) };
        match NonNull::new(context) {
            Some(raw) => {
                adapter::apply(raw, &model.adapters);
                Ok(Self { raw, model })
            }
            None => {
                let reason = backend::first_error();
                Err(if reason.is_empty() {
                    "llama.cpp could not allocate the context".to_owned()
                } else {
                    reason
                })
            }
        }
    }

    /// Whether each sequence gives one vector.
    fn pools(&self) -> bool {
        // SAFETY: the context is valid.
        unsafe { sys::llama_pooling_type(self.raw.as_ptr()) != sys::LLAMA_POOLING_TYPE_NONE }
    }

    /// Numbers of a sequence's vector. A classifier gives one for each label instead.
    fn vector_width(&self) -> usize {
        // SAFETY: context and model are valid.
        unsafe {
            if sys::llama_pooling_type(self.raw.as_ptr()) == sys::LLAMA_POOLING_TYPE_RANK {
                sys::llama_model_n_cls_out(self.model.as_ptr()) as usize
            } else {
                self.model.embedding_width()
            }
        }
    }

    /// The vector of a sequence of the last batch; `None` in a context that makes none.
    #[must_use]
    pub fn embedding(&self, sequence: i32) -> Option<&[f32]> {
        // SAFETY: llama.cpp returns NULL for a sequence that the last batch did not have; otherwise the vector has this width
        // and stays until the next decode, which needs `&mut self`.
        unsafe {
            let vector = sys::llama_get_embeddings_seq(self.raw.as_ptr(), sequence);
            (!vector.is_null()).then(|| std::slice::from_raw_parts(vector, self.vector_width()))
        }
    }

    /// Empties the cache of all sequences.
    pub fn clear(&mut self) {
        let memory = self.memory();
        if !memory.is_null() {
            // SAFETY: the memory belongs to this context; models without a cache have none.
            unsafe { sys::llama_memory_clear(memory, false) };
        }
    }

    /// The model under this context.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Context window of one sequence in tokens, as allocated.
    #[must_use]
    pub fn context_length(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { sys::llama_n_ctx_seq(self.raw.as_ptr()) }
    }

    /// Tokens that one batch may hold.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        // SAFETY: the context is valid.
        unsafe { sys::llama_n_batch(self.raw.as_ptr()) as usize }
    }

    /// Waits until the last decode is done: on a device it returns before.
    pub fn synchronize(&mut self) {
        // SAFETY: the context is valid.
        unsafe { sys::llama_synchronize(self.raw.as_ptr()) };
    }

    /// Changes the number of compute threads, between decodes.
    pub fn set_threads(&mut self, threads: u32) {
        let threads = i32::try_from(threads.max(1)).unwrap_or(1);
        // SAFETY: the context is valid.
        unsafe { sys::llama_set_n_threads(self.raw.as_ptr(), threads, threads) };
    }

    /// Decodes a batch.
    ///
    /// # Errors
    /// [`DecodeError::NoRoom`] leaves the cache as it was.
    pub fn decode(&mut self, batch: &mut Batch) -> Result<(), DecodeError> {
        backend::forget_errors();
        // SAFETY: the arrays live in `batch`, which outlives the call; their lengths are equal to `n_tokens`.
        match unsafe { sys::llama_decode(self.raw.as_ptr(), batch.raw()) } {
            0 => Ok(()),
            1 => Err(DecodeError::NoRoom),
            status => Err(DecodeError::Failed {
                status,
                reason: backend::first_error(),
            }),
        }
    }

    /// The logits of the batch's token at `index`, one for each token of the vocabulary; `None` if it was added without.
    #[must_use]
    pub fn logits(&self, index: i32) -> Option<&[f32]> {
        // SAFETY: llama.cpp returns NULL for an index without logits; otherwise the row has one float a token and
        // stays until the next decode, which needs `&mut self`.
        unsafe {
            let row = sys::llama_get_logits_ith(self.raw.as_ptr(), index);
            (!row.is_null()).then(|| std::slice::from_raw_parts(row, self.model.vocab_size()))
        }
    }

    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is valid.
        unsafe { sys::llama_get_memory(self.raw.as_ptr()) }
    }

    /// Removes positions `from..to` of a sequence (`to` < 0: to the end). `false` if this kind of cache cannot.
    pub fn remove(&mut self, sequence: i32, from: i32, to: i32) -> bool {
        // SAFETY: the memory belongs to this context.
        unsafe { sys::llama_memory_seq_rm(self.memory(), sequence, from, to) }
    }

    /// Makes `to` hold what `from` holds; what `to` held is gone.
    pub fn copy_sequence(&mut self, from: i32, to: i32) {
        self.remove(to, -1, -1);
        // SAFETY: the memory belongs to this context. Only a whole sequence may be copied between the parts of a split cache.
        unsafe { sys::llama_memory_seq_cp(self.memory(), from, to, -1, -1) };
    }

    /// Moves positions `from..to` of a sequence by `delta`. Ask [`Context::can_shift`] first.
    pub fn shift(&mut self, sequence: i32, from: i32, to: i32, delta: i32) {
        // SAFETY: the memory belongs to this context.
        unsafe { sys::llama_memory_seq_add(self.memory(), sequence, from, to, delta) };
    }

    /// Whether positions can be moved.
    #[must_use]
    pub fn can_shift(&self) -> bool {
        // SAFETY: the memory belongs to this context.
        unsafe { sys::llama_memory_can_shift(self.memory()) }
    }

    /// The smallest position that a sequence still holds; -1 if it is empty.
    #[must_use]
    pub fn min_position(&self, sequence: i32) -> i32 {
        // SAFETY: the memory belongs to this context.
        unsafe { sys::llama_memory_seq_pos_min(self.memory(), sequence) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
    }
}
