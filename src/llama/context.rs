//! KV cache and compute graph over a model.

use std::{
    ptr::NonNull,
    sync::{Arc, PoisonError},
};

use llama_cpp_sys_2 as sys;
use serde::{Deserialize, Serialize};

use super::{Batch, LlamaError, Model, adapter, backend, layout};
use crate::inference::{AutoSwitch, KvCacheType};

/// Granule of a sequence's context length in llama.cpp, in tokens.
const CONTEXT_PADDING: u32 = 256;
/// Bounds of the logical batch in tokens: a smaller one is slow, a larger one needs memory and is no faster.
const MIN_BATCH: u32 = 32;
const MAX_BATCH: u32 = 16384;
/// Largest physical batch of a generating context in tokens, llama.cpp's own default.
const MAX_PHYSICAL_BATCH: u32 = 512;

/// Result that a context computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextPurpose {
    /// Logits of the next token.
    Generate,
    /// One vector for each sequence, pooled as the file says. If it says nothing, the vector of the last token, which
    /// alone has seen the whole text, or the mean if every token has.
    Embed,
}

/// Size of a context and the way it computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextParams {
    /// Context length of one sequence in tokens. The sequences of an embedding context share one.
    pub context_length: u32,
    /// Number of sequences that are decoded at once.
    pub parallel: u32,
    /// Number of tokens in one logical batch.
    pub batch: u32,
    /// Number of compute threads.
    pub threads: u32,
    pub flash_attention: AutoSwitch,
    pub kv_type_k: KvCacheType,
    pub kv_type_v: KvCacheType,
}

/// Context over a model. Used by one thread at a time.
// llama-cpp-2's `LlamaContext` does not serve: it has no `llama_set_n_threads`, without which the daemon cannot move
// cores between models, no `llama_memory_can_shift`, `llama_pooling_type` and `llama_n_ctx_seq`, applies one adapter
// only, and keeps its pointer to itself, so that nothing can be added from outside.
#[derive(Debug)]
pub struct Context {
    raw: NonNull<sys::llama_context>,
    model: Arc<Model>,
}

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
    /// [`LlamaError::Context`] with llama.cpp's reason, mostly about memory.
    pub fn new(model: Arc<Model>, purpose: ContextPurpose, params: &ContextParams) -> Result<Self, LlamaError> {
        // SAFETY: no preconditions.
        let mut raw = unsafe { sys::llama_context_default_params() };
        // The constructor of `llama_context` bounds n_batch by n_ctx before it pads each sequence's part to 256 tokens,
        // and `llama_decode` aborts the process on a batch larger than n_batch. So the padding is done here first.
        let context_length = params.context_length.max(1).next_multiple_of(CONTEXT_PADDING);
        raw.n_ctx = match purpose {
            ContextPurpose::Generate => context_length.saturating_mul(params.parallel),
            ContextPurpose::Embed => context_length,
        };
        raw.n_batch = params.batch.clamp(MIN_BATCH, MAX_BATCH).min(raw.n_ctx);
        raw.n_ubatch = match purpose {
            ContextPurpose::Generate => raw.n_batch.min(MAX_PHYSICAL_BATCH),
            // Attention that looks both ways, and pooling, need all of a sequence in one physical batch.
            ContextPurpose::Embed => raw.n_batch,
        };
        raw.n_seq_max = params.parallel;
        raw.n_threads = params.threads.try_into().unwrap_or(1);
        raw.n_threads_batch = raw.n_threads;
        raw.flash_attn_type = match params.flash_attention {
            AutoSwitch::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            AutoSwitch::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            AutoSwitch::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        raw.type_k = kv_type(params.kv_type_k);
        raw.type_v = kv_type(params.kv_type_v);
        // Each sequence has a part of its own: with long separate contexts that decodes 40 to 60 % faster than one
        // shared pool, and no sequence can starve another. Vectors are made of many short sequences at once, which
        // share a pool instead.
        raw.kv_unified = purpose == ContextPurpose::Embed;
        raw.embeddings = purpose == ContextPurpose::Embed;
        // A sliding-window layer keeps its window, not the whole context. llama.cpp's default is the whole,
        // llama-server's is this.
        raw.swa_full = false;
        raw.no_perf = true;
        let context = Self::allocate(Arc::clone(&model), raw)?;
        if purpose == ContextPurpose::Embed && context.pooling() == sys::LLAMA_POOLING_TYPE_NONE {
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

    fn allocate(model: Arc<Model>, params: sys::llama_context_params) -> Result<Self, LlamaError> {
        let creation = model.context_creation.lock().unwrap_or_else(PoisonError::into_inner);
        backend::forget_errors();
        // SAFETY: the model is valid and kept alive by this value; no other context of it is made at the same time.
        let context = unsafe { sys::llama_init_from_model(layout::model_ptr(&model.inner), params) };
        drop(creation);
        let raw = NonNull::new(context).ok_or_else(|| {
            let reason = backend::first_error("llama.cpp could not allocate the context");
            LlamaError::Context(reason)
        })?;
        adapter::apply(raw, &model.adapters);
        Ok(Self { raw, model })
    }

    /// Returns the way in which the vectors of a sequence's tokens become one.
    fn pooling(&self) -> sys::llama_pooling_type {
        // SAFETY: the context is valid.
        unsafe { sys::llama_pooling_type(self.raw.as_ptr()) }
    }

    /// Returns the number of elements of a sequence's vector.
    fn vector_width(&self) -> usize {
        let model = &self.model.inner;
        // A classifier gives one number for each of its labels.
        if self.pooling() == sys::LLAMA_POOLING_TYPE_RANK {
            model.n_cls_out() as usize
        } else {
            model.n_embd_out().try_into().unwrap_or(0)
        }
    }

    /// Returns the vector of a sequence of the last batch; `None` in a context that makes none.
    #[must_use]
    pub fn embedding(&self, sequence: i32) -> Option<&[f32]> {
        // SAFETY: llama.cpp returns NULL for a sequence that the last batch did not have; otherwise the vector has this
        // width and stays until the next decode, which needs `&mut self`.
        unsafe {
            let vector = sys::llama_get_embeddings_seq(self.raw.as_ptr(), sequence);
            (!vector.is_null()).then(|| std::slice::from_raw_parts(vector, self.vector_width()))
        }
    }

    /// Empties the cache of all sequences.
    pub fn clear(&mut self) {
        // Only the cells are marked as free. `LlamaContext::clear_kv_cache` of llama-cpp-2 also overwrites the whole
        // cache, hundreds of megabytes with some embedding models, and this happens before each batch of texts.
        let overwrite = false;
        // SAFETY: the memory belongs to this context, or is NULL in models without a cache, which is ignored.
        unsafe { sys::llama_memory_clear(self.memory(), overwrite) };
    }

    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Returns the context length of one sequence in tokens, as allocated.
    #[must_use]
    pub fn context_length(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { sys::llama_n_ctx_seq(self.raw.as_ptr()) }
    }

    /// Returns the number of tokens that one batch may hold.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        // SAFETY: the context is valid.
        unsafe { sys::llama_n_batch(self.raw.as_ptr()) as usize }
    }

    /// Waits until the last decode is done. On a GPU `llama_decode` returns before that, and reading logits waits too;
    /// this is for those who measure time.
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
    /// [`LlamaError::CacheFull`], which leaves the cache as it was, or [`LlamaError::Decode`].
    pub fn decode(&mut self, batch: &mut Batch) -> Result<(), LlamaError> {
        backend::forget_errors();
        // SAFETY: the arrays live in `batch`, which outlives the call; their lengths are equal to `n_tokens`.
        match unsafe { sys::llama_decode(self.raw.as_ptr(), batch.raw()) } {
            0 => Ok(()),
            1 => Err(LlamaError::CacheFull),
            status => Err(LlamaError::Decode {
                status,
                reason: backend::first_error("its log holds no reason"),
            }),
        }
    }

    /// Returns the logits of the batch's token at `index`, one for each token of the vocabulary; `None` if it was added
    /// without.
    // `LlamaContext::get_logits_ith` panics instead of returning `None`.
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

    /// Removes positions `from..to` of a sequence; a negative `to` is the end. Returns false if this kind of cache
    /// cannot.
    pub fn remove(&mut self, sequence: i32, from: i32, to: i32) -> bool {
        // SAFETY: the memory belongs to this context.
        unsafe { sys::llama_memory_seq_rm(self.memory(), sequence, from, to) }
    }

    /// Replaces the content of sequence `to` by that of sequence `from`.
    pub fn copy_sequence(&mut self, from: i32, to: i32) {
        self.remove(to, -1, -1);
        // All positions: in a cache that is split between sequences, `llama_kv_cache::seq_cp` aborts the process on a
        // part of a sequence.
        // SAFETY: the memory belongs to this context.
        unsafe { sys::llama_memory_seq_cp(self.memory(), from, to, -1, -1) };
    }

    /// Moves positions `from..to` of a sequence by `delta`. Requires [`Context::can_shift`].
    pub fn shift(&mut self, sequence: i32, from: i32, to: i32, delta: i32) {
        // SAFETY: the memory belongs to this context.
        unsafe { sys::llama_memory_seq_add(self.memory(), sequence, from, to, delta) };
    }

    /// True if positions can be moved.
    #[must_use]
    pub fn can_shift(&self) -> bool {
        // SAFETY: the memory belongs to this context.
        unsafe { sys::llama_memory_can_shift(self.memory()) }
    }

    /// Returns the smallest position that a sequence still holds; -1 if it is empty.
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
