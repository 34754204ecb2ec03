//! LoRA adapters on top of a model's weights.

use std::{path::Path, ptr::NonNull};

use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_sys_2 as sys;

use super::{LlamaError, backend, layout};

/// Adapter with the strength that it is applied with. It stays in its [`Model`](super::Model), because llama.cpp frees
/// it with the model and [`LlamaLoraAdapter`] has no lifetime that says so.
#[derive(Debug)]
pub(super) struct ScaledAdapter {
    adapter: LlamaLoraAdapter,
    scale: f32,
}

impl ScaledAdapter {
    /// Loads an adapter for a model from a GGUF file.
    ///
    /// # Errors
    /// [`LlamaError::Adapter`] if llama.cpp cannot load the file or it does not fit the model.
    pub(super) fn load(model: &mut LlamaModel, path: &Path, scale: f32) -> Result<Self, LlamaError> {
        backend::forget_errors();
        let adapter = model.lora_adapter_init(path).map_err(|_| {
            let reason = backend::first_error("llama.cpp could not load the adapter");
            LlamaError::Adapter(reason)
        })?;
        Ok(Self { adapter, scale })
    }
}

/// Makes a context apply adapters of its model.
pub(super) fn apply(context: NonNull<sys::llama_context>, adapters: &[ScaledAdapter]) {
    if adapters.is_empty() {
        return;
    }
    // All in one call: `llama_set_adapters_lora` replaces what was set before, so `LlamaContext::lora_adapter_set` of
    // llama-cpp-2, which passes a single adapter, leaves only the last of several in force.
    let mut pointers: Vec<_> = adapters.iter().map(|it| layout::adapter_ptr(&it.adapter)).collect();
    let mut scales: Vec<f32> = adapters.iter().map(|it| it.scale).collect();
    // SAFETY: the context and the adapters belong to one model, which lives as long as they; both lists have one entry
    // for each adapter, and are only read during the call.
    unsafe {
        sys::llama_set_adapters_lora(
            context.as_ptr(),
            pointers.as_mut_ptr(),
            pointers.len(),
            scales.as_mut_ptr(),
        )
    };
}
