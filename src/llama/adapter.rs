//! LoRA adapters on top of a model's weights.

use std::{ffi::CString, path::Path, ptr::NonNull};

use llama_cpp_sys_2 as sys;

use super::{Model, backend};

/// An adapter that belongs to its model, which frees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoraAdapter {
    raw: NonNull<sys::llama_adapter_lora>,
    scale: f32,
}

impl Model {
    /// Loads an adapter. Contexts that are made of the model from now on apply it, `scale` times as strongly as its file says.
    ///
    /// # Errors
    /// llama.cpp's own sentence.
    pub fn add_adapter(&mut self, path: &Path, scale: f32) -> Result<(), String> {
        let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "the path holds a NUL".to_owned())?;
        backend::forget_errors();
        // SAFETY: the model is valid and nobody reads it meanwhile; the path is NUL-terminated and outlives the call.
        let adapter = unsafe { sys::llama_adapter_lora_init(self.as_ptr(), path.as_ptr()) };
        let Some(raw) = NonNull::new(adapter) else {
            let reason = backend::first_error();
            return Err(if reason.is_empty() {
                "llama.cpp could not load the adapter".to_owned()
            } else {
                reason
            });
        };
        self.adapters.push(LoraAdapter { raw, scale });
        Ok(())
    }
}

/// Lets a context apply adapters of its model.
pub(super) fn apply(context: NonNull<sys::llama_context>, adapters: &[LoraAdapter]) {
    let mut pointers: Vec<_> = adapters.iter().map(|adapter| adapter.raw.as_ptr()).collect();
    let mut scales: Vec<f32> = adapters.iter().map(|adapter| adapter.scale).collect();
    if !pointers.is_empty() {
        // SAFETY: the context and the adapters belong to one model, which lives as long as they; both lists have one entry for
        // each adapter, and are only read during the call.
        unsafe {
            sys::llama_set_adapters_lora(
                context.as_ptr(),
                pointers.as_mut_ptr(),
                pointers.len(),
                scales.as_mut_ptr(),
            )
        };
    }
}
